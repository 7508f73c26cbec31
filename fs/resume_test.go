package fs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// resumableFS is a fakeFS that remembers what was done, as if it had been written down.
type resumableFS struct {
	*fakeFS
	mu   sync.Mutex
	done map[uint64]bool
}

func newResumableFS() *resumableFS {
	return &resumableFS{fakeFS: newFakeFS(), done: map[uint64]bool{}}
}

func (f *resumableFS) Executed(unique uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.done[unique]
}

func (f *resumableFS) Request(unique uint64) Changes { return noting{f, unique} }

// noting notes a request that was done.
type noting struct {
	f      *resumableFS
	unique uint64
}

func (n noting) note(err error) error {
	if err == nil {
		n.f.mu.Lock()
		n.f.done[n.unique] = true
		n.f.mu.Unlock()
	}
	return err
}

func (n noting) Mknod(dir unionfs.Ino, name string, mode uint32, rdev uint64, c unionfs.Owner) (unionfs.Attr, error) {
	a, err := n.f.fakeFS.Mknod(dir, name, mode, rdev, c)
	return a, n.note(err)
}

func (n noting) Mkdir(dir unionfs.Ino, name string, mode uint32, c unionfs.Owner) (unionfs.Attr, error) {
	a, err := n.f.fakeFS.Mkdir(dir, name, mode, c)
	return a, n.note(err)
}

func (n noting) Symlink(dir unionfs.Ino, name, target string, c unionfs.Owner) (unionfs.Attr, error) {
	a, err := n.f.fakeFS.Symlink(dir, name, target, c)
	return a, n.note(err)
}

func (n noting) Link(ino, dir unionfs.Ino, name string) (unionfs.Attr, error) {
	a, err := n.f.fakeFS.Link(ino, dir, name)
	return a, n.note(err)
}

func (n noting) Unlink(dir unionfs.Ino, name string) error {
	return n.note(n.f.fakeFS.Unlink(dir, name))
}
func (n noting) Rmdir(dir unionfs.Ino, name string) error { return n.note(n.f.fakeFS.Rmdir(dir, name)) }

func (n noting) Rename(oldDir unionfs.Ino, oldName string, newDir unionfs.Ino, newName string, flags uint32) error {
	return n.note(n.f.fakeFS.Rename(oldDir, oldName, newDir, newName, flags))
}

func (n noting) SetXattr(ino unionfs.Ino, name string, value []byte, flags uint32) error {
	return n.note(n.f.fakeFS.SetXattr(ino, name, value, flags))
}

func (n noting) RemoveXattr(ino unionfs.Ino, name string) error {
	return n.note(n.f.fakeFS.RemoveXattr(ino, name))
}

// relay is a mount whose servers die one after the other.
type relay struct {
	t    *testing.T
	dir  string
	fuse *os.File // the one that lives
	b    Backend
	o    Options

	served chan error // of the server that stays; nil before there is one
}

