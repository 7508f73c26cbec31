package cow

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// Contents reads the regular files of the image tree.
type Contents interface {
	ReadAt(ctx context.Context, ino Ino, p []byte, off int64) (int, error)
	// Local returns the file that holds the whole content of ino, read-only, or nil while it is not complete here.
	Local(ino Ino) (*os.File, error)
}

// Options are what Open can be told. The zero value is good.
type Options struct {
	Log *slog.Logger
	// Clock tells the time; nil means the system's.
	Clock func() unionfs.Time
	// CheckpointBytes is how long the journal may grow before it is compacted, unless the last checkpoint was more
	// than half as long. 0 means 4 MiB.
	CheckpointBytes int64
	// OpenObjects is how many data objects are kept open. 0 means 256.
	OpenObjects int

	fault func(step string) error // see disk.fault
}

// FS is a container's tree: the image tree and what the container changed. See the package comment.
type FS struct {
	tree     *unionfs.Tree
	contents Contents
	opts     Options
	maxImage Ino  // numbers up to here are the image's; immutable
	ro       bool // there is no delta; immutable

	data [64]sync.Mutex // by inode: see dataLock

	op     sync.Mutex // held by the operation that changes the delta
	tx     tx         // guarded by op
	closed bool       // guarded by op

	journal *journal   // replaced under op and jmu
	jmu     sync.Mutex // innermost
	disk    *disk
	objs    *objects
	lock    *os.File
	treeID  [16]byte

	// The state of checkpoints; guarded by op.
	checkpointAt  uint64 // sequence number that the last one includes
	checkpointDue int64  // length of the journal at which to write the next one
	compacting    bool   // one is on its way
	compactor     sync.WaitGroup

	st       sync.RWMutex // guards what follows; written only under op too
	nodes    map[Ino]*node
	next     Ino    // of the next new inode
	dead     bitmap // image inodes that were unlinked and forgotten
	backings map[Ino]*backing
}

func newFS(tree *unionfs.Tree, c Contents, o Options) *FS {
	if o.Clock == nil {
		o.Clock = systemClock
	}
	if o.CheckpointBytes == 0 {
		o.CheckpointBytes = 4 << 20
	}
	if o.OpenObjects == 0 {
		o.OpenObjects = 256
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	f := &FS{
		tree: tree, contents: c, opts: o, maxImage: tree.MaxIno(), treeID: treeID(tree),
		nodes: make(map[Ino]*node), backings: make(map[Ino]*backing),
	}
	f.next = f.maxImage + 1
	f.tx.f = f
	return f
}

func systemClock() unionfs.Time {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &ts) // cannot fail with this clock
	return unionfs.Time{Sec: ts.Sec, Nsec: uint32(ts.Nsec)}
}

// treeID tells image trees apart whose inode numbers mean different files.
func treeID(t *unionfs.Tree) (id [16]byte) {
	h := sha256.New()
	h.Write(binary.LittleEndian.AppendUint64(nil, t.MaxIno()))
	for _, l := range t.Layers() {
		h.Write(l.DiffID[:])
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(l.Path))))
		h.Write([]byte(l.Path))
	}
	copy(id[:], h.Sum(nil))
	return id
}

// ReadOnly returns the tree without a writable layer: every change is EROFS.
func ReadOnly(tree *unionfs.Tree, c Contents) *FS {
	f := newFS(tree, c, Options{})
	f.ro = true
	return f
}

