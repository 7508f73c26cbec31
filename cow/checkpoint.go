package cow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"

	"github.com/veneerfs/veneer/unionfs"
)

const (
	checkpointName = "checkpoint"
	checkpointTmp  = "checkpoint.tmp"
)

// A checkpoint replaces the journal by the delta that it led to.
//
//	before:  checkpoint C, journal.N
//	0 fsync  journal.N, first while operations go on, then what has come since under op: so that from here on only
//	         the last journal can have a torn tail
//	1 write  checkpoint.tmp: all of the delta, "continue with journal.N+1"
//	2 create journal.N+1, empty: it continues journal.N, and takes all records from here on. op is given up
//	3 fsync  checkpoint.tmp, rename it to checkpoint, fsync the directory     <- from here on the new one counts
//	4 remove journal.N
//
// A crash, or an error, before 2 is done leaves C and journal.N; before 3, C and both journals, which is the same
// state; after it, the new checkpoint and a journal.N that recovery, or the next checkpoint, removes.

// maybeCheckpoint begins to compact a journal that has grown long. It needs op.
func (f *FS) maybeCheckpoint() {
	if f.compacting || f.closed || f.journal.size() < f.checkpointDue {
		return
	}
	f.compacting = true
	f.compactor.Add(1)
	go f.compact()
}

func (f *FS) compact() {
	defer f.compactor.Done()
	err := f.syncJournal()
	f.op.Lock()
	defer f.op.Unlock()
	f.compacting = false
	if err == nil && !f.closed {
		var c *checkpoint
		if c, err = f.startCheckpoint(); err == nil {
			f.compacting = true
			f.op.Unlock()
			err = c.publish()
			f.op.Lock()
			f.compacting = false
			f.endCheckpoint(c, err)
		}
	}
	if err != nil {
		// Nothing is lost, the journal just goes on.
		f.checkpointDue = f.journal.size() + f.opts.CheckpointBytes
		f.opts.Log.Warn("the journal is not compacted", "error", err)
	}
}

// checkpoint is one on its way.
type checkpoint struct {
	disk *disk
	file *os.File // checkpoint.tmp, written
	size int64
	gen  uint64 // of the first journal that is not in it
	seq  uint64 // of the last record that is
}

// checkpoint writes one from beginning to end. It needs op.
func (f *FS) checkpoint() error {
	c, err := f.startCheckpoint()
	if err != nil {
		return err
	}
	err = c.publish()
	f.endCheckpoint(c, err)
	return err
}

// startCheckpoint is steps 0 to 2. It needs op.
func (f *FS) startCheckpoint() (*checkpoint, error) {
	old := f.journal
	lost := old.sync()
	c := &checkpoint{disk: f.disk, gen: old.gen + 1, seq: old.seq}
	if err := f.writeCheckpoint(c); err != nil {
		return nil, fmt.Errorf("write checkpoint: %w", err)
	}
	next, err := createJournal(f.disk, f.treeID, c.gen, c.seq)
	if err != nil {
		c.file.Close()
		return nil, err
	}
	next.failed = lost // until the checkpoint makes up for it
	f.jmu.Lock()
	f.journal = next
	f.jmu.Unlock()
	old.retire()
	return c, nil
}

// publish is steps 3 and 4. It needs no lock.
func (c *checkpoint) publish() error {
	err := c.disk.sync("sync checkpoint", c.file)
	c.file.Close()
	if err == nil {
		err = c.disk.rename(checkpointTmp, checkpointName)
	}
	if err == nil {
		err = c.disk.syncDir(".")
	}
	if err == nil {
		err = removeJournals(c.disk, c.gen)
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
	f.checkpointDue = max(f.opts.CheckpointBytes, 2*c.size)
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
		if err := d.remove(journalName(g)); err != nil {
			return err
		}
	}
	return nil
}

// writeCheckpoint is step 1. It needs op.
func (f *FS) writeCheckpoint(c *checkpoint) (err error) {
	if c.file, err = f.disk.create(checkpointTmp); err != nil {
		return err
	}
	h := header{magic: checkpointMagic, tree: f.treeID, gen: c.gen, seq: c.seq, salt: rand.Uint64(), count: uint64(len(f.nodes))}
	w := &frameWriter{disk: f.disk, file: c.file, sum: saltSum(h.salt), buf: h.encode()}
	w.startFrame()
	w.bitmap(tagDead, unionfs.Root, f.dead)
	for ino, n := range f.nodes {
		w.node(n)
		if b := f.backings[ino]; b != nil && n.flags&flagBacking != 0 {
			w.buf = binary.AppendUvarint(append(w.buf, tagBacking), ino)
			w.buf = appendTime(w.buf, b.mtime.Sec, b.mtime.Nsec)
			w.room()
		}
	}
	if len(w.buf) == w.at+frameHeader {
		w.buf = w.buf[:w.at]
	} else {
		w.endFrame()
	}
	w.startFrame()
	w.buf = binary.AppendUvarint(append(w.buf, tagEnd), f.next)
	w.endFrame()
	w.flush()
	if c.size = w.off; w.err != nil {
		c.file.Close()
	}
	return w.err
}

// frameWriter writes frames one after the other. After an error it does nothing.
type frameWriter struct {
	disk *disk
	file *os.File
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
	if len(w.buf) >= flushTarget {
		w.flush()
	}
	w.startFrame()
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
		w.err = w.disk.write("write checkpoint", w.file, w.buf, w.off)
	}
	w.off += int64(len(w.buf))
	w.buf = w.buf[:0]
}

// node writes all that is known of an inode.
func (w *frameWriter) node(n *node) {
	w.buf = binary.AppendUvarint(append(w.buf, tagNode), n.ino)
	for _, v := range [...]uint64{uint64(n.flags &^ flagBacking), uint64(n.mode), uint64(n.nlink), uint64(n.uid), uint64(n.gid), n.val} {
		w.buf = binary.AppendUvarint(w.buf, v)
	}
	for i := range n.sec {
		w.buf = appendTime(w.buf, n.sec[i], n.nsec[i])
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
