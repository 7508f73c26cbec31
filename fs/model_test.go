package fs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A local ext4 directory is the model of what a mount does. A modelCase works in a directory of lower files and logs all
// that can be told by system calls; the same case on a mount of the real program must log the same.
type modelCase struct {
	name string
	do   func(d *modelDir)
}

// modelDir is the directory of one case, with what makeModel makes in it.
type modelDir struct {
	t   *testing.T
	dir string
	log strings.Builder
}

// makeModel makes what every case finds: of the image on a mount, and a copy of the same on ext4.
const makeModel = `set -e; mkdir "$0"; cd "$0"; umask 022
	mkdir -p dir/sub/deep empty sticky setgid; seq 1 3000 > file; seq 1 10 > dir/a; seq 5 9 > dir/sub/b; echo z > dir/sub/deep/z
	seq 1 99 > linked; ln linked dir/other; ln -s file soft; ln -s none dangling; ln -s loop loop; mkfifo fifo; : > none0
	mknod chr c 1 3; cp file setid; cp file cap; cp file big; truncate -s 300000 big; chmod 755 cap
	cp file theirs; cp file foreign; chown 1000:1000 theirs; chown 1001:1001 foreign; chmod 666 foreign
	echo s > sticky/foreign; chown 1001:1001 sticky/foreign; echo m > sticky/mine; chown 1000:1000 sticky/mine; chmod 1777 sticky
	chown 0:2000 setgid; chmod 2777 setgid; chmod 777 .; chmod 6755 setid
	find . -exec touch -h -d '2001-02-03 04:05:06.789' {} +`

func (d *modelDir) path(name string) string { return d.dir + "/" + name }

// err logs how a call ended.
func (d *modelDir) err(what string, err error) {
	var errno syscall.Errno
	switch {
	case err == nil:
		d.logf("%s: ok", what)
	case errors.As(err, &errno):
		d.logf("%s: %s", what, unix.ErrnoName(errno))
	default:
		d.t.Errorf("%s: %v", what, err)
	}
}

func (d *modelDir) logf(format string, args ...any) { fmt.Fprintf(&d.log, format+"\n", args...) }

// must ends the case: what it stands on does not work.
func (d *modelDir) must(err error) {
	if err != nil {
		d.t.Helper()
		d.t.Fatal(err)
	}
}

// open opens a file for as long as the case runs; -1 after an error.
func (d *modelDir) open(name string, flags int, mode uint32) int {
	fd, err := unix.Open(d.path(name), flags|unix.O_CLOEXEC, mode)
	if err != nil {
		d.err("open "+name, err)
		return -1
	}
	d.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// stat logs what stat shows and is the same on every file system.
func (d *modelDir) stat(name string) {
	var st unix.Stat_t
	if err := unix.Lstat(d.path(name), &st); err != nil {
		d.err("stat "+name, err)
		return
	}
	d.logf("stat %s: %s", name, showStat(&st))
}

func (d *modelDir) fstat(what string, fd int) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		d.err("fstat "+what, err)
		return
	}
	d.logf("fstat %s: %s", what, showStat(&st))
}

func showStat(st *unix.Stat_t) string {
	size := st.Size
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		size = 0 // each file system has its own
	}
	return fmt.Sprintf("%o nlink %d owner %d:%d size %d rdev %x", st.Mode, st.Nlink, st.Uid, st.Gid, size, st.Rdev)
}

// times logs which times of the named files do changes. Clocks tick coarsely, so it waits for theirs to go on.
func (d *modelDir) times(what string, do func() error, names ...string) {
	before := make([]unix.Stat_t, len(names))
	latest := unix.Timespec{}
	for i, name := range names {
		d.must(unix.Lstat(d.path(name), &before[i]))
		if c := before[i].Ctim; c.Nano() > latest.Nano() {
			latest = c
		}
	}
	for now := latest; now.Nano() <= latest.Nano(); runtime.Gosched() {
		d.must(unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now))
	}
	d.err(what, do())
	for i, name := range names {
		var after unix.Stat_t
		if err := unix.Lstat(d.path(name), &after); err != nil {
			d.err("stat "+name, err)
			continue
		}
		d.logf("%s: %s: mtime %t ctime %t", what, name, after.Mtim != before[i].Mtim, after.Ctim != before[i].Ctim)
	}
}

