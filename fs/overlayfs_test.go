package fs

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What overlayfs gets wrong is right on a mount that asked for nothing (--io auto): it is as on ext4.
func TestWhatOverlayfsGetsWrongIsRight(t *testing.T) { runModel(t, overlayfsCases, IOAuto) }

var overlayfsCases = []modelCase{
	{"st_ino and st_dev stay across copy-up", func(d *modelDir) {
		for _, name := range []string{"file", "linked", "fifo", "dir", "soft", "chr"} {
			var before, after unix.Stat_t
			d.must(unix.Lstat(d.path(name), &before))
			for what, do := range map[string]func() error{
				"chown": func() error { return unix.Lchown(d.path(name), 7, 7) },
				"write": func() error {
					if before.Mode&unix.S_IFMT != unix.S_IFREG {
						return nil
					}
					return withFile(d.path(name), unix.O_WRONLY, write("x"))
				},
				"link": func() error {
					if name == "dir" {
						return nil
					}
					return unix.Link(d.path(name), d.path("link of "+name))
				},
				"rename": func() error {
					if err := unix.Rename(d.path(name), d.path("moved")); err != nil {
						return err
					}
					return unix.Rename(d.path("moved"), d.path(name))
				},
			} {
				d.must(do())
				d.must(unix.Lstat(d.path(name), &after))
				if after.Ino != before.Ino || after.Dev != before.Dev {
					d.t.Errorf("%s, %s: inode %d:%d, was %d:%d", name, what, after.Dev, after.Ino, before.Dev, before.Ino)
				}
			}
		}
	}},
	{"descriptors and mappings from before see later writes", func(d *modelDir) {
		for _, name := range []string{"file", "linked", "big"} {
			fd := d.open(name, unix.O_RDONLY, 0)
			path := d.open(name, unix.O_PATH, 0)
			m, err := unix.Mmap(fd, 0, 8192, unix.PROT_READ, unix.MAP_SHARED)
			d.must(err)
			d.logf("%q", m[:10])
			d.must(withFile(d.path(name), unix.O_WRONLY, write("changed")))
			buf := make([]byte, 20)
			n, err := unix.Pread(fd, buf, 0)
			d.logf("%s: read %q %v, mapped %q", name, buf[:n], err, m[:20])
			d.must(withFile(fmt.Sprintf("/proc/self/fd/%d", path), unix.O_WRONLY, write("again")))
			n, err = unix.Pread(fd, buf, 0)
			d.logf("%s: read %q %v, mapped %q", name, buf[:n], err, m[:20])
			d.must(unix.Truncate(d.path(name), 5000))
			n, err = unix.Pread(fd, buf, 4990)
			d.logf("%s: at the end %q %v", name, buf[:n], err)
			d.must(unix.Munmap(m))
			d.must(withFile(d.path(name), unix.O_WRONLY|unix.O_TRUNC, write("")))
			n, err = unix.Pread(fd, buf, 0)
			d.logf("%s: empty %d %v", name, n, err)
			d.fstat(name, fd)
		}
	}},
	{"locks are shared by who opened before and after", func(d *modelDir) {
		for _, name := range []string{"file", "linked"} {
			before := d.open(name, unix.O_RDONLY, 0)
			d.err("lock", unix.Flock(before, unix.LOCK_EX))
			d.must(withFile(d.path(name), unix.O_WRONLY, write("copied up")))
			after := d.open(name, unix.O_RDWR, 0)
			d.err("lock after", unix.Flock(after, unix.LOCK_EX|unix.LOCK_NB))
			lk := unix.Flock_t{Type: unix.F_RDLCK}
			d.err("range lock", unix.FcntlFlock(uintptr(before), unix.F_OFD_SETLK, &lk))
			lk = unix.Flock_t{Type: unix.F_WRLCK}
			d.err("range lock after", unix.FcntlFlock(uintptr(after), unix.F_OFD_SETLK, &lk))
		}
	}},
	{"watches from before see what comes after", func(d *modelDir) {
		in, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		d.must(err)
		defer unix.Close(in)
		for _, name := range []string{"file", "linked", "dir", "theirs"} {
			_, err := unix.InotifyAddWatch(in, d.path(name), unix.IN_ALL_EVENTS)
			d.must(err)
		}
		fan, err := unix.FanotifyInit(unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_CLASS_NOTIF, unix.O_RDONLY|unix.O_CLOEXEC)
		d.must(err)
		defer unix.Close(fan)
		d.must(unix.FanotifyMark(fan, unix.FAN_MARK_ADD, unix.FAN_MODIFY|unix.FAN_CLOSE_WRITE|unix.FAN_OPEN, unix.AT_FDCWD, d.path("file")))
		d.must(unix.FanotifyMark(fan, unix.FAN_MARK_ADD, unix.FAN_MODIFY|unix.FAN_EVENT_ON_CHILD, unix.AT_FDCWD, d.path("dir")))
		for _, name := range []string{"file", "dir/other", "theirs"} {
			d.must(withFile(d.path(name), unix.O_RDWR, write("copied up")))
			d.must(unix.Chmod(d.path(name), 0o640))
			d.must(unix.Truncate(d.path(name), 3))
		}
		d.must(unix.Mkdir(d.path("dir/made"), 0o755))
		d.must(withMode(d.path("dir/new"), 0o644, write("x")))
		d.must(unix.Rename(d.path("dir/new"), d.path("theirs")))
		d.must(unix.Rename(d.path("file"), d.path("dir/file")))
		d.must(unix.Unlink(d.path("dir/file")))
		d.must(unix.Link(d.path("big"), d.path("dir/big")))
		d.must(unix.Rename(d.path("dir"), d.path("moved")))
		d.events(in)
		d.fanEvents(fan)
	}},
}

