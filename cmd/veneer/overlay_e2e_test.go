package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// overlayLab is a lab with layers to merge and a mount point.
func overlayLab(t *testing.T) (l *lab, dir string) {
	t.Helper()
	l = newLab(t)
	for name, body := range map[string]string{"low/a": "low\n", "low/d/one": "1\n", "high/a": "high\n", "high/d/two": "2\n"} {
		l.writeFile(name, body)
	}
	return l, l.mkdir("mnt")
}

func (l *lab) writeFile(name, body string) {
	l.t.Helper()
	l.mkdir(filepath.Dir(name))
	if err := os.WriteFile(filepath.Join(l.dir, name), []byte(body), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// options returns the mount options of dir as the kernel shows them, with source and type before them.
func (l *lab) shown(dir string) string {
	l.t.Helper()
	m, err := findMount(dir)
	if err != nil || m == nil {
		l.t.Fatalf("mount at %s: %v, %v", dir, m, err)
	}
	out, err := exec.Command("findmnt", "-nr", "-M", dir, "-o", "VFS-OPTIONS").Output()
	if err != nil {
		l.t.Fatal(err)
	}
	return m.source + " " + m.fstype + " " + strings.TrimSpace(string(out))
}

func TestOverlayIsKept(t *testing.T) {
	l, dir := overlayLab(t)
	options := "lowerdir=high:low,upperdir=state,workdir=/nowhere"
	l.want("overlay", "my source", dir, "-o", options)
	if got := l.shown(dir); got != "my source fuse.veneer rw,relatime" {
		t.Errorf("mounted as %q", got)
	}
	checkFile(t, filepath.Join(dir, "a"), "high\n")
	checkFile(t, filepath.Join(dir, "d/one"), "1\n")
	checkFile(t, filepath.Join(dir, "d/two"), "2\n")
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("changed\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l.want("umount", dir)
	checkFile(t, filepath.Join(l.dir, "high/a"), "high\n")
	l.want("overlay", "again", dir, "-o", options)
	checkFile(t, filepath.Join(dir, "a"), "changed\n")
	l.want("umount", dir)
	l.checkNoLeaks()
}

// umount(2) does not wait for the server, and the next mount has to.
func TestOverlayIsMountedAgainAtOnce(t *testing.T) {
	l, dir := overlayLab(t)
	for i := range 20 {
		l.want("overlay", "s", dir, "-o", "lowerdir=low,upperdir=state,subtype=")
		if i > 0 {
			checkFile(t, filepath.Join(dir, "n"), fmt.Sprint(i-1))
		}
		if err := os.WriteFile(filepath.Join(dir, "n"), fmt.Append(nil, i), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
	}
	l.want("overlay", "s", dir, "-o", "lowerdir=low,upperdir=state,subtype=")
	other := l.mkdir("other")
	l.veneer("overlay", "s", other, "-o", "lowerdir=low,upperdir=state").check(t, 1, "", "is in use: it is mounted at "+dir)
	l.want("umount", dir)
	l.checkNoLeaks()
}

// A mount of type fuse tells by nothing but its record that it is ours.
func TestOverlayOfTypeFuse(t *testing.T) {
	l, dir := overlayLab(t)
	l.want("overlay", "s", dir, "-o", "lowerdir=low,subtype=,fsname=plain")
	if got := l.shown(dir); got != "plain fuse ro,relatime" {
		t.Errorf("mounted as %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o644); err == nil {
		t.Error("without upperdir it is writable")
	}
	l.veneer("overlay", "s", dir, "-o", "remount,rw").check(t, 1, "", "stays read-only")
	l.veneer("overlay", "s", dir, "-o", "lowerdir=low").check(t, 1, "", "is a veneer mount already")
	l.want("umount", dir)
	l.checkNoLeaks()
}

func TestOverlayRemount(t *testing.T) {
	l, dir := overlayLab(t)
	l.want("overlay", "s", dir, "-o", "lowerdir=low,upperdir=state,noexec")
	l.want("overlay", "s", dir, "-o", "remount,ro,noexec,user_id=0,max_read=1048576")
	if got := l.shown(dir); got != "s fuse.veneer ro,noexec,relatime" {
		t.Errorf("remounted as %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o644); err == nil {
		t.Error("a file was written through a mount that is read-only")
	}
	l.want("overlay", "s", dir, "-o", "remount,rw")
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o644); err != nil {
		t.Error(err)
	}
	l.want("umount", dir)
	l.veneer("overlay", "s", dir, "-o", "remount,ro").check(t, 1, "", "not a veneer mount")
	l.checkNoLeaks()
}

func TestOverlayRefusals(t *testing.T) {
	l, dir := overlayLab(t)
	for _, c := range []struct {
		options string
		code    int
		message string
	}{
		{"lowerdir=low,foo", 125, `unknown mount option "foo"`},
		{"upperdir=state", 125, "lowerdir= is missing"},
		{"lowerdir=nosuch", 1, "lowerdir: lstat " + filepath.Join(l.dir, "nosuch") + ": no such file"},
		{"lowerdir=low/a", 1, "not a directory"},
		{"lowerdir=low,upperdir=no/such", 1, "upperdir: mkdir no/such: no such file"},
		{"lowerdir=low,upperdir=low", 1, "the same directory"},
		{"lowerdir=low,upperdir=low/d", 1, "is in lowerdir"},
		{"lowerdir=high:low/d,upperdir=low", 1, "is in upperdir"},
	} {
		l.veneer("overlay", "s", dir, "-o", c.options).check(t, c.code, "", c.message)
	}
	l.veneer("overlay", "s", filepath.Join(l.dir, "nowhere"), "-o", "lowerdir=low").check(t, 1, "", "mount point")
	l.veneer("overlay", "s", filepath.Join(l.dir, "low/a"), "-o", "lowerdir=low").check(t, 1, "", "not a directory")
	l.want("overlay", "s", dir, "-s", "-f", "-o", "lowerdir=low,foo") // fake and sloppy
	if left, _ := os.ReadDir(filepath.Join(l.places.RunRoot, "mounts")); len(left) != 0 {
		t.Errorf("left records: %v", left)
	}
	l.checkNoLeaks()
}

// 500 layers, whose names alone are longer than a page or a message between our processes.
func TestOverlayOfManyLayers(t *testing.T) {
	l, dir := overlayLab(t)
	var lowers []string
	for i := range 500 {
		name := fmt.Sprintf("layer-%03d-%s", i, strings.Repeat("x", 100))
		l.writeFile(fmt.Sprintf("%s/only-%d", name, i), "")
		l.writeFile(name+"/top", fmt.Sprint(i))
		lowers = append(lowers, name)
	}
	l.want("overlay", "s", dir, "-o", "upperdir=state,lowerdir="+strings.Join(lowers, ":"))
	checkFile(t, filepath.Join(dir, "top"), "0")
	if names, err := os.ReadDir(dir); err != nil || len(names) != 501 {
		t.Errorf("%d names, %v; want 501", len(names), err)
	}
	l.want("umount", dir)
	l.checkNoLeaks()
}

// The mount point may be a layer, or in one.
func TestOverlayOverItsOwnLayer(t *testing.T) {
	l, _ := overlayLab(t)
	dir := filepath.Join(l.dir, "low/d")
	l.want("overlay", "s", dir, "-o", "lowerdir=high:low/d,upperdir=state")
	checkFile(t, filepath.Join(dir, "one"), "1\n")
	checkFile(t, filepath.Join(dir, "a"), "high\n")
	l.want("umount", dir)
	l.checkNoLeaks()
}

// mount(8) finds its helper in /sbin. Here that is a directory of ours, in a mount namespace of its own.
func TestMountHelper(t *testing.T) {
	l, dir := overlayLab(t)
	for _, name := range []string{"mount.fuse.veneer", "umount.fuse.veneer", "mount.veneer", "umount.veneer"} {
		l.mkdir("sbin")
		if err := os.Symlink(l.bin, filepath.Join(l.dir, "sbin", name)); err != nil {
			t.Fatal(err)
		}
	}
	l.writeFile("fstab", "from-fstab "+dir+" veneer lowerdir=high:low,upperdir=state,noauto,nofail,x-systemd.automount 0 0\n")
	script := `
set -e
mount --bind sbin "$(readlink -f /sbin)"
mount -t tmpfs tmpfs /run/mount
shown() { findmnt -nro SOURCE,FSTYPE,VFS-OPTIONS -M mnt; }
mount -t fuse.veneer first mnt -o 'lowerdir=high:low,upperdir=state,noatime'
shown; echo kept > mnt/new
mount -o remount,ro mnt
shown
umount "$PWD/mnt"
flock --nonblock state/lock true # umount has waited for the server
mount -t fuse.veneer second mnt -o lowerdir=high:low,upperdir=state,subtype=
shown; cat mnt/new
umount second
mount -T fstab mnt
shown
umount -v mnt >/dev/null
cat /run/mount/utab
set +e
mount -t veneer third mnt -o lowerdir=high,foo; echo status $?
mount -t veneer third mnt -o lowerdir=nosuch; echo status $?
`
	cmd := exec.Command("unshare", "--mount", "sh", "-c", script)
	cmd.Dir = l.dir
	cmd.Env = append(os.Environ(), "VENEER_ROOT="+l.places.Root, "VENEER_RUN_ROOT="+l.places.RunRoot)
	l.finish(cmd).check(t, 0, `first fuse.veneer rw,noatime
first fuse.veneer ro,noatime
second fuse rw,relatime
kept
from-fstab fuse.veneer rw,relatime
status 1
status 32
`, `unknown mount option "foo"`)
	l.checkNoLeaks()
}

// inode returns the number of a file.
func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// Without changes the layers are merged anew. With changes the tree stays as it was: its numbers are what the changes are about.
func TestOverlayKeepsItsTree(t *testing.T) {
	l, dir := overlayLab(t)
	options := "lowerdir=high:low,upperdir=state"
	l.want("overlay", "s", dir, "-o", options)
	l.want("umount", dir)
	l.writeFile("low/0", "new in the layer\n") // sorts first: it takes the numbers of others
	l.want("overlay", "s", dir, "-o", options)
	checkFile(t, filepath.Join(dir, "0"), "new in the layer\n")
	if err := os.Chmod(filepath.Join(dir, "a"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := inode(t, filepath.Join(dir, "d/two"))
	l.want("umount", dir)

	l.writeFile("low/00", "")
	l.want("overlay", "s", dir, "-o", options)
	if got := inode(t, filepath.Join(dir, "d/two")); got != before {
		t.Errorf("d/two had number %d, and has %d", before, got)
	}
	checkFile(t, filepath.Join(dir, "0"), "new in the layer\n")
	l.want("umount", dir)

	l.writeFile("other/a", "")
	for _, lowers := range []string{"low:high", "low", "other:high:low", "high:other"} {
		l.veneer("overlay", "s", dir, "-o", "lowerdir="+lowers+",upperdir=state").check(t, 1, "",
			"has changes that were made over lowerdir="+filepath.Join(l.dir, "high")+":"+filepath.Join(l.dir, "low")+": mount it over the same")
	}
	l.checkNoLeaks()
}

// A mount that was killed while it made the tree is made up for by the next.
func TestOverlayTreeThatWasNotFinished(t *testing.T) {
	l, dir := overlayLab(t)
	l.writeFile("state/lock", "")
	l.writeFile("state/.tree.123", "half of a tre")
	l.want("overlay", "s", dir, "-o", "lowerdir=high:low,upperdir=state")
	checkFile(t, filepath.Join(dir, "a"), "high\n")
	l.want("umount", dir)
	if left, _ := filepath.Glob(filepath.Join(l.dir, "state/.tree*")); len(left) != 0 {
		t.Errorf("left %q", left)
	}
	// Killed between the tree and the first journal, or between the reset of the journals and the tree.
	for _, name := range []string{"state/journal.1", "state/tree"} {
		if err := os.Rename(filepath.Join(l.dir, name), filepath.Join(l.dir, "away")); err != nil {
			t.Fatal(err)
		}
		if name == "state/tree" { // which is what comes after journals without a tree: never
			l.veneer("overlay", "s", dir, "-o", "lowerdir=low,upperdir=state").check(t, 1, "", `is not one of merged directories, but "`)
			break
		}
		l.want("overlay", "s", dir, "-o", "lowerdir=low,upperdir=state")
		checkFile(t, filepath.Join(dir, "a"), "low\n")
		l.want("umount", dir)
	}
	l.checkNoLeaks()
}

// What overlayfs has put into an upper directory is the topmost layer, and stays as it is.
func TestOverlayOnAnUpperOfOverlayfs(t *testing.T) {
	l, dir := overlayLab(t)
	l.writeFile("state/a", "upper\n")
	l.writeFile("state/pure", "")
	if err := unix.Mknod(filepath.Join(l.dir, "state/d"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		l.want("overlay", "s", dir, "-o", "lowerdir=high:low,upperdir=state")
		checkFile(t, filepath.Join(dir, "a"), []string{"upper\n", "changed\n"}[i])
		names, err := os.ReadDir(dir)
		if err != nil || fmt.Sprint(names) != "[- a - pure]" {
			t.Errorf("in it: %v, %v", names, err)
		}
		if err := os.WriteFile(filepath.Join(dir, "a"), []byte("changed\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		l.want("umount", dir)
		checkFile(t, filepath.Join(l.dir, "state/a"), "upper\n")
	}
	l.writeFile("taken/data", "somebody's file")
	l.veneer("overlay", "s", dir, "-o", "lowerdir=low,upperdir=taken").check(t, 1, "", `"data" is in it`)
	l.veneer("overlay", "s", dir, "-o", "lowerdir=state:low,upperdir=new").check(t, 1, "", "is a state directory of veneer")
	l.checkNoLeaks()
}

// Layers and state may lie below the mount point: the server must not walk into its own mount.
func TestOverlayOverItsOwnParts(t *testing.T) {
	l, _ := overlayLab(t)
	dir := l.dir + "/low"
	l.writeFile("low/sub/mnt/hidden", "below\n")
	l.writeFile("low/state/x", "")
	if err := os.RemoveAll(filepath.Join(dir, "state/x")); err != nil {
		t.Fatal(err)
	}
	// DIR is below the layer.
	mnt := filepath.Join(dir, "sub/mnt")
	l.want("overlay", "s", mnt, "-o", "lowerdir=low,upperdir=state")
	checkFile(t, filepath.Join(mnt, "a"), "low\n")
	checkFile(t, filepath.Join(mnt, "sub/mnt/hidden"), "below\n")
	l.want("umount", mnt)
	// The layer and the state are below DIR.
	l.want("overlay", "s", dir, "-o", "lowerdir=low/d,upperdir=low/state")
	checkFile(t, filepath.Join(dir, "one"), "1\n")
	if err := os.WriteFile(filepath.Join(dir, "new"), []byte("new\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l.want("overlay", "s", dir, "-o", "remount,ro")
	l.want("umount", dir)
	l.want("overlay", "s", dir, "-o", "lowerdir=low/d,upperdir=low/state")
	checkFile(t, filepath.Join(dir, "new"), "new\n")
	l.want("umount", dir)
	l.checkNoLeaks()
}

// overlayfs does not show what is mounted below a layer, and lets the layer's own file system be unmounted.
func TestOverlayOverOtherMounts(t *testing.T) {
	l, dir := overlayLab(t)
	for _, name := range []string{"low/d", "low"} {
		path := filepath.Join(l.dir, name)
		if err := unix.Mount("tmpfs", path, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(path, unix.MNT_DETACH)
		if name == "low" {
			l.writeFile("low/d/one", "tmpfs\n")
			if err := unix.Mount("tmpfs", path+"/d", "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	l.want("overlay", "s", dir, "-o", "lowerdir=low")
	for _, name := range []string{"low/d", "low"} {
		if err := unix.Unmount(filepath.Join(l.dir, name), 0); err != nil {
			t.Errorf("unmount %s: %v", name, err)
		}
	}
	checkFile(t, filepath.Join(dir, "d/one"), "tmpfs\n")
	l.want("umount", dir)
	if err := unix.Unmount(filepath.Join(l.dir, "low/d"), 0); err != nil {
		t.Error(err)
	}
	l.checkNoLeaks()
}

// What somebody does to a layer under the mount is an error for the reader or the file's new content, never the server's end.
func TestOverlayWhoseLayerChanges(t *testing.T) {
	for _, io := range []string{"cached", "passthrough"} {
		t.Run(io, func(t *testing.T) {
			l, dir := overlayLab(t)
			for _, name := range []string{"cut", "gone", "link", "dir", "fifo", "open"} {
				l.writeFile("low/"+name, strings.Repeat(name, 1<<14))
			}
			l.want("overlay", "s", dir, "-o", "lowerdir=low,io="+io)
			open, err := os.Open(filepath.Join(dir, "open"))
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()
			if _, err := open.Read(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
			low := func(name string) string { return filepath.Join(l.dir, "low", name) }
			for _, name := range []string{"gone", "link", "dir", "fifo"} {
				if err := os.Remove(low(name)); err != nil {
					t.Fatal(err)
				}
			}
			must := func(err error) {
				if err != nil {
					t.Fatal(err)
				}
			}
			must(os.Truncate(low("cut"), 10))
			must(os.Symlink(low("open"), low("link")))
			must(os.Mkdir(low("dir"), 0o755))
			must(unix.Mkfifo(low("fifo"), 0o644))
			must(os.Truncate(low("open"), 20))
			for _, name := range []string{"cut", "gone", "link", "dir", "fifo"} {
				if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
					t.Errorf("%s: read %d bytes", name, len(b))
				}
			}
			if b, err := os.ReadFile(filepath.Join(dir, "open")); err == nil && len(b) != 1<<16 && len(b) != 20 {
				t.Errorf("open: %d bytes", len(b))
			}
			checkFile(t, filepath.Join(dir, "a"), "low\n")
			open.Close()
			l.want("umount", dir)
			l.checkNoLeaks()
		})
	}
}
