package fs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What happens to attributes is what happens on ext4.
func TestAttributesAreAsOnExt4(t *testing.T) { runModel(t, attrCases, IOCached, IOPassthrough) }

var attrCases = []modelCase{
	{"chmod and chown", func(d *modelDir) {
		for _, name := range []string{"file", "dir", "theirs", "foreign", "setid", "setgid", "fifo", "chr", "linked", "new"} {
			if name == "new" {
				d.must(unprivileged(func() error { return withMode(d.path(name), 0o666, write("x")) }))
			}
			for _, who := range []string{"root", "user"} {
				as := unprivileged
				if who == "root" {
					as = func(f func() error) error { return f() }
				}
				for _, mode := range []uint32{0o644, 0o6755, 0o2745, 0o7777, 0} {
					d.err(fmt.Sprintf("%s chmod %s %o", who, name, mode), as(func() error { return unix.Chmod(d.path(name), mode) }))
					d.stat(name)
				}
				for _, o := range [][2]int{{1000, -1}, {-1, 1000}, {1000, 2000}, {-1, -1}, {0, 0}, {1000, 1000}} {
					if o == [2]int{-1, -1} && who == "root" {
						continue // see decodeSetAttr
					}
					d.err(fmt.Sprint(who, " chown ", name, o), as(func() error { return unix.Lchown(d.path(name), o[0], o[1]) }))
					d.stat(name)
				}
				d.must(unix.Chmod(d.path(name), 0o6777))
			}
		}
		d.err("chown a symlink", unix.Lchown(d.path("soft"), 5, 6))
		d.stat("soft")
		d.err("chmod through it", unix.Chmod(d.path("soft"), 0o600))
		d.err("chmod through a dangling one", unix.Chmod(d.path("dangling"), 0o600))
	}},
	{"times", func(d *modelDir) {
		ts := func(sec, nsec int64) unix.Timespec { return unix.Timespec{Sec: sec, Nsec: nsec} }
		omit, now := ts(0, unix.UTIME_OMIT), ts(0, unix.UTIME_NOW)
		for _, name := range []string{"file", "dir", "fifo", "linked", "chr"} {
			for _, c := range [][2]unix.Timespec{{ts(1, 2), ts(3, 999999999)}, {omit, ts(-5, 7)}, {ts(-1<<31+9, 1), omit}, {ts(1<<31+5, 5), ts(1<<33, 8)}, {omit, omit}, {ts(0, 0), ts(0, 0)}} {
				d.err("utimensat", unix.UtimesNanoAt(unix.AT_FDCWD, d.path(name), c[:], 0))
				var st unix.Stat_t
				d.must(unix.Stat(d.path(name), &st))
				d.logf("%s: %v: %v %v", name, c, st.Atim, st.Mtim)
			}
			for _, c := range [][2]unix.Timespec{{now, omit}, {omit, now}, {now, now}} {
				d.times(fmt.Sprint(name, c[0].Nsec, c[1].Nsec), func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, d.path(name), c[:], 0) }, name)
			}
			d.times("chmod", func() error { return unix.Chmod(d.path(name), 0o600) }, name)
			d.times("chmod to the same", func() error { return unix.Chmod(d.path(name), 0o600) }, name)
			d.times("chown", func() error { return unix.Chown(d.path(name), 0, 0) }, name)
		}
		d.err("of a symlink", unix.UtimesNanoAt(unix.AT_FDCWD, d.path("soft"), []unix.Timespec{ts(9, 9), ts(8, 8)}, unix.AT_SYMLINK_NOFOLLOW))
		d.err("a wrong one", unix.UtimesNanoAt(unix.AT_FDCWD, d.path("file"), []unix.Timespec{ts(9, 1e9), ts(8, 8)}, 0))
		d.err("now, by who may write", unprivileged(func() error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, d.path("foreign"), []unix.Timespec{now, now}, 0)
		}))
		d.err("given, by who may write", unprivileged(func() error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, d.path("foreign"), []unix.Timespec{ts(9, 9), ts(8, 8)}, 0)
		}))
		d.err("nothing, by nobody", unprivileged(func() error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, d.path("file"), []unix.Timespec{omit, omit}, 0)
		}))
	}},
	{"extended attributes", func(d *modelDir) {
		for _, name := range []string{"file", "dir", "linked", "soft", "fifo", "chr", "new", "sticky"} {
			path := d.path(name)
			if name == "new" {
				d.must(os.WriteFile(path, nil, 0o644))
			}
			for _, x := range []string{"user.a", "user.note", "trusted.a", "trusted.t", "security.a", "system.a", "other.a", "user.", "trusted.", "noname", "",
				"user." + strings.Repeat("n", 250), "user." + strings.Repeat("n", 251)} {
				for _, flags := range []int{unix.XATTR_REPLACE, unix.XATTR_CREATE, unix.XATTR_CREATE, 0, unix.XATTR_REPLACE, unix.XATTR_CREATE | unix.XATTR_REPLACE, 4} {
					d.err(fmt.Sprint(name, " set ", x, flags), unix.Lsetxattr(path, x, []byte(fmt.Sprint("v", flags)), flags))
				}
				buf := make([]byte, 100)
				n, err := unix.Lgetxattr(path, x, buf)
				d.logf("%s get %s: %q %v", name, x, buf[:max(n, 0)], err)
				n, err = unix.Lgetxattr(path, x, nil)
				d.logf("size %d %v", n, err)
				_, err = unix.Lgetxattr(path, x, buf[:1])
				d.err("short", err)
				d.err("by nobody", unprivileged(func() error { return unix.Lsetxattr(path, x, nil, 0) }))
				d.err("get by nobody", unprivileged(func() error { _, err := unix.Lgetxattr(path, x, buf); return err }))
				list := make([]byte, 1000)
				n, err = unix.Llistxattr(path, list)
				d.logf("list %v %v", sortedNames(list[:max(n, 0)]), err)
				d.must(unprivileged(func() error {
					n, err := unix.Llistxattr(path, list) // it has CAP_SYS_ADMIN still, so ext4 lists trusted attributes
					d.logf("list by nobody %v %v", strings.Contains(sortedNames(list[:max(n, 0)]), "user.note"), err)
					return nil
				}))
				_, err = unix.Llistxattr(path, list[:1])
				d.err("short list", err)
				d.err("remove", unix.Lremovexattr(path, x))
				d.err("remove again", unix.Lremovexattr(path, x))
			}
			d.err("empty value", unix.Lsetxattr(path, "trusted.empty", nil, 0))
			d.err("too large", unix.Lsetxattr(path, "trusted.large", make([]byte, 65537), 0))
			d.times("set", func() error { return unix.Lsetxattr(path, "trusted.x", []byte("1"), 0) }, name)
			d.times("remove", func() error { return unix.Lremovexattr(path, "trusted.x") }, name)
			d.times("remove none", func() error { return unix.Lremovexattr(path, "trusted.x") }, name)
		}
	}},
	{"access control lists", func(d *modelDir) {
		for _, name := range []string{"foreign", "dir", "new", "setgid", "linked"} {
			path := d.path(name)
			if name == "new" {
				d.must(os.WriteFile(path, nil, 0o640))
			}
			for _, list := range testACLs {
				d.err(name+" access "+list.name, unix.Setxattr(path, aclAccess, list.value, 0))
				d.acl(name)
				d.access(name)
				for _, mode := range []uint32{0o2750, 0o604, 0o666} {
					d.err("chmod", unix.Chmod(path, mode))
					d.acl(name)
					d.access(name)
				}
				d.err("default "+list.name, unix.Setxattr(path, aclDefault, list.value, 0))
				d.acl(name)
			}
			d.err("remove", unix.Removexattr(path, aclAccess))
			d.err("remove again", unix.Removexattr(path, aclAccess))
			d.err("remove the default", unix.Removexattr(path, aclDefault))
			d.err("remove it again", unix.Removexattr(path, aclDefault))
			d.times("set", func() error { return unix.Setxattr(path, aclAccess, testACLs[1].value, 0) }, name)
			d.acl(name)
			d.times("remove", func() error { return unix.Removexattr(path, aclAccess) }, name)
			d.times("remove none", func() error { return unix.Removexattr(path, aclAccess) }, name)
		}
		d.err("of a symlink", unix.Lsetxattr(d.path("soft"), aclAccess, testACLs[1].value, 0))
		d.err("by nobody", unprivileged(func() error { return unix.Setxattr(d.path("file"), aclAccess, testACLs[1].value, 0) }))
		d.must(unix.Chown(d.path("setid"), 1000, 2000))
		d.must(unix.Chmod(d.path("setid"), 0o2755))
		d.err("by the owner, not of the group", unprivileged(func() error { return unix.Setxattr(d.path("setid"), aclAccess, testACLs[1].value, 0) }))
	}},
	{"inherited access control lists", func(d *modelDir) {
		for i, list := range testACLs[:6] {
			for _, parent := range []string{"dir", "setgid", "newdir"} {
				if parent == "newdir" {
					parent += fmt.Sprint(i)
					d.must(unix.Mkdir(d.path(parent), 0o777))
				}
				d.must(unix.Chmod(d.path(parent), 0o2777))
				d.err("default "+list.name, unix.Setxattr(d.path(parent), aclDefault, list.value, 0))
				for _, mask := range []int{0, 0o077} {
					old := unix.Umask(mask)
					for _, mode := range []uint32{0o777, 0o640, 0o2711, 0} {
						base := fmt.Sprintf("%s/%d.%o.%o", parent, i, mask, mode)
						d.err("mkdir", unix.Mkdir(d.path(base+"d"), mode))
						d.err("create", withMode(d.path(base+"f"), mode, write("x")))
						d.err("mknod", unix.Mknod(d.path(base+"p"), unix.S_IFIFO|mode, 0))
						d.err("symlink", unix.Symlink("x", d.path(base+"l")))
						d.err("user", unprivileged(func() error { return unix.Mkdir(d.path(base+"u"), mode) }))
						fd, err := unix.Open(d.path(parent), unix.O_TMPFILE|unix.O_RDWR, mode)
						d.err("tmpfile", err)
						d.err("link", linkFD(fd, d.path(base+"t")))
						unix.Close(fd)
						for _, kind := range []string{"d", "f", "p", "u", "t"} {
							d.stat(base + kind)
							d.acl(base + kind)
						}
						d.access(base + "f")
						d.access(base + "d")
					}
					unix.Umask(old)
				}
			}
		}
	}},
}

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// testACLs name user 1000 and groups. The entries are tag, permissions, id.
var testACLs = []struct {
	name  string
	value []byte
}{
	{"minimal", makeACL(1, 6, -1, 4, 4, -1, 32, 0, -1)},
	{"a user may", makeACL(1, 7, -1, 2, 6, 1000, 4, 0, -1, 16, 7, -1, 32, 0, -1)},
	{"a user may not", makeACL(1, 7, -1, 2, 0, 1000, 4, 7, -1, 16, 7, -1, 32, 7, -1)},
	{"masked", makeACL(1, 7, -1, 2, 7, 1000, 4, 7, -1, 16, 4, -1, 32, 0, -1)},
	{"groups", makeACL(1, 7, -1, 4, 0, -1, 8, 5, 1000, 8, 2, 2000, 16, 7, -1, 32, 7, -1)},
	{"no mask", makeACL(1, 7, -1, 2, 6, 1000, 4, 0, -1, 32, 0, -1)},
	{"no owner", makeACL(4, 0, -1, 32, 0, -1)},
	{"wrong order", makeACL(1, 7, -1, 4, 0, -1, 2, 6, 1000, 16, 7, -1, 32, 0, -1)},
	{"wrong permissions", makeACL(1, 9, -1, 4, 0, -1, 32, 0, -1)},
	{"wrong tag", makeACL(1, 7, -1, 3, 0, -1, 32, 0, -1)},
	{"two masks", makeACL(1, 7, -1, 2, 6, 1000, 4, 0, -1, 16, 7, -1, 16, 7, -1, 32, 0, -1)},
	{"nobody named", makeACL(1, 7, -1, 2, 6, -1, 4, 0, -1, 16, 7, -1, 32, 0, -1)},
	{"empty", makeACL()},
	{"cut", makeACL(1, 7, -1)[:9]},
	{"another version", append([]byte{3}, makeACL()[1:]...)},
}

