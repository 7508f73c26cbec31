package cow

import (
	"context"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

func TestErrnos(t *testing.T) {
	x := newFixture(t, smallImage())
	etc, bin, rc, sh, passwd := x.ino("etc"), x.ino("bin"), x.ino("etc/rc.d"), x.ino("bin/sh"), x.ino("etc/passwd")
	empty, err := x.Mkdir(etc, "emptydir", 0o755, owner)
	must(t, err)
	long := strings.Repeat("n", 256)
	mk := func(dir Ino, name string) error {
		_, err := x.Mknod(dir, name, unix.S_IFREG|0o644, 0, owner)
		return err
	}
	link := func(ino, dir Ino, name string) error { _, err := x.Link(ino, dir, name); return err }
	look := func(dir Ino, name string) error { _, err := x.Lookup(dir, name); return err }
	size := func(ino Ino, n int64) error {
		_, err := x.SetAttr(ino, unionfs.SetAttr{Valid: unionfs.SetSize, Size: n})
		return err
	}
	for _, c := range []struct {
		what string
		got  error
		want error
	}{
		{"create over an image file", mk(etc, "passwd"), syscall.EEXIST},
		{"create in a file", mk(passwd, "x"), syscall.ENOTDIR},
		{"create a long name", mk(etc, long), syscall.ENAMETOOLONG},
		{"create a name of 255", mk(etc, long[1:]), nil},
		{"create any bytes", mk(etc, "\xff\x01\n "), nil},
		{"create with a slash", mk(etc, "a/b"), syscall.EINVAL},
		{"create a directory by mknod", func() error { _, err := x.Mknod(etc, "d", unix.S_IFDIR, 0, owner); return err }(), syscall.EINVAL},
		{"look up a long name", look(etc, long), syscall.ENAMETOOLONG},
		{"look up in a file", look(passwd, "x"), syscall.ENOTDIR},
		{"look up in nothing", look(1<<40, "x"), syscall.ESTALE},
		{"unlink a directory", x.Unlink(etc, "rc.d"), syscall.EISDIR},
		{"unlink nothing", x.Unlink(etc, "none"), syscall.ENOENT},
		{"rmdir a file", x.Rmdir(etc, "passwd"), syscall.ENOTDIR},
		{"rmdir what is not empty", x.Rmdir(etc, "rc.d"), syscall.ENOTEMPTY},
		{"link a directory", link(rc, bin, "rc"), syscall.EPERM},
		{"link over a name", link(sh, etc, "passwd"), syscall.EEXIST},
		{"rename nothing", x.Rename(etc, "none", etc, "x", 0), syscall.ENOENT},
		{"rename into itself", x.Rename(unionfs.Root, "etc", rc, "x", 0), syscall.EINVAL},
		{"rename over its parent", x.Rename(rc, "one", unionfs.Root, "etc", 0), syscall.ENOTEMPTY},
		{"rename a file over a directory", x.Rename(etc, "passwd", etc, "emptydir", 0), syscall.EISDIR},
		{"rename a directory over a file", x.Rename(etc, "rc.d", etc, "passwd", 0), syscall.ENOTDIR},
		{"rename over what is not empty", x.Rename(etc, "emptydir", etc, "rc.d", 0), syscall.ENOTEMPTY},
		{"rename to a long name", x.Rename(etc, "passwd", etc, long, 0), syscall.ENAMETOOLONG},
		{"rename NOREPLACE over a name", x.Rename(etc, "passwd", bin, "sh", unix.RENAME_NOREPLACE), syscall.EEXIST},
		{"exchange with nothing", x.Rename(etc, "passwd", bin, "none", unix.RENAME_EXCHANGE), syscall.ENOENT},
		{"exchange with what is above", x.Rename(rc, "one", unionfs.Root, "etc", unix.RENAME_EXCHANGE), syscall.EINVAL},
		{"exchange and NOREPLACE", x.Rename(etc, "passwd", bin, "sh", unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE), syscall.EINVAL},
		{"rename with other flags", x.Rename(etc, "passwd", bin, "sh", 64), syscall.EINVAL},
		{"truncate a directory", size(etc, 0), syscall.EISDIR},
		{"truncate a symlink", size(x.ino("etc/mtab"), 0), syscall.EINVAL},
		{"truncate below zero", size(passwd, -1), syscall.EINVAL},
		{"readlink of a file", func() error { _, err := x.Readlink(passwd); return err }(), syscall.EINVAL},
		{"write to a directory", func() error { _, err := x.Write(t.Context(), etc, []byte("x"), 0, false); return err }(), syscall.EISDIR},
		{"write past the largest size", func() error { _, err := x.Write(t.Context(), sh, []byte("x"), 1<<63-1, false); return err }(), syscall.EFBIG},
		{"read a directory as a file", func() error { _, err := x.Read(t.Context(), etc, make([]byte, 1), 0); return err }(), syscall.EISDIR},
		{"fallocate collapse", x.Fallocate(t.Context(), sh, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096), syscall.EOPNOTSUPP},
		{"fallocate nothing", x.Fallocate(t.Context(), sh, 0, 0, 0), syscall.EINVAL},
		{"fallocate a FIFO", x.Fallocate(t.Context(), x.ino("null"), 0, 0, 1), syscall.ENODEV},
		{"empty symlink", func() error { _, err := x.Symlink(etc, "s", "", owner); return err }(), syscall.ENOENT},
		{"long symlink", func() error { _, err := x.Symlink(etc, "s", strings.Repeat("s", 4096), owner); return err }(), syscall.ENAMETOOLONG},
		{"rmdir the empty one", x.Rmdir(etc, "emptydir"), nil},
		{"create in what is gone", mk(empty.Ino, "x"), syscall.ENOENT},
	} {
		if c.want == nil && c.got != nil || c.want != nil && c.got != c.want {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
}

func TestRenameOfTwoNamesOfOneFileDoesNothing(t *testing.T) {
	x := newFixture(t, smallImage())
	bin := x.ino("bin")
	before := x.attr("bin/sh")
	must(t, x.Rename(bin, "sh", bin, "ash", 0))
	if x.attr("bin/sh") != before || x.attr("bin/ash") != before {
		t.Error("something changed")
	}
}

func TestHardLinksOfTheImageStayOneFile(t *testing.T) {
	x := newFixture(t, smallImage())
	bin, sh := x.ino("bin"), x.ino("bin/sh")
	x.write(x.ino("bin/ash"), "changed", 0)
	if got := x.read(sh); !strings.HasPrefix(got, "changed") {
		t.Error("the other name has the old content")
	}
	for i, path := range []string{"bin/sh", "bin/ash"} {
		if a := x.attr(path); a.Ino != sh || a.Nlink != 2 {
			t.Errorf("name %d: %+v", i, a)
		}
	}
	must(t, x.Unlink(bin, "sh"))
	if a := x.attr("bin/ash"); a.Nlink != 1 {
		t.Errorf("nlink %d", a.Nlink)
	}
}

func TestUnlinkedFileLivesUntilForget(t *testing.T) {
	x := newFixture(t, smallImage())
	sh := x.ino("bin/sh")
	must(t, x.Unlink(x.ino("bin"), "sh"))
	must(t, x.Unlink(x.ino("bin"), "ash"))
	x.Forget(x.ino("etc/passwd")) // a hint about something that has a name
	x.write(sh, "still here", 0)
	a, err := x.GetAttr(sh)
	must(t, err)
	if a.Nlink != 0 || !strings.HasPrefix(x.read(sh), "still here") {
		t.Errorf("%+v", a)
	}
	x.Forget(sh)
	x.Forget(sh)
	for range 3 {
		if _, err := x.GetAttr(sh); err != syscall.ESTALE {
			t.Errorf("after forget: %v", err)
		}
		if _, err := x.Write(t.Context(), sh, []byte("x"), 0, false); err != syscall.ESTALE {
			t.Errorf("write after forget: %v", err)
		}
		x.remount()
	}
}

func TestNumbersAreNeverUsedAgain(t *testing.T) {
	x := newFixture(t, smallImage())
	seen := make(map[Ino]bool)
	for range 5 {
		for range 3 {
			ino := x.create(unionfs.Root, "f", "x")
			if seen[ino] || ino <= x.img.tree.MaxIno() {
				t.Fatalf("number %d again", ino)
			}
			seen[ino] = true
			must(t, x.Unlink(unionfs.Root, "f"))
			x.Forget(ino)
		}
		x.remount()
		x.reopen()
	}
}

func TestTmpfileCanBeLinkedOnce(t *testing.T) {
	x := newFixture(t, smallImage())
	a, err := x.Tmpfile(x.ino("tmp"), 0o600, owner)
	must(t, err)
	if a.Nlink != 0 {
		t.Errorf("nlink %d", a.Nlink)
	}
	x.write(a.Ino, "temporary", 0)
	b, err := x.Link(a.Ino, unionfs.Root, "kept")
	must(t, err)
	if b.Nlink != 1 || b.Ino != a.Ino {
		t.Errorf("%+v", b)
	}
	lost, err := x.Tmpfile(x.ino("tmp"), 0o600, owner)
	must(t, err)
	x.reopen()
	if got := x.read(x.ino("kept")); got != "temporary" {
		t.Errorf("%q", got)
	}
	if _, err := x.GetAttr(lost.Ino); err != syscall.ESTALE {
		t.Errorf("the one without a name: %v", err)
	}
}

func TestSetGroupIDDirectoryPassesItsGroupOn(t *testing.T) {
	x := newFixture(t, smallImage())
	tmp := x.ino("tmp")
	_, err := x.SetAttr(tmp, unionfs.SetAttr{Valid: unionfs.SetMode | unionfs.SetGID, Mode: 0o2775, GID: 77})
	must(t, err)
	x.create(tmp, "file", "")
	_, err = x.Mkdir(tmp, "dir", 0o755, owner)
	must(t, err)
	if a := x.attr("tmp/file"); a.GID != 77 || a.UID != owner.UID || a.Mode != unix.S_IFREG|0o644 {
		t.Errorf("file: %+v", a)
	}
	if a := x.attr("tmp/dir"); a.GID != 77 || a.Mode != unix.S_IFDIR|0o2755 {
		t.Errorf("directory: %+v", a)
	}
}

func TestWriteTakesPrivilegesAway(t *testing.T) {
	x := newFixture(t, smallImage())
	ping, su := x.ino("bin/ping"), x.ino("bin/su")
	x.write(ping, "x", 0)
	if _, err := x.GetXattr(ping, capability); err != syscall.ENODATA {
		t.Errorf("capability after a write: %v", err)
	}
	x.write(su, "x", 0)
	if a := x.attr("bin/su"); a.Mode&0o7777 != 0o6755 {
		t.Errorf("mode after root's write: %o", a.Mode)
	}
	_, err := x.Write(t.Context(), su, []byte("x"), 0, true)
	must(t, err)
	if a := x.attr("bin/su"); a.Mode&0o7777 != 0o755 {
		t.Errorf("mode after another's write: %o", a.Mode)
	}
	_, err = x.SetAttr(su, unionfs.SetAttr{Valid: unionfs.SetMode, Mode: 0o6745})
	must(t, err)
	_, err = x.Write(t.Context(), su, []byte("x"), 0, true)
	must(t, err)
	if a := x.attr("bin/su"); a.Mode&0o7777 != 0o2745 {
		t.Errorf("set-group-id without group execute: %o", a.Mode)
	}
}

func TestTimesOfDirectoriesAndNames(t *testing.T) {
	x := newFixture(t, smallImage())
	etc, bin := x.ino("etc"), x.ino("bin")
	changed := func(what string, do func() error, paths map[string]string) {
		t.Helper()
		before := make(map[string]unionfs.Attr)
		for path := range paths {
			before[path] = x.attr(path)
		}
		must(t, do())
		for path, which := range paths {
			a, b := x.attr(path), before[path]
			if (a.Mtime != b.Mtime) != strings.Contains(which, "m") || (a.Ctime != b.Ctime) != strings.Contains(which, "c") || a.Atime != b.Atime {
				t.Errorf("%s: %s should change %q: %v %v, were %v %v", what, path, which, a.Mtime, a.Ctime, b.Mtime, b.Ctime)
			}
		}
	}
	changed("link", func() error { _, err := x.Link(x.ino("bin/sh"), etc, "sh"); return err },
		map[string]string{"etc": "mc", "bin": "", "bin/sh": "c"})
	changed("unlink", func() error { return x.Unlink(etc, "sh") },
		map[string]string{"etc": "mc", "bin": "", "bin/sh": "c"})
	changed("chmod", func() error {
		_, err := x.SetAttr(bin, unionfs.SetAttr{Valid: unionfs.SetMode, Mode: 0o700})
		return err
	}, map[string]string{"bin": "c", "etc": ""})
	changed("setxattr", func() error { return x.SetXattr(bin, "user.a", []byte("b"), 0) }, map[string]string{"bin": "c"})
	changed("mkdir", func() error { _, err := x.Mkdir(bin, "d", 0o755, owner); return err }, map[string]string{"bin": "mc"})
	changed("mkdir that fails", func() error { _, _ = x.Mkdir(bin, "d", 0o755, owner); return nil }, map[string]string{"bin": "", "bin/d": ""})
	changed("rename", func() error { return x.Rename(bin, "su", etc, "su2", 0) }, map[string]string{"bin": "mc", "etc": "mc"})
	changed("write", func() error { x.write(x.ino("bin/sh"), "x", 0); return nil }, map[string]string{"bin/sh": "mc", "bin": ""})
	changed("truncate to the same size", func() error {
		_, err := x.SetAttr(x.ino("bin/sh"), unionfs.SetAttr{Valid: unionfs.SetSize, Size: 100_000})
		return err
	}, map[string]string{"bin/sh": "mc"})
}

func TestTimesOfAnyYear(t *testing.T) {
	x := newFixture(t, smallImage())
	a := unionfs.Time{Sec: -1 << 40, Nsec: 1}
	m := unionfs.Time{Sec: 1 << 40, Nsec: 999_999_999}
	_, err := x.SetAttr(x.ino("etc"), unionfs.SetAttr{Valid: unionfs.SetAtime | unionfs.SetMtime, Atime: a, Mtime: m})
	must(t, err)
	for range 2 {
		if got := x.attr("etc"); got.Atime != a || got.Mtime != m {
			t.Errorf("%v %v", got.Atime, got.Mtime)
		}
		x.remount()
	}
}

func TestWhiteoutOfRename(t *testing.T) {
	x := newFixture(t, smallImage())
	etc := x.ino("etc")
	must(t, x.Rename(etc, "passwd", etc, "shadow", unix.RENAME_WHITEOUT))
	if a := x.attr("etc/passwd"); a.Mode != unix.S_IFCHR || a.Rdev != 0 || a.Nlink != 1 {
		t.Errorf("%+v", a)
	}
}

func TestReadStopsAtTheEndAndWhenInterrupted(t *testing.T) {
	x := newFixture(t, smallImage())
	passwd := x.ino("etc/passwd")
	p := make([]byte, 100)
	for off, want := range map[int64]int{0: 100, 1200: 34, 1234: 0, 1 << 50: 0} {
		if n, err := x.Read(t.Context(), passwd, p, off); n != want || err != nil {
			t.Errorf("read at %d: %d, %v", off, n, err)
		}
	}
	x.img.fail = syscall.EIO
	if _, err := x.Read(t.Context(), passwd, p, 0); err != syscall.EIO {
		t.Errorf("image content that is lost: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	x.img.onRead = cancel
	x.img.fail = context.Canceled
	if _, err := x.Read(ctx, passwd, p, 0); err != syscall.EINTR {
		t.Errorf("interrupted: %v", err)
	}
}
