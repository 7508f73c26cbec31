package cow

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

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
	// QuotaBytes and QuotaInodes bound what the container may add (see Usage). 0 means that only the host does.
	QuotaBytes, QuotaInodes int64
	// OpenObjects is how many data objects are kept open. 0 means 256.
	OpenObjects int

	// CommitInterval is after how long what was answered is on stable storage at the latest (commit.go). 0 means five
	// seconds; negative: only Fsync, Sync and checkpoints see to it, and nothing is done in the background.
	CommitInterval time.Duration

	// Session names the mount, to which servers that take over belong too; 0 if there will be none. It is not used twice. When the
	// last change in the directory is of the same session, inodes without a name live on, for the kernel may have them open.
	Session uint64

	fault func(step string) error // see disk.fault
	trace func(c diskCall)        // see disk.trace
	boot  uint64                  // names the boot of the machine; 0 means that it is asked
}

// FS is a container's tree: the image tree and what the container changed. See the package comment.
type FS struct {
	tree     *unionfs.Tree
	contents Contents
	opts     Options
	maxImage Ino  // numbers up to here are the image's; immutable
	ro       bool // there is no delta; immutable

	data [64]sync.Mutex // by inode: see dataLock

	usage usage
	held  held // data objects that the kernel has

	op      sync.Mutex // held by the operation that changes the delta
	tx      tx         // guarded by op
	closed  bool       // guarded by op
	session session    // guarded by op

	journal *journal   // replaced under op and jmu
	jmu     sync.Mutex // innermost
	disk    *disk
	objs    *objects
	pack    *pack // nil until the delta is recovered
	lock    *os.File
	treeID  [16]byte
	boot    uint64 // names the boot of the machine

	// The state of commits (commit.go).
	flushMu   sync.Mutex    // held over what syncs data; taken under op too
	changed   atomic.Uint64 // sequence number of the last record that is a change
	committed atomic.Uint64 // up to here everything is on stable storage
	marked    uint64        // up to here tagCommit says so; guarded by op
	freed     freedList
	timed     bool // timer runs; guarded by op
	sinceLook int  // changes since the bounds were looked at; guarded by op
	timer     *time.Timer
	wake      chan struct{}
	stop      chan struct{} // closed by Close

	// The state of checkpoints; guarded by op.
	checkpointAt  uint64      // sequence number that the last one includes
	checkpointDue int64       // length of the journal at which to write the next one
	compacting    bool        // one is on its way
	dump          *checkpoint // that nodes are written to, or nil
	dumpMark      bool        // what new nodes have as dumped, and all while there is no dump

	background sync.WaitGroup

	st       sync.RWMutex // guards what follows; written only under op too
	nodes    map[Ino]*node
	slab     nodeSlab
	next     Ino    // of the next new inode
	dead     bitmap // image inodes that were unlinked and forgotten
	backings map[Ino]*backing

	scans scans
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
	if o.CommitInterval == 0 {
		o.CommitInterval = commitInterval
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
	f.usage.limit = Usage{o.QuotaBytes, o.QuotaInodes}
	f.freed.ended = make(map[Ino]*node)
	f.held.n = make(map[Ino]int)
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
	f.disk = &disk{dir: dir, fault: o.fault, trace: o.trace}
	f.objs = newObjects(f.disk, f.opts.OpenObjects)
	if err := os.MkdirAll(f.disk.path("data"), 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	var err error
	if f.lock, err = lockDir(f.disk); err != nil {
		return nil, err
	}
	f.timer, f.wake, f.stop = time.NewTimer(time.Hour), make(chan struct{}, 1), make(chan struct{})
	f.timer.Stop()
	if err := f.recover(); err != nil {
		f.timer.Stop()
		f.release()
		return nil, fmt.Errorf("recover %s: %w", dir, err)
	}
	if !f.inline() {
		f.background.Add(1)
		go f.committer() // of what recovery has changed, too
	}
	return f, nil
}

// stopBackground waits until nothing is done any more but by the caller. closed is set, and it is called once.
func (f *FS) stopBackground() {
	close(f.stop)
	f.background.Wait()
	f.timer.Stop()
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
		f.journal.file.close()
	}
	if f.pack != nil {
		f.pack.close()
	}
	f.lock.Close()
}

// Close writes a checkpoint, unless nothing has changed since the last, and puts everything on stable storage.
// All operations after it fail.
func (f *FS) Close() error {
	if f.ro {
		return nil
	}
	f.reclaim() // else a full disk may have no room for the checkpoint that gives it back
	f.op.Lock()
	closed := f.closed
	f.closed = true // no new operation, and so no new checkpoint
	f.op.Unlock()
	if closed {
		return nil
	}
	f.stopBackground()
	f.op.Lock()
	err := f.closeBackings()
	if f.changed.Load() != f.checkpointAt {
		if e := f.syncData(false); err == nil {
			err = e
		}
		if e := f.checkpoint(); err == nil {
			err = e
		}
	}
	f.op.Unlock()
	f.reap()
	f.release()
	return err
}

// syncData puts the content of files on stable storage: all that was written, or what records expose.
func (f *FS) syncData(onlyExposed bool) error {
	f.flushMu.Lock()
	defer f.flushMu.Unlock()
	if err := f.pack.sync(); err != nil {
		return err
	}
	return f.objs.syncAll(onlyExposed)
}

// Sync puts everything that was answered on stable storage.
func (f *FS) Sync() error {
	if f.ro {
		return nil
	}
	f.st.RLock()
	for ino := range f.backings { // the kernel writes these without a word
		f.objs.markDirty(ino, true)
	}
	f.st.RUnlock()
	if err := f.syncData(false); err != nil {
		return err
	}
	return f.commitAndReap()
}

// commitAndReap is commit for callers without locks.
func (f *FS) commitAndReap() error {
	err := f.commit()
	if f.inline() {
		f.reap()
	} else {
		f.nudge()
	}
	return err
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
	object, packed := n != nil && n.flags&flagObject != 0, n != nil && n.slot != 0
	f.st.RUnlock()
	if n == nil {
		return nil
	}
	var err error
	switch {
	case packed:
		err = f.pack.sync()
	case object:
		err = f.objs.syncOne(ino)
	}
	if err != nil {
		return err
	}
	return f.commitAndReap()
}

// StatFS is the host file system's, or the quota's: what limits the container.
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
	return f.quotaStat(unionfs.StatFS{
		Blocks: st.Blocks, BlocksFree: st.Bfree, BlocksAvail: st.Bavail,
		Files: st.Files, FilesFree: st.Ffree, BlockSize: size, NameLen: maxName,
	}), nil
}