// events logs what a nonblocking inotify descriptor has.
func (d *modelDir) events(fd int) {
	buf := make([]byte, 64<<10)
	n, err := unix.Read(fd, buf)
	d.must(err)
	for b := buf[:n]; len(b) > 0; {
		length := binary.NativeEndian.Uint32(b[12:])
		name := strings.TrimRight(string(b[16:16+length]), "\x00")
		d.logf("event %d %x %q", binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:]), name)
		b = b[16+length:]
	}
}

// fanEvents logs what a nonblocking fanotify descriptor has.
func (d *modelDir) fanEvents(fd int) {
	buf := make([]byte, 64<<10)
	n, err := unix.Read(fd, buf)
	d.must(err)
	for b := buf[:n]; len(b) > 0; b = b[binary.NativeEndian.Uint32(b):] {
		file := int(int32(binary.NativeEndian.Uint32(b[16:])))
		path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file))
		d.must(err)
		unix.Close(file)
		d.logf("fanotify %x %s", binary.NativeEndian.Uint64(b[8:]), filepath.Base(path))
	}
}

// Overlayfs copies a file as soon as somebody opens it for writing.
func TestNothingIsCopiedByOpenForWritingAlone(t *testing.T) {
	forEachRung(t, func(t *testing.T, veneer, io string) {
		lower := t.TempDir()
		if err := os.WriteFile(lower+"/f", make([]byte, 1<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		m := mountProgramAt(t, veneer, io, lower)
		before := stateOf(t, m.state)
		if err := withFile(m.dir+"/f", unix.O_RDWR, readAll); err != nil {
			t.Fatal(err)
		}
		if after := stateOf(t, m.state); after != before {
			t.Errorf("the state was\n%sis\n%s", before, after)
		}
		if err := withFile(m.dir+"/f", unix.O_RDWR, write("x")); err != nil {
			t.Fatal(err)
		}
		if stateOf(t, m.state) == before {
			t.Error("a write leaves no trace")
		}
	})
}

func stateOf(t *testing.T, dir string) string {
	t.Helper()
	return output(t, "find", dir, "-printf", "%p %s %b\\n")
}

// Docker in a container puts overlayfs on top of its root. The kernel takes a mount as its lower layer, and as its upper one what
// that needs: xattrs, whiteouts, O_TMPFILE.
func TestOverlayfsOnTop(t *testing.T) {
	forEachRung(t, func(t *testing.T, veneer, io string) {
		lower := t.TempDir()
		output(t, "sh", "-c", `cd "$0"; mkdir -p low/d up work; echo lower > low/d/f; echo gone > low/gone; ln low/d/f low/hard; chmod 640 low/d/f`, lower)
		m := mountProgramAt(t, veneer, io, lower)
		check := func(name, options string) {
			top := t.TempDir()
			if err := unix.Mount("overlay", top, "overlay", 0, options); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			defer func() {
				if err := unix.Unmount(top, 0); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}()
			out, err := exec.Command("sh", "-ec", `cd "$0"; cat d/f; echo more >> d/f; cat d/f hard; rm gone; mkdir e; mv d/f e/; ls -R; stat -c '%a %h' e/f
				rm -r d; mkdir d; ls -A d; echo new > d/new; mv d/new d/newer; cat d/newer`, top).CombinedOutput()
			want := "lower\nlower\nmore\nlower\n.:\nd\ne\nhard\n\n./d:\n\n./e:\nf\n640 1\nnew\n"
			if err != nil || string(out) != want {
				t.Errorf("%s: %v, %q, want %q", name, err, out, want)
			}
		}
		host := t.TempDir()
		output(t, "mkdir", host+"/up", host+"/work")
		check("lower", fmt.Sprintf("lowerdir=%s/low,upperdir=%s/up,workdir=%[2]s/work", m.dir, host))
		check("lower and upper", fmt.Sprintf("lowerdir=%[1]s/low,upperdir=%[1]s/up,workdir=%[1]s/work", m.dir))
	})
}
