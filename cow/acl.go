package cow

import (
	"encoding/binary"
	"syscall"
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
)

// acl is a checked ACL. Its bytes may be changed by setPerm.
type acl []byte

func parseACL(b []byte) (acl, error) {
	if len(b) < 4 || (len(b)-4)%8 != 0 {
		return nil, syscall.EINVAL
	}
	if binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, syscall.EOPNOTSUPP
	}
	a := acl(b[4:])
	for i := range a.len() {
		if a.perm(i)&^7 != 0 {
			return nil, syscall.EINVAL
		}
		switch a.tag(i) {
		case aclUserObj, aclUser, aclGroupObj, aclGroup, aclMask, aclOther:
		default:
			return nil, syscall.EINVAL
		}
	}
	if a.len() > 0 && (a.find(aclUserObj) < 0 || a.find(aclGroupObj) < 0 || a.find(aclOther) < 0) {
		return nil, syscall.EINVAL
	}
	return a, nil
}

func (a acl) len() int          { return len(a) / 8 }
func (a acl) tag(i int) uint16  { return binary.LittleEndian.Uint16(a[i*8:]) }
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

// setACL is SetXattr for an ACL (kernel: fs/posix_acl.c, posix_acl_update_mode).
func (t *tx) setACL(ino Ino, m *meta, name string, value []byte) error {
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
	value := append([]byte(nil), old...)
	a, err := parseACL(value)
	if err != nil || a.len() == 0 {
		return // the image's own, which nobody has checked
	}
	a.setMode(m.mode)
	t.setXattr(ino, aclAccess, value)
}
