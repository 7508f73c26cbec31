package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// deepDir makes, or enters, directories one in the other, and returns the last, which the caller closes. The path may be longer than the kernel
// takes.
func deepDir(t *testing.T, root string, names []string, create bool) (fd int) {
	t.Helper()
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for _, name := range names {
		if err == nil && create {
			err = unix.Mkdirat(fd, name, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		up := fd
		fd, err = unix.Openat(up, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(up)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func readAt(t *testing.T, dir int, name string) string {
	t.Helper()
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open a path of %d bytes: %v", len(name), err)
	}
	defer unix.Close(fd)
	b := make([]byte, 1<<10)
	n, err := unix.Read(fd, b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func writeAt(t *testing.T, dir int, name, body string) {
	t.Helper()
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		t.Fatalf("open a path of %d bytes: %v", len(name), err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(body)); err != nil {
		t.Fatal(err)
	}
}

// Paths as long as the kernel takes them, from the mount's root on, and longer ones: joined with the path of a layer or of the state
// directory they could not be opened.
func TestOverlayLongPaths(t *testing.T) {
	l, dir := overlayLab(t)
	var names []string
	for range 15 {
		names = append(names, strings.Repeat("n", 255)) // with its slash, 15 of these are 3,840 bytes
	}
	path := strings.Join(names, "/") + "/" + strings.Repeat("f", 255) // 4,095 bytes
	beyond := append(names[:15:15], "more", strings.Repeat("d", 255), strings.Repeat("d", 255))
	low := deepDir(t, filepath.Join(l.dir, "low"), beyond, true)
	writeAt(t, low, "leaf", "leaf\n")
	unix.Close(low)
	low = deepDir(t, filepath.Join(l.dir, "low"), names, false)
	writeAt(t, low, strings.Repeat("f", 255), "body\n")
	unix.Close(low)

	for i := range 2 {
		l.want("overlay", "s", dir, "-o", "lowerdir=high:low,upperdir=state")
		mnt := deepDir(t, dir, nil, false)
		leaf := deepDir(t, dir, beyond, false)
		if len(path) != 4095 {
			t.Fatal(len(path))
		}
		if got, want := readAt(t, mnt, path), []string{"body\n", "Body\n"}[i]; got != want {
			t.Errorf("mount %d: %q, want %q", i, got, want)
		}
		if got, want := readAt(t, leaf, "leaf"), []string{"leaf\n", "Leaf\n"}[i]; got != want {
			t.Errorf("mount %d: %q, want %q", i, got, want)
		}
		writeAt(t, mnt, path, "B")
		writeAt(t, leaf, "leaf", "L")
		if fd, err := unix.Openat(mnt, path+"x", unix.O_RDONLY, 0); err != unix.ENAMETOOLONG {
			t.Errorf("a path of 4,096 bytes: %d, %v", fd, err)
		}
		if err := unix.Mkdirat(leaf, strings.Repeat("x", 256), 0o755); err != unix.ENAMETOOLONG {
			t.Errorf("a name of 256 bytes: %v", err)
		}
		writeAt(t, leaf, strings.Repeat("x", 255), "new\n")
		if i == 1 { // a lower directory goes somewhere else, with all that is in it
			if err := unix.Renameat(mnt, names[0], mnt, "short"); err != nil {
				t.Error(err)
			}
			if got := readAt(t, leaf, "leaf"); got != "Leaf\n" {
				t.Errorf("after the rename: %q", got)
			}
			if err := os.RemoveAll(filepath.Join(dir, "short")); err != nil {
				t.Errorf("remove the tree: %v", err)
			}
		}
		unix.Close(leaf)
		unix.Close(mnt)
		l.want("umount", dir)
	}
	l.checkNoLeaks()
}

// A symlink's attributes are its own, also if it points into the mount, from whose server a path would lead back to it.
func TestOverlaySymlinkIntoTheMount(t *testing.T) {
	l, dir := overlayLab(t)
	if err := os.Symlink(filepath.Join(dir, "a"), filepath.Join(l.dir, "low/link")); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(l.dir, "low/link")
	if err := unix.Lsetxattr(link, "trusted.low", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	l.want("overlay", "s", dir, "-o", "lowerdir=high:low,upperdir=state")
	link = filepath.Join(dir, "link")
	if err := unix.Lsetxattr(link, "trusted.new", []byte("2"), 0); err != nil {
		t.Errorf("set: %v", err)
	}
	if err := unix.Lchown(link, 7, 8); err != nil {
		t.Errorf("chown: %v", err)
	}
	b := make([]byte, 100)
	for name, want := range map[string]string{"trusted.low": "1", "trusted.new": "2"} {
		if n, err := unix.Lgetxattr(link, name, b); err != nil || string(b[:n]) != want {
			t.Errorf("%s: %q, %v", name, b[:max(n, 0)], err)
		}
		if _, err := unix.Getxattr(link, name, b); err != unix.ENODATA {
			t.Errorf("%s of what it points to: %v", name, err)
		}
	}
	if n, err := unix.Llistxattr(filepath.Join(l.dir, "low/link"), b); err != nil || string(b[:n]) != "trusted.low\x00" {
		t.Errorf("the layer's link now has %q, %v", b[:max(n, 0)], err)
	}
	l.want("umount", dir)
	l.checkNoLeaks()
}

// A handle names its file after copy-up, a rename and a new mount; that of a file that is gone names nothing.
func TestOverlayFileHandles(t *testing.T) {
	for _, io := range []string{"cached", "passthrough"} {
		t.Run(io, func(t *testing.T) {
			l, dir := overlayLab(t)
			options := "lowerdir=high:low,upperdir=state,io=" + io
			l.want("overlay", "s", dir, "-o", options)
			handles := make(map[string]unix.FileHandle)
			for _, name := range []string{"d", "d/one", "a"} {
				h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, filepath.Join(dir, name), 0)
				if err != nil {
					t.Fatal(err)
				}
				handles[name] = h
			}
			for _, err := range []error{
				os.WriteFile(filepath.Join(dir, "d/one"), []byte("one\n"), 0o644),
				os.Rename(filepath.Join(dir, "d"), filepath.Join(dir, "elsewhere")),
				os.Remove(filepath.Join(dir, "a")),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				checkHandles(t, dir, handles)
				l.want("umount", dir)
				l.want("overlay", "s", dir, "-o", options)
			}
			l.want("umount", dir)
			l.checkNoLeaks()
		})
	}
}

func checkHandles(t *testing.T, dir string, handles map[string]unix.FileHandle) {
	t.Helper()
	mnt := deepDir(t, dir, nil, false)
	defer unix.Close(mnt)
	if _, err := unix.OpenByHandleAt(mnt, handles["a"], unix.O_RDONLY|unix.O_CLOEXEC); err != unix.ESTALE {
		t.Errorf("a file that is gone: %v", err)
	}
	// The directory first: the kernel has to find the way from it to the root.
	d, err := unix.OpenByHandleAt(mnt, handles["d"], unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		t.Fatalf("a directory: %v", err)
	}
	defer unix.Close(d)
	if path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", d)); path != filepath.Join(dir, "elsewhere") {
		t.Errorf("the directory is %s, %v", path, err)
	}
	if got := readAt(t, d, "one"); got != "one\n" {
		t.Errorf("in the directory: %q", got)
	}
	f, err := unix.OpenByHandleAt(mnt, handles["d/one"], unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		t.Fatalf("a file: %v", err)
	}
	defer unix.Close(f)
	b := make([]byte, 10)
	if n, err := unix.Read(f, b); err != nil || string(b[:n]) != "one\n" {
		t.Errorf("the file: %q, %v", b[:max(n, 0)], err)
	}
}
