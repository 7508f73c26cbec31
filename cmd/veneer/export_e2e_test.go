package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// needUmoci skips a test on a machine without umoci, but not in CI, which promises it.
func needUmoci(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("umoci"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("umoci is needed: %v", err)
		}
		t.Skipf("umoci is not installed: %v", err)
	}
}

func umoci(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("umoci", args...).CombinedOutput(); err != nil {
		t.Fatalf("umoci %q: %v\n%s", args, err, out)
	}
}

// changesImage has what can be changed: directories, hard links within and across them, a file of several blocks, a device.
func changesImage(t *testing.T) *fetchtest.Image {
	var files []fetchtest.File
	for _, dir := range []string{"a", "b", "a/a", "a/b", "b/c"} {
		files = append(files, fetchtest.Dir(dir))
		for _, name := range []string{"c", "d"} {
			if dir+"/"+name != "b/c" {
				files = append(files, fetchtest.Reg(dir+"/"+name, strings.Repeat(dir+name, 3000)).WithOwner(1, 2))
			}
		}
	}
	files = append(files, fetchtest.Link("a/link", "a/a/c"), fetchtest.Link("b/link", "a/a/c"), fetchtest.Link("a/b/e", "b/d"),
		fetchtest.Symlink("c", "a/c"), fetchtest.Device("null", tar.TypeChar, 1, 3), fetchtest.FIFO("b/fifo"),
		fetchtest.Reg("a/xattr", "text").WithXattr("user.note", "\x00\xff").WithMode(0o4755))
	return &fetchtest.Image{Layers: []fetchtest.Layer{fetchtest.NewLayer(t, fetchtest.Gzip(), files...)}}
}

// What umoci unpacks from the image with the exported layer on top is what the mount shows.
func TestExportedLayerGivesTheTreeOfTheMount(t *testing.T) {
	needUmoci(t)
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			l := newLab(t)
			layout, dir, state := filepath.Join(l.dir, "layout"), l.mkdir("mnt"), filepath.Join(l.dir, "state")
			fetchtest.WriteLayout(t, layout, map[string]*fetchtest.Image{"1": changesImage(t)})
			l.veneer("mount", "--rw", "--state", state, "oci:"+layout+":1", dir)
			r := rand.New(rand.NewPCG(seed, 7))
			for i := range 250 {
				randomChange(t, r, dir, i)
			}
			layer, again := filepath.Join(l.dir, "layer.tar"), filepath.Join(l.dir, "again.tar")
			l.want("export", "--layer", "-o", layer, state)
			want := describeDir(t, dir)
			l.want("umount", dir)
			l.want("export", "--layer", "-o", again, state)
			if out, err := exec.Command("cmp", layer, again).CombinedOutput(); err != nil {
				t.Errorf("a layer exported from the mount and one exported after it differ: %s", out)
			}
			umoci(t, "raw", "add-layer", "--image", layout+":1", "--tag", "2", layer)
			umoci(t, "raw", "unpack", "--image", layout+":2", filepath.Join(l.dir, "unpacked"))
			if diff := firstOf(describeDir(t, filepath.Join(l.dir, "unpacked")), want); diff != "" {
				t.Errorf("umoci and the mount differ: %s", diff)
			}
			whole := l.mkdir("whole")
			tarFile := filepath.Join(l.dir, "whole.tar")
			l.want("export", "-o", tarFile, state)
			if out, err := exec.Command("tar", "xf", tarFile, "-C", whole, "--xattrs", "--xattrs-include=*", "--numeric-owner").CombinedOutput(); err != nil {
				t.Fatalf("tar: %v\n%s", err, out)
			}
			if diff := firstOf(describeDir(t, whole), want); diff != "" {
				t.Errorf("tar of the whole and the mount differ: %s", diff)
			}
		})
	}
}

// randomChange makes one change below root; that it cannot be made is nothing.
func randomChange(t *testing.T, r *rand.Rand, root string, n int) {
	t.Helper()
	path := func() string {
		p := root
		for range 1 + r.IntN(3) {
			p += "/" + []string{"a", "b", "c", "d", "e", "link", "\xff", strings.Repeat("n", 255)}[r.IntN(8)]
		}
		return p
	}
	p, q := path(), path()
	when := unix.Timespec{Sec: int64(1e9 + n), Nsec: int64(n) * 1000}
	var err error
	switch r.IntN(16) {
	case 0, 1:
		err = os.WriteFile(p, bytes.Repeat([]byte{byte(n)}, r.IntN(10000)), 0o644)
	case 2:
		err = unix.Mkdir(p, 0o755)
	case 3, 4:
		err = unix.Rename(p, q)
	case 5:
		err = unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, q, unix.RENAME_EXCHANGE)
	case 6:
		err = unix.Link(p, q)
	case 7:
		err = unix.Symlink("to/"+filepath.Base(q), p)
	case 8:
		err = unix.Unlink(p)
	case 9:
		err = unix.Rmdir(p)
	case 10:
		err = unix.Mknod(p, []uint32{unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK}[r.IntN(3)]|0o640, int(unix.Mkdev(7, uint32(n))))
	case 11:
		err = unix.Lchown(p, r.IntN(1<<22), r.IntN(10))
	case 12:
		err = unix.Fchmodat(unix.AT_FDCWD, p, uint32(r.IntN(0o10000)), 0)
	case 13:
		err = unix.Truncate(p, int64(r.IntN(20000)))
	case 14:
		err = unix.Lsetxattr(p, []string{"user.x", "trusted.y", "user.note"}[r.IntN(3)], []byte{byte(n), 0, 10, 255}, 0)
	case 15:
		err = unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{when, when}, unix.AT_SYMLINK_NOFOLLOW)
	}
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOSYS) {
		t.Fatalf("change %d of %q: %v", n, p, err)
	}
}

