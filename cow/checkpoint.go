package cow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

const (
	checkpointName = "checkpoint"
	checkpointTmp  = "checkpoint.tmp"
)

// A checkpoint replaces the journal by the delta that it led to, while operations go on.
//
//	before:  checkpoint C, journal.N
//	0 commit first while operations go on, then fsync what has come since under op: so that from here on only the last
//	         journal can have a torn tail
//	1 create checkpoint.tmp: "the delta after record S, continue with journal.N+1"
//	2 create journal.N+1, empty: it continues journal.N, and takes all records from here on
//	3 write  all nodes as they were after S into checkpoint.tmp, some at a time, and those that are about to change
//	         before they do
//	4 fsync  the data that its nodes show, checkpoint.tmp, rename it to checkpoint, fsync the directory
//	         <- from here on the new one counts, and S is committed
//	5 remove journal.N
//
// A crash, or an error, before 2 is done leaves C and journal.N; before 4, C and both journals, which is the same
// state; after it, the new checkpoint and a journal.N that recovery, or the next checkpoint, removes.

// maybeCheckpoint begins to compact a journal that has grown long. It needs op.
func (f *FS) maybeCheckpoint() {
	if f.compacting || f.closed || f.journal.size() < f.checkpointDue {
		return
	}
	f.compacting = true
	f.background.Add(1)
	go f.compact()
}

func (f *FS) compact() {
	defer f.background.Done()
	err := f.commit()
	f.op.Lock()
	if err == nil && !f.closed {
		err = f.checkpointSlowly()
	}
	f.compacting = false
	if err != nil {
		// Nothing is lost, the journal just goes on.
		f.checkpointDue = f.journal.size() + f.opts.CheckpointBytes
		f.opts.Log.Warn("the journal is not compacted", "error", err)
	}
	f.op.Unlock()
	f.reap()
}

// checkpointSlowly writes one and gives up op in between. It needs op.
func (f *FS) checkpointSlowly() error {
	c, err := f.startCheckpoint()
	if err != nil {
		return err
	}
	f.dumpNodes(c, true)
	if err = f.endDump(c); err == nil {
		f.op.Unlock()
		err = f.publish(c)
		f.op.Lock()
	}
	f.endCheckpoint(c, err)
	return err
}

// checkpoint writes one from beginning to end. It needs op.
func (f *FS) checkpoint() error {
	c, err := f.startCheckpoint()
	if err != nil {
		return err
	}
	f.dumpNodes(c, false)
	if err = f.endDump(c); err == nil {
		err = f.publish(c)
	}
	f.endCheckpoint(c, err)
	return err
}

// checkpoint is one on its way. Guarded by op until endDump.
type checkpoint struct {
	frameWriter
	gen  uint64 // of the first journal that is not in it
	seq  uint64 // of the last record that is
	next Ino    // FS.next after that
}

// startCheckpoint is steps 0 to 2. It needs op.
func (f *FS) startCheckpoint() (*checkpoint, error) {
	old := f.journal
	lost := old.sync()
	c, err := f.beginDump(old.gen+1, old.last())
	if err != nil {
		return nil, err
	}
	next, err := createJournal(f.disk, f.treeID, f.boot, c.gen, c.seq)
	if err != nil {
		f.dump = nil
		f.markDumped()
		c.file.close()
		return nil, err
	}
	next.failed = lost // until the checkpoint makes up for it
	f.jmu.Lock()
	f.journal = next
	f.jmu.Unlock()
	old.retire()
	return c, nil
}

// beginDump is step 1: from here on nodes are dumped before they change. It needs op.
func (f *FS) beginDump(gen, seq uint64) (*checkpoint, error) {
	file, err := f.disk.create("create checkpoint", checkpointTmp, unix.O_TRUNC)
	if err != nil {
		return nil, fmt.Errorf("create checkpoint: %w", err)
	}
	f.freed.mu.Lock()
	defer f.freed.mu.Unlock()
	h := header{
		magic: checkpointMagic, tree: f.treeID, gen: gen, seq: seq, salt: rand.Uint64(),
		count: uint64(len(f.nodes) + len(f.freed.ended)),
	}
	c := &checkpoint{gen: gen, seq: seq, next: f.next}
	c.frameWriter = frameWriter{file: file, sum: saltSum(h.salt), buf: h.encode()}
	c.startFrame()
	c.bitmap(tagDead, unionfs.Root, f.dead)
	for _, n := range f.freed.ended {
		c.node(n)
	}
	f.dumpSession(c)
	f.dump = c
	f.dumpMark = !f.dumpMark
	return c, nil
}

// dumpNow dumps a node that the checkpoint that is on its way does not have yet. It needs op.
func (f *FS) dumpNow(n *node) {
	if f.dump == nil || n.dumped == f.dumpMark {
		return
	}
	f.dump.node(n)
	n.dumped = f.dumpMark
	if b := f.backings[n.ino]; b != nil && n.flags&flagBacking != 0 {
		f.dump.buf = binary.AppendUvarint(append(f.dump.buf, tagBacking), n.ino)
		f.dump.buf = appendTime(f.dump.buf, b.mtime.Sec, b.mtime.Nsec)
		f.dump.room()
	}
}

