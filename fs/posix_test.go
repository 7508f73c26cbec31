package fs

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// posixTests leaves out one that a local file system fails too: it wants a process to be refused a lock that it holds itself.
func posixTests() map[string]func(*testing.T, string) {
	tests := maps.Clone(posixtest.All)
	delete(tests, "FcntlFlockLocksFile")
	return tests
}

func init() {
	helpers["serve"] = serveHelper
}

// serveHelper serves descriptor 3 with the backend in memory: args are the rung and the directory of its data objects.
func serveHelper(args []string) error {
	f := newFakeFS()
	f.objects = args[1]
	s, err := NewServer(os.NewFile(3, fuseDevice), f, Options{IO: args[0]})
	if err != nil {
		return err
	}
	return s.Serve()
}

// mountElsewhere mounts a fakeFS that is served by a process of its own: the tests of others use package os.
func mountElsewhere(t *testing.T, io string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	file, err := MountFD(dir, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := helper("serve", io, t.TempDir())
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(dir, true); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestPosix runs go-fuse's conformance tests on the adaptor with the backend in memory.
func TestPosix(t *testing.T) {
	for name, test := range posixTests() {
		for _, io := range []string{IOCached, IOPassthrough} {
			t.Run(name+"/"+io, func(t *testing.T) { test(t, mountElsewhere(t, io)) })
		}
	}
}

// TestPosixOfTheWholeProgram runs them on mounts of the real program: its backend is the one that counts.
func TestPosixOfTheWholeProgram(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: -short: the program is not built")
	}
	veneer := filepath.Join(t.TempDir(), "veneer")
	output(t, "go", "build", "-o", veneer, "../cmd/veneer")
	for _, io := range []string{IOCached, IOPassthrough} {
		t.Run(io, func(t *testing.T) {
			for name, test := range posixTests() {
				t.Run(name, func(t *testing.T) {
					dir, lower := t.TempDir(), t.TempDir()
					root := []string{"--root", t.TempDir(), "--run-root", t.TempDir()}
					output(t, veneer, append(root, "mount", "--rw", "--state", t.TempDir(), "--io", io, "--layer", "dir:"+lower, dir)...)
					defer output(t, veneer, append(root, "umount", dir)...)
					test(t, dir)
				})
			}
		})
	}
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}
