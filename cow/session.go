package cow

import (
	"encoding/binary"
	"slices"

	"github.com/veneerfs/veneer/unionfs"
)

// A session is the time of one mount. Within it a server may be killed and another one go on in its place, while the kernel keeps what it
// has open and asks once more for what was not answered. Two things have to be known then that a restart does not need:
//
//	which requests were executed   An operation that fails when it is done twice has its request in its record (tagExecuted).
//	which inodes have ended        FORGET writes nothing; the next record, whatever it is, says what has ended since the last
//	                               (tagGone). Before that nothing of it can be another's, so it does no harm if it lives again.
//
// An inode that FORGET ended after the last record, and one whose FORGET was under way, is kept until the session ends.

// session is what the records say of one.
type session struct {
	id       uint64 // of the last record that says one
	executed executed
	// gone are inodes that have ended and of which no record says so.
	gone []Ino
	// goesOn: the records that recovery found end in our own session.
	goesOn bool
}

// rememberedRequests is how many executed requests are known. The kernel asks again only for what was not answered, and a request
// is answered by who executes it, right after: so it is one of the last as many as there are threads.
const rememberedRequests = 4096

// executed are the last requests that were, by their number.
type executed struct {
	ring []uint64
	next int
}

func (e *executed) add(request uint64) {
	if len(e.ring) < rememberedRequests {
		e.ring = append(e.ring, request)
		return
	}
	e.ring[e.next] = request
	e.next = (e.next + 1) % rememberedRequests
}

// all lists them in the order of their execution.
func (e *executed) all() []uint64 { return append(slices.Clone(e.ring[e.next:]), e.ring[:e.next]...) }

// Executed reports whether a request of this session was executed, by us or by a server before us. Then its operation had no error.
func (f *FS) Executed(request uint64) bool {
	f.op.Lock()
	defer f.op.Unlock()
	return f.opts.Session != 0 && f.session.id == f.opts.Session && slices.Contains(f.session.executed.ring, request)
}

// lives reports whether the kernel may have an inode without a name open, at recovery.
func (f *FS) lives(n *node) bool { return f.session.goesOn && n.flags&flagGone == 0 }

// maxGone is how many inodes a record says are gone, so that it stays short.
const maxGone = 4096

// sign says in a record of which session and request it is, and what has ended since the last one.
func (t *tx) sign() {
	s, id := &t.f.session, t.f.opts.Session
	if id == 0 {
		return
	}
	if s.id != id {
		t.tag(tagSession, unionfs.Root)
		t.u(id)
	}
	if t.request != 0 {
		t.tag(tagExecuted, unionfs.Root)
		t.u(t.request)
	}
	if t.gone = min(len(s.gone), maxGone); t.gone > 0 {
		t.tag(tagGone, unionfs.Root)
		t.u(uint64(t.gone))
		for _, ino := range s.gone[:t.gone] {
			t.u(ino)
		}
	}
}

// noteGone has the next record say that n has ended. It needs st and op.
func (f *FS) noteGone(n *node) {
	if f.opts.Session != 0 && n.flags&flagGone == 0 {
		f.session.gone = append(f.session.gone, n.ino)
	}
	n.flags |= flagGone
}

// applyGone is for recovery: who writes the record has ended them before.
func (f *FS) applyGone(d *dec) {
	for range d.length(int64(len(d.p))) {
		if n := f.nodes[d.u()]; n != nil && n.nlink == 0 {
			n.flags |= flagGone
		}
	}
}

// dumpSession writes what the session knows into a checkpoint, unless it is over. It needs op.
func (f *FS) dumpSession(c *checkpoint) {
	if f.closed || f.session.id == 0 {
		return
	}
	c.buf = binary.AppendUvarint(append(c.buf, tagSession), unionfs.Root)
	c.buf = binary.AppendUvarint(c.buf, f.session.id)
	for _, request := range f.session.executed.all() {
		c.buf = binary.AppendUvarint(append(c.buf, tagExecuted), unionfs.Root)
		c.buf = binary.AppendUvarint(c.buf, request)
		c.room()
	}
}
