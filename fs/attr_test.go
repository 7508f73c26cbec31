package fs

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// TestAttributesFollowEveryOperation holds what the kernel answers from its cache against what the backend says, before and
// after each operation that changes attributes of an inode that the kernel already knows.
func TestAttributesFollowEveryOperation(t *testing.T) {
	for _, c := range []struct {
		name string
		op   func(d string) error
	}{
		{"link", func(d string) error { return unix.Link(d+"/f", d+"/f3") }},
		{"unlink one of two names", func(d string) error { return unix.Unlink(d + "/f2") }},
		{"rename", func(d string) error { return unix.Rename(d+"/f", d+"/g") }},
		{"rename to another directory", func(d string) error { return unix.Rename(d+"/f", d+"/dir/g") }},
		{"rename over a name of another file", func(d string) error { return unix.Rename(d+"/other", d+"/f") }},
		{"exchange", func(d string) error {
			return unix.Renameat2(unix.AT_FDCWD, d+"/f", unix.AT_FDCWD, d+"/dir", unix.RENAME_EXCHANGE)
		}},
		{"mkdir", func(d string) error { return unix.Mkdir(d+"/dir/sub", 0o755) }},
		{"rmdir", func(d string) error { return unix.Rmdir(d + "/dir/old") }},
		{"rename a directory", func(d string) error { return unix.Rename(d+"/dir/old", d+"/dir2/new") }},
		{"rename a directory over another", func(d string) error { return unix.Rename(d+"/dir/old", d+"/dir2/empty") }},
		{"symlink", func(d string) error { return unix.Symlink("f", d+"/dir/s") }},
		{"mknod", func(d string) error { return unix.Mknod(d+"/dir/p", unix.S_IFIFO|0o600, 0) }},
		{"create", func(d string) error {
			return withFile(d+"/dir/n", unix.O_CREAT|unix.O_WRONLY, func(int) error { return nil })
		}},
		{"write", func(d string) error { return withFile(d+"/f", unix.O_WRONLY, write("abc")) }},
		{"append", func(d string) error { return withFile(d+"/f", unix.O_WRONLY|unix.O_APPEND, write("abc")) }},
		{"open to truncate", func(d string) error {
			return withFile(d+"/f", unix.O_WRONLY|unix.O_TRUNC, func(int) error { return nil })
		}},
		{"truncate", func(d string) error { return unix.Truncate(d+"/f", 3) }},
		{"ftruncate", func(d string) error {
			return withFile(d+"/f", unix.O_WRONLY, func(fd int) error { return unix.Ftruncate(fd, 5000) })
		}},
		{"fallocate", func(d string) error {
			return withFile(d+"/f", unix.O_WRONLY, func(fd int) error { return unix.Fallocate(fd, 0, 0, 9000) })
		}},
		{"setxattr", func(d string) error { return unix.Setxattr(d+"/f", "user.b", []byte("v"), 0) }},
		{"removexattr", func(d string) error { return unix.Removexattr(d+"/f", "user.a") }},
		{"chmod", func(d string) error { return unix.Chmod(d+"/f", 0o600) }},
		{"chmod to set-id", func(d string) error { return unix.Chmod(d+"/f", 0o6755) }},
		{"chown", func(d string) error { return unix.Chown(d+"/f", 7, 8) }},
		{"chown of a set-id file", func(d string) error { return unix.Chown(d+"/suid", 7, 8) }},
		{"times", func(d string) error {
			return unix.UtimesNano(d+"/f", []unix.Timespec{{Sec: -5, Nsec: 1}, {Sec: 1 << 33, Nsec: 999999999}})
		}},
		{"write to a set-id file without privilege", func(d string) error {
			return unprivileged(func() error { return withFile(d+"/suid", unix.O_WRONLY, write("x")) })
		}},
		{"truncate a set-id file without privilege", func(d string) error {
			return unprivileged(func() error { return unix.Truncate(d+"/suid", 1) })
		}},
		{"store through a mapping", func(d string) error { return run(helper("mapstore", d+"/f", "stored")) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
				makeTree(t, m.dir)
				checkTree(t, m.dir, f)
				if err := c.op(m.dir); err != nil {
					t.Fatal(err)
				}
				checkTree(t, m.dir, f)
			})
		})
	}
}

func TestChangeWithoutPrivilegeClearsSetID(t *testing.T) {
	for name, change := range map[string]func(fd int) error{
		"write":     write("x"),
		"ftruncate": func(fd int) error { return unix.Ftruncate(fd, 1) },
		"fallocate": func(fd int) error { return unix.Fallocate(fd, 0, 0, 100) },
	} {
		t.Run(name, func(t *testing.T) {
			onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
				makeTree(t, m.dir)
				path := m.dir + "/suid"
				if err := unprivileged(func() error { return withFile(path, unix.O_WRONLY, change) }); err != nil {
					t.Fatal(err)
				}
				var st unix.Stat_t
				if err := unix.Stat(path, &st); err != nil {
					t.Fatal(err)
				}
				if st.Mode&0o7777 != 0o777 {
					t.Errorf("mode after it is %o", st.Mode)
				}
			})
		})
	}
}

