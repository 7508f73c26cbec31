package cow

import (
	"encoding/binary"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// POSIX ACLs as the system.posix_acl_* attributes carry them (kernel: include/uapi/linux/posix_acl_xattr.h):
// a uint32 version, then entries of tag uint16, permissions uint16, id uint32, little-endian.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	aclVersion  = 2
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20

	aclNobody = 1<<32 - 1 // the id of an entry that names nobody
	// maxACL is the longest that the kernel takes from us, bytes (fs/fuse/acl.c: a page, at least this).
	maxACL = 4096
)

// acl is the entries of a checked ACL. Its bytes may be changed by setPerm.
type acl []byte

// parseACL accepts what the kernel accepts (fs/posix_acl.c, posix_acl_valid): the entries in the order of their tags,
// each user and group with an id, and with any of these a mask.
func parseACL(b []byte) (acl, error) {
	if len(b) < 4 || (len(b)-4)%8 != 0 {
		return nil, syscall.EINVAL
	}
	if binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, syscall.EOPNOTSUPP
	}
	a := acl(b[4:])
	count := make(map[uint16]int)
	for i := range a.len() {
		tag, named := a.tag(i), a.tag(i) == aclUser || a.tag(i) == aclGroup
		if a.perm(i)&^7 != 0 || i > 0 && tag < a.tag(i-1) || named && a.id(i) == aclNobody {
			return nil, syscall.EINVAL
		}
		if count[tag]++; count[tag] > 1 && !named {
			return nil, syscall.EINVAL
		}
	}
	needMask := min(1, count[aclUser]+count[aclGroup])
	switch {
	case a.len() == 0:
		return a, nil
	case count[aclUserObj] != 1, count[aclGroupObj] != 1, count[aclOther] != 1, count[aclMask] < needMask,
		3+count[aclUser]+count[aclGroup]+count[aclMask] != a.len():
		return nil, syscall.EINVAL
	}
	return a, nil
}

// imageACL is what holds of an ACL that an image has. Nobody has checked it, and a wrong one would make the kernel
// refuse every access: it counts as none. One that is right but longer than the kernel takes is replaced by one that lets
// nobody in but the owner, for what it would allow and deny cannot be told.
func imageACL(value []byte) ([]byte, bool) {
	a, err := parseACL(value)
	switch {
	case err != nil || a.len() == 0:
		return nil, false
	case len(value) <= maxACL:
		return value, true
	}
	closed := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range [...]struct {
		tag  uint16
		perm uint32
	}{{aclUserObj, a.perm(a.find(aclUserObj))}, {aclGroupObj, 0}, {aclOther, 0}} {
		closed = binary.LittleEndian.AppendUint16(closed, e.tag)
		closed = binary.LittleEndian.AppendUint16(closed, uint16(e.perm))
		closed = binary.LittleEndian.AppendUint32(closed, aclNobody)
	}
	return closed, true
}

func (a acl) len() int          { return len(a) / 8 }
func (a acl) tag(i int) uint16  { return binary.LittleEndian.Uint16(a[i*8:]) }
func (a acl) id(i int) uint32   { return binary.LittleEndian.Uint32(a[i*8+4:]) }
func (a acl) perm(i int) uint32 { return uint32(binary.LittleEndian.Uint16(a[i*8+2:])) }
func (a acl) setPerm(i int, perm uint32) {
	binary.LittleEndian.PutUint16(a[i*8+2:], uint16(perm))
}

func (a acl) find(tag uint16) int {
	for i := range a.len() {
		if a.tag(i) == tag {
			return i
		}
	}
	return -1
}

// group is the entry that the group bits of the mode show: the mask if there is one.
func (a acl) group() int {
	if i := a.find(aclMask); i >= 0 {
		return i
	}
	return a.find(aclGroupObj)
}

// mode is the permission bits that the ACL shows as.
func (a acl) mode() uint32 {
	return a.perm(a.find(aclUserObj))<<6 | a.perm(a.group())<<3 | a.perm(a.find(aclOther))
}

// setMode sets the entries that are permission bits.
func (a acl) setMode(mode uint32) {
	a.setPerm(a.find(aclUserObj), mode>>6&7)
	a.setPerm(a.group(), mode>>3&7)
	a.setPerm(a.find(aclOther), mode&7)
}

// minimal tells whether the permission bits say all that the ACL says.
func (a acl) minimal() bool { return a.len() == 3 }

// restrict takes from the entries that are permission bits what mode lacks, and returns what they leave of mode.
func (a acl) restrict(mode uint32) uint32 {
	for _, e := range [...]struct{ i, shift int }{{a.find(aclUserObj), 6}, {a.group(), 3}, {a.find(aclOther), 0}} {
		a.setPerm(e.i, a.perm(e.i)&(mode>>e.shift))
	}
	return mode&^0o777 | a.mode()
}

// inheritACL gives a new inode's mode what the directory's default ACL, or else the umask, leaves of it. It returns the ACLs
// that the inode gets; nil: none (kernel: fs/posix_acl.c, posix_acl_create). It needs st or op.
func (f *FS) inheritACL(dir Ino, m *meta, umask uint32) (access, byDefault []byte) {
	if m.mode&unix.S_IFMT == unix.S_IFLNK {
		return nil, nil
	}
	byDefault, ok := f.xattr(dir, aclDefault)
	if !ok {
		m.mode &^= umask & 0o777
		return nil, nil
	}
	access = slices.Clone(byDefault)
	a, err := parseACL(access)
	if err != nil || a.len() == 0 {
		return nil, nil // a journal that was not written by us
	}
	m.mode = a.restrict(m.mode)
	if a.minimal() {
		access = nil
	}
	if !m.isDir() {
		byDefault = nil
	}
	return access, byDefault
}

// setACL is SetXattr for an ACL (kernel: fs/posix_acl.c, posix_acl_update_mode).
func (t *tx) setACL(ino Ino, m *meta, name string, value []byte, killSGID bool) error {
	a, err := parseACL(value)
	if err != nil {
		return err
	}
	if name == aclDefault && !m.isDir() {
		return syscall.EACCES
	}
	if name == aclAccess && a.len() > 0 {
		m.mode = m.mode&^0o777 | a.mode()
	}
	if killSGID {
		m.mode &^= unix.S_ISGID
	}
	if a.len() == 0 || name == aclAccess && a.minimal() {
		if _, ok := t.f.xattr(ino, name); ok {
			t.removeXattr(ino, name)
		}
		return nil
	}
	t.setXattr(ino, name, value)
	return nil
}

// chmodACL brings the access ACL in line with new permission bits (kernel: fs/posix_acl.c, posix_acl_chmod).
func (t *tx) chmodACL(ino Ino, m *meta) {
	old, ok := t.f.xattr(ino, aclAccess)
	if !ok {
		return
	}
	value := slices.Clone(old)
	if a, err := parseACL(value); err == nil && a.len() > 0 {
		a.setMode(m.mode)
		t.setXattr(ino, aclAccess, value)
	}
}
