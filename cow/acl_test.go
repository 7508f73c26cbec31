package cow

import (
	"bytes"
	"encoding/binary"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

func makeACL(entries ...[2]uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, e[0])
		b = binary.LittleEndian.AppendUint16(b, e[1])
		b = binary.LittleEndian.AppendUint32(b, 1000)
	}
	return b
}

// userMay lets user 1000 do everything, and nobody else but the owner.
var userMay = makeACL([2]uint16{aclUserObj, 7}, [2]uint16{aclUser, 7}, [2]uint16{aclGroupObj, 0}, [2]uint16{aclMask, 7}, [2]uint16{aclOther, 0})

func TestAccessACLAndModeAgree(t *testing.T) {
	x := newFixture(t, smallImage())
	passwd := x.ino("etc/passwd")
	must(t, x.SetXattr(passwd, aclAccess, makeACL([2]uint16{aclUserObj, 7}, [2]uint16{aclUser, 6}, [2]uint16{aclGroupObj, 4}, [2]uint16{aclMask, 6}, [2]uint16{aclOther, 0}), 0))
	if a := x.attr("etc/passwd"); a.Mode != unix.S_IFREG|0o760 {
		t.Errorf("mode %o", a.Mode)
	}
	_, err := x.SetAttr(passwd, unionfs.SetAttr{Valid: unionfs.SetMode, Mode: 0o2615})
	must(t, err)
	v, err := x.GetXattr(passwd, aclAccess)
	must(t, err)
	if string(v) != string(makeACL([2]uint16{aclUserObj, 6}, [2]uint16{aclUser, 6}, [2]uint16{aclGroupObj, 4}, [2]uint16{aclMask, 1}, [2]uint16{aclOther, 5})) {
		t.Errorf("ACL after chmod: %x", v)
	}
	minimal := makeACL([2]uint16{aclUserObj, 7}, [2]uint16{aclGroupObj, 5}, [2]uint16{aclOther, 1})
	must(t, x.SetXattr(passwd, aclAccess, minimal, 0))
	if _, err := x.GetXattr(passwd, aclAccess); err != syscall.ENODATA {
		t.Errorf("an ACL that the mode says all of: %v", err)
	}
	if a := x.attr("etc/passwd"); a.Mode != unix.S_IFREG|0o2751 {
		t.Errorf("mode %o", a.Mode)
	}
	must(t, x.SetXattr(passwd, aclAccess, minimal, unionfs.XattrKillSGID))
	if a := x.attr("etc/passwd"); a.Mode != unix.S_IFREG|0o751 {
		t.Errorf("mode %o", a.Mode)
	}
	must(t, x.RemoveXattr(passwd, aclAccess))
	want(t, "default ACL of a file", x.SetXattr(passwd, aclDefault, minimal, 0), syscall.EACCES)
	want(t, "nonsense", x.SetXattr(passwd, aclAccess, []byte("nonsense"), 0), syscall.EINVAL)
	want(t, "no owner", x.SetXattr(passwd, aclAccess, minimal[12:], 0), syscall.EINVAL)
}

