package fs

import (
	"context"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/veneerfs/veneer/unionfs"
)

// fsyncDataOnly is FUSE_FSYNC_FDATASYNC.
const fsyncDataOnly = 1

// Open implements fuse.RawFileSystem. On the cached rung ENOSYS makes the kernel open every file by itself from then on: READ
// and WRITE name the inode, a handle would tell us nothing.
func (w *wire) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	w.count(opOpen)
	if w.opens == nil {
		return fuse.ENOSYS
	}
	return w.status(w.open(in.NodeId, in.Flags, out), "OPEN", in.NodeId)
}

// open answers an open of node with these open(2) flags.
func (w *wire) open(node uint64, flags uint32, out *fuse.OpenOut) error {
	if w.opens == nil {
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
		return nil
	}
	var err error
	out.OpenFlags, out.BackingID, err = w.opens.open(node, flags&syscall.O_ACCMODE != syscall.O_RDONLY)
	switch {
	case err != nil:
	case out.OpenFlags&fuse.FOPEN_PASSTHROUGH != 0:
		w.openPass.Add(1)
	default:
		w.openCached.Add(1)
	}
	return err
}

// Create implements fuse.RawFileSystem. On the cached rung ENOSYS makes the kernel send MKNOD from then on, and open what that
// made by itself, whatever its mode says (fs/fuse/dir.c fuse_atomic_open): the close then sends no RELEASE.
func (w *wire) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	w.count(opCreate)
	if w.opens == nil {
		return fuse.ENOSYS
	}
	a, err := w.b.Mknod(inoOf(in.NodeId), name, in.Mode, 0, owner(&in.InHeader, in.Umask))
	return w.created(&a, err, "CREATE", in, out)
}

// Tmpfile implements fuse.RawFileSystem.
func (w *wire) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	w.count(opTmpfile)
	a, err := w.b.Tmpfile(inoOf(in.NodeId), in.Mode, owner(&in.InHeader, in.Umask))
	return w.created(&a, err, "TMPFILE", in, out)
}

// created answers with the file that an operation made and opened. It is opened first, for how decides how long its attributes hold.
func (w *wire) created(a *unionfs.Attr, err error, op string, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if err == nil {
		err = w.open(w.nodeOf(a.Ino), in.Flags, &out.OpenOut)
	}
	return w.made(a, err, op, in.NodeId, &out.EntryOut)
}

// Release implements fuse.RawFileSystem.
func (w *wire) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	w.count(opRelease)
	if w.opens != nil {
		w.opens.release(in.NodeId)
	}
}

// Flush implements fuse.RawFileSystem: every write has been answered, so close has nothing to wait for.
func (w *wire) Flush(_ <-chan struct{}, _ *fuse.FlushIn) fuse.Status {
	w.count(opFlush)
	return fuse.ENOSYS
}

// read fills buf and returns how much there was. It may wait for the network: wire.waits is called before.
func (w *wire) read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (int, fuse.Status) {
	w.count(opRead)
	ino := inoOf(in.NodeId)
	w.readFrom(ino)
	ctx := w.context(cancel, in.Pid)
	defer ctx.end()
	n, err := w.b.Read(ctx, ino, buf, int64(in.Offset))
	if err != nil {
		return 0, w.status(err, "READ", in.NodeId)
	}
	w.bytesRead.Add(uint64(n))
	return n, fuse.OK
}

// Write implements fuse.RawFileSystem.
func (w *wire) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	w.count(opWrite)
	ctx := w.context(cancel, in.Pid)
	defer ctx.end()
	n, err := w.b.Write(ctx, inoOf(in.NodeId), data, int64(in.Offset), in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0)
	w.bytesWritten.Add(uint64(n))
	if err != nil && n == 0 {
		return 0, w.status(err, "WRITE", in.NodeId)
	}
	return uint32(n), fuse.OK
}

// Fallocate implements fuse.RawFileSystem.
func (w *wire) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	w.count(opFallocate)
	ctx := w.context(cancel, in.Pid)
	defer ctx.end()
	err := w.b.Fallocate(ctx, inoOf(in.NodeId), in.Mode, int64(in.Offset), int64(in.Length))
	return w.status(err, "FALLOCATE", in.NodeId)
}

// Lseek implements fuse.RawFileSystem: SEEK_DATA and SEEK_HOLE; the kernel does the rest.
func (w *wire) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	w.count(opLseek)
	off, err := w.b.Lseek(inoOf(in.NodeId), int64(in.Offset), int(in.Whence))
	if err != nil {
		return w.status(err, "LSEEK", in.NodeId)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// CopyFileRange implements fuse.RawFileSystem: the bytes need not come to the kernel and back.
func (w *wire) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	w.count(opCopyFileRange)
	w.readFrom(inoOf(in.NodeId))
	ctx := w.context(cancel, in.Pid)
	defer ctx.end()
	pooled := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(pooled)
	n, err := w.copy(ctx, in, *pooled)
	w.bytesRead.Add(uint64(n))
	w.bytesWritten.Add(uint64(n))
	if err != nil && n == 0 {
		return 0, w.status(err, "COPY_FILE_RANGE", in.NodeId)
	}
	return uint32(n), fuse.OK
}

// copyMost is the most that one request copies, bytes; who wants more asks again. It bounds how long an interrupt waits.
const copyMost = 32 << 20

var copyBuffers = sync.Pool{New: func() any { p := make([]byte, maxRequest); return &p }}

// copy copies from one inode to another, by way of buf. What it has copied before an error counts. The kernel has looked for
// overlaps, and asks for set-id bits to be cleared by itself (fs/fuse/file.c fuse_copy_file_range).
func (w *wire) copy(ctx context.Context, in *fuse.CopyFileRangeIn, buf []byte) (n int, err error) {
	for want := int(min(in.Len, copyMost)); n < want; {
		part := buf[:min(len(buf), want-n)]
		got, err := w.b.Read(ctx, inoOf(in.NodeId), part, int64(in.OffIn)+int64(n))
		if got == 0 || err != nil {
			return n, err
		}
		put, err := w.b.Write(ctx, inoOf(in.NodeIdOut), part[:got], int64(in.OffOut)+int64(n), false)
		n += put
		if put < got {
			return n, err
		}
	}
	return n, nil
}

// Fsync implements fuse.RawFileSystem.
func (w *wire) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	w.count(opFsync)
	return w.status(w.b.Fsync(inoOf(in.NodeId), in.FsyncFlags&fsyncDataOnly != 0), "FSYNC", in.NodeId)
}
