package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

func (l *lab) mkdir(name string) string {
	l.t.Helper()
	dir := filepath.Join(l.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		l.t.Fatal(err)
	}
	return dir
}

func checkFile(t *testing.T, path, want string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != want {
		t.Errorf("%s: %q, %v; want %q", path, b, err, want)
	}
}

func TestMountShowsAnImage(t *testing.T) {
	for _, f := range fetchtest.Formats() {
		t.Run(f.String(), func(t *testing.T) {
			l := newLab(t)
			layout := filepath.Join(l.dir, "layout")
			fetchtest.WriteLayout(t, layout, map[string]*fetchtest.Image{"1": busyboxImage(t, f)})
			dir := l.mkdir("mnt")
			if r := l.veneer("mount", "oci:"+layout+":1", dir); r.code != 0 {
				t.Fatalf("mount: %+v", r)
			}
			checkFile(t, filepath.Join(dir, "etc/motd"), "welcome\n")
			if err := os.WriteFile(filepath.Join(dir, "etc/motd"), nil, 0o644); err == nil {
				t.Error("a mount without --rw was written to")
			}
			out, err := exec.Command(filepath.Join(dir, "bin/echo"), "from the image").Output()
			if string(out) != "from the image\n" {
				t.Errorf("echo: %q, %v", out, err)
			}
			l.want("umount", dir)
			l.checkNoLeaks()
		})
	}
}