// A default ACL takes the umask's place, and what is made has its ACLs from the moment it is there.
func TestDefaultACLIsInherited(t *testing.T) {
	x := newFixture(t, smallImage())
	etc := x.ino("etc")
	c := unionfs.Owner{UID: 10, GID: 20, Umask: 0o077}
	must(t, x.SetXattr(etc, aclDefault, userMay, 0))
	_, err := x.Mkdir(etc, "d", 0o755, c)
	must(t, err)
	_, err = x.Mknod(etc, "f", unix.S_IFREG|0o640, 0, c)
	must(t, err)
	_, err = x.Symlink(etc, "l", "target", c)
	must(t, err)
	_, err = x.Mkdir(x.ino("tmp"), "masked", 0o777, c)
	must(t, err)
	access := func(user, mask uint16) []byte {
		return makeACL([2]uint16{aclUserObj, user}, [2]uint16{aclUser, 7}, [2]uint16{aclGroupObj, 0}, [2]uint16{aclMask, mask}, [2]uint16{aclOther, 0})
	}
	for _, when := range []string{"at once", "after a crash", "after a clean end"} {
		for _, w := range []struct {
			path              string
			mode              uint32
			access, byDefault []byte
		}{
			{"etc/d", unix.S_IFDIR | 0o750, access(7, 5), userMay},
			{"etc/f", unix.S_IFREG | 0o640, access(6, 4), nil},
			{"etc/l", unix.S_IFLNK | 0o777, nil, nil},
			{"tmp/masked", unix.S_IFDIR | 0o700, nil, nil},
		} {
			a := x.attr(w.path)
			gotAccess, _ := x.GetXattr(a.Ino, aclAccess)
			gotDefault, _ := x.GetXattr(a.Ino, aclDefault)
			if a.Mode != w.mode || !bytes.Equal(gotAccess, w.access) || !bytes.Equal(gotDefault, w.byDefault) {
				t.Errorf("%s: %s: mode %o, access %x, default %x", when, w.path, a.Mode, gotAccess, gotDefault)
			}
		}
		if when == "at once" {
			x.reopen()
		} else {
			x.remount()
		}
	}
}

// An ACL of the image that the kernel would stumble over must neither shut everybody out nor let anybody in.
func TestImageACLsAreChecked(t *testing.T) {
	long := slices.Clone(userMay[:12])
	for range maxACL / 8 {
		long = append(long, userMay[12:20]...)
	}
	long = append(long, userMay[20:]...)
	image := smallImage()
	for path, value := range map[string][]byte{"etc/passwd": userMay, "etc/empty": []byte("nonsense"), "bin/sh": userMay[:8], "etc/rc.d/one": long} {
		for i := range image {
			if image[i].Name == path {
				image[i].Xattrs = map[string]string{aclAccess: string(value)}
			}
		}
	}
	x := newFixture(t, image)
	closed := makeACL([2]uint16{aclUserObj, 7}, [2]uint16{aclGroupObj, 0}, [2]uint16{aclOther, 0})
	for path, want := range map[string][]byte{"etc/passwd": userMay, "etc/empty": nil, "bin/sh": nil, "etc/rc.d/one": closed} {
		ino := x.ino(path)
		got, err := x.GetXattr(ino, aclAccess)
		same := len(got) == len(want)
		for i := 4; same && i < len(got); i += 8 {
			same = bytes.Equal(got[i:i+4], want[i:i+4]) // ids of nobody do not matter
		}
		if !same || (err == syscall.ENODATA) != (want == nil) {
			t.Errorf("%s: %x, %v", path, got, err)
		}
		names, err := x.ListXattr(ino)
		if err != nil || slices.Contains(names, aclAccess) != (want != nil) {
			t.Errorf("%s: listed %v, %v", path, names, err)
		}
		_, err = x.SetAttr(ino, unionfs.SetAttr{Valid: unionfs.SetMode, Mode: 0o600})
		must(t, err)
	}
}

// Whatever bytes an ACL has: it is refused, or can be used for all that one is used for.
func FuzzACL(f *testing.F) {
	f.Add(userMay)
	f.Add(makeACL())
	f.Add(makeACL([2]uint16{aclUserObj, 7}, [2]uint16{aclGroupObj, 5}, [2]uint16{aclOther, 1}))
	f.Add([]byte("nonsense"))
	f.Fuzz(func(t *testing.T, b []byte) {
		value := slices.Clone(b)
		a, err := parseACL(value)
		if err != nil || a.len() == 0 {
			return
		}
		mode := a.mode()
		if got := a.restrict(0o777); got != mode {
			t.Errorf("restricted to everything: %o, was %o", got, mode)
		}
		a.setMode(0o640)
		if a.mode() != 0o640 {
			t.Errorf("mode %o", a.mode())
		}
		if _, err := parseACL(value); err != nil {
			t.Errorf("after a change of mode: %v", err)
		}
		if shown, ok := imageACL(b); !ok || len(shown) > maxACL {
			t.Errorf("as the image's: %d bytes, %t", len(shown), ok)
		}
	})
}
