package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A file handle is good for as long as its inode is there: when the kernel has forgotten the inode, and on the next mount, too.
func TestFileHandles(t *testing.T) {
	forEachRung(t, func(t *testing.T, veneer, io string) {
		lower := t.TempDir()
		output(t, "sh", "-c", `cd "$0"; mkdir -p a/b/c; echo f > a/b/c/f; ln -s c/f a/b/soft; echo gone > gone; echo old > old`, lower)
		m := mountProgramAt(t, veneer, io, lower)
		output(t, "sh", "-c", `cd "$0"; mkdir a/b/new; echo n > a/b/new/n; echo changed >> a/b/c/f; echo new > newgone`, m.dir)
		handles := make(map[string]unix.FileHandle)
		inos := make(map[string]uint64)
		for _, name := range []string{".", "a/b/c", "a/b/c/f", "a/b/soft", "gone", "old", "a/b/new", "a/b/new/n", "newgone"} {
			h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, m.dir+"/"+name, 0)
			if err != nil {
				t.Fatal(name, err)
			}
			var st unix.Stat_t
			if err := unix.Lstat(m.dir+"/"+name, &st); err != nil {
				t.Fatal(name, err)
			}
			handles[name], inos[name] = h, st.Ino
		}
		output(t, "sh", "-c", `cd "$0"; rm gone newgone; mv a moved; echo more >> old`, m.dir)
		for _, when := range []string{"at once", "after another mount"} {
			root := mustOpen(t, m.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			for name, h := range handles {
				fd, err := unix.OpenByHandleAt(root, h, unix.O_PATH|unix.O_CLOEXEC)
				if strings.Contains(name, "gone") {
					if err != unix.ESTALE {
						t.Errorf("%s: %s: %v", when, name, err)
					}
					continue
				}
				if err != nil {
					t.Errorf("%s: %s: %v", when, name, err)
					continue
				}
				var st unix.Stat_t
				if err := unix.Fstat(fd, &st); err != nil || st.Ino != inos[name] {
					t.Errorf("%s: %s: inode %d, was %d, %v", when, name, st.Ino, inos[name], err)
				}
				want := m.dir + strings.TrimPrefix(strings.Replace("/"+name, "/a/", "/moved/", 1), "/.")
				got, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
				if st.Mode&unix.S_IFMT == unix.S_IFDIR && got != want { // others may have no name yet
					t.Errorf("%s: %s is at %q, want %q, %v", when, name, got, want, err)
				}
				unix.Close(fd)
			}
			unix.Close(root)
			if when == "at once" {
				m.run(t, "umount", m.dir)
				m.mount(t, io, lower)
			}
		}
	})
}

