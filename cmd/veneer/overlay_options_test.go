package main

import (
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOverlayOptions(t *testing.T) {
	for _, c := range []struct {
		args []string
		want overlayOptions
	}{
		{[]string{"lowerdir=/a"}, overlayOptions{lowers: []string{"/a"}, flags: unix.MS_RDONLY}},
		{[]string{"rw,lowerdir=/top:/mid:/bottom,upperdir=/u,workdir=/w"}, overlayOptions{lowers: []string{"/top", "/mid", "/bottom"}, upper: "/u"}},
		{[]string{`lowerdir=/a\:b:/c\,d:/e\\f`, `upperdir=/u\:\,`}, overlayOptions{lowers: []string{"/a:b", "/c,d", `/e\f`}, upper: "/u:,"}},
		{[]string{`lowerdir="/a,b:/c",upperdir=/u`}, overlayOptions{lowers: []string{"/a,b", "/c"}, upper: "/u"}},
		{[]string{`lowerdir=/a"b,upperdir=/u`}, overlayOptions{lowers: []string{`/a"b`}, upper: "/u"}},
		{[]string{"ro,nosuid,nodev,noexec,noatime,sync", "lowerdir=/a,upperdir=/u"}, overlayOptions{lowers: []string{"/a"}, upper: "/u",
			flags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_SYNCHRONOUS}},
		{[]string{"ro,nosuid,nodev,noexec,lowerdir=/a,upperdir=/u,rw,suid,dev,exec"}, overlayOptions{lowers: []string{"/a"}, upper: "/u"}},
		{[]string{"nosuid,defaults,_netdev,nofail,user=joe,x-systemd.automount,X-mount.mkdir,comment=x,lowerdir=/a,upperdir=/u"},
			overlayOptions{lowers: []string{"/a"}, upper: "/u"}},
		{[]string{"lowerdir=/a,upperdir=/u,redirect_dir=on,index=off,xino=on,metacopy=off,userxattr,volatile"},
			overlayOptions{lowers: []string{"/a"}, upper: "/u"}},
		{[]string{"lowerdir=/a,upperdir=/u,fsname=name,subtype=,io=cached"},
			overlayOptions{lowers: []string{"/a"}, upper: "/u", source: "name", typ: "fuse", io: "cached"}},
		{[]string{"lowerdir=/a,upperdir=/u,subtype=x"}, overlayOptions{lowers: []string{"/a"}, upper: "/u", typ: "fuse.x"}},
		{[]string{"remount,rw,relatime,user_id=0,group_id=0,default_permissions,allow_other,max_read=1048576"},
			overlayOptions{remount: true, flags: unix.MS_RELATIME}},
	} {
		if c.want.typ == "" {
			c.want.typ = "fuse.veneer"
		}
		if c.want.latency == "" {
			c.want.latency = "auto"
		}
		if c.want.io == "" {
			c.want.io = "auto"
		}
		if got, err := parseOverlayOptions(c.args, false); err != nil || !reflect.DeepEqual(*got, c.want) {
			t.Errorf("%q: %+v, %v; want %+v", c.args, got, err, c.want)
		}
	}
}

func TestOverlayOptionsThatAreWrong(t *testing.T) {
	for options, want := range map[string]string{
		"":                            "lowerdir= is missing",
		"upperdir=/u":                 "lowerdir= is missing",
		"lowerdir=":                   "empty path",
		"lowerdir=/a::/b":             "empty path",
		"lowerdir=/a:":                "empty path",
		"lowerdir=/a,upperdir=":       "needs a path",
		"lowerdir=/a,foo":             `unknown mount option "foo"`,
		"lowerdir=/a,foo=bar":         `unknown mount option "foo=bar"`,
		"lowerdir=/a,ro=1":            `unknown mount option "ro=1"`,
		"lowerdir=/a,upperdir":        `unknown mount option "upperdir"`,
		"lowerdir=/a,lowerdir+=/b":    `unknown mount option "lowerdir+=/b"`,
		"lowerdir=/a,verity=require":  `unknown mount option "verity=require"`,
		"lowerdir=/a,io=fast":         "fast",
		"lowerdir=/a,context=\"a,b\"": "unknown mount option",
	} {
		if o, err := parseOverlayOptions([]string{options}, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v; want an error with %q", options, o, err, want)
		}
	}
	if _, err := parseOverlayOptions([]string{"lowerdir=/a,foo,foo=bar"}, true); err != nil {
		t.Errorf("sloppy: %v", err)
	}
}

// What is escaped as overlayfs wants it comes out as it went in, whatever is in it.
func FuzzOverlayOptions(f *testing.F) {
	for _, s := range []string{"/a", "/a:b", `/a\,"b"`, `"`, "=", `\`} {
		f.Add(s, s+"2")
	}
	escape := strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`, `"`, `\"`)
	f.Fuzz(func(t *testing.T, top, bottom string) {
		_, _ = parseOverlayOptions([]string{top, bottom}, true) // only must not panic
		o, err := parseOverlayOptions([]string{"ro,lowerdir=" + escape.Replace(top) + ":" + escape.Replace(bottom) + ",dev"}, false)
		if top == "" || bottom == "" {
			if err == nil {
				t.Errorf("an empty layer was taken: %+v", o)
			}
			return
		}
		if err != nil || !reflect.DeepEqual(o.lowers, []string{top, bottom}) {
			t.Errorf("%q, %q became %+v, %v", top, bottom, o, err)
		}
	})
}