// Open returns the tree with the changes that dir holds, and makes dir and its files when there are none.
// *LockedError: another server uses dir. *DamageError, *VersionError, *TreeError: what is in dir cannot be used.
func Open(dir string, tree *unionfs.Tree, c Contents, o Options) (*FS, error) {
	f := newFS(tree, c, o)
	f.disk = &disk{dir: dir, fault: o.fault}
	f.objs = newObjects(f.disk, f.opts.OpenObjects)
	if err := os.MkdirAll(f.disk.path("data"), 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	var err error
	if f.lock, err = lockDir(f.disk); err != nil {
		return nil, err
	}
	if err := f.recover(); err != nil {
		f.release()
		return nil, fmt.Errorf("recover %s: %w", dir, err)
	}
	return f, nil
}

func lockDir(d *disk) (*os.File, error) {
	file, err := os.OpenFile(d.path("lock"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return file, nil
	}
	file.Close()
	if err == unix.EWOULDBLOCK {
		return nil, &LockedError{d.dir}
	}
	return nil, fmt.Errorf("lock %s: %w", d.dir, err)
}

// release closes all descriptors.
func (f *FS) release() {
	f.objs.closeAll()
	for _, b := range f.backings {
		b.close()
	}
	if f.journal != nil {
		f.journal.file.Close()
	}
	f.lock.Close()
}

// Close writes a checkpoint, unless nothing has changed since the last, and puts everything on stable storage.
// All operations after it fail.
func (f *FS) Close() error {
	if f.ro {
		return nil
	}
	f.op.Lock()
	closed := f.closed
	f.closed = true // no new operation, and so no new checkpoint
	f.op.Unlock()
	f.compactor.Wait()
	if closed {
		return nil
	}
	f.op.Lock()
	defer f.op.Unlock()
	err := f.closeBackings()
	if f.journal.seq != f.checkpointAt {
		if e := f.objs.syncAll(); err == nil {
			err = e
		}
		if e := f.checkpoint(); err == nil {
			err = e
		}
	}
	f.release()
	return err
}

// Sync puts everything that was answered on stable storage.
func (f *FS) Sync() error {
	if f.ro {
		return nil
	}
	f.st.RLock()
	for ino := range f.backings { // the kernel writes these without a word
		f.objs.markDirty(ino)
	}
	f.st.RUnlock()
	if err := f.objs.syncAll(); err != nil {
		return err
	}
	return f.syncJournal()
}

func (f *FS) syncJournal() error {
	f.jmu.Lock()
	j := f.journal
	f.jmu.Unlock()
	// A checkpoint that replaces j meanwhile syncs it first.
	return j.sync()
}

// JournalSize is the journal's length in bytes.
func (f *FS) JournalSize() int64 {
	if f.ro {
		return 0
	}
	f.jmu.Lock()
	defer f.jmu.Unlock()
	return f.journal.size()
}

// dataLock orders the changes of one file's content: held from before the data object is changed until the journal
// has the record. Inodes may share one; a goroutine holds one at most.
func (f *FS) dataLock(ino Ino) *sync.Mutex { return &f.data[ino%uint64(len(f.data))] }

// Fsync puts the inode's content, and everything that was answered about any inode, on stable storage.
func (f *FS) Fsync(ino Ino, dataOnly bool) error {
	if f.ro {
		return nil
	}
	f.st.RLock()
	n := f.nodes[ino]
	ours := n != nil && n.isRegular() && (n.flags&flagPlain != 0 || n.runs() != nil)
	f.st.RUnlock()
	if n == nil {
		return nil
	}
	// The object first: a journal that promises bytes must not be on the disk before them.
	if ours {
		if err := f.objs.syncOne(ino); err != nil {
			return err
		}
	}
	return f.syncJournal()
}

// StatFS is the host file system's, which is what limits a container.
func (f *FS) StatFS() (unionfs.StatFS, error) {
	if f.ro {
		return unionfs.StatFS{BlockSize: 4096, NameLen: maxName, Files: f.maxImage}, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(f.disk.dir, &st); err != nil {
		return unionfs.StatFS{}, fmt.Errorf("statfs of the state directory: %w", err)
	}
	size := uint32(st.Frsize)
	if size == 0 {
		size = uint32(st.Bsize)
	}
	return unionfs.StatFS{
		Blocks: st.Blocks, BlocksFree: st.Bfree, BlocksAvail: st.Bavail,
		Files: st.Files, FilesFree: st.Ffree, BlockSize: size, NameLen: maxName,
	}, nil
}
