package runtime

import (
	"io"
	"slices"
	"strings"
	"testing"
)

const testPasswd = `root:x:0:0:root:/root:/bin/sh
# comment
app:x:1000:1001:App:/home/app:/bin/sh
nohome:x:1002:1002:::
minus:x:-1:-1::/:
`

const testGroup = `root:x:0:root
app:x:1001:
audio:x:29:app,nohome
video:x:44:app
`

func TestResolveUser(t *testing.T) {
	for _, c := range []struct {
		name     string
		uid, gid uint32
		groups   []uint32
		home     string
	}{
		{"", 0, 0, []uint32{0}, "/root"},
		{"root", 0, 0, []uint32{0}, "/root"},
		{"app", 1000, 1001, []uint32{29, 44}, "/home/app"},
		{"1000", 1000, 1001, []uint32{29, 44}, "/home/app"},
		{"app:video", 1000, 44, nil, "/home/app"},
		{"app:5", 1000, 5, nil, "/home/app"},
		{"4711", 4711, 0, nil, "/"},
		{"4711:4712", 4711, 4712, nil, "/"},
		{":audio", 0, 29, nil, "/root"},
		{"nohome", 1002, 1002, []uint32{29}, "/"},
	} {
		u, home, err := ResolveUser(c.name, strings.NewReader(testPasswd), strings.NewReader(testGroup))
		if err != nil || u.UID != c.uid || u.GID != c.gid || !slices.Equal(u.AdditionalGids, c.groups) || home != c.home {
			t.Errorf("%q: %+v, %s, %v; want %+v", c.name, u, home, err, c)
		}
	}
	for _, name := range []string{"nobody", "app:nogroup", "-1", "0:-1", "4294967295", "99999999999999999999", "minus", "a:b:c"} {
		if u, _, err := ResolveUser(name, strings.NewReader(testPasswd), strings.NewReader(testGroup)); err == nil {
			t.Errorf("%q is %+v, want an error", name, u)
		}
	}
}

func TestResolveUserWithoutFiles(t *testing.T) {
	if u, home, err := ResolveUser("5:6", nil, nil); err != nil || u.UID != 5 || u.GID != 6 || home != "/" {
		t.Errorf("%+v, %s, %v", u, home, err)
	}
	if _, _, err := ResolveUser("app", nil, nil); err == nil {
		t.Error("a name without passwd was found")
	}
}

// endless never ends a line.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

func TestResolveUserReadsABoundedAmount(t *testing.T) {
	if _, _, err := ResolveUser("app", endless{}, nil); err == nil {
		t.Error("endless passwd was accepted")
	}
	lines := io.MultiReader(strings.NewReader(strings.Repeat("x:x:1:1::/:\n", maxUserFile/12)), strings.NewReader(testPasswd))
	if _, _, err := ResolveUser("app", lines, nil); err == nil {
		t.Error("a passwd beyond the bound was read")
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add("app:video", testPasswd, testGroup)
	f.Add("0", "a:x:4294967295:0::x:\n", "g:x:-1:a\n")
	f.Fuzz(func(t *testing.T, name, passwd, group string) {
		u, home, err := ResolveUser(name, strings.NewReader(passwd), strings.NewReader(group))
		if err != nil {
			return
		}
		const limit = 1 << 31
		if u.UID >= limit || u.GID >= limit || slices.ContainsFunc(u.AdditionalGids, func(g uint32) bool { return g >= limit }) {
			t.Errorf("%+v is out of range", u)
		}
		if !strings.HasPrefix(home, "/") {
			t.Errorf("home %q", home)
		}
	})
}
