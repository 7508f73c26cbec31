package fs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// testMount is a mount with its server in this process. Tests touch it with package unix only: package os would add
// descriptors to the runtime's poller, and a thread that holds the poller while it waits for the mount can stop the server.
type testMount struct {
	dir    string
	server *Server
}

// mountTest mounts b. The test is skipped only on a machine without FUSE.
func mountTest(t *testing.T, b Backend, o Options) *testMount {
	t.Helper()
	if fd, err := unix.Open(fuseDevice, unix.O_RDWR, 0); err != nil {
		t.Skipf("SKIP: no test of the mount ran: cannot open %s: %v", fuseDevice, err)
	} else {
		unix.Close(fd)
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // for unprivileged
		t.Fatal(err)
	}
	file, err := MountFD(dir, MountOptions{MustBeBare: true})
	if err != nil {
		t.Fatal(err)
	}
	if o.Device, err = MountDevice(dir); err != nil {
		t.Fatal(err)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	s, err := NewServer(file, b, o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		if err := Unmount(dir, true); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	stopPolling(t, dir)
	return &testMount{dir: dir, server: s}
}

// stopPolling has the kernel learn that we answer no POLL, before package os can add a descriptor to the poller.
func stopPolling(t *testing.T, dir string) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil {
		t.Fatal(err)
	}
}

// onBothRungs runs test on a mount of a fakeFS of each rung.
func onBothRungs(t *testing.T, test func(t *testing.T, m *testMount, f *fakeFS)) {
	for _, io := range []string{IOCached, IOPassthrough} {
		t.Run(io, func(t *testing.T) {
			f := newFakeFS()
			if io == IOPassthrough {
				f.objects = t.TempDir()
			}
			m := mountTest(t, f, Options{IO: io})
			if io == IOPassthrough && m.server.wire.opens == nil {
				t.Fatal("this machine has no passthrough: its rung is not tested")
			}
			test(t, m, f)
		})
	}
}

// helpers are the programs that tests run in a process of their own.
var helpers = map[string]func(args []string) error{}

func TestMain(m *testing.M) {
	name := os.Getenv("FS_TEST_HELPER")
	if name == "" {
		os.Exit(m.Run())
	}
	if err := helpers[name](os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// helper returns the command that runs helpers[name].
func helper(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "FS_TEST_HELPER="+name, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	return cmd
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) { l.t.Logf("log: %s", p); return len(p), nil }

func TestMountErrorsSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, dir string
		o         MountOptions
		want      error
	}{
		{"missing", filepath.Join(dir, "none"), MountOptions{}, ErrMountPoint},
		{"not a directory", file, MountOptions{}, ErrMountPoint},
		{"not empty", dir, MountOptions{MustBeBare: true}, ErrNotEmpty},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := MountFD(c.dir, c.o)
			if !errors.Is(err, c.want) {
				t.Errorf("MountFD(%s) = %v, want %v", c.dir, err, c.want)
			}
		})
	}
	for _, c := range []struct {
		errno, want error
		say         string
	}{
		{unix.ENOENT, ErrNoDevice, "modprobe fuse"},
		{unix.EACCES, ErrNotPermitted, "root"},
	} {
		if err := deviceError(c.errno); !errors.Is(err, c.want) || !errors.Is(err, c.errno) || !strings.Contains(err.Error(), c.say) {
			t.Errorf("deviceError(%v) = %v", c.errno, err)
		}
	}
	if err := mountError("/x", unix.EPERM); !errors.Is(err, ErrNotPermitted) {
		t.Errorf("mountError(EPERM) = %v", err)
	}
}

func TestReadAheadIsRaised(t *testing.T) {
	m := mountTest(t, newFakeFS(), Options{})
	dev, err := MountDevice(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("/sys/class/bdi/" + dev + "/read_ahead_kb")
	if err != nil || strings.TrimSpace(string(got)) != "1024" {
		t.Errorf("read_ahead_kb of %s = %q, %v", dev, got, err)
	}
}