// read logs a file's content.
func (d *modelDir) read(name string) {
	data, err := os.ReadFile(d.path(name))
	if err != nil {
		d.err("read "+name, err)
		return
	}
	d.logf("read %s: %s", name, digest(data))
}

func digest(data []byte) string {
	const ends = 20
	if len(data) <= 2*ends {
		return fmt.Sprintf("%q", data)
	}
	sum := uint32(0)
	for _, b := range data {
		sum = sum*31 + uint32(b)
	}
	return fmt.Sprintf("%d bytes %q…%q %x", len(data), data[:ends], data[len(data)-ends:], sum)
}

// tree is what is in the directory in the end.
func (d *modelDir) tree() {
	d.must(filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(d.dir, path)
		d.stat(name)
		switch e.Type() {
		case 0:
			d.read(name)
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			d.logf("readlink %s: %q %v", name, target, err)
		}
		return nil
	}))
}

// modelPlaces are the same lower directories: on ext4, and by rung on mounts.
type modelPlaces struct {
	plain  string
	mounts map[string]string
}

func newModelPlaces(t *testing.T, cases []modelCase, rungs []string) modelPlaces {
	t.Helper()
	veneer := buildProgram(t)
	plain := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(plain, &st); err != nil || st.Type != unix.EXT4_SUPER_MAGIC {
		t.Skipf("SKIP: %s is not on ext4, which is the model (%v)", plain, err)
	}
	for dir := plain; dir != os.TempDir(); dir = filepath.Dir(dir) { // for unprivileged
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lower := t.TempDir()
	output(t, "sh", "-c", makeModel, lower+"/model")
	for _, x := range []struct{ file, name, value string }{
		{"file", "user.note", "lower"}, {"file", "trusted.t", "lower"}, {"dir", "user.note", "lower"},
		{"cap", "security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	} {
		if err := unix.Setxattr(lower+"/model/"+x.file, x.name, []byte(x.value), 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range cases {
		output(t, "cp", "-a", lower+"/model", lower+"/"+c.name)
		output(t, "cp", "-a", lower+"/model", plain+"/"+c.name)
	}
	p := modelPlaces{plain, make(map[string]string)}
	for _, io := range rungs {
		p.mounts[io] = mountProgram(t, veneer, io, lower)
		remountPlain(t, p.mounts[io])
	}
	return p
}

// remountPlain allows on a mount what a container's root allows: device nodes and set-id programs.
func remountPlain(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
}

// runModel runs the cases on ext4 and on mounts of the rungs, and compares.
func runModel(t *testing.T, cases []modelCase, rungs ...string) {
	places := newModelPlaces(t, cases, rungs)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			want := c.run(t, "ext4", places.plain)
			for name, dir := range places.mounts {
				if got := c.run(t, name, dir); got != want {
					t.Errorf("%s is not as ext4:\n%s", name, difference(want, got))
				}
			}
		})
	}
}

func (c *modelCase) run(t *testing.T, name, place string) (log string) {
	t.Run(name, func(t *testing.T) {
		d := &modelDir{t: t, dir: place + "/" + c.name}
		c.do(d)
		d.tree()
		log = d.log.String()
	})
	return log
}

// difference returns the lines that only one of two logs has.
func difference(want, got string) string {
	count := make(map[string]int)
	for line := range strings.Lines(got) {
		count[line]++
	}
	var b strings.Builder
	for line := range strings.Lines(want) {
		if count[line]--; count[line] < 0 {
			b.WriteString("ext4  " + line)
		}
	}
	for line := range strings.Lines(got) {
		if count[line] > 0 {
			count[line]--
			b.WriteString("mount " + line)
		}
	}
	if b.Len() == 0 {
		return "the same lines in another order"
	}
	return b.String()
}

// linkFD gives the file of a descriptor a name.
func linkFD(fd int, path string) error {
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
}

// withMode creates path with a mode and calls do with it.
func withMode(path string, mode uint32, do func(fd int) error) error {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, mode)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd)
}

func withFileAt(dir int, name string, flags int, do func(fd int) error) error {
	fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd)
}