// describeDir has a line for each path below dir, with all that a layer carries.
func describeDir(t *testing.T, dir string) (lines []string) {
	t.Helper()
	first := make(map[uint64]string)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		line := fmt.Sprintf("%q mode %o owner %d:%d mtime %d.%09d", name, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d bytes %x", st.Size, sha256.Sum256(b))
		case unix.S_IFLNK:
			target, _ := os.Readlink(path)
			line += " to " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" device %#x", st.Rdev)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
			line += fmt.Sprintf(" %d links, first %q", st.Nlink, first[st.Ino])
		}
		lines = append(lines, line+xattrsOf(t, path))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func xattrsOf(t *testing.T, path string) (line string) {
	t.Helper()
	buf, value := make([]byte, 4096), make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		line += fmt.Sprintf(" %s=%q", name, value[:n])
	}
	return line
}

func firstOf(got, want []string) string {
	for i := range max(len(got), len(want)) {
		a, b := "nothing", "nothing"
		if i < len(got) {
			a = got[i]
		}
		if i < len(want) {
			b = want[i]
		}
		if a != b {
			return fmt.Sprintf("line %d:\n%s\nwant\n%s", i, a, b)
		}
	}
	return ""
}

func TestDiffOfAContainer(t *testing.T) {
	l := newLab(t)
	image := l.image()
	l.veneer("run", "--name", "idle", image, "true").check(t, 0, "", "")
	if got := l.want("diff", "idle"); got != "" {
		t.Errorf("a container that did nothing has changed %q", got)
	}
	if got := l.want("export", "--layer", "idle"); strings.Trim(got, "\x00") != "" {
		t.Errorf("its layer is %d bytes", len(got))
	}
	l.veneer("run", "--name", "busy", image, "sh", "-c",
		"echo hi >/etc/motd; rm /etc/group; mkdir -p /srv/www; echo x >/srv/www/index; mv /root /home; chmod 700 /tmp").check(t, 0, "", "")
	want := "C /etc\nD /etc/group\nC /etc/motd\nA /home\nD /root\nA /srv\nA /srv/www\nA /srv/www/index\nC /tmp\n"
	if got := l.want("diff", "busy"); got != want {
		t.Errorf("changes\n%swant\n%s", got, want)
	}
	l.veneer("diff", "nobody").check(t, 1, "", "no such container")
	l.veneer("export", "./nowhere").check(t, 1, "", "neither")
}

// A container that runs is read as it is, and left alone.
func TestDiffAndExportOfARunningContainer(t *testing.T) {
	l := newLab(t)
	image := l.image()
	l.veneer("run", "-d", "--name", "live", image, "sh", "-c", "echo one >/one; mkfifo /go; cat /go; echo two >/one; exec sleep 1000")
	for l.want("diff", "live") != "A /go\nA /one\n" {
		if s := l.state(l.only()); s.Status == statusExited {
			t.Fatal("the container has ended")
		}
	}
	r := tar.NewReader(strings.NewReader(l.want("export", "--layer", "live")))
	text := ""
	for h, err := r.Next(); err == nil; h, err = r.Next() {
		if h.Name == "one" {
			b, _ := io.ReadAll(r)
			text = string(b)
		}
	}
	if text != "one\n" {
		t.Errorf("/one in the layer: %q", text)
	}
	l.want("rm", "-f", "live")
}

func TestDiffOfAUnionMount(t *testing.T) {
	l, dir := overlayLab(t)
	l.want("overlay", "src", dir, "-o", "lowerdir=high:low,upperdir=state")
	if err := os.Rename(filepath.Join(dir, "d/one"), filepath.Join(dir, "one")); err != nil {
		t.Fatal(err)
	}
	const want = "C /d\nD /d/one\nA /one\n"
	if got := l.want("diff", "./state"); got != want {
		t.Errorf("changes while it is mounted\n%swant\n%s", got, want)
	}
	l.want("umount", dir)
	if err := os.RemoveAll(filepath.Join(l.dir, "low")); err != nil { // names need no layers
		t.Fatal(err)
	}
	if got := l.want("diff", "state"); got != want {
		t.Errorf("changes\n%swant\n%s", got, want)
	}
}