func makeACL(entries ...int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for i := 0; i < len(entries); i += 3 {
		b = binary.LittleEndian.AppendUint16(b, uint16(entries[i]))
		b = binary.LittleEndian.AppendUint16(b, uint16(entries[i+1]))
		b = binary.LittleEndian.AppendUint32(b, uint32(entries[i+2]))
	}
	return b
}

// acl logs the lists of a file.
func (d *modelDir) acl(name string) {
	buf := make([]byte, 1000)
	for _, x := range []string{aclAccess, aclDefault} {
		n, err := unix.Getxattr(d.path(name), x, buf)
		d.logf("%s %s: %x %v", name, x, buf[:max(n, 0)], err)
	}
	d.stat(name)
}

// access logs what user 1000 may do with a file.
func (d *modelDir) access(name string) {
	d.must(unprivileged(func() error {
		for _, flags := range []int{unix.O_RDONLY, unix.O_WRONLY} {
			fd, err := unix.Open(d.path(name), flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			d.err(fmt.Sprint(name, " open ", flags), err)
			if err == nil {
				unix.Close(fd)
			}
		}
		d.err("search", unix.Stat(d.path(name+"/."), new(unix.Stat_t)))
		return nil
	}))
}

func sortedNames(list []byte) string {
	names := strings.Split(string(bytes.TrimRight(list, "\x00")), "\x00")
	slices.Sort(names)
	return strings.Join(names, " ")
}
