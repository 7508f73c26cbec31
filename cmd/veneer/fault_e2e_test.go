package main

import (
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// inNamespace makes cmd run after script, in a mount namespace of its own.
func inNamespace(cmd *exec.Cmd, script string) *exec.Cmd {
	out := exec.Command("unshare", append([]string{"--mount", "--propagation", "private", "sh", "-ec", script + "\nexec \"$0\" \"$@\""}, cmd.Args...)...)
	out.Env, out.Dir = cmd.Env, cmd.Dir
	return out
}

func TestNoFuseDevice(t *testing.T) {
	l := newLab(t)
	image, dir := l.image(), l.mkdir("mnt")
	empty := l.mkdir("empty")
	hide := "mount --bind " + empty + " /dev"
	l.finish(inNamespace(l.command("run", "--rm", image, "true"), hide)).check(t, 125, "", "/dev/null")
	only := fmt.Sprintf("cp -a /dev/null %[1]s/null; mount --bind %[1]s /dev", empty)
	l.finish(inNamespace(l.command("run", "--rm", image, "true"), only)).check(t, 125, "", "open /dev/fuse: no such file or directory")
	l.finish(inNamespace(l.command("mount", image, dir), only)).check(t, 1, "", "open /dev/fuse: no such file or directory")
	if ids, _ := l.places.ids(); len(ids) != 0 {
		t.Errorf("left: %q", ids)
	}
	if left, _ := os.ReadDir(filepath.Join(l.places.RunRoot, "mounts")); len(left) != 0 {
		t.Errorf("left records: %v", left)
	}
}

func TestNoPrivilege(t *testing.T) {
	l := newLab(t)
	for _, dir := range []string{filepath.Dir(l.dir), l.dir} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	// The binary is in a directory that only root may enter.
	bin := filepath.Join(l.dir, "veneer")
	if out, err := exec.Command("cp", l.bin, bin).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	l.bin = bin
	nobody := func(args ...string) *exec.Cmd {
		cmd := l.command(args...)
		out := exec.Command("setpriv", append([]string{"--reuid", "65534", "--regid", "65534", "--clear-groups"}, cmd.Args...)...)
		out.Env, out.Dir = cmd.Env, cmd.Dir
		return out
	}
	image, dir := l.image(), l.mkdir("mnt")
	l.finish(nobody("run", image, "true")).check(t, 125, "", "must run as root")
	l.finish(nobody("mount", image, dir)).check(t, 1, "", "must run as root")
	l.want("mount", image, dir)
	l.finish(nobody("umount", dir)).check(t, 1, "", "must run as root")
	l.want("umount", dir)
}

func TestImageThatCannotBeHad(t *testing.T) {
	l := newLab(t)
	l.image()
	for ref, stderr := range map[string]string{
		l.reg.Host() + "/box:nosuch":    "nosuch",
		l.reg.Host() + "/nosuch:latest": "nosuch",
		"127.0.0.1:1/box:1":             "connection refused",
		"oci:" + l.dir + "/nosuch":      "no OCI layout",
		"oci-archive:" + l.dir + "/no":  "no OCI archive",
	} {
		l.veneer("run", "--rm", ref, "true").check(t, 125, "", stderr)
		l.veneer("mount", ref, l.mkdir("mnt")).check(t, 1, "", stderr)
	}
	if ids, _ := l.places.ids(); len(ids) != 0 {
		t.Errorf("left: %q", ids)
	}
}

func TestLoginRefused(t *testing.T) {
	l := newLab(t)
	image := l.image()
	l.reg.RequireBasic("user", "password")
	l.env = append(l.env, "DOCKER_CONFIG="+l.mkdir("docker"))
	l.veneer("run", "--rm", image, "true").check(t, 125, "", "login")
}

// smallRoot puts the lab's store and containers on a file system of so many bytes.
func (l *lab) smallRoot(size string) {
	l.t.Helper()
	l.mkdir("root")
	if err := unix.Mount("small", l.places.Root, "tmpfs", 0, "size="+size); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { unix.Unmount(l.places.Root, unix.MNT_DETACH) })
}

func TestFullStore(t *testing.T) {
	l := newLab(t)
	l.reg.Host()
	image := l.reg.Push(t, "box:1", busyboxImage(t, fetchtest.Gzip()))
	l.smallRoot("512k")
	r := l.veneer("run", "--rm", image, "true")
	if r.code != 125 || !strings.Contains(r.stderr, "is full: ") || !strings.Contains(r.stderr, "no space left on device") {
		t.Errorf("%+v; want 125 and that the store is full", r)
	}
	if ids, _ := l.places.ids(); len(ids) != 0 {
		t.Errorf("left: %q", ids)
	}
	unix.Unmount(l.places.Root, unix.MNT_DETACH)
}

func TestFullWritableLayer(t *testing.T) {
	l := newLab(t)
	image := l.image()
	l.smallRoot("16m")
	r := l.veneer("run", "--name", "full", image, "sh", "-c",
		"echo first > /first; dd if=/dev/zero of=/big bs=64k; echo dd ended with $?; cat /first; rm /big; echo last > /last; cat /last")
	if r.code != 0 || r.stdout != "dd ended with 1\nfirst\nlast\n" || !strings.Contains(r.stderr, "No space left on device") {
		t.Errorf("%+v", r)
	}
	// What was written before and after is there.
	dir := l.mkdir("look")
	l.want("mount", "--rw", "--state", l.places.file(l.only(), "delta"), image, dir)
	checkFile(t, filepath.Join(dir, "first"), "first\n")
	checkFile(t, filepath.Join(dir, "last"), "last\n")
	l.want("umount", dir)
	l.want("rm", "full")
	unix.Unmount(l.places.Root, unix.MNT_DETACH)
}

func TestFlippedByteIsAnErrorToTheReader(t *testing.T) {
	l := newLab(t)
	data := make([]byte, 200_000)
	rand.New(rand.NewSource(1)).Read(data)
	layer := fetchtest.NewLayer(t, fetchtest.EStargz(), fetchtest.Reg("data", string(data)))
	img := busyboxImage(t, fetchtest.EStargz())
	img.Layers = append(img.Layers, layer)
	image := l.reg.Push(t, "box:1", img)
	l.want("run", "--rm", image, "true") // the tree and the table of contents are here now
	l.reg.FlipByte(t, layer.Descriptor.Digest, int64(len(layer.Blob)/2))
	r := l.veneer("run", "--name", "flipped", image, "sh", "-c", "cat /data > /dev/null; echo $?")
	if r.code != 0 || r.stdout != "1\n" || !strings.Contains(r.stderr, "Input/output error") {
		t.Errorf("%+v", r)
	}
	log, err := os.ReadFile(l.places.file(l.only(), "veneer.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{layer.Descriptor.Digest.String(), "/data", "offset"} {
		if !strings.Contains(string(log), want) || !strings.Contains(r.stderr, want) {
			t.Errorf("the log does not tell %q: %s", want, log)
		}
	}
}

func TestRegistryThatIsGoneWhileTheContainerRuns(t *testing.T) {
	l := newLab(t)
	image := l.image()
	l.want("run", "--rm", image, "true")
	l.reg.Server.Close()
	l.veneer("run", "--rm", image, "echo", "from the store").check(t, 0, "from the store\n", "")
}
