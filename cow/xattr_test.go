package cow

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestXattrs(t *testing.T) {
	x := newFixture(t, smallImage())
	ping, etc := x.ino("bin/ping"), x.ino("etc")
	get := func(ino Ino, name string) error { _, err := x.GetXattr(ino, name); return err }
	for _, c := range []struct {
		what string
		got  error
		want error
	}{
		{"create one of the image", x.SetXattr(ping, "user.note", nil, unix.XATTR_CREATE), syscall.EEXIST},
		{"replace none", x.SetXattr(ping, "user.none", nil, unix.XATTR_REPLACE), syscall.ENODATA},
		{"both", x.SetXattr(ping, "user.none", nil, unix.XATTR_REPLACE|unix.XATTR_CREATE), syscall.ENODATA},
		{"other flags", x.SetXattr(ping, "user.none", nil, 4), syscall.EINVAL},
		{"replace one of the image", x.SetXattr(ping, "user.note", []byte("ours"), unix.XATTR_REPLACE), nil},
		{"remove one of the image", x.RemoveXattr(ping, capability), nil},
		{"remove it again", x.RemoveXattr(ping, capability), syscall.ENODATA},
		{"get it", get(ping, capability), syscall.ENODATA},
		{"create it", x.SetXattr(ping, capability, []byte{0, 1}, unix.XATTR_CREATE), nil},
		{"empty value", x.SetXattr(etc, "trusted.overlay.opaque", nil, 0), nil},
		{"get the empty value", get(etc, "trusted.overlay.opaque"), nil},
		{"largest value", x.SetXattr(etc, "user.big", make([]byte, 64<<10), 0), nil},
		{"larger value", x.SetXattr(etc, "user.bigger", make([]byte, 64<<10+1), 0), syscall.E2BIG},
		{"longest name", x.SetXattr(etc, "user."+strings.Repeat("n", 250), nil, 0), nil},
		{"longer name", x.SetXattr(etc, "user."+strings.Repeat("n", 251), nil, 0), syscall.ERANGE},
		{"no name in a space", x.SetXattr(etc, "user.", nil, 0), syscall.EINVAL},
		{"other space", x.SetXattr(etc, "other.x", nil, 0), syscall.EOPNOTSUPP},
		{"get of another space", get(etc, "system.x"), syscall.EOPNOTSUPP},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
	for range 3 {
		names, err := x.ListXattr(ping)
		must(t, err)
		if !slices.Equal(names, []string{capability, "user.note"}) {
			t.Errorf("names %v", names)
		}
		if v, err := x.GetXattr(ping, "user.note"); string(v) != "ours" || err != nil {
			t.Errorf("%q, %v", v, err)
		}
		if v, err := x.GetXattr(etc, "trusted.overlay.opaque"); v == nil || len(v) != 0 || err != nil {
			t.Errorf("empty value: %v, %v", v, err)
		}
		x.remount()
	}
}

func TestXattrNamesHaveALimit(t *testing.T) {
	x := newFixture(t, smallImage())
	etc := x.ino("etc")
	for i := 0; ; i++ {
		err := x.SetXattr(etc, "user."+strings.Repeat(string(rune('a'+i%26)), 200)+string(rune('a'+i/26)), nil, 0)
		if err == nil && i < 400 {
			continue
		}
		if err != syscall.ENOSPC || i < 300 {
			t.Errorf("%d names: %v", i, err)
		}
		return
	}
}