// Without group-execute S_ISGID stays with who is in the file's group, by his process or one of its others.
func TestFallocateClearsSetGIDOfOthersGroups(t *testing.T) {
	groups, err := unix.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	for gid := range 3 {
		onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
			path := m.dir + "/f"
			if err := withFile(path, unix.O_CREAT|unix.O_WRONLY, write("hello")); err != nil {
				t.Fatal(err)
			}
			owner := []int{1000, 0, 4321}[gid]
			if err := errors.Join(unix.Chown(path, 5, owner), unix.Chmod(path, 0o6666)); err != nil {
				t.Fatal(err)
			}
			err := unprivileged(func() error {
				return withFile(path, unix.O_WRONLY, func(fd int) error { return unix.Fallocate(fd, 0, 0, 100) })
			})
			if err != nil {
				t.Fatal(err)
			}
			want := uint32(0o666)
			if owner == 1000 || slices.Contains(groups, owner) {
				want = 0o2666
			}
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil || st.Mode&0o7777 != want {
				t.Errorf("group %d: mode after it is %o, %v; want %o", owner, st.Mode&0o7777, err, want)
			}
		})
	}
}

func TestWriteOfRootLeavesSetIDWhereItTakesCapabilities(t *testing.T) {
	onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
		makeTree(t, m.dir)
		path := m.dir + "/suid"
		if err := unix.Setxattr(path, "security.capability", []byte("\x01\x00\x00\x02"+strings.Repeat("\x00", 16)), 0); err != nil {
			t.Fatal(err)
		}
		if err := withFile(path, unix.O_WRONLY, write("x")); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Mode&0o7777 != 0o6777 {
			t.Errorf("mode after it is %o, %v", st.Mode, err)
		}
		if _, err := unix.Getxattr(path, "security.capability", nil); err != unix.ENODATA {
			t.Errorf("the capabilities: %v", err)
		}
	})
}

func TestBirthTimeIsShown(t *testing.T) {
	onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
		makeTree(t, m.dir)
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, m.dir+"/f", 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
			t.Fatal(err)
		}
		a, err := f.GetAttr(st.Ino)
		if err != nil {
			t.Fatal(err)
		}
		got := unionfs.Time{Sec: st.Btime.Sec, Nsec: st.Btime.Nsec}
		if st.Mask&unix.STATX_BTIME == 0 || got != a.Btime {
			t.Errorf("btime %v (mask %x), want %v", got, st.Mask, a.Btime)
		}
	})
}

// makeTree makes what the cases of TestAttributesFollowEveryOperation work on.
func makeTree(t *testing.T, d string) {
	t.Helper()
	for _, step := range []func() error{
		func() error { return withFile(d+"/f", unix.O_CREAT|unix.O_WRONLY, write("0123456789")) },
		func() error { return unix.Link(d+"/f", d+"/f2") },
		func() error { return unix.Setxattr(d+"/f", "user.a", []byte("v"), 0) },
		func() error { return withFile(d+"/other", unix.O_CREAT|unix.O_WRONLY, write("other")) },
		func() error { return withFile(d+"/suid", unix.O_CREAT|unix.O_WRONLY, write("suid")) },
		func() error { return unix.Chmod(d+"/suid", 0o6777) },
		func() error { return unix.Mkdir(d+"/dir", 0o755) },
		func() error { return unix.Mkdir(d+"/dir/old", 0o755) },
		func() error { return unix.Mkdir(d+"/dir2", 0o755) },
		func() error { return unix.Mkdir(d+"/dir2/empty", 0o755) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

// checkTree compares stat(2) of all that is below dir with the backend.
func checkTree(t *testing.T, dir string, f *fakeFS) {
	t.Helper()
	paths := []string{dir}
	for len(paths) > 0 {
		path := paths[0]
		paths = paths[1:]
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Errorf("stat %s: %v", path, err)
			continue
		}
		a, err := f.GetAttr(st.Ino)
		if err != nil {
			t.Errorf("inode %d: %v", st.Ino, err)
			continue
		}
		if kernel := statOf(&st); kernel != withoutBtime(a) {
			t.Errorf("%s:\nkernel  %+v\nbackend %+v", path, kernel, a)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			for _, name := range list(t, path) {
				paths = append(paths, path+"/"+name)
			}
		}
	}
}

func statOf(st *unix.Stat_t) unionfs.Attr {
	tm := func(ts unix.Timespec) unionfs.Time { return unionfs.Time{Sec: ts.Sec, Nsec: uint32(ts.Nsec)} }
	return unionfs.Attr{Ino: st.Ino, Mode: st.Mode, Nlink: uint32(st.Nlink), UID: st.Uid, GID: st.Gid, Rdev: st.Rdev,
		Size: st.Size, Blocks: st.Blocks, Atime: tm(st.Atim), Mtime: tm(st.Mtim), Ctime: tm(st.Ctim)}
}

func withoutBtime(a unionfs.Attr) unionfs.Attr { a.Btime = unionfs.Time{}; return a }

// list returns the names in dir, without . and .., in the order that the kernel has them.
func list(t *testing.T, dir string) []string {
	t.Helper()
	fd := mustOpen(t, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	defer unix.Close(fd)
	return readNames(t, fd, 1<<20)
}

func readNames(t *testing.T, fd, limit int) (names []string) {
	t.Helper()
	buf := make([]byte, 4096)
	for len(names) < limit {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	return names
}

func withFile(path string, flags int, do func(fd int) error) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	return errors.Join(do(fd), unix.Close(fd))
}

func write(s string) func(fd int) error {
	return func(fd int) error {
		n, err := unix.Write(fd, []byte(s))
		if err == nil && n != len(s) {
			err = fmt.Errorf("wrote %d of %d", n, len(s))
		}
		return err
	}
}

// unprivileged runs f as user 1000, on a thread that is like that only for it (capabilities(7): fsuid).
func unprivileged(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, err := unix.SetfsgidRetGid(1000); err != nil {
		return err
	}
	if _, err := unix.SetfsuidRetUid(1000); err != nil {
		return err
	}
	err := f()
	if _, e := unix.SetfsuidRetUid(0); e != nil {
		return e
	}
	if _, e := unix.SetfsgidRetGid(0); e != nil {
		return e
	}
	return err
}
