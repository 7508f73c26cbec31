package cow

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// versionImage is what the states in testdata are over. It must not change.
func versionImage() []unionfs.Entry {
	return []unionfs.Entry{
		subdir("bin"), reg("bin/sh", 0o755, 100_000), reg("bin/ping", 0o755, 5000), reg("bin/su", 0o6755, 3000),
		{Name: "bin/ash", Link: "bin/sh"},
		subdir("etc"), reg("etc/passwd", 0o644, 1234), reg("etc/empty", 0o644, 0),
		subdir("etc/rc.d"), reg("etc/rc.d/one", 0o644, 1), reg("etc/rc.d/two", 0o644, 2),
		{Name: "etc/mtab", Mode: unix.S_IFLNK | 0o777, Symlink: "/proc/mounts", Mtime: unionfs.Time{Sec: 1000}},
		subdir("tmp"),
		{Name: "null", Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(1, 3), Mtime: unionfs.Time{Sec: 1000}},
	}
}

// A state of the first format, left by a server that was killed, is read and becomes one of this format.
func TestStateOfVersion1IsRead(t *testing.T) {
	x := newFixture(t, versionImage())
	must(t, x.Close())
	x.dir = copyState(t, "testdata/v1")
	x.open()
	check := func(when string) {
		t.Helper()
		if got := x.read(x.ino("old")); got != "IN the checkpoint" {
			t.Errorf("%s: old is %q", when, got)
		}
		if got := x.read(x.ino("new")); got != "in the journal" {
			t.Errorf("%s: new is %q", when, got)
		}
		sh := []byte(imageText(x.ino("bin/sh"), 100_000))
		copy(sh[1000:], "ours")
		if x.read(x.ino("bin/sh")) != string(sh) {
			t.Errorf("%s: bin/sh is wrong", when)
		}
		if v, err := x.GetXattr(x.ino("etc2/passwd"), "user.a"); err != nil || string(v) != "b" {
			t.Errorf("%s: xattr %q, %v", when, v, err)
		}
		if _, err := x.walk("gone"); err != unix.ENOENT {
			t.Errorf("%s: gone: %v", when, err)
		}
	}
	check("first")
	x.create(unionfs.Root, "ours", "in the pack")
	x.reopen()
	check("after a crash")
	if got := x.read(x.ino("ours")); got != "in the pack" {
		t.Errorf("ours is %q", got)
	}
	old := x.ino("old")
	must(t, x.Unlink(unionfs.Root, "old"))
	x.Forget(old)
	must(t, x.Sync())
	if _, err := os.Stat(x.disk.path(objectName(old))); !os.IsNotExist(err) {
		t.Errorf("the data object of a file of version 1 stays: %v", err)
	}
}
