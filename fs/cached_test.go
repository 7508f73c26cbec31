package fs

import (
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
