package cow

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// imageText is the image's content of an inode.
func imageText(ino Ino, size int64) string {
	b := make([]byte, size)
	for i := range b {
		b[i] = imageByte(ino, int64(i))
	}
	return string(b)
}

func TestWhatWasAnsweredIsThereAfterACrash(t *testing.T) {
	x := newFixture(t, smallImage())
	etc, bin := x.ino("etc"), x.ino("bin")
	sh := x.ino("bin/sh")
	file := x.create(etc, "motd", "hello")
	x.write(file, " world", 5)
	x.write(sh, "X", 50_000)
	must(t, x.Unlink(etc, "passwd"))
	must(t, x.Rename(unionfs.Root, "etc", bin, "conf", 0))
	_, err := x.Symlink(unionfs.Root, "link", "target", owner)
	must(t, err)

	check := func(when string) {
		t.Helper()
		if got := x.ino("bin/conf/motd"); got != file {
			t.Errorf("%s: motd is inode %d, was %d", when, got, file)
		}
		if got := x.read(file); got != "hello world" {
			t.Errorf("%s: motd has %q", when, got)
		}
		text := []byte(imageText(sh, 100_000))
		text[50_000] = 'X'
		if got := x.read(sh); got != string(text) {
			t.Errorf("%s: sh is not the image's with one byte changed", when)
		}
		if got := x.attr("bin/conf").Ino; got != etc {
			t.Errorf("%s: conf is inode %d, was %d", when, got, etc)
		}
		_, err := x.walk("bin/conf/passwd")
		want(t, when+": passwd", err, syscall.ENOENT)
		if got := x.list(etc); !slices.Equal(got, []string{"empty", "mtab", "rc.d", "motd"}) {
			t.Errorf("%s: conf has %v", when, got)
		}
		if got, _ := x.Readlink(x.ino("link")); got != "target" {
			t.Errorf("%s: link leads to %q", when, got)
		}
	}
	check("before")
	x.reopen()
	check("after a crash")
	x.remount()
	check("after a clean end")
	x.reopen()
	check("after a checkpoint and a crash")
}

func TestCopyUpFetchesNothing(t *testing.T) {
	x := newFixture(t, smallImage())
	sh := x.ino("bin/sh")
	x.write(sh, "abc", 10)
	_, err := x.SetAttr(sh, unionfs.SetAttr{Valid: unionfs.SetMode, Mode: 0o700})
	must(t, err)
	_, err = x.SetAttr(sh, unionfs.SetAttr{Valid: unionfs.SetSize, Size: 70_000})
	must(t, err)
	if x.img.reads != 0 {
		t.Errorf("%d reads of the image", x.img.reads)
	}
	text := imageText(sh, 70_000)
	if got := x.read(sh); got != text[:10]+"abc"+text[13:] {
		t.Error("wrong content")
	}
}

func TestShrunkFileGrowsWithZeros(t *testing.T) {
	x := newFixture(t, smallImage())
	sh := x.ino("bin/sh")
	for _, size := range []int64{1000, 90_000} {
		_, err := x.SetAttr(sh, unionfs.SetAttr{Valid: unionfs.SetSize, Size: size})
		must(t, err)
	}
	wantText := imageText(sh, 1000) + strings.Repeat("\x00", 89_000)
	for range 2 {
		if x.read(sh) != wantText {
			t.Fatal("wrong content")
		}
		x.reopen()
	}
}

func TestReadOnlyRefusesChanges(t *testing.T) {
	img := newImage(t, smallImage())
	f := ReadOnly(img.tree, img)
	a, err := f.Lookup(unionfs.Root, "etc")
	must(t, err)
	_, err = f.Mkdir(a.Ino, "x", 0o755, owner)
	want(t, "mkdir", err, syscall.EROFS)
	_, err = f.SetAttr(a.Ino, unionfs.SetAttr{Valid: unionfs.SetMode, Mode: 0o700})
	want(t, "chmod", err, syscall.EROFS)
	want(t, "rmdir", f.Rmdir(a.Ino, "rc.d"), syscall.EROFS)
	p, err := f.Lookup(a.Ino, "passwd")
	must(t, err)
	_, err = f.Write(t.Context(), p.Ino, []byte("x"), 0, false)
	want(t, "write", err, syscall.EROFS)
	want(t, "setxattr", f.SetXattr(p.Ino, "user.x", nil, 0), syscall.EROFS)
	want(t, "fallocate", f.Fallocate(t.Context(), p.Ino, 0, 0, 1), syscall.EROFS)
	want(t, "rename", f.Rename(a.Ino, "passwd", a.Ino, "q", unix.RENAME_NOREPLACE), syscall.EROFS)
	must(t, f.Fsync(p.Ino, false))
	must(t, f.Close())
}

func TestOneServerAtATime(t *testing.T) {
	x := newFixture(t, smallImage())
	_, err := Open(x.dir, x.img.tree, x.img, x.opts)
	var locked *LockedError
	if !asError(err, &locked) {
		t.Fatalf("second server: %v", err)
	}
}
