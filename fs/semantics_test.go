package fs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMissingNamesAppearWhenMade(t *testing.T) {
	onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
		d := m.dir
		for name, do := range map[string]func() error{
			"created":   func() error { return withFile(d+"/created", unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, write("x")) },
			"mkdir":     func() error { return unix.Mkdir(d+"/mkdir", 0o700) },
			"symlinked": func() error { return unix.Symlink("created", d+"/symlinked") },
			"linked":    func() error { return unix.Link(d+"/seed", d+"/linked") },
			"renamed":   func() error { return unix.Rename(d+"/seed2", d+"/renamed") },
			"mknod":     func() error { return unix.Mknod(d+"/mknod", unix.S_IFIFO|0o600, 0) },
		} {
			for _, seed := range []string{"/seed", "/seed2"} {
				if err := withFile(d+seed, unix.O_CREAT|unix.O_RDWR, write("s")); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				var st unix.Stat_t
				if err := unix.Lstat(d+"/"+name, &st); err != unix.ENOENT {
					t.Fatalf("%s: before: %v", name, err)
				}
			}
			if err := do(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			var st unix.Stat_t
			if err := unix.Lstat(d+"/"+name, &st); err != nil {
				t.Errorf("%s: after: %v", name, err)
			}
			if err := unix.Rename(d+"/"+name, d+"/away"); err != nil {
				t.Fatal(err)
			}
			if err := unix.Lstat(d+"/"+name, &st); err != unix.ENOENT {
				t.Errorf("%s: after its rename: %v", name, err)
			}
			if err := os.Remove(d + "/away"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestMissingNameIsAskedForOnce(t *testing.T) {
	m := mountTest(t, newFakeFS(), Options{})
	var st unix.Stat_t
	for range 10 {
		if err := unix.Stat(m.dir+"/none", &st); err != unix.ENOENT {
			t.Fatal(err)
		}
	}
	if n := m.server.Stats().Requests["LOOKUP"]; n != 1 {
		t.Errorf("%d lookups", n)
	}
}

func TestSymlinkIsReadOnce(t *testing.T) {
	m := mountTest(t, newFakeFS(), Options{})
	if err := unix.Symlink("target", m.dir+"/s"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	for range 10 {
		if n, err := unix.Readlink(m.dir+"/s", buf); err != nil || string(buf[:n]) != "target" {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	}
	if n := m.server.Stats().Requests["READLINK"]; n != 1 {
		t.Errorf("%d READLINK", n)
	}
}

func TestAppendersLoseNothing(t *testing.T) {
	onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
		path := m.dir + "/log"
		const writers, lines = 8, 100
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range lines {
					if err := withFile(path, unix.O_CREAT|unix.O_WRONLY|unix.O_APPEND, write(fmt.Sprintf("%d.%03d\n", w, i))); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		got := strings.Fields(string(mustRead(t, path)))
		slices.Sort(got)
		if len(slices.Compact(got)) != writers*lines {
			t.Errorf("%d different lines, want %d", len(got), writers*lines)
		}
	})
}

func TestUnlinkedFileLivesUntilItsLastClose(t *testing.T) {
	onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
		path := m.dir + "/f"
		fd := mustOpen(t, path, unix.O_CREAT|unix.O_RDWR, 0o644)
		mustWrite(t, fd, "hello")
		if err := unix.Unlink(path); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, fd, " world")
		buf := make([]byte, 20)
		if n, err := unix.Pread(fd, buf, 0); err != nil || string(buf[:n]) != "hello world" {
			t.Errorf("read %q, %v", buf[:n], err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Nlink != 0 || st.Size != 11 {
			t.Errorf("stat: nlink %d, size %d, %v", st.Nlink, st.Size, err)
		}
		select {
		case ino := <-f.forgot:
			t.Errorf("inode %d was forgotten while open", ino)
		default:
		}
		unix.Close(fd)
		select {
		case ino := <-f.forgot:
			if ino != st.Ino {
				t.Errorf("inode %d was forgotten, not %d", ino, st.Ino)
			}
		case <-time.After(30 * time.Second):
			t.Error("never forgotten")
		}
	})
}

func TestUnnamedFileGetsAName(t *testing.T) {
	onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
		fd := mustOpen(t, m.dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
		defer unix.Close(fd)
		mustWrite(t, fd, "hello")
		if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, m.dir+"/named", unix.AT_SYMLINK_FOLLOW); err != nil {
			t.Fatal(err)
		}
		if got := mustRead(t, m.dir+"/named"); string(got) != "hello" {
			t.Errorf("read %q", got)
		}
		checkTree(t, m.dir, f)
	})
}

func TestListingIsStableWhileEntriesGo(t *testing.T) {
	onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
		const n = 1000
		for i := range n {
			if err := unix.Mknod(fmt.Sprintf("%s/%04d", m.dir, i), unix.S_IFREG|0o600, 0); err != nil {
				t.Fatal(err)
			}
		}
		fd := mustOpen(t, m.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		defer unix.Close(fd)
		seen := make(map[string]int)
		for {
			names := readNames(t, fd, 50)
			if len(names) == 0 {
				break
			}
			for _, name := range names {
				seen[name]++
				if err := unix.Unlink(m.dir + "/" + name); err != nil {
					t.Fatal(err)
				}
			}
			if len(seen) > n {
				continue // each new entry comes at the end
			}
			if err := unix.Mknod(fmt.Sprintf("%s/new%d", m.dir, len(seen)), unix.S_IFREG|0o600, 0); err != nil {
				t.Fatal(err)
			}
		}
		for i := range n {
			if name := fmt.Sprintf("%04d", i); seen[name] != 1 {
				t.Errorf("%s was listed %d times", name, seen[name])
			}
		}
	})
}

func TestListingFollowsChanges(t *testing.T) {
	onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
		for i := range 3 {
			name := fmt.Sprintf("%s/%d", m.dir, i)
			if err := unix.Mkdir(name, 0o700); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second listing is the kernel's own
				if got := list(t, m.dir); len(got) != i+1 {
					t.Errorf("listing %v, want %d names", got, i+1)
				}
			}
		}
		if err := unix.Rmdir(m.dir + "/1"); err != nil {
			t.Fatal(err)
		}
		if got := list(t, m.dir); !slices.Equal(got, []string{"0", "2"}) {
			t.Errorf("listing %v", got)
		}
	})
}