func newRelay(t *testing.T, b Backend) *relay {
	t.Helper()
	dir := t.TempDir()
	file, err := MountFD(dir, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{t: t, dir: dir, fuse: file, b: b, o: Options{Log: slog.New(slog.NewTextHandler(testLog{t}, nil))}}
	t.Cleanup(func() {
		if err := Unmount(dir, true); err != nil {
			t.Error(err)
		}
		file.Close()
		if r.served == nil {
			return
		}
		if err := <-r.served; err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *relay) server() (*Server, error) {
	fd, err := unix.FcntlInt(r.fuse.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	return NewServer(os.NewFile(uintptr(fd), fuseDevice), r.b, r.o)
}

// dieAt serves alone until a request of that opcode comes. With that it dies: before its operation, or after it and before the answer.
func (r *relay) dieAt(code uint32, after bool) {
	r.t.Helper()
	s, err := r.server()
	if err != nil {
		r.t.Fatal(err)
	}
	q, err := newRequest()
	if err != nil {
		r.t.Fatal(err)
	}
	defer q.free()
	s.loop.all = append(s.loop.all, q)
	for {
		if errno := s.loop.next(q); errno != 0 {
			r.t.Fatal(errno)
		}
		if q.header().Opcode == code {
			break
		}
		s.loop.answer(q)
	}
	if after {
		s.loop.dispatch(q)
	}
	session := s.Session()
	r.o.Resume = &session
	if err := s.conn.close(); err != nil {
		r.t.Error(err)
	}
	if session.Flags&fuse.CAP_HAS_RESEND == 0 {
		r.t.Skip("SKIP: no take-over was tested: this kernel cannot send requests again (Linux 6.9 can)")
	}
}

// serve takes over and stays until the test ends.
func (r *relay) serve() *Server {
	r.t.Helper()
	s, err := r.server()
	if err != nil {
		r.t.Fatal(err)
	}
	r.served = make(chan error, 1)
	go func() { r.served <- s.Serve() }()
	return s
}

// Whatever a server is killed over, before its operation or after it: the next one answers, once, and as if nothing had happened.
func TestRequestOfADeadServerIsAnsweredOnce(t *testing.T) {
	prepare := func(f *fakeFS) {
		for _, name := range []string{"file", "xattr"} {
			if _, err := f.Mknod(unionfs.Root, name, syscall.S_IFREG|0o644, 0, unionfs.Owner{}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := f.Mkdir(unionfs.Root, "dir", 0o755, unionfs.Owner{}); err != nil {
			t.Fatal(err)
		}
		a, _ := f.Lookup(unionfs.Root, "xattr")
		if err := f.SetXattr(a.Ino, "user.old", []byte("x"), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		code uint32
		do   func(d string) error
		gone string // is not there afterwards
		made string // is
	}{
		{"mknod", codeMknod, func(d string) error { return unix.Mknod(d+"/p", unix.S_IFIFO|0o600, 0) }, "", "p"},
		{"create", codeMknod, func(d string) error { return withFile(d+"/n", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, write("x")) }, "", "n"},
		{"mkdir", codeMkdir, func(d string) error { return unix.Mkdir(d+"/m", 0o700) }, "", "m"},
		{"symlink", codeSymlink, func(d string) error { return unix.Symlink("to", d+"/s") }, "", "s"},
		{"link", codeLink, func(d string) error { return unix.Link(d+"/file", d+"/l") }, "", "l"},
		{"unlink", codeUnlink, func(d string) error { return unix.Unlink(d + "/file") }, "file", ""},
		{"rmdir", codeRmdir, func(d string) error { return unix.Rmdir(d + "/dir") }, "dir", ""},
		{"rename", codeRename2, func(d string) error {
			return unix.Renameat2(unix.AT_FDCWD, d+"/file", unix.AT_FDCWD, d+"/r", unix.RENAME_NOREPLACE)
		}, "file", "r"},
		{"setxattr", codeSetxattr, func(d string) error { return unix.Setxattr(d+"/file", "user.a", []byte("b"), unix.XATTR_CREATE) }, "", "file"},
		{"removexattr", codeRemovexattr, func(d string) error { return unix.Removexattr(d+"/xattr", "user.old") }, "", "xattr"},
		{"write", codeWrite, func(d string) error { return withFile(d+"/file", unix.O_WRONLY|unix.O_APPEND, write("once")) }, "", "file"},
		{"stat", codeLookup, func(d string) error { return unix.Stat(d+"/file", new(unix.Stat_t)) }, "", "file"},
	} {
		for _, when := range []string{"before", "after"} {
			t.Run(c.name+"/"+when, func(t *testing.T) {
				f := newResumableFS()
				prepare(f.fakeFS)
				r := newRelay(t, f)
				done := make(chan error, 1)
				go func() { done <- c.do(r.dir) }()
				r.dieAt(c.code, when == "after")
				r.serve()
				if err := <-done; err != nil {
					t.Fatalf("the caller saw %v", err)
				}
				for _, name := range []string{c.gone, c.made} {
					if name == "" {
						continue
					}
					err := unix.Lstat(r.dir+"/"+name, new(unix.Stat_t))
					if name == c.gone && err != unix.ENOENT || name == c.made && err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
				if c.name == "write" {
					checkSize(t, r.dir+"/file", 4)
				}
			})
		}
	}
}

func checkSize(t *testing.T, path string, size int64) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Size != size {
		t.Errorf("%s: %d bytes, %v; want %d", path, st.Size, err, size)
	}
}

// What failed was not executed: it fails once more, in the same way.
func TestFailedRequestOfADeadServerFailsAgain(t *testing.T) {
	f := newResumableFS()
	r := newRelay(t, f)
	done := make(chan error, 1)
	go func() { done <- unix.Unlink(r.dir + "/dir") }()
	if _, err := f.Mkdir(unionfs.Root, "dir", 0o755, unionfs.Owner{}); err != nil {
		t.Fatal(err)
	}
	r.dieAt(codeLookup, true)
	r.serve()
	if err := <-done; err != unix.EISDIR {
		t.Errorf("unlink of a directory: %v; want EISDIR", err)
	}
	if err := unix.Mkdir(r.dir+"/dir", 0o755); err != unix.EEXIST {
		t.Errorf("mkdir of what is there: %v; want EEXIST", err)
	}
}

// A file that was open and unlinked before the take-over goes with its last close, and not before.
func TestForgetAfterATakeOver(t *testing.T) {
	f := newResumableFS()
	r := newRelay(t, f)
	opened, proceed, done := make(chan int, 1), make(chan struct{}), make(chan error, 1)
	go func() {
		fd, err := unix.Open(r.dir+"/f", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err == nil {
			err = unix.Unlink(r.dir + "/f")
		}
		opened <- fd
		if err == nil {
			<-proceed
			err = unix.Mkdir(r.dir+"/next", 0o700)
		}
		done <- err
	}()
	close(proceed)
	r.dieAt(codeMkdir, false)
	fd := <-opened
	s := r.serve()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ino := orphan(f.fakeFS)
	s.wire.Forget(ino, 1) // of one lookup, as for a name that was looked up twice at a time
	if orphan(f.fakeFS) != ino {
		t.Error("a file that is open was forgotten")
	}
	if _, err := unix.Write(fd, []byte("still here")); err != nil {
		t.Error(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
	select {
	case got := <-f.forgot:
		if got != ino {
			t.Errorf("inode %d was forgotten; want %d", got, ino)
		}
	case <-time.After(10 * time.Second):
		t.Error("the file stays after its last close")
	}
}

// orphan returns the inode that has no name, else 0.
func orphan(f *fakeFS) unionfs.Ino {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ino, n := range f.inodes {
		if n.attr.Nlink == 0 {
			return ino
		}
	}
	return 0
}

// Locks and listings go on: the first is the kernel's, and positions mean the same to any server.
func TestLocksAndListingsOutliveTheServer(t *testing.T) {
	const files = 3000 // more than one READDIR takes
	f := newResumableFS()
	for i := range files {
		if _, err := f.Mknod(unionfs.Root, fmt.Sprint(i), syscall.S_IFREG|0o644, 0, unionfs.Owner{}); err != nil {
			t.Fatal(err)
		}
	}
	r := newRelay(t, f)
	done := make(chan error, 1)
	var dir, locked int
	var names []string
	go func() {
		var err error
		if locked, err = unix.Open(r.dir+"/1", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
			err = unix.Flock(locked, unix.LOCK_EX)
		}
		if err == nil {
			if dir, err = unix.Open(r.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
				names = readNames(t, dir, 10)
				err = unix.Mkdir(r.dir+"/late", 0o755)
			}
		}
		done <- err
	}()
	r.dieAt(codeMkdir, true)
	r.serve()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	defer unix.Close(locked)
	defer unix.Close(dir)
	if err := withFile(r.dir+"/1", unix.O_RDWR, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) }); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("a lock that is held: %v", err)
	}
	names = append(names, readNames(t, dir, files+10)...)
	seen := map[string]int{}
	for _, name := range names {
		seen[name]++
	}
	for i := range files {
		if n := seen[fmt.Sprint(i)]; n != 1 {
			t.Fatalf("%d is listed %d times", i, n)
		}
	}
}

// Where the kernel cannot send again what was in flight fails, and nothing hangs.
func TestWithoutResendWhatWasInFlightFails(t *testing.T) {
	f := newResumableFS()
	r := newRelay(t, f)
	done, later := make(chan error, 1), make(chan error, 1)
	go func() { done <- unix.Mkdir(r.dir+"/d", 0o755) }()
	r.dieAt(codeMkdir, true)
	r.o.Resume.Flags &^= fuse.CAP_HAS_RESEND
	go func() { later <- unix.Statfs(r.dir, new(unix.Statfs_t)) }() // it waits for a server, or comes after
	r.serve()
	if err := <-done; err != unix.EIO {
		t.Errorf("what was in flight: %v; want EIO", err)
	}
	if err := <-later; err != nil {
		t.Errorf("what came later: %v", err)
	}
	if err := unix.Mkdir(r.dir+"/e", 0o755); err != nil {
		t.Errorf("a new request: %v", err)
	}
}

func TestWhatCannotBeResumed(t *testing.T) {
	r := newRelay(t, newResumableFS())
	s, err := r.server()
	if err != nil {
		t.Fatal(err)
	}
	session := s.Session()
	if session.Flags&fuse.CAP_HAS_RESEND == 0 {
		t.Skip("SKIP: no take-over was tested: this kernel cannot send requests again (Linux 6.9 can)")
	}
	for name, c := range map[string]struct {
		b Backend
		o Options
	}{
		"passthrough":  {newResumableFS(), Options{Resume: &session, IO: IOPassthrough}},
		"no Resumable": {newFakeFS(), Options{Resume: &session}},
	} {
		r.b, r.o = c.b, c.o
		if _, err := r.server(); !errors.Is(err, ErrNoResume) {
			t.Errorf("%s: %v; want ErrNoResume", name, err)
		}
	}
	if err := s.conn.close(); err != nil {
		t.Error(err)
	}
}
