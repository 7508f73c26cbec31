package cow

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// recover brings the delta back: the checkpoint, then every journal from the generation it names on, then what the
// death of a server leaves to do.
//
// What the last server wrote in this boot of the machine is all there. If it wrote in another, the machine may have
// died too, and of what was not committed anything may be missing: the history ends with the last commit. What
// is left is written as a checkpoint then, so that nothing of the rest can come back.
func (f *FS) recover() error {
	d, err := f.load()
	if err != nil {
		return err
	}
	f.session.goesOn = f.opts.Session != 0 && f.session.id == f.opts.Session
	for _, name := range d.stale {
		if err := f.disk.remove("remove journal", name); err != nil {
			return err
		}
	}
	if err := f.resumeJournal(d); err != nil {
		return err
	}
	if f.checkpointAt == d.seq {
		d.committed = d.seq // and what was closed before is on the disk too
	}
	f.changed.Store(d.seq)
	f.committed.Store(d.committed)
	f.marked = d.committed
	if err := f.recoverPack(); err != nil {
		return err
	}
	if d.committed < d.seq {
		f.suspectData()
	}
	if err := f.recoverBackings(); err != nil {
		return err
	}
	f.endOrphans()
	return nil
}

// recovered says where the history ends.
type recovered struct {
	gen       uint64 // of the next journal, if it is not the last of logs
	logs      []journalFile
	stale     []string // journals that the checkpoint has, or that have nothing
	seq       uint64   // the last record
	committed uint64   // up to here all is known to be on stable storage
	rebooted  bool     // the records were written in another boot of the machine
	old       bool     // something is of an older format
}

// load reads checkpoint and journals. It changes nothing on the disk.
func (f *FS) load() (d recovered, err error) {
	f.boot = f.opts.boot
	if f.boot == 0 {
		f.boot = bootID()
	}
	f.checkpointDue = f.opts.CheckpointBytes
	if d.gen, d.old, err = f.loadCheckpoint(); err != nil {
		return d, err
	}
	if err := f.readJournals(&d); err != nil {
		return d, err
	}
	if err := f.replay(&d); err != nil {
		return d, err
	}
	return d, f.measureAll()
}

// resumeJournal sees to it that there is a journal to go on with.
func (f *FS) resumeJournal(d recovered) (err error) {
	last := len(d.logs) - 1
	if last == 0 && d.rebooted && d.logs[0].end == headerSize {
		last = -1 // an empty one, which only says a boot that is over
	}
	switch {
	case last >= 0 && (d.rebooted || d.old):
		d.gen++
		if !d.rebooted {
			err = f.disk.syncFS()
		}
		if err == nil {
			err = f.rewrite(d.gen, d.seq)
		}
	case last >= 0:
		return f.resume(&d.logs[last], d.seq)
	}
	if err == nil {
		f.journal, err = createJournal(f.disk, f.treeID, f.boot, d.gen, d.seq)
	}
	return err
}

// bootID names the boot of the machine; 0 if it has no name.
func bootID() uint64 {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return 0
	}
	sum := sha256.Sum256(b)
	return binary.LittleEndian.Uint64(sum[:])
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

// journalFile is a journal as it was found.
type journalFile struct {
	gen    uint64
	b      []byte
	h      header
	end    int64  // of the records that are whole
	last   uint64 // the number of the last of them
	commit uint64 // what the last tagCommit says
}

func (l *journalFile) name() string { return journalName(l.gen) }

// readJournals reads the journals from d.gen on.
func (f *FS) readJournals(d *recovered) error {
	gens, err := journals(f.disk)
	if err != nil {
		return err
	}
	for i, g := range gens {
		name := journalName(g)
		if g < d.gen { // a crash came before the last checkpoint removed it
			d.stale = append(d.stale, name)
			continue
		}
		b, err := readWhole(f.disk, name)
		if err != nil {
			return err
		}
		if i == len(gens)-1 && len(bytes.Trim(b[:min(len(b), headerSize)], "\x00")) == 0 {
			// A power loss before the first fsync: the name is there and nothing else. It is made anew.
			d.gen, d.stale = g, append(d.stale, name)
			break
		}
		l := journalFile{gen: g, b: b}
		if l.h, err = decodeHeader(b, name, journalMagic, f.treeID); err != nil {
			return err
		}
		if l.h.gen != g {
			return &DamageError{name, 32, fmt.Sprintf("it is of generation %d", l.h.gen)}
		}
		l.scan()
		d.logs, d.gen, d.old = append(d.logs, l), g, d.old || l.h.version < formatVersion
	}
	return nil
}

// scan finds the end of the records, and the last commit among them.
func (l *journalFile) scan() {
	sum := saltSum(l.h.salt)
	l.end, l.last = headerSize, l.h.seq
	for {
		seq, payload := cutFrame(l.b[min(l.end, int64(len(l.b))):], sum)
		if payload == nil || seq != l.last+1 {
			return
		}
		l.end, l.last = l.end+frameHeader+int64(len(payload)), seq
		if payload[0] == tagCommit {
			d := dec{p: payload[1:]}
			d.u()
			l.commit = d.u()
		}
	}
}

// checkLost sees that what follows the last whole record was not on stable storage: no later record says that it was.
func (l *journalFile) checkLost() error {
	sum := saltSum(l.h.salt)
	for i := l.end + 1; i+frameHeader < int64(len(l.b)); i++ {
		if l.b[i+frameHeader] != tagCommit {
			continue
		}
		if _, payload := cutFrame(l.b[i:], sum); payload != nil {
			d := dec{p: payload[1:]}
			d.u()
			d.u()
			if synced := d.u(); synced > uint64(l.end) {
				return &DamageError{l.name(), l.end, fmt.Sprintf("a record is damaged, and was on stable storage by what byte %d says", i)}
			}
		}
	}
	return nil
}

