package fs

import (
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// xattrListMax is the most that listxattr(2) returns, bytes.
const xattrListMax = 65536

// posixACL is the prefix of access control lists. FUSE_POSIX_ACL is not negotiated, so the kernel does not enforce them: what an
// image has is shown, a change is refused. Nobody is told that a list is set which then protects nothing.
const posixACL = "system.posix_acl_"

// GetXAttr implements fuse.RawFileSystem. go-fuse turns ERANGE for an empty dest into the size that was asked for.
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
	if strings.HasPrefix(name, posixACL) {
		return fuse.ENOTSUP
	}
	return w.status(w.b.SetXattr(inoOf(in.NodeId), name, value, in.Flags), "SETXATTR", in.NodeId)
}

// RemoveXAttr implements fuse.RawFileSystem.
func (w *wire) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	w.count(opRemovexattr)
	if strings.HasPrefix(name, posixACL) {
		return fuse.ENOTSUP
	}
	return w.status(w.b.RemoveXattr(inoOf(in.NodeId), name), "REMOVEXATTR", in.NodeId)
}
