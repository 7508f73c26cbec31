package cow

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// compare says where a file system is not what the model is; nil if it is nowhere. With loose, a byte may be what it
// is there too: content that was being written when the server died.
func (m *model) compare(f *FS, loose *model) error {
	for ino, n := range m.inodes {
		if err := n.compare(f); err != nil {
			return fmt.Errorf("inode %d: %w", ino, err)
		}
		if n.typ() != unix.S_IFREG {
			continue
		}
		var other []byte
		if loose != nil && loose.inodes[ino] != nil {
			other = loose.inodes[ino].data
		}
		if err := n.compareData(f, other); err != nil {
			return fmt.Errorf("inode %d: %w", ino, err)
		}
	}
	for ino := range f.nodes {
		if m.inodes[ino] == nil {
			return fmt.Errorf("inode %d should not be there", ino)
		}
	}
	return nil
}

func (n *mInode) compare(f *FS) error {
	a, err := f.GetAttr(n.ino)
	if err != nil {
		return err
	}
	a.Blocks = 0
	b := unionfs.Attr{
		Ino: n.ino, Mode: n.mode, Nlink: n.nlink, UID: n.uid, GID: n.gid, Rdev: n.rdev,
		Atime: n.times[atime], Mtime: n.times[mtime], Ctime: n.times[ctime], Btime: n.times[btime],
	}
	switch n.typ() {
	case unix.S_IFREG:
		b.Size = int64(len(n.data))
	case unix.S_IFLNK:
		b.Size = int64(len(n.target))
		if got, err := f.Readlink(n.ino); err != nil || got != n.target {
			return fmt.Errorf("leads to %q, not %q: %v", got, n.target, err)
		}
	case unix.S_IFDIR:
		b.Size = dirSize
		if err := n.compareDir(f); err != nil {
			return err
		}
	}
	if a != b {
		return fmt.Errorf("attributes\n%+v, not\n%+v", a, b)
	}
	return n.compareXattrs(f)
}

func (n *mInode) compareXattrs(f *FS) error {
	names, err := f.ListXattr(n.ino)
	if err != nil {
		return err
	}
	if all := slices.Sorted(maps.Keys(n.xattrs)); !slices.Equal(names, all) {
		return fmt.Errorf("xattrs %q, not %q", names, all)
	}
	for name, value := range n.xattrs {
		if got, err := f.GetXattr(n.ino, name); err != nil || string(got) != value {
			return fmt.Errorf("xattr %s: %q, %v; not %q", name, got, err, value)
		}
	}
	return nil
}

func (n *mInode) compareDir(f *FS) error {
	seen := make(map[string]bool)
	last := uint64(0)
	err := f.ReadDir(n.ino, 0, func(e unionfs.Dirent) bool {
		if e.Next <= last {
			return false
		}
		last = e.Next
		seen[fmt.Sprintf("%s %d %o", e.Name, e.Ino, e.Type)] = true
		return true
	})
	if err != nil {
		return err
	}
	should := make(map[string]bool)
	if n.nlink > 0 {
		should[fmt.Sprintf(". %d %o", n.ino, n.typ())] = true
		should[fmt.Sprintf(".. %d %o", n.parent.ino, n.typ())] = true
	}
	for name, child := range n.ents {
		should[fmt.Sprintf("%s %d %o", name, child.ino, child.typ())] = true
		a, err := f.Lookup(n.ino, name)
		if err != nil || a.Ino != child.ino {
			return fmt.Errorf("%s is inode %d, %v; not %d", name, a.Ino, err, child.ino)
		}
	}
	if !maps.Equal(seen, should) {
		return fmt.Errorf("entries %q, not %q", slices.Sorted(maps.Keys(seen)), slices.Sorted(maps.Keys(should)))
	}
	return nil
}

func (n *mInode) compareData(f *FS, loose []byte) error {
	got := make([]byte, len(n.data)+1)
	k, err := f.Read(context.Background(), n.ino, got, 0)
	if err != nil {
		return err
	}
	if k != len(n.data) {
		return fmt.Errorf("%d bytes, not %d", k, len(n.data))
	}
	if bytes.Equal(got[:k], n.data) {
		return nil
	}
	for i := range n.data {
		if got[i] != n.data[i] && (i >= len(loose) || got[i] != loose[i]) {
			return fmt.Errorf("byte %d of %d is %#x, not %#x", i, k, got[i], n.data[i])
		}
	}
	return nil
}