// dumpSlice is how long op is held at a time.
const dumpSlice = time.Millisecond

// dumpNodes is step 3; with pauses, operations go on. It needs op.
func (f *FS) dumpNodes(c *checkpoint, pauses bool) {
	start, i := time.Now(), 0
	for _, n := range f.nodes { // a map may change between two steps of a loop over it
		f.dumpNow(n)
		c.flushLong()
		if i++; pauses && i%64 == 0 && time.Since(start) > dumpSlice {
			f.op.Unlock()
			runtime.Gosched()
			f.op.Lock()
			start = time.Now()
		}
	}
}

// endDump ends step 3. It needs op.
func (f *FS) endDump(c *checkpoint) error {
	f.dump = nil
	if c.err != nil {
		f.markDumped()
	}
	if len(c.buf) == c.at+frameHeader {
		c.buf = c.buf[:c.at]
	} else {
		c.endFrame()
	}
	c.startFrame()
	c.buf = binary.AppendUvarint(append(c.buf, tagEnd), c.next)
	c.endFrame()
	c.flush()
	if c.err != nil {
		c.file.close()
		return fmt.Errorf("write checkpoint: %w", c.err)
	}
	return nil
}

// markDumped makes the marks of all nodes the same after a dump that did not come to its end. It needs op.
func (f *FS) markDumped() {
	for _, n := range f.nodes {
		n.dumped = f.dumpMark
	}
}

// publish is steps 4 and 5. It needs no lock.
func (f *FS) publish(c *checkpoint) error {
	if err := f.syncData(true); err != nil {
		c.file.close()
		return err
	}
	return f.publishDump(c)
}

func (f *FS) publishDump(c *checkpoint) error {
	err := c.file.sync("sync checkpoint")
	c.file.close()
	if err == nil {
		err = f.disk.rename(checkpointTmp, checkpointName)
	}
	if err == nil {
		err = f.disk.syncDir(".")
	}
	if err == nil {
		err = removeJournals(f.disk, c.gen)
	}
	if err != nil {
		return fmt.Errorf("publish checkpoint: %w", err)
	}
	return nil
}

// endCheckpoint takes note of one that is published, or is not. It needs op.
func (f *FS) endCheckpoint(c *checkpoint, err error) {
	if err != nil {
		return
	}
	f.journal.recovered()
	f.checkpointAt = c.seq
	f.checkpointDue = max(f.opts.CheckpointBytes, 2*c.off)
	f.marked = max(f.marked, c.seq)
	f.committedUpTo(c.seq)
}

// removeJournals removes all generations before gen.
func removeJournals(d *disk, gen uint64) error {
	gens, err := journals(d)
	if err != nil {
		return err
	}
	for _, g := range gens {
		if g >= gen {
			break
		}
		if err := d.remove("remove journal", journalName(g)); err != nil {
			return err
		}
	}
	return nil
}

// frameWriter writes frames one after the other. After an error it does nothing.
type frameWriter struct {
	file *file
	sum  uint32
	seq  uint64
	off  int64
	buf  []byte // not written yet
	at   int    // where in buf the current frame starts
	err  error
}

const (
	frameTarget = 64 << 10 // bytes of payload after which a frame ends
	flushTarget = 1 << 20  // bytes after which buf is written
)

// room ends the frame if it is long enough. It is called between two changes.
func (w *frameWriter) room() {
	if len(w.buf)-w.at-frameHeader < frameTarget {
		return
	}
	w.endFrame()
	w.startFrame()
}

// flushLong writes what has gathered, but for the frame that is not ended.
func (w *frameWriter) flushLong() {
	if w.at < flushTarget {
		return
	}
	rest := slices.Clone(w.buf[w.at:])
	w.buf = w.buf[:w.at]
	w.flush()
	w.buf, w.at = append(w.buf, rest...), 0
}

func (w *frameWriter) startFrame() {
	w.at = len(w.buf)
	w.buf = append(w.buf, make([]byte, frameHeader)...)
}

func (w *frameWriter) endFrame() {
	w.seq++
	seal(w.buf[w.at:], w.seq, w.sum)
}

func (w *frameWriter) flush() {
	if w.err == nil {
		_, w.err = w.file.write("write checkpoint", w.buf, w.off)
	}
	w.off += int64(len(w.buf))
	w.buf = w.buf[:0]
}

