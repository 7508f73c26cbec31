package cow

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// image is a tree for tests, with contents that are made of the inode number and the offset.
type image struct {
	tree   *unionfs.Tree
	local  string // directory of complete contents; "" for none
	fail   error  // what ReadAt returns
	reads  int
	onRead func()
}

func imageByte(ino Ino, off int64) byte { return byte(uint64(off)*7 + ino*13 + uint64(off)>>8) }

func (m *image) ReadAt(ctx context.Context, ino Ino, p []byte, off int64) (int, error) {
	m.reads++
	if m.onRead != nil {
		m.onRead()
	}
	if m.fail != nil {
		return 0, m.fail
	}
	a, ok := m.tree.Attr(ino)
	if !ok || a.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, syscall.EINVAL
	}
	n := 0
	for ; n < len(p) && off+int64(n) < a.Size; n++ {
		p[n] = imageByte(ino, off+int64(n))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *image) Local(ino Ino) (*os.File, error) {
	if m.local == "" {
		return nil, nil
	}
	return os.Open(filepath.Join(m.local, fmt.Sprint(ino)))
}

func reg(name string, mode uint32, size int64) unionfs.Entry {
	digest := sha256.Sum256([]byte(name))
	if size == 0 {
		digest = sha256.Sum256(nil)
	}
	return unionfs.Entry{
		Name: name, Mode: unix.S_IFREG | mode, Size: size, Mtime: unionfs.Time{Sec: 1000},
		Content: unionfs.Content{Size: size, Digest: digest},
	}
}

func subdir(name string) unionfs.Entry {
	return unionfs.Entry{Name: name, Mode: unix.S_IFDIR | 0o755, Mtime: unionfs.Time{Sec: 1000}}
}

// smallImage is what most tests stand on.
func smallImage() []unionfs.Entry {
	cap := reg("bin/ping", 0o755, 5000)
	cap.Xattrs = map[string]string{"security.capability": "\x01\x00\x00\x02", "user.note": "from the image"}
	return []unionfs.Entry{
		subdir("bin"), reg("bin/sh", 0o755, 100_000), cap, reg("bin/su", 0o6755, 3000),
		{Name: "bin/ash", Link: "bin/sh"},
		subdir("etc"), reg("etc/passwd", 0o644, 1234), reg("etc/empty", 0o644, 0),
		subdir("etc/rc.d"), reg("etc/rc.d/one", 0o644, 1), reg("etc/rc.d/two", 0o644, 2),
		{Name: "etc/mtab", Mode: unix.S_IFLNK | 0o777, Symlink: "/proc/mounts", Mtime: unionfs.Time{Sec: 1000}},
		subdir("tmp"),
		{Name: "null", Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(1, 3), Mtime: unionfs.Time{Sec: 1000}},
	}
}

func newImage(t testing.TB, entries []unionfs.Entry) *image {
	t.Helper()
	b := unionfs.NewBuilder()
	if err := b.AddLayer(unionfs.Layer{Format: unionfs.FormatPlain}); err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		if err := b.Add(&entries[i]); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "tree")
	if err := b.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	tree, err := unionfs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return &image{tree: tree}
}

// fixture is a file system under test that can be opened again.
type fixture struct {
	*FS
	t    testing.TB
	img  *image
	dir  string
	opts Options
	tick int64
}

func newFixture(t testing.TB, entries []unionfs.Entry) *fixture {
	t.Helper()
	x := &fixture{t: t, img: newImage(t, entries), dir: t.TempDir()}
	x.opts.CommitInterval = -1
	x.opts.Clock = func() unionfs.Time {
		x.tick++
		return unionfs.Time{Sec: 2_000_000_000 + x.tick, Nsec: uint32(x.tick)}
	}
	x.open()
	return x
}

func (x *fixture) open() {
	x.t.Helper()
	f, err := Open(x.dir, x.img.tree, x.img, x.opts)
	if err != nil {
		x.t.Fatal(err)
	}
	x.FS = f
	x.t.Cleanup(func() { f.Close() })
}

// crash is the death of the server: nothing is written any more.
func (x *fixture) crash() { abandon(x.FS) }

func abandon(f *FS) {
	f.op.Lock()
	closed := f.closed
	f.closed = true
	f.op.Unlock()
	if closed {
		return
	}
	f.stopBackground()
	f.release()
}

// reopen is a crash and a new server.
func (x *fixture) reopen() {
	x.t.Helper()
	x.crash()
	x.open()
}

// remount is a clean end and a new server.
func (x *fixture) remount() {
	x.t.Helper()
	if err := x.Close(); err != nil {
		x.t.Fatal(err)
	}
	x.open()
}

// ino resolves a path.
func (x *fixture) ino(path string) Ino {
	x.t.Helper()
	a, err := x.walk(path)
	if err != nil {
		x.t.Fatalf("lookup %s: %v", path, err)
	}
	return a.Ino
}

func (x *fixture) walk(path string) (unionfs.Attr, error) {
	a, err := x.GetAttr(unionfs.Root)
	for rest := path; rest != "" && err == nil; {
		var name string
		name, rest, _ = cutSlash(rest)
		a, err = x.Lookup(a.Ino, name)
	}
	return a, err
}

func cutSlash(s string) (string, string, bool) {
	for i := range s {
		if s[i] == '/' {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

func (x *fixture) attr(path string) unionfs.Attr {
	x.t.Helper()
	a, err := x.walk(path)
	if err != nil {
		x.t.Fatalf("stat %s: %v", path, err)
	}
	return a
}

var owner = unionfs.Owner{UID: 10, GID: 20}

func (x *fixture) create(dir Ino, name, content string) Ino {
	x.t.Helper()
	a, err := x.Mknod(dir, name, unix.S_IFREG|0o644, 0, owner)
	if err != nil {
		x.t.Fatalf("create %s: %v", name, err)
	}
	if content != "" {
		x.write(a.Ino, content, 0)
	}
	return a.Ino
}

func (x *fixture) write(ino Ino, content string, off int64) {
	x.t.Helper()
	n, err := x.Write(context.Background(), ino, []byte(content), off, false)
	if err != nil || n != len(content) {
		x.t.Fatalf("write inode %d: %d, %v", ino, n, err)
	}
}

func (x *fixture) read(ino Ino) string {
	x.t.Helper()
	a, err := x.GetAttr(ino)
	if err != nil {
		x.t.Fatal(err)
	}
	p := make([]byte, a.Size+10)
	n, err := x.Read(context.Background(), ino, p, 0)
	if err != nil {
		x.t.Fatalf("read inode %d: %v", ino, err)
	}
	if int64(n) != a.Size {
		x.t.Fatalf("read inode %d: %d bytes of %d", ino, n, a.Size)
	}
	return string(p[:n])
}

func (x *fixture) list(dir Ino) []string {
	x.t.Helper()
	var names []string
	err := x.ReadDir(dir, 2, func(e unionfs.Dirent) bool {
		names = append(names, e.Name)
		return true
	})
	if err != nil {
		x.t.Fatal(err)
	}
	return names
}

func want(t testing.TB, what string, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("%s: %v, want %v", what, err, target)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func asError[T error](err error, target *T) bool { return errors.As(err, target) }
