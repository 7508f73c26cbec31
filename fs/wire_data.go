package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
)

// fsyncDataOnly is FUSE_FSYNC_FDATASYNC.
const fsyncDataOnly = 1

// Open implements fuse.RawFileSystem. ENOSYS makes the kernel open every file by itself from then on: READ and WRITE
// name the inode, a handle would tell us nothing.
func (w *wire) Open(_ <-chan struct{}, _ *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	w.count(opOpen)
	return fuse.ENOSYS
}

// Create implements fuse.RawFileSystem.
func (w *wire) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	w.count(opCreate)
	a, err := w.b.Mknod(inoOf(in.NodeId), name, in.Mode, 0, owner(&in.InHeader))
	if st := w.made(&a, err, "CREATE", in.NodeId, &out.EntryOut); st != fuse.OK {
		return st
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

// Tmpfile implements fuse.RawFileSystem.
func (w *wire) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	w.count(opTmpfile)
	a, err := w.b.Tmpfile(inoOf(in.NodeId), in.Mode, owner(&in.InHeader))
	if st := w.made(&a, err, "TMPFILE", in.NodeId, &out.EntryOut); st != fuse.OK {
		return st
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

// Release implements fuse.RawFileSystem.
func (w *wire) Release(_ <-chan struct{}, _ *fuse.ReleaseIn) { w.count(opRelease) }

// Flush implements fuse.RawFileSystem: every write has been answered, so close has nothing to wait for.
func (w *wire) Flush(_ <-chan struct{}, _ *fuse.FlushIn) fuse.Status {
	w.count(opFlush)
	return fuse.ENOSYS
}

// Read implements fuse.RawFileSystem. It may wait for the network: go-fuse has another goroutine read the next request.
func (w *wire) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	w.count(opRead)
	ino := inoOf(in.NodeId)
	w.readFrom(ino)
	ctx := w.context(cancel, in.Pid)
	defer ctx.end()
	n, err := w.b.Read(ctx, ino, buf, int64(in.Offset))
	if err != nil {
		return nil, w.status(err, "READ", in.NodeId)
	}
	w.bytesRead.Add(uint64(n))
	return fuse.ReadResultData(buf[:n]), fuse.OK
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

// CopyFileRange implements fuse.RawFileSystem: the kernel copies through the page cache instead.
func (w *wire) CopyFileRange(_ <-chan struct{}, _ *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	w.count(opCopyFileRange)
	return 0, fuse.ENOSYS
}

// Fsync implements fuse.RawFileSystem.
func (w *wire) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	w.count(opFsync)
	return w.status(w.b.Fsync(inoOf(in.NodeId), in.FsyncFlags&fsyncDataOnly != 0), "FSYNC", in.NodeId)
}