func TestMappingAndDescriptorShareTheirBytes(t *testing.T) {
	onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
		path := m.dir + "/f"
		if err := withFile(path, unix.O_CREAT|unix.O_WRONLY, write("0123456789")); err != nil {
			t.Fatal(err)
		}
		fd := mustOpen(t, path, unix.O_RDONLY, 0)
		defer unix.Close(fd)
		if err := run(helper("mapstore", path, "abc")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 20)
		if n, err := unix.Pread(fd, buf, 0); err != nil || string(buf[:n]) != "abc3456789" {
			t.Errorf("read %q, %v", buf[:n], err)
		}
	})
}

func TestLocksAreSharedByAllOpeners(t *testing.T) {
	onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
		path := m.dir + "/lock"
		fd := mustOpen(t, path, unix.O_CREAT|unix.O_RDWR, 0o600)
		other := mustOpen(t, path, unix.O_RDWR, 0)
		defer unix.Close(other)
		if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(other, unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
			t.Errorf("second flock: %v", err)
		}
		lk := unix.Flock_t{Type: unix.F_WRLCK}
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lk); err != nil {
			t.Fatal(err)
		}
		if err := unix.FcntlFlock(uintptr(other), unix.F_OFD_SETLK, &lk); err != unix.EAGAIN {
			t.Errorf("second lock: %v", err)
		}
		unix.Close(fd)
		if err := unix.Flock(other, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Errorf("flock after close: %v", err)
		}
	})
}

func TestXattrs(t *testing.T) {
	onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
		path := m.dir + "/f"
		if err := withFile(path, unix.O_CREAT|unix.O_WRONLY, write("x")); err != nil {
			t.Fatal(err)
		}
		value := bytes.Repeat([]byte("v\x00"), 500)
		for _, name := range []string{"user.big", "trusted.t", "security.s"} {
			if err := unix.Setxattr(path, name, value, unix.XATTR_CREATE); err != nil {
				t.Fatal(name, err)
			}
		}
		buf := make([]byte, 2000)
		for _, c := range []struct {
			what string
			got  func() (int, error)
			n    int
			err  error
		}{
			{"size", func() (int, error) { return unix.Getxattr(path, "user.big", nil) }, 1000, nil},
			{"value", func() (int, error) { return unix.Getxattr(path, "user.big", buf) }, 1000, nil},
			{"short buffer", func() (int, error) { return unix.Getxattr(path, "user.big", buf[:10]) }, 0, unix.ERANGE},
			{"missing", func() (int, error) { return unix.Getxattr(path, "user.none", buf) }, 0, unix.ENODATA},
			{"list size", func() (int, error) { return unix.Listxattr(path, nil) }, 30, nil},
			{"list", func() (int, error) { return unix.Listxattr(path, buf) }, 30, nil},
			{"short list", func() (int, error) { return unix.Listxattr(path, buf[:5]) }, 0, unix.ERANGE},
			{"create again", func() (int, error) { return 0, unix.Setxattr(path, "user.big", nil, unix.XATTR_CREATE) }, 0, unix.EEXIST},
			{"replace missing", func() (int, error) { return 0, unix.Setxattr(path, "user.none", nil, unix.XATTR_REPLACE) }, 0, unix.ENODATA},
			{"remove missing", func() (int, error) { return 0, unix.Removexattr(path, "user.none") }, 0, unix.ENODATA},
			{"too big", func() (int, error) { return 0, unix.Setxattr(path, "user.huge", make([]byte, 65537), 0) }, 0, unix.E2BIG},
		} {
			n, err := c.got()
			if err != c.err || err == nil && n != c.n {
				t.Errorf("%s: %d, %v, want %d, %v", c.what, n, err, c.n, c.err)
			}
		}
		if n, err := unix.Getxattr(path, "user.big", buf); err != nil || !bytes.Equal(buf[:n], value) {
			t.Errorf("value %q, %v", buf[:n], err)
		}
	})
}

