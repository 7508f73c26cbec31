package fs

import (
	"log/slog"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// wire answers the kernel's requests with calls to the Backend. What the dispatcher does not know it answers ENOSYS, once: the
// kernel then does it by itself (ACCESS, POLL) and does not ask again. Locks are not negotiated, so flock and
// POSIX locks live in the kernel, shared by all who open the node.
type wire struct {
	fuse.RawFileSystem
	b         Backend
	resumable Resumable // b, or nil
	log       *slog.Logger
	dead      func() bool // whether the connection has ended
	// waits is told when the request with that cancel channel is about to wait for something slow.
	waits func(cancel <-chan struct{})

	nested bool       // the tree's root is not the mount's: see outer
	opens  *openTable // nil on the cached rung
	// known asks the kernel whether it has the node; nil if we have served it from its beginning.
	known func(node uint64) bool
	refs  refs
	counters
}

// forever is the timeout, seconds, of what only our own operations change.
const forever = 1 << 32

const (
	epochShift = 48
	inoMask    = 1<<epochShift - 1
)

// inoOf returns the inode number of a node ID.
func inoOf(node uint64) unionfs.Ino { return node & inoMask }

// nodeOf returns the node ID of ino.
func (w *wire) nodeOf(ino unionfs.Ino) uint64 {
	if w.nested && ino == unionfs.Root {
		return innerNode
	}
	if w.opens == nil {
		return ino
	}
	return w.opens.nodeOf(ino)
}

func (w *wire) count(op int) { w.ops[op].Add(1) }

// String implements fuse.RawFileSystem.
func (w *wire) String() string { return "veneer" }

// attrSeconds is how long the kernel may keep a: see the package comment.
func (w *wire) attrSeconds(a *unionfs.Attr) uint64 {
	if a.Mode&syscall.S_IFMT == syscall.S_IFREG && a.Mode&(syscall.S_ISUID|syscall.S_ISGID) != 0 {
		return 0
	}
	if w.opens != nil && w.opens.volatileAttr(a.Ino) {
		return 0
	}
	return forever
}

// entry encodes a and counts the lookup that the reply is.
func (w *wire) entry(a *unionfs.Attr, out *fuse.EntryOut) {
	w.refs.add(a.Ino)
	out.NodeId = w.nodeOf(a.Ino)
	out.Generation = 0
	out.EntryValid = forever
	out.AttrValid = w.attrSeconds(a)
	encodeAttr(a, &out.Attr)
}

func (w *wire) attr(a *unionfs.Attr, out *fuse.AttrOut) {
	out.AttrValid = w.attrSeconds(a)
	encodeAttr(a, &out.Attr)
}

func encodeAttr(a *unionfs.Attr, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino:       a.Ino,
		Size:      uint64(a.Size),
		Blocks:    uint64(a.Blocks),
		Atime:     uint64(a.Atime.Sec),
		Atimensec: a.Atime.Nsec,
		Mtime:     uint64(a.Mtime.Sec),
		Mtimensec: a.Mtime.Nsec,
		Ctime:     uint64(a.Ctime.Sec),
		Ctimensec: a.Ctime.Nsec,
		Mode:      a.Mode,
		Nlink:     a.Nlink,
		Owner:     fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev:      uint32(a.Rdev), // the kernel's encoding is unix.Mkdev's lower half (include/linux/kdev_t.h)
		Blksize:   blockSize,
	}
}

// blockSize is st_blksize, bytes.
const blockSize = 4096

// GetAttr implements fuse.RawFileSystem.
func (w *wire) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	w.count(opGetattr)
	a, err := w.b.GetAttr(inoOf(in.NodeId))
	if err != nil {
		return w.status(err, "GETATTR", in.NodeId)
	}
	w.attr(&a, out)
	return fuse.OK
}

// Statx implements fuse.RawFileSystem: the kernel sends it when the time of birth is asked for.
func (w *wire) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	w.count(opStatx)
	a, err := w.b.GetAttr(inoOf(in.NodeId))
	if err != nil {
		return w.status(err, "STATX", in.NodeId)
	}
	out.AttrValid = w.attrSeconds(&a)
	out.Statx = fuse.Statx{
		Mask:    unix.STATX_BASIC_STATS | unix.STATX_BTIME,
		Blksize: blockSize,
		Nlink:   a.Nlink,
		Uid:     a.UID,
		Gid:     a.GID,
		Mode:    uint16(a.Mode),
		Ino:     a.Ino,
		Size:    uint64(a.Size),
		Blocks:  uint64(a.Blocks),
		Atime:   statxTime(a.Atime),
		Btime:   statxTime(a.Btime),
		Ctime:   statxTime(a.Ctime),
		Mtime:   statxTime(a.Mtime),

		RdevMajor: unix.Major(a.Rdev),
		RdevMinor: unix.Minor(a.Rdev),
	}
	return fuse.OK
}

