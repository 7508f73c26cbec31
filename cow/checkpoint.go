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

// maybeCheckpoint compacts a journal that has grown long. It needs op.
func (f *FS) maybeCheckpoint() {
	if f.journal.size() < max(f.opts.CheckpointBytes, 2*f.checkpointed) {
		return
	}
	if err := f.checkpoint(); err != nil {
		// Nothing is lost, the journal just goes on. Try again when it has grown by as much once more.
		f.checkpointed = f.journal.size()
		f.opts.Log.Warn("the journal is not compacted", "error", err)
	}
}

// checkpoint writes the delta as it is and starts a new journal. It needs op.
//
//	before:  checkpoint C, journal.N
//	1 write  checkpoint.tmp: all of the delta, "continue with journal.N+1"; fsync
//	2 create journal.N+1, empty: it continues journal.N, and takes all records from here on
//	3 rename checkpoint.tmp to checkpoint; fsync of the directory     <- from here on the new one counts
//	4 remove journal.N
//
// A crash, or an error, before 2 is done leaves C and journal.N; before 3, C and both journals, which is the same
// state; after it, the new checkpoint and a journal.N that recovery, or the next checkpoint, removes.
func (f *FS) checkpoint() error {
	old := f.journal
	size, err := f.writeCheckpoint(old.gen+1, old.seq)
	if err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	next, err := createJournal(f.disk, f.treeID, old.gen+1, old.seq)
	if err != nil {
		return err
	}
	err = f.disk.rename(checkpointTmp, checkpointName)
	if err == nil {
		err = f.disk.syncDir(".")
	}
	if err != nil {
		next.failed = old.sync() // it still counts, and an fsync will not reach it any more
	} else {
		next.named = true
		f.checkpointed, f.checkpointAt = size, old.seq
	}
	f.jmu.Lock()
	f.journal = next
	f.jmu.Unlock()
	old.retire()
	if err != nil {
		return fmt.Errorf("publish checkpoint: %w", err)
	}
	return removeJournals(f.disk, next.gen)
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

// writeCheckpoint writes checkpoint.tmp and returns its length.
func (f *FS) writeCheckpoint(gen, seq uint64) (int64, error) {
	file, err := f.disk.create(checkpointTmp)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	h := header{magic: checkpointMagic, tree: f.treeID, gen: gen, seq: seq, salt: rand.Uint64(), count: uint64(len(f.nodes))}
	w := &frameWriter{disk: f.disk, file: file, sum: saltSum(h.salt), buf: h.encode()}
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
	if w.err != nil {
		return 0, w.err
	}
	return w.off, f.disk.sync("sync checkpoint", file)
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
