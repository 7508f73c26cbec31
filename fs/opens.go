package fs

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// openTable remembers on the passthrough rung how the files are open, because the kernel allows a node one way at a time
// (fs/fuse/iomode.c): all its live opens are cached, or all are served by the same backing file.
//
//	            OPEN, complete content here               OPEN for writing, or truncate
//	idle ────────────────────────────────────▶ shared ────────────────────────────────▶ the node is left to its readers,
//	 │ │  OPEN, own data object                                                         the inode goes on as a new node
//	 │ └─────────────────────────────────────▶ own      reads and writes
//	 └──────────── all else ─────────────────▶ cached   READ and WRITE, like the cached rung
//
// shared: the file belongs to all containers; it is registered through a read-only mount of itself and never answers
// an open for writing, since the kernel opens the backing file with the opener's flags. own: this container's data object.
//
// A file with set-id bits is not opened for writing that way: the kernel leaves it to us to clear them, and would not tell us.
//
// A node that is left answers OPEN and truncate with ESTALE. The kernel then looks the name up again and finds the new node: same inode number,
// next epoch. From then on both nodes' attributes have timeout 0, for a change through one does not reach the kernel's copy of the other.
// Who has the old node open keeps the bytes that it opened, as on overlayfs.
//
// A mapping outlives its open: the kernel maps the backing file itself and sends RELEASE at close (mm: backing_file_mmap). What is
// stored through such a mapping later is in the file like any other write, but its mtime is not told to anybody.
//
// An open is counted from before its answer to its RELEASE, which comes after the kernel's own count has gone down: a node that
// counts as busy here may be idle there, never the other way.
type openTable struct {
	files  backingFiles
	kernel backings
	log    *slog.Logger

	readOnly readOnlyMounts
	shards   [openShards]openShard

	special atomic.Int64 // inodes in marks: none, mostly
	marksMu sync.RWMutex
	marks   map[unionfs.Ino]mark
}

// backingFiles is a Backend with Passthrough.
type backingFiles interface {
	Passthrough
	GetAttr(ino unionfs.Ino) (unionfs.Attr, error)
}

// backings registers files with the kernel. *fuse.Server is one.
type backings interface {
	RegisterBackingFd(*fuse.BackingMap) (int32, syscall.Errno)
	UnregisterBackingFd(id int32) syscall.Errno
	InodeNotify(node uint64, off, length int64) fuse.Status
}

const openShards = 32

// openShard's lock is held over Passthrough.OpenBacking and the registration, which are local and short.
type openShard struct {
	mu    sync.Mutex
	nodes map[uint64]*openNode // by node ID, while it is open
}

type openMode uint8

const (
	modeCached openMode = iota
	modeShared
	modeOwn
)

// openNode is a node that is open. What it holds of the backend it holds until its last RELEASE.
type openNode struct {
	mode        openMode
	id          int32  // backing ID of modeShared and modeOwn
	file        fileID // what it stands for
	opens       int
	read, write bool // which of OpenBacking's files it holds
}

type fileID struct{ dev, ino uint64 }

// mark is what else is to be remembered about an inode until it is forgotten.
type mark struct {
	epoch   uint16
	written bool // its data object is open in the kernel for writing
}

func newOpenTable(files backingFiles, kernel backings, log *slog.Logger) *openTable {
	t := &openTable{files: files, kernel: kernel, log: log, marks: make(map[unionfs.Ino]mark)}
	for i := range t.shards {
		t.shards[i].nodes = make(map[uint64]*openNode)
	}
	return t
}

func (t *openTable) shard(ino unionfs.Ino) *openShard { return &t.shards[ino%openShards] }

// open answers an OPEN of node: the flags and the backing ID, or ESTALE. release takes it back.
func (t *openTable) open(node uint64, write bool) (flags uint32, id int32, err error) {
	ino := inoOf(node)
	s := t.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	if node != t.nodeOf(ino) {
		return 0, 0, syscall.ESTALE
	}
	n := s.nodes[node]
	switch {
	case n == nil:
		n = t.first(node, write)
		s.nodes[node] = n
	case write && (n.mode == modeShared || n.mode == modeOwn && !n.write && !t.hold(node, n)):
		return 0, 0, t.leave(ino)
	}
	n.opens++
	if n.mode == modeCached {
		return fuse.FOPEN_KEEP_CACHE, 0, nil
	}
	// Without KEEP_CACHE, so the kernel drops its pages of the node: they would be old when it is cached again.
	return fuse.FOPEN_PASSTHROUGH, n.id, nil
}

// first decides how an idle node is opened. Cached is always possible: what is wrong with the file shows when it is read.
func (t *openTable) first(node uint64, write bool) *openNode {
	ino := inoOf(node)
	f, err := t.backing(ino, write)
	if err != nil {
		t.log.Warn("no passthrough", "ino", ino, "err", err)
	}
	if err != nil || f == nil {
		return &openNode{mode: modeCached}
	}
	defer f.Close()
	n := &openNode{mode: modeShared, read: !write, write: write}
	if writable(f) {
		n.mode = modeOwn
	}
	if write && n.mode == modeShared {
		err = fmt.Errorf("open inode %d for writing: the backend gave shared content", ino)
	} else {
		n.id, n.file, err = t.register(f, n.mode == modeShared)
	}
	if err != nil {
		t.log.Warn("no passthrough", "ino", ino, "err", err)
		t.files.CloseBacking(ino, write)
		return &openNode{mode: modeCached}
	}
	if write {
		t.markWritten(node)
	}
	return n
}

