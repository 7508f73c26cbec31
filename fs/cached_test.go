package fs

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFilesOpenWithoutARequest(t *testing.T) {
	m := mountTest(t, newFakeFS(), Options{})
	path := m.dir + "/f"
	fd := mustOpen(t, path, unix.O_CREAT|unix.O_RDWR, 0o644)
	mustWrite(t, fd, "hello")
	unix.Close(fd)
	for range 5 {
		fd := mustOpen(t, path, unix.O_RDONLY, 0)
		buf := make([]byte, 10)
		if n, err := unix.Read(fd, buf); err != nil || string(buf[:n]) != "hello" {
			t.Fatalf("read = %q, %v", buf[:n], err)
		}
		unix.Close(fd)
	}
	s := m.server.Stats()
	if s.Requests["OPEN"] > 1 || s.Requests["RELEASE"] > 1 || s.Requests["FLUSH"] > 1 || s.Requests["READ"] > 1 {
		t.Errorf("requests: %v", s.Requests)
	}
	t.Logf("%v", s.Requests)
}

// What an operation costs when the kernel knows the names and attributes that it needs. The kernel itself adds GETXATTR
// (security.capability) before the first write of an inode, LOOKUP of the name that is to be made or replaced (fuse_dentry_revalidate:
// LOOKUP_EXCL, LOOKUP_RENAME_TARGET), and GETATTR of a directory before the next walk through it once its entries have changed
// (fuse_dir_changed, fuse_permission): nothing that we answer spares them.
func TestRequestsOfAnOperation(t *testing.T) {
	m := mountTest(t, newFakeFS(), Options{})
	d := m.dir
	known := []string{d, d + "/f", d + "/old", d + "/other", d + "/gone", d + "/new", d + "/none", d + "/dir"}
	for _, name := range known[1:5] {
		if err := withFile(name, unix.O_CREAT|unix.O_WRONLY, write("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkdir(d+"/dir", 0o755); err != nil {
		t.Fatal(err)
	}
	create := func(name string) func() error {
		return func() error {
			return withFile(d+name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, write(strings.Repeat("x", 4096)))
		}
	}
	for _, c := range []struct {
		what string
		do   func() error
		want map[string]uint64
	}{
		{"open and close", func() error { return withFile(d+"/f", unix.O_RDWR, write("")) }, map[string]uint64{}},
		{"read", func() error { return withFile(d+"/f", unix.O_RDONLY, readAll) }, map[string]uint64{"READ": 1}},
		{"read again", func() error { return withFile(d+"/f", unix.O_RDONLY, readAll) }, map[string]uint64{}},
		{"write", func() error { return withFile(d+"/f", unix.O_WRONLY, write("x")) }, map[string]uint64{"WRITE": 1, "GETXATTR": 1}},
		{"missing", func() error { return ignoreNoEnt(unix.Stat(d+"/none", new(unix.Stat_t))) }, map[string]uint64{}},
		{"copy", func() error { return copyFile(d+"/f", d+"/other") }, map[string]uint64{"COPY_FILE_RANGE": 1, "GETXATTR": 1}},
		{"unlink", func() error { return unix.Unlink(d + "/gone") }, map[string]uint64{"UNLINK": 1}},
		{"rename", func() error { return unix.Rename(d+"/old", d+"/new") }, map[string]uint64{"LOOKUP": 1, "RENAME": 1}},
		{"chmod", func() error { return unix.Chmod(d+"/f", 0o600) }, map[string]uint64{"SETATTR": 1}},
		{"create", create("/created"), map[string]uint64{"LOOKUP": 1, "MKNOD": 1, "GETXATTR": 1, "WRITE": 1}},
		{"mkdir", func() error { return unix.Mkdir(d+"/made", 0o755) }, map[string]uint64{"LOOKUP": 1, "MKDIR": 1}},
		{"rmdir", func() error { return unix.Rmdir(d + "/dir") }, map[string]uint64{"RMDIR": 1}},
		{"two creates", func() error { return errors.Join(create("/c1")(), create("/c2")()) },
			map[string]uint64{"LOOKUP": 2, "MKNOD": 2, "GETXATTR": 2, "WRITE": 2, "GETATTR": 1}},
	} {
		for _, name := range known {
			_ = unix.Stat(name, new(unix.Stat_t)) // if it is still there
		}
		before := m.server.Stats().Requests
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		got := m.server.Stats().Requests
		for op, n := range before {
			if got[op] -= n; got[op] == 0 {
				delete(got, op)
			}
		}
		delete(got, "FORGET") // nobody waits for it, and it comes when it comes
		if !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

func copyFile(from, to string) error {
	return withFile(from, unix.O_RDONLY, func(src int) error {
		return withFile(to, unix.O_WRONLY, func(dst int) error {
			_, err := unix.CopyFileRange(src, nil, dst, nil, 1<<20, 0)
			return err
		})
	})
}

func readAll(fd int) error {
	_, err := unix.Read(fd, make([]byte, 1<<16))
	return err
}

func ignoreNoEnt(err error) error {
	if err == unix.ENOENT {
		return nil
	}
	return err
}

func mustOpen(t *testing.T, path string, flags int, mode uint32) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	return fd
}

func mustWrite(t *testing.T, fd int, s string) {
	t.Helper()
	if n, err := unix.Write(fd, []byte(s)); err != nil || n != len(s) {
		t.Fatalf("write = %d, %v", n, err)
	}
}
