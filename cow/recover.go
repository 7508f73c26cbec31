package cow

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// recover brings the delta back: the checkpoint, then every journal from the generation it names on, then what the
// death of a server leaves to do.
func (f *FS) recover() error {
	f.checkpointDue = f.opts.CheckpointBytes
	gen, err := f.loadCheckpoint()
	if err != nil {
		return err
	}
	gens, err := journals(f.disk)
	if err != nil {
		return err
	}
	for len(gens) > 0 && gens[0] < gen {
		// The checkpoint has it: a crash came before it was removed.
		if err := f.disk.remove(journalName(gens[0])); err != nil {
			return err
		}
		gens = gens[1:]
	}
	seq := f.checkpointAt
	for i, g := range gens {
		if seq, err = f.replay(g, seq, i == len(gens)-1); err != nil {
			return err
		}
	}
	if f.journal == nil {
		if len(gens) > 0 {
			gen = gens[len(gens)-1]
		}
		if f.journal, err = createJournal(f.disk, f.treeID, gen, seq); err != nil {
			return err
		}
	}
	if seq > f.checkpointAt {
		f.suspectObjects()
	}
	if err := f.recoverBackings(); err != nil {
		return err
	}
	return f.endOrphans()
}

// journals lists the generations that are there.
func journals(d *disk) ([]uint64, error) {
	names, err := filepath.Glob(d.path("journal.*"))
	if err != nil {
		return nil, err
	}
	var gens []uint64
	for _, name := range names {
		gen, err := strconv.ParseUint(strings.TrimPrefix(filepath.Base(name), "journal."), 10, 64)
		if err == nil {
			gens = append(gens, gen)
		}
	}
	sort.Slice(gens, func(i, j int) bool { return gens[i] < gens[j] })
	return gens, nil
}

// replay applies the records of a journal after seq, and returns the last one's number. The last journal is
// opened to go on with, and may have a torn tail.
func (f *FS) replay(gen, seq uint64, last bool) (uint64, error) {
	r, err := f.readJournal(gen, seq, last)
	switch {
	case err != nil:
		return 0, err
	case r.blank:
		return seq, f.disk.remove(r.name)
	case !last:
		return max(seq, r.seq), nil
	}
	return r.seq, f.resume(&r)
}

// journalRead is a journal whose records were applied.
type journalRead struct {
	header
	name      string
	seq       uint64 // of the last record
	end, size int64  // of the last record; of the file
	blank     bool   // a power loss before the first fsync: the name is there and nothing else. It is to be made anew
}

// readJournal applies the records of a journal after seq. It changes nothing on the disk.
func (f *FS) readJournal(gen, seq uint64, last bool) (r journalRead, err error) {
	r.name = journalName(gen)
	b, err := readWhole(f.disk, r.name)
	if err != nil {
		return r, err
	}
	r.size = int64(len(b))
	if last && len(bytes.Trim(b[:min(len(b), headerSize)], "\x00")) == 0 {
		r.seq, r.blank = seq, true
		return r, nil
	}
	if r.header, err = decodeHeader(b, r.name, journalMagic, f.treeID); err != nil {
		return r, err
	}
	if r.gen != gen || r.header.seq > seq {
		return r, &DamageError{r.name, 32, fmt.Sprintf("it continues record %d of generation %d, not %d of %d", r.header.seq, r.gen, seq, gen)}
	}
	r.seq = r.header.seq
	r.end, err = readFrames(b, r.name, &r.header, last, func(s uint64, payload []byte) error {
		r.seq = s
		if s <= seq {
			return nil
		}
		return f.apply(payload)
	})
	if err == nil && last && r.seq < seq {
		err = &DamageError{r.name, r.end, fmt.Sprintf("it ends with record %d, and the checkpoint has %d", r.seq, seq)}
	}
	return r, err
}

// resume opens the last journal for more records, without its torn tail.
func (f *FS) resume(r *journalRead) error {
	file, err := f.disk.open(r.name, os.O_RDWR)
	if err != nil {
		return err
	}
	if r.end < r.size {
		f.opts.Log.Debug("cut a torn tail", "file", r.name, "at", r.end, "bytes", r.size-r.end)
		if err := f.disk.truncate("cut torn tail", file, r.end); err != nil {
			file.Close()
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		file.Close()
		return err
	}
	f.journal = &journal{
		disk: f.disk, name: r.name, file: file, gen: r.gen, sum: saltSum(r.salt),
		off: r.end, room: st.Blocks * 512, seq: r.seq, // it has no holes, so its blocks are where they are needed
	}
	return nil
}

// loadCheckpoint applies the checkpoint, if there is one, and returns the generation of the first journal after it.
func (f *FS) loadCheckpoint() (gen uint64, err error) {
	b, err := readWhole(f.disk, checkpointName)
	if errors.Is(err, fs.ErrNotExist) {
		return 1, nil
	}
	if err != nil {
		return 0, err
	}
	h, err := decodeHeader(b, checkpointName, checkpointMagic, f.treeID)
	if err != nil {
		return 0, err
	}
	if err := f.readCheckpoint(b, &h); err != nil {
		return 0, err
	}
	f.checkpointAt = h.seq
	f.checkpointDue = max(f.checkpointDue, 2*int64(len(b)))
	return h.gen, nil
}

// suspectObjects says that nobody knows which data objects the last server had synced.
func (f *FS) suspectObjects() {
	for ino, n := range f.nodes {
		if n.isRegular() && (n.flags&flagPlain != 0 || n.runs() != nil) {
			f.objs.markDirty(ino)
		}
	}
}

// endOrphans ends the inodes without a name: nobody can have them open any more.
func (f *FS) endOrphans() error {
	for _, n := range f.nodes {
		if n.nlink == 0 {
			if err := f.end(n); err != nil {
				return err
			}
		}
	}
	return nil
}