// hold has the backend open the data object of an open node for writing too, and reports whether that is the file that
// the kernel has.
func (t *openTable) hold(node uint64, n *openNode) bool {
	ino := inoOf(node)
	f, err := t.backing(ino, true)
	if err != nil || f == nil {
		return false
	}
	defer f.Close()
	if file, err := identify(f); err != nil || file != n.file {
		t.files.CloseBacking(ino, true)
		return false
	}
	n.write = true
	t.markWritten(node)
	return true
}

// backing is OpenBacking, but for what must not be written behind our back.
func (t *openTable) backing(ino unionfs.Ino, write bool) (*os.File, error) {
	if write {
		a, err := t.files.GetAttr(ino)
		if err != nil || a.Mode&(syscall.S_ISUID|syscall.S_ISGID) != 0 {
			return nil, err
		}
	}
	return t.files.OpenBacking(ino, write)
}

func (t *openTable) markWritten(node uint64) {
	t.setMark(inoOf(node), func(m *mark) { m.written = true })
	t.kernel.InodeNotify(node, -1, 0) // attributes only: what was kept for ever is not so any more
}

// release takes back one open.
func (t *openTable) release(node uint64) {
	ino := inoOf(node)
	s := t.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[node]
	if n == nil {
		return
	}
	if n.opens--; n.opens > 0 {
		return
	}
	delete(s.nodes, node)
	if n.mode == modeCached {
		return
	}
	t.kernel.UnregisterBackingFd(n.id)
	if n.read {
		t.files.CloseBacking(ino, false)
	}
	if n.write {
		t.files.CloseBacking(ino, true)
		t.setMark(ino, func(m *mark) { m.written = false })
	}
}

// truncate runs change, which sets the size of node's inode. Bytes that a shared file shows do not change with it, so
// its readers are left behind first.
func (t *openTable) truncate(node uint64, change func() error) error {
	ino := inoOf(node)
	s := t.shard(ino)
	s.mu.Lock()
	defer s.mu.Unlock()
	if node != t.nodeOf(ino) {
		return syscall.ESTALE
	}
	if n := s.nodes[node]; n != nil && n.mode == modeShared {
		if err := t.leave(ino); err != syscall.ESTALE {
			return err
		}
	}
	return change()
}

// leave gives ino a new node and returns ESTALE.
func (t *openTable) leave(ino unionfs.Ino) error {
	old := t.nodeOf(ino)
	if old>>epochShift == math.MaxUint16 {
		return fmt.Errorf("open inode %d: too many nodes: %w", ino, syscall.EIO)
	}
	t.setMark(ino, func(m *mark) { m.epoch++ })
	t.kernel.InodeNotify(old, -1, 0)
	return syscall.ESTALE
}

// nodeOf returns the node that ino goes by now.
func (t *openTable) nodeOf(ino unionfs.Ino) uint64 {
	return ino | uint64(t.markOf(ino).epoch)<<epochShift
}

// volatileAttr reports whether ino's attributes may change behind the kernel's back.
func (t *openTable) volatileAttr(ino unionfs.Ino) bool {
	m := t.markOf(ino)
	return m.written || m.epoch != 0
}

func (t *openTable) markOf(ino unionfs.Ino) mark {
	if t.special.Load() == 0 {
		return mark{}
	}
	t.marksMu.RLock()
	defer t.marksMu.RUnlock()
	return t.marks[ino]
}

func (t *openTable) setMark(ino unionfs.Ino, change func(*mark)) {
	t.marksMu.Lock()
	defer t.marksMu.Unlock()
	m := t.marks[ino]
	change(&m)
	if m == (mark{}) {
		delete(t.marks, ino)
	} else {
		t.marks[ino] = m
	}
	t.special.Store(int64(len(t.marks)))
}

// forget says that the kernel knows none of ino's nodes any more: the numbers may be used again.
func (t *openTable) forget(ino unionfs.Ino) {
	if t.markOf(ino).epoch != 0 {
		t.setMark(ino, func(m *mark) { m.epoch = 0 })
	}
}

func (t *openTable) register(f *os.File, readOnly bool) (int32, fileID, error) {
	file, err := identify(f)
	if err != nil {
		return 0, fileID{}, err
	}
	if readOnly {
		if f, err = t.readOnly.open(f, file); err != nil {
			return 0, fileID{}, err
		}
		defer f.Close()
	}
	id, errno := t.kernel.RegisterBackingFd(&fuse.BackingMap{Fd: int32(f.Fd())})
	if errno != 0 {
		return 0, fileID{}, fmt.Errorf("register backing file %s: %w", f.Name(), errno)
	}
	return id, file, nil
}

func identify(f *os.File) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fileID{}, fmt.Errorf("stat backing file %s: %w", f.Name(), err)
	}
	return fileID{st.Dev, st.Ino}, nil
}

// writable reports whether f is open for writing too: the sign of a data object (Passthrough.OpenBacking).
func writable(f *os.File) bool {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE == unix.O_RDWR
}
