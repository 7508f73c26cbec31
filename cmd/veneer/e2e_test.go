package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// The tests in the files named *_e2e_test.go run the built binary as a user does, on images made of busybox that come from a
// registry on loopback, and look at what is left in the kernel afterwards.

// binary builds veneer once.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "veneer-bin-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "veneer")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build veneer: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := binary(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// lab is a place to run veneer in. When its test ends, it must have left nothing in the kernel.
type lab struct {
	t      *testing.T
	bin    string
	places places
	dir    string
	reg    *fetchtest.Registry
	env    []string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l := &lab{t: t, bin: bin, dir: dir, places: places{filepath.Join(dir, "root"), filepath.Join(dir, "run")}, reg: fetchtest.NewRegistry(t)}
	t.Cleanup(l.tidy)
	return l
}

// tidy ends what a failed test left, and fails a test that left something.
func (l *lab) tidy() {
	ids, _ := l.places.ids()
	for _, id := range ids {
		l.veneer("rm", "-f", id)
	}
	l.checkNoLeaks(ids...)
	for _, dir := range l.mounts() {
		unix.Unmount(dir, unix.MNT_DETACH)
	}
}

// busyboxImage is a small image: busybox with all its applets, some accounts, two layers.
func busyboxImage(t *testing.T, f fetchtest.Format) *fetchtest.Image {
	t.Helper()
	return &fetchtest.Image{
		Layers: []fetchtest.Layer{busyboxLayer(t, f), fetchtest.NewLayer(t, f,
			fetchtest.Reg("etc/motd", "welcome\n"),
			fetchtest.Reg("etc/passwd", "root:x:0:0::/root:/bin/sh\nann:x:1001:1002::/home/ann:/bin/sh\n"),
			fetchtest.Reg("etc/group", "root:x:0:\nstaff:x:1002:\nwheel:x:1003:ann\n"),
			fetchtest.Reg("not-executable", "data\n"),
			fetchtest.Reg("not-a-program", "data\n").WithMode(0o755),
		)},
		Config: imagespec.ImageConfig{Env: []string{"FROM_IMAGE=1"}, Cmd: []string{"sh", "-c", "echo default command"}},
	}
}

// busyboxLayers are made once a format.
var busyboxLayers sync.Map

func busyboxLayer(t *testing.T, f fetchtest.Format) fetchtest.Layer {
	t.Helper()
	if l, ok := busyboxLayers.Load(f.String()); ok {
		return l.(fetchtest.Layer)
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("the tests need busybox-static: %v", err)
	}
	applets, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	files := []fetchtest.File{
		fetchtest.Dir("bin/"), fetchtest.Dir("etc/"), fetchtest.Dir("root/"), fetchtest.Dir("tmp/").WithMode(0o1777),
		fetchtest.Reg("bin/busybox", string(program)).WithMode(0o755),
	}
	for name := range strings.FieldsSeq(string(applets)) {
		if name != "busybox" {
			files = append(files, fetchtest.Link("bin/"+name, "bin/busybox"))
		}
	}
	l := fetchtest.NewLayer(t, f, files...)
	busyboxLayers.Store(f.String(), l)
	return l
}

// image pushes the busybox image and returns its name.
func (l *lab) image() string {
	l.t.Helper()
	return l.reg.Push(l.t, "box:1", busyboxImage(l.t, fetchtest.EStargz()))
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
}

// command makes a veneer command with this lab's roots.
func (l *lab) command(args ...string) *exec.Cmd {
	cmd := exec.Command(l.bin, append([]string{"--root", l.places.Root, "--run-root", l.places.RunRoot}, args...)...)
	cmd.Env = append(os.Environ(), l.env...)
	cmd.Dir = l.dir
	return cmd
}

// veneer runs a command.
func (l *lab) veneer(args ...string) result {
	l.t.Helper()
	return l.finish(l.command(args...))
}