func TestMountMergesDirectories(t *testing.T) {
	l := newLab(t)
	for name, body := range map[string]string{"low/a": "low\n", "low/gone": "x", "low/d/one": "1\n", "high/a": "high\n", "high/d/two": "2\n"} {
		l.mkdir(filepath.Dir(name))
		if err := os.WriteFile(filepath.Join(l.dir, name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mknod(filepath.Join(l.dir, "high/gone"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	dir := l.mkdir("mnt")
	l.want("mount", "--layer", "dir:low", "--layer", "dir:high", dir)
	checkFile(t, filepath.Join(dir, "a"), "high\n")
	checkFile(t, filepath.Join(dir, "d/one"), "1\n")
	checkFile(t, filepath.Join(dir, "d/two"), "2\n")
	if _, err := os.Lstat(filepath.Join(dir, "gone")); !os.IsNotExist(err) {
		t.Errorf("what a layer removes is there: %v", err)
	}
	l.want("umount", dir)
	l.checkNoLeaks()
}

func TestWritableMountIsKept(t *testing.T) {
	l := newLab(t)
	image, dir, state := l.image(), l.mkdir("mnt"), filepath.Join(l.dir, "state")
	stats := filepath.Join(l.dir, "stats.json")
	l.want("mount", "--rw", "--state", state, "--stats", stats, image, dir)
	if err := os.WriteFile(filepath.Join(dir, "etc/motd"), []byte("changed\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	other := l.mkdir("other")
	l.veneer("mount", "--rw", "--state", state, image, other).check(t, 1, "", "state")
	l.want("umount", dir)
	if s := readStats(t, stats); s.JournalBytes == 0 || s.FetchedBytes == 0 {
		t.Errorf("stats: %+v", s)
	}
	l.want("mount", "--rw", "--state", state, image, dir)
	checkFile(t, filepath.Join(dir, "etc/motd"), "changed\n")
	// util-linux's umount ends everything as well.
	unlocked := l.awaitMountEnd()
	if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
		t.Fatalf("umount: %v %s", err, out)
	}
	unlocked()
	l.checkNoLeaks()
	if left, _ := os.ReadDir(filepath.Join(l.places.RunRoot, "mounts")); len(left) != 0 {
		t.Errorf("left records: %v", left)
	}
	l.want("mount", image, dir)
	checkFile(t, filepath.Join(dir, "etc/motd"), "welcome\n")
	l.want("umount", dir)
}

// awaitMountEnd opens the lock of the only mount; what it returns waits until the server has let go of it.
func (l *lab) awaitMountEnd() func() {
	l.t.Helper()
	locks, _ := filepath.Glob(filepath.Join(l.places.RunRoot, "mounts/*/lock"))
	if len(locks) != 1 {
		l.t.Fatalf("locks: %q; want one", locks)
	}
	f, err := os.OpenFile(locks[0], os.O_RDWR, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	return func() {
		defer f.Close()
		if err := flock(f, unix.LOCK_EX); err != nil {
			l.t.Fatal(err)
		}
	}
}

func TestMountOfAnotherImageOnTheSameState(t *testing.T) {
	l := newLab(t)
	dir, state := l.mkdir("mnt"), filepath.Join(l.dir, "state")
	l.want("mount", "--rw", "--state", state, l.image(), dir)
	l.want("umount", dir)
	other := l.reg.Push(t, "other:1", &fetchtest.Image{Layers: []fetchtest.Layer{fetchtest.NewLayer(t, fetchtest.Gzip(), fetchtest.Reg("a", "b"))}})
	l.veneer("mount", "--rw", "--state", state, other, dir).check(t, 1, "", "another image")
	l.checkNoLeaks()
}

func TestBusyMountIsNotUnmounted(t *testing.T) {
	l := newLab(t)
	dir := l.mkdir("mnt")
	l.want("mount", l.image(), dir)
	f, err := os.Open(filepath.Join(dir, "etc/motd"))
	if err != nil {
		t.Fatal(err)
	}
	l.veneer("umount", dir).check(t, 1, "", "is busy")
	ended := l.awaitMountEnd()
	l.want("umount", "-l", dir)
	if b := make([]byte, 7); true {
		if _, err := f.Read(b); string(b) != "welcome" {
			t.Errorf("read after a lazy unmount: %q, %v", b, err)
		}
	}
	f.Close()
	ended()
	l.checkNoLeaks()
}

func TestMountWithADeadServer(t *testing.T) {
	l := newLab(t)
	dir, state := l.mkdir("mnt"), filepath.Join(l.dir, "state")
	image := l.image()
	l.want("mount", "--rw", "--state", state, image, dir)
	if err := os.WriteFile(filepath.Join(dir, "new"), []byte("kept\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	records, _ := filepath.Glob(filepath.Join(l.places.RunRoot, "mounts/*"))
	r, err := readMountRecord(records[0])
	if err != nil {
		t.Fatal(err)
	}
	r.Server.end()
	if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
		t.Fatal("the mount lives without its server")
	}
	l.veneer("mount", image, dir).check(t, 1, "", "is a veneer mount already")
	l.want("umount", dir)
	l.checkNoLeaks()
	l.want("mount", "--rw", "--state", state, image, dir)
	checkFile(t, filepath.Join(dir, "new"), "kept\n")
	l.want("umount", dir)
}

func TestMountRefusesABadPlace(t *testing.T) {
	l := newLab(t)
	image := l.image()
	full := l.mkdir("full")
	file := filepath.Join(full, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l.veneer("mount", image, filepath.Join(l.dir, "nosuch")).check(t, 1, "", "no such file or directory")
	l.veneer("mount", image, full).check(t, 1, "", `is not empty: it has "file" in it`)
	l.veneer("mount", image, file).check(t, 1, "", "not a directory")
	l.veneer("mount", "--rw", image, full).check(t, 125, "", "--rw and --state DIR go together")
	l.veneer("mount", "--layer", "dir:/nosuch", full).check(t, 1, "", "no such file or directory")
	l.veneer("mount", "--layer", "/tmp", full).check(t, 125, "", "want dir:PATH")
	l.veneer("mount", image).check(t, 125, "", "accepts 2 arg(s), received 1")
	l.veneer("umount", full).check(t, 1, "", "is not mounted")
	l.veneer("umount", "/proc").check(t, 1, "", "not a veneer mount, but of type proc")
	if left, _ := os.ReadDir(filepath.Join(l.places.RunRoot, "mounts")); len(left) != 0 {
		t.Errorf("left records: %v", left)
	}
	if strings.Contains(strings.Join(l.mounts(), " "), full) {
		t.Error("mounted over a directory that is not empty")
	}
}
