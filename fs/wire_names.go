package fs

import (
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/veneerfs/veneer/unionfs"
)

// The operations on names.

// Lookup implements fuse.RawFileSystem. That a name is missing is an answer too, and kept like one (node 0).
func (w *wire) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	w.count(opLookup)
	a, err := w.b.Lookup(inoOf(in.NodeId), name)
	if name == "." && err == nil && (a.Nlink == 0 || w.nodeOf(a.Ino) != in.NodeId) {
		err = syscall.ESTALE // a file handle of what is gone, or has another node: what somebody has open the kernel finds itself
	}
	if errors.Is(err, syscall.ENOENT) {
		*out = fuse.EntryOut{EntryValid: forever}
		return fuse.OK
	}
	return w.made(&a, err, "LOOKUP", in.NodeId, out)
}

// made answers with the inode that an operation found or made.
func (w *wire) made(a *unionfs.Attr, err error, op string, node uint64, out *fuse.EntryOut) fuse.Status {
	if err != nil {
		return w.status(err, op, node)
	}
	w.entry(a, out)
	return fuse.OK
}

// Mknod implements fuse.RawFileSystem.
func (w *wire) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	w.count(opMknod)
	a, err := w.changes(&in.InHeader).Mknod(inoOf(in.NodeId), name, in.Mode, uint64(in.Rdev), owner(&in.InHeader, in.Umask))
	return w.made(&a, err, "MKNOD", in.NodeId, out)
}

// Mkdir implements fuse.RawFileSystem.
func (w *wire) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	w.count(opMkdir)
	a, err := w.changes(&in.InHeader).Mkdir(inoOf(in.NodeId), name, in.Mode&07777, owner(&in.InHeader, in.Umask))
	return w.made(&a, err, "MKDIR", in.NodeId, out)
}

// Symlink implements fuse.RawFileSystem.
func (w *wire) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	w.count(opSymlink)
	a, err := w.changes(in).Symlink(inoOf(in.NodeId), name, target, owner(in, 0))
	return w.made(&a, err, "SYMLINK", in.NodeId, out)
}

// Link implements fuse.RawFileSystem.
func (w *wire) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	w.count(opLink)
	a, err := w.changes(&in.InHeader).Link(inoOf(in.Oldnodeid), inoOf(in.NodeId), name)
	return w.made(&a, err, "LINK", in.NodeId, out)
}

// Readlink implements fuse.RawFileSystem.
func (w *wire) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	w.count(opReadlink)
	target, err := w.b.Readlink(inoOf(in.NodeId))
	if err != nil {
		return nil, w.status(err, "READLINK", in.NodeId)
	}
	return []byte(target), fuse.OK
}

// Unlink implements fuse.RawFileSystem.
func (w *wire) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	w.count(opUnlink)
	return w.status(w.changes(in).Unlink(inoOf(in.NodeId), name), "UNLINK", in.NodeId)
}

// Rmdir implements fuse.RawFileSystem.
func (w *wire) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	w.count(opRmdir)
	return w.status(w.changes(in).Rmdir(inoOf(in.NodeId), name), "RMDIR", in.NodeId)
}

// Rename implements fuse.RawFileSystem; RENAME2 comes here too, with flags.
func (w *wire) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	w.count(opRename)
	err := w.changes(&in.InHeader).Rename(inoOf(in.NodeId), oldName, inoOf(in.Newdir), newName, in.Flags)
	return w.status(err, "RENAME", in.NodeId)
}

// owner is who sent a request. The umask is left to us, because a directory's default ACL goes before it (FUSE_DONT_MASK).
func owner(in *fuse.InHeader, umask uint32) unionfs.Owner {
	return unionfs.Owner{UID: in.Uid, GID: in.Gid, Umask: umask}
}