func (l *lab) finish(cmd *exec.Cmd) result {
	l.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		l.t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// want runs a command that must succeed, and returns what it printed.
func (l *lab) want(args ...string) string {
	l.t.Helper()
	r := l.veneer(args...)
	if r.code != 0 || r.stderr != "" {
		l.t.Fatalf("veneer %q: exit status %d, stderr %q", args, r.code, r.stderr)
	}
	return r.stdout
}

// check compares a result with what is expected; stderr need only contain the text.
func (r result) check(t *testing.T, code int, stdout, stderr string) {
	t.Helper()
	if r.code != code || r.stdout != stdout || !strings.Contains(r.stderr, stderr) || stderr == "" && r.stderr != "" {
		t.Errorf("exit status %d, stdout %q, stderr %q; want %d, %q, %q", r.code, r.stdout, r.stderr, code, stdout, stderr)
	}
}

// checkNoLeaks looks for mounts, processes and cgroups of this lab.
func (l *lab) checkNoLeaks(ids ...string) {
	l.t.Helper()
	for _, dir := range l.mounts() {
		l.t.Errorf("left mounted: %s", dir)
	}
	l.awaitEnding()
	for _, p := range l.processes() {
		l.t.Errorf("left running: %s", p)
	}
	for _, id := range ids {
		for _, dir := range cgroupsOf(l.t, id) {
			l.t.Errorf("left cgroup: %s", dir)
		}
		if _, err := os.Stat(l.places.run(id)); err == nil {
			l.t.Errorf("left run directory: %s", l.places.run(id))
		}
	}
}

// awaitEnding waits for monitors that have said their last word, which ends run, for servers that nobody needs any more, and whoever else
// is about to exit.
func (l *lab) awaitEnding() {
	for _, p := range l.processes() {
		pid, _ := strconv.Atoi(p[:strings.IndexByte(p, ' ')])
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil || !strings.Contains(p, rolePrefix) {
			continue
		}
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000) // who runs on is found after this
		unix.Close(fd)
	}
}

// mounts returns what is mounted below the lab's directory, here.
func (l *lab) mounts() []string {
	l.t.Helper()
	var dirs []string
	if err := scanMounts("/proc/self/mountinfo", func(m mountEntry) {
		if strings.HasPrefix(m.dir, l.dir) {
			dirs = append(dirs, m.dir)
		}
	}); err != nil {
		l.t.Fatal(err)
	}
	return dirs
}

// processes returns the command lines of those that name the lab's directory, which monitors and servers do.
func (l *lab) processes() []string {
	l.t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		l.t.Fatal(err)
	}
	var found []string
	for _, f := range files {
		line, _ := os.ReadFile(f) // it may have ended since
		if strings.Contains(string(line), l.dir) {
			found = append(found, filepath.Base(filepath.Dir(f))+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

// cgroupsOf finds the cgroups of a container in all hierarchies.
func cgroupsOf(t *testing.T, id string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, err := filepath.Glob(pattern + cgroupPath(id))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, dirs...)
	}
	return found
}

// only returns the ID of the only container.
func (l *lab) only() string {
	l.t.Helper()
	ids, err := l.places.ids()
	if err != nil || len(ids) != 1 {
		l.t.Fatalf("containers: %q, %v; want one", ids, err)
	}
	return ids[0]
}

// awaitEnd waits until monitor and server of a container are gone.
func (l *lab) awaitEnd(id string) {
	l.t.Helper()
	f, err := os.OpenFile(l.places.runFile(id, "lock"), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return
	} else if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	if err := flock(f, unix.LOCK_EX); err != nil {
		l.t.Fatal(err)
	}
}

// state returns the container's state as it is recorded.
func (l *lab) state(id string) *state {
	l.t.Helper()
	s, err := l.places.loadState(id)
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// monitor and server return the processes of a running container.
func (l *lab) monitor(id string) process {
	l.t.Helper()
	var p process
	if err := readJSON(l.places.runFile(id, "lock"), &p); err != nil {
		l.t.Fatal(err)
	}
	return p
}

func (l *lab) server(id string) process {
	l.t.Helper()
	lines := slices.DeleteFunc(l.processes(), func(s string) bool {
		return !strings.Contains(s, roleServer) || !strings.Contains(s, id)
	})
	var pid int
	if len(lines) != 1 {
		l.t.Fatalf("servers of %s: %q; want one", id, lines)
	}
	if _, err := fmt.Sscan(lines[0], &pid); err != nil {
		l.t.Fatal(err)
	}
	p, err := identify(pid)
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}