func statxTime(t unionfs.Time) fuse.SxTime { return fuse.SxTime{Sec: uint64(t.Sec), Nsec: t.Nsec} }

// SetAttr implements fuse.RawFileSystem.
func (w *wire) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	w.count(opSetattr)
	set := decodeSetAttr(&in.SetAttrInCommon, time.Now())
	if in.Valid == 0 && set.Valid != 0 && w.losesGroup(&in.InHeader) {
		set.Valid |= unionfs.SetKillSGID
	}
	a, err := w.setAttr(in.NodeId, set)
	if err != nil {
		return w.status(err, "SETATTR", in.NodeId)
	}
	w.attr(&a, out)
	return fuse.OK
}

func (w *wire) setAttr(node uint64, set unionfs.SetAttr) (a unionfs.Attr, err error) {
	if w.opens == nil || set.Valid&unionfs.SetSize == 0 {
		return w.b.SetAttr(inoOf(node), set)
	}
	err = w.opens.truncate(node, func() error {
		a, err = w.b.SetAttr(inoOf(node), set)
		return err
	})
	return a, err
}

func decodeSetAttr(in *fuse.SetAttrInCommon, now time.Time) unionfs.SetAttr {
	set := unionfs.SetAttr{
		Mode:  in.Mode & 07777,
		UID:   in.Uid,
		GID:   in.Gid,
		Size:  int64(in.Size),
		Atime: unionfs.Time{Sec: int64(in.Atime), Nsec: in.Atimensec},
		Mtime: unionfs.Time{Sec: int64(in.Mtime), Nsec: in.Mtimensec},
		Ctime: unionfs.Time{Sec: int64(in.Ctime), Nsec: in.Ctimensec},
	}
	for _, b := range [...]struct{ fuse, ours uint32 }{
		{fuse.FATTR_MODE, unionfs.SetMode},
		{fuse.FATTR_SIZE, unionfs.SetSize},
		{fuse.FATTR_ATIME, unionfs.SetAtime},
		{fuse.FATTR_MTIME, unionfs.SetMtime},
		{fuse.FATTR_CTIME, unionfs.SetCtime},
		{fuse.FATTR_KILL_SUIDGID, unionfs.SetKillPriv},
		// With HANDLE_KILLPRIV_V2 the kernel leaves it to us that a new owner clears set-id bits (fs/open.c chown_common).
		{fuse.FATTR_UID, unionfs.SetUID | unionfs.SetKillPriv},
		{fuse.FATTR_GID, unionfs.SetGID | unionfs.SetKillPriv},
	} {
		if in.Valid&b.fuse != 0 {
			set.Valid |= b.ours
		}
	}
	if set.Valid == 0 && in.InHeader.Uid != 0 {
		// What is left of a change that is only to clear set-id bits, as before FALLOCATE, or only capabilities, which the kernel has
		// removed by itself (fs/fuse/dir.c fuse_setattr). We know who keeps his set-id bits by the user only. See losesGroup.
		set.Valid = unionfs.SetKillPriv
	}
	ours := unionfs.Time{Sec: now.Unix(), Nsec: uint32(now.Nanosecond())}
	if in.Valid&fuse.FATTR_ATIME_NOW != 0 {
		set.Atime = ours
	}
	if in.Valid&fuse.FATTR_MTIME_NOW != 0 {
		set.Mtime = ours
	}
	return set
}

// Forget implements fuse.RawFileSystem.
func (w *wire) Forget(node, lookups uint64) {
	w.count(opForget)
	ino := inoOf(node)
	last := w.refs.drop(ino, lookups)
	if w.known != nil {
		last = w.orphaned(ino) && !w.known(node)
	}
	if !last {
		return
	}
	if w.opens != nil {
		w.opens.forget(ino)
	}
	w.b.Forget(ino)
}

// StatFs implements fuse.RawFileSystem.
func (w *wire) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	w.count(opStatfs)
	st, err := w.b.StatFS()
	if err != nil {
		return w.status(err, "STATFS", in.NodeId)
	}
	*out = fuse.StatfsOut{
		Blocks:  st.Blocks,
		Bfree:   st.BlocksFree,
		Bavail:  st.BlocksAvail,
		Files:   st.Files,
		Ffree:   st.FilesFree,
		Bsize:   st.BlockSize,
		Frsize:  st.BlockSize,
		NameLen: st.NameLen,
	}
	return fuse.OK
}

// Ioctl implements fuse.RawFileSystem.
func (w *wire) Ioctl(_ <-chan struct{}, _ *fuse.IoctlIn, _ []byte, _ *fuse.IoctlOut, _ []byte) fuse.Status {
	w.count(opIoctl)
	return fuse.Status(syscall.ENOTTY)
}

// Access implements fuse.RawFileSystem: default_permissions makes it the kernel's.
func (w *wire) Access(_ <-chan struct{}, _ *fuse.AccessIn) fuse.Status {
	w.count(opAccess)
	return fuse.ENOSYS
}
