package fetcher

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// openDirLayer opens a tree of one host directory.
func openDirLayer(t *testing.T, s *Store, dir string, o ContentsOptions) *opened {
	t.Helper()
	b := unionfs.NewBuilder()
	if err := errors.Join(b.AddLayer(unionfs.Layer{Format: unionfs.FormatDir, Path: dir}), b.AddDir(dir)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tree")
	if err := b.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	tree, err := unionfs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	x, err := s.Contents(nil, nil, tree, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		x.Close()
		tree.Close()
	})
	return &opened{Contents: x, tree: tree}
}

func TestDirLayerIsReadFromTheHost(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "d"), 0o755), os.WriteFile(filepath.Join(dir, "d/a"), []byte("hello"), 0o644)); err != nil {
		t.Fatal(err)
	}
	x := openDirLayer(t, testStore(t), dir, ContentsOptions{OpenFiles: 2})
	if got := x.readAll(t, "d/a"); got != "hello" {
		t.Errorf("got %q", got)
	}
	f, err := x.Local(x.ino(t, "d/a"))
	if err != nil || f == nil {
		t.Fatalf("Local: %v, %v", f, err)
	}
	defer f.Close()
	if _, err := f.Write([]byte("x")); err == nil {
		t.Error("the file is open for writing")
	}
}

func TestDirLayerDeeperThanPathMax(t *testing.T) {
	dir := t.TempDir()
	name := strings.Repeat("n", 200)
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	const depth = 30 // 6,000 bytes
	for range depth {
		if err := unix.Mkdirat(at, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(at)
		at = next
	}
	fd, err := unix.Openat(at, "deep", unix.O_WRONLY|unix.O_CREAT, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	unix.Write(fd, []byte("hello"))
	unix.Close(fd)
	unix.Close(at)
	x := openDirLayer(t, testStore(t), dir, ContentsOptions{OpenFiles: 2})
	if got := x.readAll(t, strings.Repeat(name+"/", depth)+"deep"); got != "hello" {
		t.Errorf("got %q", got)
	}
}

// What is put in the place of a layer's file later is not part of the tree.
func TestDirLayerFollowsNothing(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"symlink":         func(dir string) error { return os.Symlink("/etc/hostname", dir+"/d/a") },
		"symlink in path": func(dir string) error { return errors.Join(os.Remove(dir+"/d"), os.Symlink("/etc", dir+"/d")) },
		"fifo":            func(dir string) error { return unix.Mkfifo(dir+"/d/a", 0o644) },
		"directory":       func(dir string) error { return os.Mkdir(dir+"/d/a", 0o755) },
		"other size":      func(dir string) error { return os.WriteFile(dir+"/d/a", []byte("more than it was"), 0o644) },
		"nothing":         func(string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := errors.Join(os.Mkdir(dir+"/d", 0o755), os.WriteFile(dir+"/d/a", []byte("hello"), 0o644)); err != nil {
				t.Fatal(err)
			}
			x := openDirLayer(t, testStore(t), dir, ContentsOptions{OpenFiles: 2})
			if err := errors.Join(os.Remove(dir+"/d/a"), change(dir)); err != nil {
				t.Fatal(err)
			}
			ino := x.ino(t, "d/a")
			if n, err := x.ReadAt(t.Context(), ino, make([]byte, 5), 0); !errors.Is(err, syscall.EIO) {
				t.Errorf("read %d, %v", n, err)
			}
			if f, err := x.Local(ino); f != nil || !errors.Is(err, syscall.EIO) {
				t.Errorf("Local: %v, %v", f, err)
			}
		})
	}
}
