package cow

import (
	"sort"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// xattr is an extended attribute that differs from the image's.
type xattr struct {
	name  string
	value []byte // nil: the image's is removed
}

const (
	maxXattr     = 64 << 10 // bytes of a value (XATTR_SIZE_MAX)
	maxXattrList = 64 << 10 // bytes of all names with their NULs (XATTR_LIST_MAX)
	capability   = "security.capability"
)

func (n *node) findXattr(name string) (int, bool) {
	xs := n.x.xattrs
	i := sort.Search(len(xs), func(i int) bool { return xs[i].name >= name })
	return i, i < len(xs) && xs[i].name == name
}

// setXattr keeps value. It needs st and op.
func (n *node) setXattr(name string, value []byte) {
	x := n.ext()
	i, ok := n.findXattr(name)
	x.cost += int64(len(value))
	if ok {
		x.cost -= int64(len(x.xattrs[i].value))
		x.xattrs[i].value = value
		return
	}
	x.cost += costXattr + int64(len(name))
	x.xattrs = append(x.xattrs, xattr{})
	copy(x.xattrs[i+1:], x.xattrs[i:])
	x.xattrs[i] = xattr{name, value}
}

// removeXattr forgets a value, or marks the image's as removed. It needs st and op.
func (f *FS) removeXattr(n *node, name string) {
	if _, ok := f.imageXattr(n.ino, name); ok {
		n.setXattr(name, nil)
		return
	}
	if n.x == nil {
		return
	}
	if i, ok := n.findXattr(name); ok {
		n.x.cost -= costXattr + int64(len(name)+len(n.x.xattrs[i].value))
		n.x.xattrs = append(n.x.xattrs[:i], n.x.xattrs[i+1:]...)
	}
}

func (f *FS) imageXattr(ino Ino, name string) ([]byte, bool) {
	if !f.inImage(ino) {
		return nil, false
	}
	value, ok := f.tree.Xattr(ino, name)
	if ok && (name == aclAccess || name == aclDefault) {
		return imageACL(value)
	}
	return value, ok
}

// xattr finds a value. It needs st or op. What it returns does not change.
func (f *FS) xattr(ino Ino, name string) ([]byte, bool) {
	if n := f.nodes[ino]; n != nil && n.x != nil {
		if i, ok := n.findXattr(name); ok {
			return n.x.xattrs[i].value, n.x.xattrs[i].value != nil
		}
	}
	return f.imageXattr(ino, name)
}

func checkXattr(name string) error {
	if len(name) > maxName {
		return syscall.ERANGE
	}
	for _, space := range [...]string{"user.", "trusted.", "security."} {
		if rest, ok := strings.CutPrefix(name, space); ok {
			if rest == "" {
				return syscall.EINVAL
			}
			return nil
		}
	}
	if name == aclAccess || name == aclDefault {
		return nil
	}
	return syscall.EOPNOTSUPP
}

// GetXattr returns a value. ENODATA: there is none of that name.
func (f *FS) GetXattr(ino Ino, name string) ([]byte, error) {
	if err := checkXattr(name); err != nil {
		return nil, err
	}
	f.st.RLock()
	defer f.st.RUnlock()
	if _, err := f.peek(ino); err != nil {
		return nil, err
	}
	v, ok := f.xattr(ino, name)
	if !ok {
		return nil, syscall.ENODATA
	}
	return v, nil
}

// ListXattr returns all names, sorted.
func (f *FS) ListXattr(ino Ino) ([]string, error) {
	f.st.RLock()
	defer f.st.RUnlock()
	if _, err := f.peek(ino); err != nil {
		return nil, err
	}
	return f.xattrNames(ino), nil
}

func (f *FS) xattrNames(ino Ino) []string {
	var names []string
	if f.inImage(ino) {
		for _, name := range f.tree.Xattrs(ino) {
			if _, ok := f.xattr(ino, name); ok {
				names = append(names, name)
			}
		}
	}
	if n := f.nodes[ino]; n != nil && n.x != nil {
		for _, x := range n.x.xattrs {
			if _, image := f.imageXattr(ino, x.name); x.value != nil && !image {
				names = append(names, x.name)
			}
		}
	}
	sort.Strings(names)
	return names
}

// SetXattr sets a value. flags are setxattr's.
//
//	before: with XATTR_CREATE the name is not there (EEXIST), with XATTR_REPLACE it is (ENODATA).
//	after:  it has the value; ctime is now. A POSIX ACL sets the permission bits too.
//	crash:  one record: all of it or nothing.
func (r Request) SetXattr(ino Ino, name string, value []byte, flags uint32) error {
	if err := checkXattr(name); err != nil {
		return err
	}
	killSGID := flags&unionfs.XattrKillSGID != 0
	flags &^= unionfs.XattrKillSGID
	if flags&^(unix.XATTR_CREATE|unix.XATTR_REPLACE) != 0 {
		return syscall.EINVAL
	}
	if len(value) > maxXattr {
		return syscall.E2BIG
	}
	t, err := r.begin()
	if err != nil {
		return err
	}
	defer t.end()
	m, err := t.edit(ino)
	if err != nil {
		return err
	}
	_, there := r.xattr(ino, name)
	switch {
	case there && flags&unix.XATTR_CREATE != 0:
		return syscall.EEXIST
	case !there && flags&unix.XATTR_REPLACE != 0:
		return syscall.ENODATA
	case !there && r.xattrListLen(ino)+len(name)+1 > maxXattrList:
		return syscall.ENOSPC
	}
	if name == aclAccess || name == aclDefault {
		err = t.setACL(ino, m, name, value, killSGID)
		if err != nil {
			return err
		}
	} else {
		t.setXattr(ino, name, value)
	}
	m.setTime(ctime, t.now)
	if err := t.need(Usage{Bytes: costXattr + int64(len(name)+len(value))}); err != nil {
		return err
	}
	return t.commit()
}

func (f *FS) xattrListLen(ino Ino) (n int) {
	for _, name := range f.xattrNames(ino) {
		n += len(name) + 1
	}
	return n
}

// RemoveXattr removes a value: as SetXattr. ENODATA: there is none of that name, and it is no ACL.
func (r Request) RemoveXattr(ino Ino, name string) error {
	if err := checkXattr(name); err != nil {
		return err
	}
	t, err := r.begin()
	if err != nil {
		return err
	}
	defer t.end()
	m, err := t.edit(ino)
	if err != nil {
		return err
	}
	if _, ok := r.xattr(ino, name); !ok {
		if name == aclAccess || name == aclDefault {
			return nil // the mode says it all
		}
		return syscall.ENODATA
	}
	t.frees = true
	t.removeXattr(ino, name)
	m.setTime(ctime, t.now)
	return t.commit()
}

// dropCapability takes the file capabilities away, as every change of content or owner does, whoever makes it
// (kernel: security/commoncap.c, cap_inode_killpriv).
func (t *tx) dropCapability(ino Ino) {
	if _, ok := t.f.xattr(ino, capability); ok {
		t.removeXattr(ino, capability)
	}
}
