package cow

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// Snapshot is a container's tree as it was at some record of its history. It is read-only and changes nothing in the state
// directory, which a server may be writing to meanwhile: the tree stays what it was, but the content of files that were
// written since is what it is now; see Rewritten. It is for one goroutine, but for the methods of FS.
type Snapshot struct {
	*FS
	seq uint64 // of the last record
	// The last journal, where its last record ends, and how many bytes follow that are none.
	last      string
	end, torn int64
	// stirred are the files that the kernel may be writing without a record, with the mtime of their data objects.
	stirred map[Ino]unionfs.Time
}

// snapshotTries is how often a state that changes under the reader is read anew.
const snapshotTries = 8

// OpenSnapshot reads the state in dir, which belongs to tree. It takes no lock, costs what the container has changed,
// and ignores what has no name. Where there is no state yet nothing has changed. The caller closes it before c and tree.
// *DamageError, *VersionError, *TreeError: what is in dir cannot be used.
func OpenSnapshot(dir string, tree *unionfs.Tree, c Contents, o Options) (*Snapshot, error) {
	for try := 1; ; try++ {
		before, err := stampOf(dir)
		if err != nil {
			return nil, fmt.Errorf("read state directory: %w", err)
		}
		s, err := readState(dir, tree, c, o)
		if err == nil {
			return s, nil
		}
		// A checkpoint may have replaced what was being read, or a record been read before all of it was there.
		after, e := stampOf(dir)
		if e != nil || after == before || try == snapshotTries {
			return nil, fmt.Errorf("read %s: %w", dir, err)
		}
	}
}

// stampOf tells states of the journal and the checkpoint apart.
func stampOf(dir string) (stamp string, err error) {
	d := &disk{dir: dir}
	gens, err := journals(d)
	if err != nil {
		return "", err
	}
	names := []string{checkpointName}
	for _, g := range gens {
		names = append(names, journalName(g))
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Stat(d.path(name), &st); err != nil && err != unix.ENOENT {
			return "", &fs.PathError{Op: "stat", Path: d.path(name), Err: err}
		}
		stamp += fmt.Sprintln(name, st.Ino, st.Size, st.Mtim.Nano())
	}
	return stamp, nil
}

// newSnapshot is one that has read nothing yet.
func newSnapshot(dir string, tree *unionfs.Tree, c Contents, o Options) *Snapshot {
	f := newFS(tree, c, o)
	f.ro = true
	f.disk = &disk{dir: dir, ro: true}
	f.objs = newObjects(f.disk, f.opts.OpenObjects)
	return &Snapshot{FS: f, stirred: make(map[Ino]unionfs.Time)}
}

// readState reads checkpoint and journals once. The journals are listed after the checkpoint was read: if a newer one has
// come between, and its journals with it, they do not continue ours. All journals but the last were complete when
// the next one appeared; of the last we see what is there.
func readState(dir string, tree *unionfs.Tree, c Contents, o Options) (*Snapshot, error) {
	s := newSnapshot(dir, tree, c, o)
	d, err := s.load()
	if err != nil {
		return nil, err
	}
	s.seq = d.seq
	if s.pack, err = openPack(s.disk); err != nil {
		return nil, err
	}
	if len(d.logs) > 0 {
		l := &d.logs[len(d.logs)-1]
		s.last, s.end, s.torn = l.name(), l.end, int64(len(l.b))-l.end
	}
	if err := s.foldBackings(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// foldBackings takes size and times of the files that the kernel may be writing from their data objects.
func (s *Snapshot) foldBackings() error {
	for ino, b := range s.backings {
		n := s.nodes[ino]
		if n == nil || n.flags&flagBacking == 0 {
			continue
		}
		size, seen, err := s.statObject(ino)
		if errors.Is(err, fs.ErrNotExist) {
			continue // unlinked since
		}
		if err != nil {
			return err
		}
		n.val = uint64(size)
		if seen != b.mtime {
			n.touch(seen)
		}
		n.flags = n.flags&^flagBacking | flagSparse
		s.stirred[ino] = seen
	}
	clear(s.backings)
	return nil
}

// statObject returns size and mtime of a data object.
func (s *Snapshot) statObject(ino Ino) (size int64, mtime unionfs.Time, err error) {
	file, err := os.Open(s.disk.path(objectName(ino)))
	if err != nil {
		return 0, mtime, err
	}
	defer file.Close()
	return (&backing{file: file}).stat()
}

// Usage is what the container has added, without what has no name any more.
func (s *Snapshot) Usage() Usage {
	u := s.FS.Usage()
	for _, n := range s.nodes {
		if n.nlink == 0 {
			gone := s.cost(n)
			u.Bytes -= gone.Bytes
			u.Inodes -= gone.Inodes
		}
	}
	return u
}

// Close closes all descriptors.
func (s *Snapshot) Close() error {
	s.objs.closeAll()
	s.pack.close()
	return nil
}

// Rewritten returns those of inos whose content may have changed since the snapshot was opened, so that what was read of
// it may be old in one part and new in another, or zeros. It goes by the records that are there now: that of a write of which the
// bytes were just read may still be on its way.
func (s *Snapshot) Rewritten(inos []Ino) (changed []Ino, err error) {
	now, err := OpenSnapshot(s.disk.dir, s.tree, s.contents, s.opts)
	if err != nil {
		return nil, err
	}
	defer now.Close()
	for _, ino := range inos {
		a, b := s.nodes[ino], now.nodes[ino]
		switch seen, ok := s.stirred[ino]; {
		case a == nil && b == nil:
		case a == nil || b == nil || a.time(ctime) != b.time(ctime) || a.val != b.val || a.slot != b.slot: // every write moves ctime
			changed = append(changed, ino)
		case ok && seen != now.stirred[ino]:
			changed = append(changed, ino)
		}
	}
	return changed, nil
}