// node writes all that is known of an inode.
func (w *frameWriter) node(n *node) {
	w.buf = binary.AppendUvarint(append(w.buf, tagNode), n.ino)
	for _, v := range [...]uint64{uint64(n.flags & flagsKept), uint64(n.mode), uint64(n.nlink), uint64(n.uid), uint64(n.gid), n.val} {
		w.buf = binary.AppendUvarint(w.buf, v)
	}
	for i := range n.sec {
		w.buf = appendTime(w.buf, n.sec[i], n.nsec[i])
	}
	if n.slot != 0 {
		w.buf = binary.AppendUvarint(append(w.buf, tagSlot), n.ino)
		w.buf = binary.AppendUvarint(w.buf, uint64(n.slot.unit()))
		w.buf = binary.AppendUvarint(w.buf, uint64(n.slot.class()))
	}
	w.room()
	if n.x == nil {
		return
	}
	for _, x := range n.x.xattrs {
		w.xattr(n.ino, &x)
	}
	if n.x.target != "" {
		w.buf = appendString(binary.AppendUvarint(append(w.buf, tagTarget), n.ino), n.x.target)
		w.room()
	}
	if n.x.runs != nil {
		w.runs(n.ino, n.x.runs)
	}
	if n.x.dir != nil {
		w.dir(n.ino, n.x.dir)
	}
}

func (w *frameWriter) xattr(ino Ino, x *xattr) {
	tag := byte(tagXattr)
	if x.value == nil {
		tag = tagNoXattr
	}
	w.buf = appendString(binary.AppendUvarint(append(w.buf, tag), ino), x.name)
	if x.value != nil {
		w.buf = append(binary.AppendUvarint(w.buf, uint64(len(x.value))), x.value...)
	}
	w.room()
}

func (w *frameWriter) runs(ino Ino, x *extents) {
	for _, leaf := range x.leaves {
		w.buf = binary.AppendUvarint(append(w.buf, tagRuns), ino)
		w.buf = binary.AppendUvarint(w.buf, uint64(len(leaf)))
		var pos int64
		for _, r := range leaf {
			w.buf = binary.AppendUvarint(w.buf, uint64(r.off-pos))
			w.buf = binary.AppendUvarint(w.buf, uint64(r.end-r.off))
			pos = r.end
		}
		w.room()
	}
}

func (w *frameWriter) dir(ino Ino, d *dirDelta) {
	w.buf = binary.AppendUvarint(append(w.buf, tagDir), ino)
	w.buf = binary.AppendUvarint(w.buf, d.next)
	w.buf = binary.AppendUvarint(w.buf, uint64(d.live))
	w.room()
	w.bitmap(tagHidden, ino, d.hidden)
	for ents := d.ents; len(ents) > 0; w.room() {
		part := ents[:min(leafMax, len(ents))]
		ents = ents[len(part):]
		w.buf = binary.AppendUvarint(append(w.buf, tagEnts), ino)
		w.buf = binary.AppendUvarint(w.buf, uint64(len(part)))
		for i := range part {
			w.buf = binary.AppendUvarint(w.buf, part[i].seq)
			w.buf = binary.AppendUvarint(w.buf, part[i].ref)
			w.buf = appendString(w.buf, part[i].name)
		}
	}
}

// bitmap writes the words of a set, some thousand at a time.
func (w *frameWriter) bitmap(tag byte, ino Ino, b bitmap) {
	at := 0
	for words := range slices.Chunk(b, 4096) {
		w.buf = binary.AppendUvarint(append(w.buf, tag), ino)
		w.buf = binary.AppendUvarint(w.buf, uint64(at))
		w.buf = binary.AppendUvarint(w.buf, uint64(len(words))*8)
		for _, word := range words {
			w.buf = binary.LittleEndian.AppendUint64(w.buf, word)
		}
		at += len(words)
		w.room()
	}
}

// readCheckpoint applies the checkpoint in b.
func (f *FS) readCheckpoint(b []byte, h *header) error {
	f.nodes = make(map[Ino]*node, min(h.count, uint64(len(b)/16)))
	ended := false
	end, err := readFrames(b, checkpointName, &header{salt: h.salt}, false, func(_ uint64, payload []byte) error {
		if ended {
			return errors.New("it goes on after its end")
		}
		if payload[0] == tagEnd {
			d := dec{p: payload[1:]}
			f.next = max(f.next, d.u())
			ended = !d.bad && len(d.p) == 0
			return nil
		}
		return f.apply(payload)
	})
	if h.version < 2 { // which has no pack
		f.allInObjects()
	}
	switch {
	case err != nil:
		return err
	case !ended:
		return &DamageError{checkpointName, end, "it is cut off"}
	case uint64(len(f.nodes)) != h.count:
		return &DamageError{checkpointName, end, fmt.Sprintf("it has %d inodes and should have %d", len(f.nodes), h.count)}
	}
	return nil
}

// allInObjects says that content that is not the image's is in data objects.
func (f *FS) allInObjects() {
	for _, n := range f.nodes {
		if n.isRegular() && (n.flags&flagPlain != 0 || n.runs() != nil) {
			n.flags |= flagObject
		}
	}
}
