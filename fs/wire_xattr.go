package fs

import (
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/veneerfs/veneer/unionfs"
)

// xattrListMax is the most that listxattr(2) returns, bytes.
const xattrListMax = 65536

// GetXAttr implements fuse.RawFileSystem. The dispatcher turns ERANGE for an empty dest into the size that was asked for.
func (w *wire) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	w.count(opGetxattr)
	value, err := w.b.GetXattr(inoOf(in.NodeId), name)
	if err != nil {
		return 0, w.status(err, "GETXATTR", in.NodeId)
	}
	if len(value) > len(dest) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

// ListXAttr implements fuse.RawFileSystem.
func (w *wire) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	w.count(opListxattr)
	names, err := w.b.ListXattr(inoOf(in.NodeId))
	if err != nil {
		return 0, w.status(err, "LISTXATTR", in.NodeId)
	}
	size := 0
	for _, name := range names {
		if !listed(name, in.Uid) {
			continue
		}
		if size+len(name) < len(dest) {
			copy(dest[size:], name)
			dest[size+len(name)] = 0
		}
		size += len(name) + 1
	}
	switch {
	case size > xattrListMax:
		return 0, fuse.Status(syscall.E2BIG)
	case size > len(dest):
		return uint32(size), fuse.ERANGE
	}
	return uint32(size), fuse.OK
}

// listed says whether a caller sees the name: trusted attributes are for the privileged (fs/ext4/xattr_trusted.c), whom we
// know by their user only.
func listed(name string, uid uint32) bool {
	return uid == 0 || !strings.HasPrefix(name, "trusted.")
}

// SetXAttr implements fuse.RawFileSystem.
func (w *wire) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	w.count(opSetxattr)
	flags := in.Flags
	if in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 {
		flags |= unionfs.XattrKillSGID
	}
	return w.status(w.changes(&in.InHeader).SetXattr(inoOf(in.NodeId), name, value, flags), "SETXATTR", in.NodeId)
}

// RemoveXAttr implements fuse.RawFileSystem.
func (w *wire) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	w.count(opRemovexattr)
	return w.status(w.changes(in).RemoveXattr(inoOf(in.NodeId), name), "REMOVEXATTR", in.NodeId)
}