// Positions in a directory stay what they are while entries come and go (telldir and seekdir).
func TestPositionsInADirectoryStay(t *testing.T) {
	forEachRung(t, func(t *testing.T, veneer, io string) {
		lower := t.TempDir()
		for i := range 300 {
			if err := os.WriteFile(fmt.Sprintf("%s/lower%03d", lower, i), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		dir := mountProgram(t, veneer, io, lower)
		for i := range 300 {
			if err := unix.Mknod(fmt.Sprintf("%s/new%03d", dir, i), unix.S_IFREG|0o644, 0); err != nil {
				t.Fatal(err)
			}
		}
		fd := mustOpen(t, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		defer unix.Close(fd)
		names := readNames(t, fd, 1<<20)
		if len(names) != 600 {
			t.Fatalf("%d names", len(names))
		}
		// A position after each of the first entries, by reading few at a time.
		if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
			t.Fatal(err)
		}
		type place struct {
			after int // how many names come before it
			pos   int64
		}
		var places []place
		for n := 0; ; {
			buf := make([]byte, 1000)
			got, err := unix.Getdents(fd, buf)
			if err != nil {
				t.Fatal(err)
			}
			if got == 0 {
				break
			}
			_, _, part := unix.ParseDirent(buf[:got], -1, nil)
			n += len(part)
			pos, err := unix.Seek(fd, 0, unix.SEEK_CUR)
			if err != nil {
				t.Fatal(err)
			}
			places = append(places, place{n, pos})
		}
		gone := make(map[string]bool)
		for i := 0; i < len(names); i += 3 {
			gone[names[i]] = true
			if err := unix.Unlink(dir + "/" + names[i]); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mknod(fmt.Sprintf("%s/later%03d", dir, i), unix.S_IFREG|0o644, 0); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range places {
			// A listing that began before goes on with what the kernel has kept of it: POSIX leaves open what it shows of changes.
			again := mustOpen(t, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			readNames(t, again, 1)
			if _, err := unix.Seek(again, p.pos, unix.SEEK_SET); err != nil {
				t.Fatal(err)
			}
			var got, want []string
			for _, name := range readNames(t, again, 1<<20) {
				if !strings.HasPrefix(name, "later") {
					got = append(got, name)
				}
			}
			unix.Close(again)
			for _, name := range names[p.after:] {
				if !gone[name] {
					want = append(want, name)
				}
			}
			if strings.Join(got, " ") != strings.Join(want, " ") {
				t.Errorf("from after %d names: %d names, want %d", p.after, len(got), len(want))
			}
		}
	})
}

// A mount without --rw refuses every change with EROFS, and shows the layer's own access rights.
func TestReadOnlyMountRefusesEveryChange(t *testing.T) {
	veneer := buildProgram(t)
	lower := t.TempDir()
	output(t, "sh", "-c", `cd "$0"; mkdir d e; echo f > f; ln f l; ln -s f s; mkfifo p`, lower)
	m := &programMount{t.TempDir(), "", []string{veneer, "--root", t.TempDir(), "--run-root", t.TempDir()}}
	m.run(t, "mount", "--layer", "dir:"+lower, m.dir)
	t.Cleanup(func() { m.run(t, "umount", m.dir) })
	d := m.dir
	fd := mustOpen(t, d+"/f", unix.O_RDONLY, 0)
	defer unix.Close(fd)
	open := func(name string, flags int) error { return withFile(d+name, flags, func(int) error { return nil }) }
	for what, do := range map[string]func() error{
		"write":       func() error { return open("/f", unix.O_WRONLY) },
		"append":      func() error { return open("/f", unix.O_RDWR|unix.O_APPEND) },
		"O_TRUNC":     func() error { return open("/f", unix.O_RDONLY|unix.O_TRUNC) },
		"create":      func() error { return open("/new", unix.O_CREAT|unix.O_WRONLY) },
		"tmpfile":     func() error { return open("/", unix.O_TMPFILE|unix.O_RDWR) },
		"truncate":    func() error { return unix.Truncate(d+"/f", 0) },
		"mkdir":       func() error { return unix.Mkdir(d+"/new", 0o755) },
		"mknod":       func() error { return unix.Mknod(d+"/new", unix.S_IFREG|0o644, 0) },
		"fifo":        func() error { return unix.Mknod(d+"/new", unix.S_IFIFO|0o644, 0) },
		"symlink":     func() error { return unix.Symlink("x", d+"/new") },
		"link":        func() error { return unix.Link(d+"/f", d+"/new") },
		"unlink":      func() error { return unix.Unlink(d + "/f") },
		"rmdir":       func() error { return unix.Rmdir(d + "/d") },
		"rename":      func() error { return unix.Rename(d+"/f", d+"/new") },
		"rename over": func() error { return unix.Rename(d+"/d", d+"/e") },
		"exchange": func() error {
			return unix.Renameat2(unix.AT_FDCWD, d+"/f", unix.AT_FDCWD, d+"/d", unix.RENAME_EXCHANGE)
		},
		"chmod":       func() error { return unix.Chmod(d+"/f", 0o600) },
		"fchmod":      func() error { return unix.Fchmod(fd, 0o600) },
		"chown":       func() error { return unix.Chown(d+"/f", 1, 1) },
		"lchown":      func() error { return unix.Lchown(d+"/s", 1, 1) },
		"utimes":      func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, d+"/f", nil, 0) },
		"setxattr":    func() error { return unix.Setxattr(d+"/f", "user.x", nil, 0) },
		"fsetxattr":   func() error { return unix.Fsetxattr(fd, "user.x", nil, 0) },
		"removexattr": func() error { return unix.Removexattr(d+"/f", "user.x") },
		"ACL":         func() error { return unix.Setxattr(d+"/f", aclAccess, testACLs[1].value, 0) },
		"access":      func() error { return unix.Access(d+"/f", unix.W_OK) },
	} {
		if err := do(); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := open("/p", unix.O_RDWR|unix.O_NONBLOCK); err != nil { // a pipe is not on the file system
		t.Error(err)
	}
}
