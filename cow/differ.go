package cow

import (
	"bytes"
	"slices"

	"github.com/veneerfs/veneer/unionfs"
)

// differs compares an inode with the image's at its path, which may be itself.
func (w *changeWalk) differs(now, was *unionfs.Attr) bool {
	dir := isDirMode(now.Mode)
	if now.Mode != was.Mode || now.UID != was.UID || now.GID != was.GID || now.Rdev != was.Rdev {
		return true
	}
	if !dir && (now.Size != was.Size || now.Mtime != was.Mtime) {
		return true
	}
	if w.o.Stat {
		v, _ := w.f.xattr(now.Ino, capability)
		before, _ := w.f.imageXattr(was.Ino, capability)
		return !bytes.Equal(v, before)
	}
	switch {
	case now.Ino != was.Ino && !dir, w.linked[now.Ino]:
		return true
	case now.Mtime != was.Mtime:
		return true
	}
	return w.f.contentDiffers(now) || w.xattrsDiffer(now.Ino, was.Ino)
}

// contentDiffers tells whether a file of the image has content of ours, though its size is the image's.
func (f *FS) contentDiffers(now *unionfs.Attr) bool {
	n := f.nodes[now.Ino]
	return n != nil && n.isRegular() && (n.runs() != nil || n.flags&flagPlain != 0 && now.Size != 0)
}

func (w *changeWalk) xattrsDiffer(ino, old Ino) bool {
	if ino == old && (w.f.nodes[ino] == nil || w.f.nodes[ino].x == nil) {
		return false
	}
	names := w.f.xattrNames(ino)
	if !slices.Equal(names, w.f.tree.Xattrs(old)) {
		return true
	}
	for _, name := range names {
		v, _ := w.f.xattr(ino, name)
		before, _ := w.f.tree.Xattr(old, name)
		if !bytes.Equal(v, before) {
			return true
		}
	}
	return false
}
