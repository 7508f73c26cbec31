package cow

import (
	"encoding/binary"
	"errors"
	"syscall"

	"github.com/veneerfs/veneer/unionfs"
)

// tx is one operation on its way into the journal: it holds op from begin to end. What it stages becomes one
// record; commit writes that, and then applies it by the same code that replays it after a crash.
type tx struct {
	f      *FS
	now    unionfs.Time
	buf    []byte // a frame: room for its header, then changes
	staged [6]staged
	n      int
	// touched is the inode that a data or resize of this record gives the mtime and ctime of now.
	touched Ino
	frees   bool // the operation makes room on a disk that may be full
	// request of the kernel that must not be executed twice, else 0; gone is how many of FS.gone the record says.
	request uint64
	gone    int
	// reserved of the quota, until end.
	reserved Usage
}

type staged struct {
	ino  Ino
	meta meta
}

// begin starts an operation that changes something. The caller ends it.
func (f *FS) begin() (*tx, error) {
	if f.ro {
		return nil, syscall.EROFS
	}
	f.op.Lock()
	if f.closed {
		f.op.Unlock()
		return nil, syscall.EIO
	}
	return f.fill(), nil
}

// fill starts a record. It needs op.
func (f *FS) fill() *tx {
	t := &f.tx
	t.now = f.opts.Clock()
	t.buf = append(t.buf[:0], make([]byte, frameHeader)...)
	t.n, t.touched, t.frees, t.reserved, t.request, t.gone = 0, 0, false, Usage{}, 0, 0
	return t
}

func (t *tx) end() {
	t.f.usage.release(t.reserved)
	t.reserved = Usage{}
	if cap(t.buf) > 64<<10 {
		t.buf = nil
	}
	t.f.op.Unlock()
}

// edit returns the attributes of an inode to change; commit writes what then differs.
// A regular file's size is not changed this way, but by data and resize.
func (t *tx) edit(ino Ino) (*meta, error) {
	for i := range t.staged[:t.n] {
		if t.staged[i].ino == ino {
			return &t.staged[i].meta, nil
		}
	}
	m, err := t.f.peek(ino)
	if err != nil {
		return nil, err
	}
	if ino == t.touched {
		m.touch(t.now)
	}
	if b := t.f.backings[ino]; b != nil {
		if err := t.fold(ino, b); err != nil {
			return nil, err
		}
	}
	t.staged[t.n] = staged{ino, m}
	t.n++
	return &t.staged[t.n-1].meta, nil
}

func (t *tx) tag(tag byte, ino Ino) { t.buf = binary.AppendUvarint(append(t.buf, tag), ino) }
func (t *tx) u(v uint64)            { t.buf = binary.AppendUvarint(t.buf, v) }
func (t *tx) str(s string)          { t.buf = appendString(t.buf, s) }
func (t *tx) time(v unionfs.Time)   { t.buf = appendTime(t.buf, v.Sec, v.Nsec) }

// create makes a new inode with the times of now and returns its number.
func (t *tx) create(m meta) (Ino, error) {
	ino := t.f.next
	if ino >= maxIno {
		return 0, syscall.ENOSPC
	}
	t.tag(tagNew, ino)
	for _, v := range [...]uint64{uint64(m.mode), uint64(m.nlink), uint64(m.uid), uint64(m.gid), m.val} {
		t.u(v)
	}
	t.time(t.now)
	return ino, nil
}

func (t *tx) link(dir Ino, name string, ino Ino, typ uint32) {
	t.tag(tagLink, dir)
	t.str(name)
	t.u(ino)
	t.u(uint64(typ))
}

func (t *tx) unlink(dir Ino, name string) {
	t.tag(tagUnlink, dir)
	t.str(name)
}

func (t *tx) setXattr(ino Ino, name string, value []byte) {
	t.tag(tagXattr, ino)
	t.str(name)
	t.u(uint64(len(value)))
	t.buf = append(t.buf, value...)
}

func (t *tx) removeXattr(ino Ino, name string) {
	t.tag(tagNoXattr, ino)
	t.str(name)
}

func (t *tx) target(ino Ino, target string) {
	t.tag(tagTarget, ino)
	t.str(target)
}

// data says that [off,off+n) is in the data object now; hole, that it may have holes.
func (t *tx) data(ino Ino, off, n int64, hole bool) {
	tag := byte(tagData)
	if hole {
		tag = tagHole
	}
	t.tag(tag, ino)
	t.u(uint64(off))
	t.u(uint64(n))
	t.time(t.now)
	t.touched = ino
}

// slot says that the content is in a slot of the pack now.
func (t *tx) slot(ino Ino, s slot) {
	t.tag(tagSlot, ino)
	t.u(uint64(s.unit()))
	t.u(uint64(s.class()))
}

func (t *tx) resize(ino Ino, size int64) {
	t.tag(tagResize, ino)
	t.u(uint64(size))
	t.time(t.now)
	t.touched = ino
}

// commit writes the record and makes it true. After an error nothing has changed.
func (t *tx) commit() error {
	f := t.f
	for i := range t.staged[:t.n] {
		s := &t.staged[i]
		old, err := f.peek(s.ino)
		if err != nil {
			return err
		}
		if s.ino == t.touched {
			old.touch(t.now)
		}
		t.buf = appendAttr(t.buf, s.ino, &old, &s.meta)
	}
	if len(t.buf) == frameHeader {
		return nil
	}
	t.sign()
	if err := t.append(); err != nil {
		return err
	}
	f.session.gone = f.session.gone[t.gone:]
	f.changed.Store(f.journal.last())
	f.st.Lock()
	err := f.apply(t.buf[frameHeader:])
	f.st.Unlock()
	if err != nil {
		panic("cow: a record of our own does not apply: " + err.Error())
	}
	f.maybeCheckpoint()
	f.uncommitted()
	return nil
}

// append writes the record.
func (t *tx) append() error {
	f := t.f
	err := f.journal.append(t.buf, t.frees)
	if errors.Is(err, syscall.ENOSPC) && f.reclaimLocked() {
		err = f.journal.append(t.buf, t.frees)
	}
	return err
}