// replay applies the records of the journals that the checkpoint does not have.
func (f *FS) replay(d *recovered) error {
	d.seq, d.committed = f.checkpointAt, f.checkpointAt
	for i := range d.logs {
		d.committed = max(d.committed, d.logs[i].commit)
		d.rebooted = d.logs[i].h.count != 0 && d.logs[i].h.count != f.boot
	}
	for i := range d.logs {
		if err := f.replayOne(&d.logs[i], d, i == len(d.logs)-1); err != nil {
			return err
		}
	}
	if d.rebooted {
		d.seq = min(d.seq, d.committed)
		d.committed = d.seq
	}
	return nil
}

// replayOne applies the records of a journal after d.seq; the last one may have a torn tail.
func (f *FS) replayOne(l *journalFile, d *recovered, last bool) error {
	if l.h.seq > d.seq {
		return &DamageError{l.name(), 32, fmt.Sprintf("it continues record %d, not %d", l.h.seq, d.seq)}
	}
	b := l.b
	if d.rebooted && last {
		if err := l.checkLost(); err != nil {
			return err
		}
		b = b[:l.end]
	}
	at := l.h.seq
	end, err := readFrames(b, l.name(), &l.h, last, func(s uint64, payload []byte) error {
		at = s
		if s <= d.seq || d.rebooted && s > d.committed {
			return nil
		}
		return f.apply(payload)
	})
	if err != nil {
		return err
	}
	if last && at < f.checkpointAt && !d.rebooted {
		return &DamageError{l.name(), end, fmt.Sprintf("it ends with record %d, and the checkpoint has %d", at, f.checkpointAt)}
	}
	d.seq = max(d.seq, at)
	return nil
}

// rewrite makes a checkpoint of what was recovered, which the journal gen is to continue. A crash leaves what was there.
func (f *FS) rewrite(gen, seq uint64) error {
	c, err := f.beginDump(gen, seq)
	if err != nil {
		return err
	}
	f.dumpNodes(c, false)
	if err := f.endDump(c); err != nil {
		return err
	}
	if err := f.publishDump(c); err != nil {
		return err
	}
	f.checkpointAt = seq
	f.checkpointDue = max(f.opts.CheckpointBytes, 2*c.off)
	return f.removeStray()
}

// removeStray removes the data objects of inodes that the history does not have any more.
func (f *FS) removeStray() error {
	return filepath.WalkDir(f.disk.path("data"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		ino, err := strconv.ParseUint(d.Name(), 16, 64)
		if err != nil || f.nodes[ino] != nil {
			return nil
		}
		return f.disk.remove("remove data object", objectName(ino))
	})
}

// resume opens the last journal for more records, without its torn tail.
func (f *FS) resume(l *journalFile, seq uint64) error {
	file, err := f.disk.open(l.name())
	if err != nil {
		return err
	}
	if size := int64(len(l.b)); l.end < size {
		f.opts.Log.Debug("cut a torn tail", "file", l.name(), "at", l.end, "bytes", size-l.end)
		if err := file.truncate("cut torn tail", l.end); err != nil {
			file.close()
			return err
		}
	}
	st, err := file.stat()
	if err != nil {
		file.close()
		return err
	}
	f.journal = &journal{
		disk: f.disk, name: l.name(), file: file, gen: l.gen, sum: saltSum(l.h.salt),
		off: l.end, room: st.Blocks * 512, seq: seq, // it has no holes, so its blocks are where they are needed
	}
	return nil
}

// loadCheckpoint applies the checkpoint, if there is one, and returns the generation of the first journal after it.
// old says that its format is.
func (f *FS) loadCheckpoint() (gen uint64, old bool, err error) {
	b, err := readWhole(f.disk, checkpointName)
	if errors.Is(err, fs.ErrNotExist) {
		return 1, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	h, err := decodeHeader(b, checkpointName, checkpointMagic, f.treeID)
	if err != nil {
		return 0, false, err
	}
	if err := f.readCheckpoint(b, &h); err != nil {
		return 0, false, err
	}
	f.checkpointAt = h.seq
	f.checkpointDue = max(f.checkpointDue, 2*int64(len(b)))
	return h.gen, h.version < formatVersion, nil
}

// suspectData says that nobody knows what the last server had synced.
func (f *FS) suspectData() {
	f.pack.suspect()
	for ino, n := range f.nodes {
		if n.flags&flagObject != 0 {
			f.objs.markDirty(ino, true)
		}
	}
}

// recoverPack finds out what of the pack is free: what no file has. What a file may still have after a power loss is so after
// the next commit.
func (f *FS) recoverPack() error {
	p, err := openPack(f.disk)
	if err != nil {
		return fmt.Errorf("open pack: %w", err)
	}
	f.pack = p
	used := make(unitSet, 0)
	for ino, n := range f.nodes {
		if n.nlink == 0 && !f.lives(n) {
			u := f.cost(n)
			n.slot = 0 // it may have been ended, and its slot be another's
			f.usage.add(Usage{Bytes: f.cost(n).Bytes - u.Bytes})
		}
		if n.slot == 0 {
			continue
		}
		if p.file == nil {
			return &DamageError{packName, 0, fmt.Sprintf("it is not there, and inode %d has its content in it", ino)}
		}
		if !used.take(n.slot) {
			return &DamageError{packName, n.slot.off(), fmt.Sprintf("inode %d has its content where another has", ino)}
		}
	}
	return p.recover(used, f.changed.Load(), f.committed.Load())
}

// endOrphans ends the inodes without a name that nobody can have open any more.
func (f *FS) endOrphans() {
	for _, n := range f.nodes {
		if n.nlink == 0 && !f.lives(n) {
			f.end(n)
		}
	}
}