func TestProgramRunsFromTheMount(t *testing.T) {
	onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
		if err := run(exec.Command("cp", "/bin/echo", m.dir+"/echo")); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			// By a shell: a Go process holds a processor until its child's exec is over, and here it serves that.
			out, err := exec.Command("sh", "-c", `"$0" "it runs"`, m.dir+"/echo").Output()
			if err != nil || string(out) != "it runs\n" {
				t.Errorf("%q, %v", out, err)
			}
		}
	})
}

func TestShellToolsCopyATree(t *testing.T) {
	onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
		src := t.TempDir()
		script := `set -e
			cd "$1"; mkdir -p a/b c; seq 1 20000 > a/seq; ln a/seq c/hard; ln -s ../a/seq c/soft; : > empty
			dd if=/dev/urandom of=a/b/big bs=64K count=50 status=none; chmod 4755 empty; touch -d '1971-12-31 23:00:00.5' a
			cp -a "$1/." "$2/copy"
			mkdir "$2/untar"; tar -C "$2/copy" --format=posix -cf - . | tar -C "$2/untar" -xf -
			diff -r "$1" "$2/untar"
			(cd "$2/untar"; find . -printf '%p %y %m %n %s %T@ %l\n' | sort) > "$3/there"
			(cd "$1"; find . -printf '%p %y %m %n %s %T@ %l\n' | sort) > "$3/here"
			grep -v ' d ' "$3/here" > "$3/here1"; grep -v ' d ' "$3/there" > "$3/there1"; diff "$3/here1" "$3/there1"
			rm -rf "$2/copy"; mv "$2/untar" "$2/moved"; cat "$2/moved/c/soft" | cmp - "$1/a/seq"
			rm -rf "$2/moved"; rmdir "$2"/* 2>/dev/null || true; test -z "$(ls -A "$2")"`
		out, err := exec.Command("sh", "-c", script, "sh", src, m.dir, t.TempDir()).CombinedOutput()
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

func TestStatfs(t *testing.T) {
	m := mountTest(t, newFakeFS(), Options{})
	var st unix.Statfs_t
	if err := unix.Statfs(m.dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Blocks != 1000 || st.Bfree != 500 || st.Bavail != 400 || st.Files != 100 || st.Ffree != 50 || st.Bsize != 4096 || st.Namelen != 255 {
		t.Errorf("%+v", st)
	}
}

func TestDirectAndHoleIO(t *testing.T) {
	onBothRungs(t, func(t *testing.T, m *testMount, f *fakeFS) {
		path := m.dir + "/f"
		fd := mustOpen(t, path, unix.O_CREAT|unix.O_RDWR, 0o644)
		defer unix.Close(fd)
		mustWrite(t, fd, strings.Repeat("a", 8192))
		direct := mustOpen(t, path, unix.O_RDWR|unix.O_DIRECT, 0)
		defer unix.Close(direct)
		page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		copy(page, bytes.Repeat([]byte("b"), 4096))
		if n, err := unix.Pwrite(direct, page, 4096); err != nil || n != 4096 {
			t.Fatal(n, err)
		}
		if got := mustRead(t, path); string(got) != strings.Repeat("a", 4096)+strings.Repeat("b", 4096) {
			t.Errorf("after the direct write: %d bytes, %.5q…", len(got), got[4096:])
		}
		if n, err := unix.Pread(direct, page, 0); err != nil || n != 4096 || page[0] != 'a' {
			t.Errorf("direct read: %d, %v, %q", n, err, page[0])
		}
		if end, err := unix.Seek(fd, 0, unix.SEEK_HOLE); err != nil || end != 8192 {
			t.Errorf("SEEK_HOLE: %d, %v", end, err)
		}
		if _, err := unix.Seek(fd, 9000, unix.SEEK_DATA); err != unix.ENXIO {
			t.Errorf("SEEK_DATA after the end: %v", err)
		}
		if err := unix.Fsync(fd); err != nil {
			t.Error(err)
		}
	})
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	var all []byte
	err := withFile(path, unix.O_RDONLY, func(fd int) error {
		buf := make([]byte, 1<<16)
		for {
			n, err := unix.Read(fd, buf)
			if err != nil || n == 0 {
				return err
			}
			all = append(all, buf[:n]...)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
