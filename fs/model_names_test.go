package fs

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What happens to names is what happens on ext4.
func TestNamesAreAsOnExt4(t *testing.T) { runModel(t, nameCases, IOCached, IOPassthrough) }

var nameCases = []modelCase{
	{"unlinked file", func(d *modelDir) {
		for _, name := range []string{"file", "linked", "new"} {
			fd := d.open(name, unix.O_RDWR|unix.O_CREAT, 0o600)
			d.err("unlink", unix.Unlink(d.path(name)))
			d.fstat(name, fd)
			_, err := unix.Pwrite(fd, []byte("written after"), 3)
			d.err("write", err)
			d.err("truncate", unix.Ftruncate(fd, 5000))
			d.err("chmod", unix.Fchmod(fd, 0o640))
			d.err("setxattr", unix.Fsetxattr(fd, "user.x", []byte("v"), 0))
			d.err("link back", linkFD(fd, d.path(name)))
			d.fstat(name, fd)
			d.err("create again", os.WriteFile(d.path(name), []byte("another"), 0o644))
			d.fstat(name, fd)
		}
	}},
	{"removed directory", func(d *modelDir) {
		for _, name := range []string{"empty", "new"} {
			if name == "new" {
				d.must(unix.Mkdir(d.path(name), 0o755))
			}
			fd := d.open(name, unix.O_DIRECTORY, 0)
			d.err("rmdir", unix.Rmdir(d.path(name)))
			d.fstat(name, fd)
			d.err("mkdir in it", unix.Mkdirat(fd, "x", 0o755))
			_, err := unix.Openat(fd, "x", unix.O_CREAT|unix.O_RDWR, 0o644)
			d.err("create in it", err)
			_, err = unix.Openat(fd, ".", unix.O_TMPFILE|unix.O_RDWR, 0o644)
			d.err("tmpfile in it", err)
			d.err("rename into it", unix.Renameat(unix.AT_FDCWD, d.path("file"), fd, "x"))
			d.err("stat in it", unix.Fstatat(fd, "x", new(unix.Stat_t), 0))
			_, err = unix.Getdents(fd, make([]byte, 1000))
			d.err("list it", err)
			d.err("set its mode", unix.Fchmod(fd, 0o700))
		}
	}},
	{"unnamed file", func(d *modelDir) {
		fd := d.open("dir", unix.O_TMPFILE|unix.O_RDWR, 0o640)
		d.fstat("unnamed", fd)
		_, err := unix.Write(fd, []byte("hello"))
		d.err("write", err)
		d.err("link over a name", linkFD(fd, d.path("file")))
		d.err("link", linkFD(fd, d.path("named")))
		d.err("link again", linkFD(fd, d.path("dir/named2")))
		d.fstat("named", fd)
		excl := d.open("dir", unix.O_TMPFILE|unix.O_EXCL|unix.O_RDWR, 0o600)
		d.err("link of one that must stay so", linkFD(excl, d.path("never")))
		_, err = unix.Open(d.path("dir"), unix.O_TMPFILE|unix.O_RDONLY, 0o600)
		d.err("read-only", err)
		_, err = unix.Open(d.path("file"), unix.O_TMPFILE|unix.O_RDWR, 0o600)
		d.err("in a file", err)
	}},
	{"open flags", func(d *modelDir) {
		for _, name := range []string{"file", "none0", "dir", "soft", "dangling", "loop", "fifo", "chr", "missing", "file/x", "dir/", "missing/", "file/"} {
			for _, f := range []struct {
				name  string
				flags int
			}{
				{"EXCL", unix.O_CREAT | unix.O_EXCL | unix.O_RDWR}, {"DIRECTORY", unix.O_DIRECTORY}, {"NOFOLLOW", unix.O_NOFOLLOW | unix.O_RDONLY | unix.O_NONBLOCK},
				{"WRONLY", unix.O_WRONLY | unix.O_NONBLOCK}, {"CREAT", unix.O_CREAT | unix.O_RDWR | unix.O_NONBLOCK}, {"TRUNC", unix.O_TRUNC | unix.O_WRONLY | unix.O_NONBLOCK},
				{"TRUNC RDONLY", unix.O_TRUNC | unix.O_NONBLOCK}, {"PATH", unix.O_PATH}, {"PATH NOFOLLOW", unix.O_PATH | unix.O_NOFOLLOW},
				{"APPEND TRUNC", unix.O_APPEND | unix.O_TRUNC | unix.O_WRONLY | unix.O_NONBLOCK}, {"CREAT DIRECTORY", unix.O_CREAT | unix.O_DIRECTORY}, {"DIRECT", unix.O_DIRECT | unix.O_NONBLOCK},
			} {
				fd, err := unix.Open(d.path(name), f.flags, 0o644)
				d.err(name+" "+f.name, err)
				if err == nil {
					unix.Close(fd)
				}
			}
			d.stat(name)
		}
	}},
	{"a mode that forbids to write what it makes", func(d *modelDir) {
		for _, mode := range []uint32{0o444, 0, 0o2755, 0o4711} {
			name := fmt.Sprintf("new%o", mode)
			d.err(name, unprivileged(func() error {
				return withMode(d.path(name), mode, write("written"))
			}))
			d.err("once more", unprivileged(func() error { return withMode(d.path(name), mode, write("again")) }))
		}
	}},
	{"rename", func(d *modelDir) {
		pairs := [][2]string{
			{"file", "new"}, {"new", "none0"}, {"none0", "dir"}, {"dir", "none0"}, {"dir", "empty"}, {"dir", "setgid"}, {"empty", "dir"}, {"setgid", "setgid/x"},
			{"linked", "setgid/other"}, {"setgid/other", "linked"}, {"soft", "fifo"}, {"fifo", "moved"}, {"missing", "x"}, {"missing", "linked"}, {"linked", "missing/x"},
			{"linked", "big/x"}, {".", "x"}, {"setgid/..", "x"}, {"empty", "setgid/."}, {"empty/", "slash/"}, {"linked/", "x"}, {"linked", "x/"}, {"chr", "chr"}, {"slash", "slash"},
			{"setgid", "sticky/setgid"}, {"sticky/setgid/a", "up"}, {"sticky", "sticky/setgid/in"}, {"sticky/setgid/sub", "sub"}, {"sub/deep", "empty"}, {"dangling", "loop"},
		}
		for _, p := range pairs {
			d.err(p[0]+" to "+p[1], unix.Rename(d.path(p[0]), d.path(p[1])))
			d.stat(p[0])
			d.stat(p[1])
		}
	}},
	{"rename with flags", func(d *modelDir) {
		const no, ex, white = unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_WHITEOUT
		for i, c := range []struct {
			from, to string
			flags    uint
		}{
			{"file", "none0", no}, {"file", "renamed", no}, {"renamed", "renamed", no}, {"dir", "empty", no}, {"linked", "dir/other", no},
			{"renamed", "none0", ex}, {"renamed", "dir", ex}, {"dir", "soft", ex}, {"dir/sub", "empty", ex}, {"renamed", "renamed/sub", ex}, {"renamed/sub", "renamed", ex},
			{"fifo", "missing", ex}, {"missing", "fifo", ex}, {"linked", "renamed/other", ex}, {"big", "big", ex}, {"sticky/mine", "setid", ex},
			{"big", "white", white}, {"setid", "none0", white}, {"setgid", "white2", white}, {"cap", "theirs", white | no}, {"cap", "white3", white | no}, {"cap", "x", white | ex}, {"cap", "x", no | ex},
			{"theirs", "x", 8}, {"white", "white", white},
		} {
			d.err(fmt.Sprint(i, c), unix.Renameat2(unix.AT_FDCWD, d.path(c.from), unix.AT_FDCWD, d.path(c.to), c.flags))
			d.stat(c.from)
			d.stat(c.to)
		}
	}},
	{"lower directory moves with all that is in it", func(d *modelDir) {
		fd := d.open("dir/sub", unix.O_DIRECTORY, 0)
		d.err("rename", unix.Rename(d.path("dir"), d.path("empty/dir")))
		d.err("create by the old descriptor", withFileAt(fd, "new", unix.O_CREAT|unix.O_WRONLY, write("x")))
		d.read("empty/dir/sub/b")
		d.err("change below", os.WriteFile(d.path("empty/dir/sub/deep/z"), []byte("changed"), 0o644))
		d.err("rename what is below", unix.Rename(d.path("empty/dir/sub"), d.path("sub")))
		d.err("and again", unix.Rename(d.path("empty/dir"), d.path("sub/deep/dir")))
		d.err("put a new one in its place", unix.Mkdir(d.path("dir"), 0o700))
		d.stat("sub/..")
		d.stat("sub/deep/dir/..")
	}},
	{"hard links", func(d *modelDir) {
		fd := d.open("linked", unix.O_RDWR, 0)
		_, err := unix.Pwrite(fd, []byte("both"), 4)
		d.err("write", err)
		d.read("dir/other")
		d.err("link", unix.Link(d.path("dir/other"), d.path("third")))
		d.fstat("linked", fd)
		d.err("unlink", unix.Unlink(d.path("linked")))
		d.stat("third")
		d.err("rename over another of its names", unix.Rename(d.path("third"), d.path("dir/other")))
		d.err("unlink", unix.Unlink(d.path("third")))
		d.fstat("linked", fd)
		d.err("link a directory", unix.Link(d.path("dir"), d.path("x")))
		d.err("link over a name", unix.Link(d.path("file"), d.path("big")))
		d.err("link a symlink", unix.Link(d.path("soft"), d.path("soft2")))
		d.err("link what it leads to", unix.Linkat(unix.AT_FDCWD, d.path("soft"), unix.AT_FDCWD, d.path("file2"), unix.AT_SYMLINK_FOLLOW))
		d.err("link a device", unix.Link(d.path("chr"), d.path("chr2")))
		d.err("link nothing", unix.Link(d.path("missing"), d.path("x")))
		d.err("link a stranger's", unprivileged(func() error { return unix.Link(d.path("cap"), d.path("x")) }))
	}},
	{"errors", func(d *modelDir) {
		d.err("unlink a directory", unix.Unlink(d.path("dir")))
		d.err("unlink nothing", unix.Unlink(d.path("missing")))
		d.err("unlink in a file", unix.Unlink(d.path("file/x")))
		d.err("unlink with a slash", unix.Unlink(d.path("file/")))
		d.err("rmdir a file", unix.Rmdir(d.path("file")))
		d.err("rmdir a full one", unix.Rmdir(d.path("dir")))
		d.err("rmdir .", unix.Rmdir(d.path("empty/.")))
		d.err("rmdir ..", unix.Rmdir(d.path("dir/sub/..")))
		d.err("rmdir a symlink", unix.Rmdir(d.path("soft")))
		d.err("mkdir over a file", unix.Mkdir(d.path("file"), 0o755))
		d.err("mkdir over a dangling symlink", unix.Mkdir(d.path("dangling"), 0o755))
		d.err("mkdir with a slash", unix.Mkdir(d.path("made/"), 0o755))
		d.err("mkdir in nothing", unix.Mkdir(d.path("missing/x"), 0o755))
		d.err("symlink over a name", unix.Symlink("x", d.path("file")))
		d.err("empty symlink", unix.Symlink("", d.path("x")))
		d.err("longest symlink", unix.Symlink(strings.Repeat("s", 4095), d.path("longest")))
		d.err("longer symlink", unix.Symlink(strings.Repeat("s", 4096), d.path("x")))
		d.err("through a loop", unix.Stat(d.path("loop/x"), new(unix.Stat_t)))
		d.err("through a file", unix.Stat(d.path("file/."), new(unix.Stat_t)))
		d.err("readlink of a file", func() error { _, err := unix.Readlink(d.path("file"), make([]byte, 10)); return err }())
		d.err("truncate a directory", unix.Truncate(d.path("dir"), 0))
		d.err("truncate a fifo", unix.Truncate(d.path("fifo"), 0))
		d.err("mknod over a name", unix.Mknod(d.path("file"), unix.S_IFIFO|0o644, 0))
		d.err("mknod of a directory", unix.Mknod(d.path("x"), unix.S_IFDIR|0o644, 0))
	}},
	{"long names", func(d *modelDir) {
		long := strings.Repeat("n", 255)
		for _, name := range []string{long, long + "n", "\xff\xfe\x01\n\t\\ \"", "ü", strings.Repeat("\xc3\xbc", 127)} {
			d.err("create", withFile(d.path(name), unix.O_CREAT|unix.O_WRONLY, write(name)))
			d.err("mkdir", unix.Mkdir(d.path("dir/"+name), 0o755))
			d.err("symlink", unix.Symlink(name, d.path("empty/"+name)))
			d.err("rename", unix.Rename(d.path(name), d.path("sticky/"+name)))
			d.err("rename from it", unix.Rename(d.path("sticky/"+name), d.path("setgid/x")))
			d.err("link", unix.Link(d.path("none0"), d.path("setgid/"+name)))
			d.err("look up", unix.Stat(d.path(name+"/x"), new(unix.Stat_t)))
			d.err("xattr", unix.Setxattr(d.path("empty/"+name), "user.x", nil, 0))
		}
	}},
	{"deep paths", func(d *modelDir) {
		// A path of 4,095 bytes is the longest that a call takes; deeper directories are reached from one that is open.
		at := d.open("empty", unix.O_DIRECTORY, 0)
		name := strings.Repeat("d", 200)
		for i := range 30 {
			d.must(unix.Mkdirat(at, name, 0o755))
			next, err := unix.Openat(at, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			d.must(err)
			d.must(withFileAt(next, "f", unix.O_CREAT|unix.O_WRONLY, write(fmt.Sprint(i))))
			unix.Close(at)
			at = next
		}
		unix.Close(at)
		path := d.path("empty")
		rest := 4095 - len(path)
		path += strings.Repeat("/"+name, rest/201)
		pad := strings.Repeat("/", 4095-len(path)-len("f"))
		d.err("the longest path", os.WriteFile(path+pad+"f", []byte("x"), 0o644))
		d.err("one that is longer", unix.Stat(path+pad+"/f", new(unix.Stat_t)))
		d.err("remove all", os.RemoveAll(d.path("empty/"+name)))
	}},
	{"sticky directory", func(d *modelDir) {
		mine := func(what string, do func() error) { d.err(what, unprivileged(do)) }
		mine("unlink another's", func() error { return unix.Unlink(d.path("sticky/foreign")) })
		mine("rename another's", func() error { return unix.Rename(d.path("sticky/foreign"), d.path("x")) })
		mine("rename over another's", func() error { return unix.Rename(d.path("sticky/mine"), d.path("sticky/foreign")) })
		mine("exchange with another's", func() error {
			return unix.Renameat2(unix.AT_FDCWD, d.path("sticky/mine"), unix.AT_FDCWD, d.path("sticky/foreign"), unix.RENAME_EXCHANGE)
		})
		mine("create", func() error {
			return withFile(d.path("sticky/new"), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, write("x"))
		})
		mine("rename one's own", func() error { return unix.Rename(d.path("sticky/mine"), d.path("sticky/mine2")) })
		mine("rename it out", func() error { return unix.Rename(d.path("sticky/mine2"), d.path("out")) })
		mine("unlink one's own", func() error { return unix.Unlink(d.path("sticky/new")) })
		mine("rename the directory", func() error { return unix.Rename(d.path("sticky"), d.path("x")) })
		mine("create where it is not allowed", func() error { return unix.Mkdir(d.path("dir/x"), 0o755) })
		mine("unlink where it is not allowed", func() error { return unix.Unlink(d.path("dir/a")) })
	}},
	{"group and mode of what is new", func(d *modelDir) {
		make := func(who, dir string) func() error {
			return func() error {
				for _, mode := range []uint32{0o666, 0o2777, 0o6755, 0o1777} {
					name := fmt.Sprintf("%s/%s%o", d.path(dir), who, mode)
					d.err("mkdir", unix.Mkdir(name+"d", mode))
					d.err("mknod", unix.Mknod(name+"m", unix.S_IFREG|mode, 0))
					d.err("fifo", unix.Mknod(name+"p", unix.S_IFIFO|mode, 0))
					d.err("create", withMode(name+"c", mode, write("x")))
					d.err("symlink", unix.Symlink("x", name+"l"))
					fd, err := unix.Open(d.path(dir), unix.O_TMPFILE|unix.O_RDWR, mode)
					d.err("tmpfile", err)
					d.err("link", linkFD(fd, name+"t"))
					unix.Close(fd)
				}
				return nil
			}
		}
		for _, mask := range []int{0, 0o027, 0o777} {
			old := unix.Umask(mask)
			for _, dir := range []string{"setgid", "."} {
				who := fmt.Sprintf("%o", mask)
				d.must(make(who+"root", dir)())
				d.must(unprivileged(make(who+"user", dir)))
			}
			unix.Umask(old)
		}
	}},
	{"links and times of directories", func(d *modelDir) {
		d.times("mkdir", func() error { return unix.Mkdir(d.path("dir/new"), 0o755) }, "dir", ".")
		d.times("create", func() error { return unix.Mknod(d.path("dir/f"), unix.S_IFREG|0o644, 0) }, "dir", ".")
		d.times("link", func() error { return unix.Link(d.path("file"), d.path("dir/l")) }, "dir", "file")
		d.times("rename in", func() error { return unix.Rename(d.path("empty"), d.path("dir/empty")) }, "dir", ".", "dir/sub")
		d.times("rename in place", func() error { return unix.Rename(d.path("dir/f"), d.path("dir/g")) }, "dir", "dir/sub")
		d.times("rename over", func() error { return unix.Rename(d.path("dir/g"), d.path("dir/l")) }, "dir", "file")
		d.times("rename to another of its names", func() error { return unix.Rename(d.path("linked"), d.path("dir/other")) }, "dir", ".", "linked")
		d.times("rename to itself", func() error { return unix.Rename(d.path("dir/a"), d.path("dir/a")) }, "dir", "dir/a")
		d.times("rename a directory out", func() error { return unix.Rename(d.path("dir/sub"), d.path("sub")) }, "dir", ".", "setgid")
		d.times("exchange", func() error {
			return unix.Renameat2(unix.AT_FDCWD, d.path("sub"), unix.AT_FDCWD, d.path("dir/a"), unix.RENAME_EXCHANGE)
		}, "dir", ".", "sub", "dir/a")
		d.times("unlink", func() error { return unix.Unlink(d.path("dir/l")) }, "dir", "file")
		d.times("rmdir", func() error { return unix.Rmdir(d.path("dir/new")) }, "dir", ".")
		d.times("one that fails", func() error { return unix.Rmdir(d.path("dir")) }, "dir", ".")
		for _, name := range []string{".", "dir", "dir/a", "sub", "setgid"} {
			d.stat(name)
		}
	}},
	{"special files", func(d *modelDir) {
		for name, mode := range map[string]uint32{"p": unix.S_IFIFO, "s": unix.S_IFSOCK, "c": unix.S_IFCHR, "b": unix.S_IFBLK, "r": unix.S_IFREG, "n": 0} {
			d.must(unix.Mknod(d.path(name), mode|0o640, int(unix.Mkdev(300, 70000))))
		}
		zero := d.open("chr", unix.O_RDWR, 0) // 1:3 is /dev/null
		_, err := unix.Write(zero, []byte("gone"))
		d.err("write to the device", err)
		for _, name := range []string{"p", "fifo"} {
			r := d.open(name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
			w := d.open(name, unix.O_WRONLY|unix.O_NONBLOCK, 0)
			_, err = unix.Write(w, []byte("through"))
			d.err("write to the pipe", err)
			buf := make([]byte, 20)
			n, err := unix.Read(r, buf)
			d.logf("%q %v", buf[:max(n, 0)], err)
		}
		_, err = unix.Open(d.path("s"), unix.O_RDWR, 0)
		d.err("open a socket", err)
		_, err = unix.Open(d.path("c"), unix.O_RDWR, 0)
		d.err("open a device without a driver", err)
		bound := fmt.Sprintf("/proc/self/fd/%d/bound", d.open(".", unix.O_DIRECTORY, 0)) // a socket's address is short
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		d.must(err)
		d.err("bind", unix.Bind(fd, &unix.SockaddrUnix{Name: bound}))
		d.err("listen", unix.Listen(fd, 1))
		c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		d.must(err)
		d.err("connect", unix.Connect(c, &unix.SockaddrUnix{Name: bound}))
		d.err("bind again", unix.Bind(c, &unix.SockaddrUnix{Name: bound}))
		unix.Close(fd)
		unix.Close(c)
	}},
}
