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
	forEachRung(t, func(t *testing.T, veneer, io string) {
		for name, test := range posixTests() {
			t.Run(name, func(t *testing.T) { test(t, mountProgram(t, veneer, io, t.TempDir())) })
		}
	})
}

// TestWholeProgramDoesWhatADirectoryDoes has a shell change a tree of lower files, on a mount and on a copy of the same.
func TestWholeProgramDoesWhatADirectoryDoes(t *testing.T) {
	const makeLower = `set -e; cd "$0"; mkdir -p d/e empty
		for f in cut shorter grow write append over remove d/moved d/e/deep linked setid; do seq 1 5000 > $f; done
		ln linked d/other; ln -s ../cut d/soft; chmod 4755 setid; mkfifo pipe`
	const change = `set -e; cd "$0"
		find . -type f -exec cat {} + > /dev/null            # all of it known, and cached
		exec 3< cut 4< write 5< over                         # with readers that stay
		truncate -s 7 cut shorter; truncate -s 100000 grow; truncate -s +3 cut
		printf XY | dd of=write bs=1 seek=9000 conv=notrunc status=none; cat write > /dev/null
		echo more >> append; cat append > /dev/null; echo again >> append
		seq 1 10 > new; mv new over; rm remove; echo back > remove
		mv d moved; echo x >> moved/e/deep; mv moved/moved back; ln back moved/back2
		echo through >> moved/other; cp -a moved copy; rm -r copy/e; rmdir empty
		chmod 640 back; echo y >> setid; cp setid setid2; : > cut2; cat linked >> cut2
		: > linked; seq 5 9 | tee tee1 tee2 > /dev/null`
	const show = `set -e; cd "$0"; LC_ALL=C; export LC_ALL
		find . -printf '%p %y %m %n %l ' \( -type f -printf %s -o -true \) -printf '\n' | sort
		find . -type f | sort | xargs sha256sum`
	forEachRung(t, func(t *testing.T, veneer, io string) {
		lower, plain := t.TempDir(), t.TempDir()
		output(t, "sh", "-c", makeLower, lower)
		output(t, "cp", "-a", lower+"/.", plain)
		dir := mountProgram(t, veneer, io, lower)
		before := output(t, "sh", "-c", show, lower)
		output(t, "sh", "-c", change, dir)
		output(t, "sh", "-c", change, plain)
		if got, want := output(t, "sh", "-c", show, dir), output(t, "sh", "-c", show, plain); got != want {
			t.Errorf("the mount shows\n%s\nthe directory\n%s", got, want)
		}
		if after := output(t, "sh", "-c", show, lower); after != before {
			t.Errorf("the layer was\n%s\nis\n%s", before, after)
		}
	})
}

// programMount is a mount of the real program.
type programMount struct {
	dir, state string
	veneer     []string // the command to which a subcommand is appended
}

// mountProgram has the program at veneer mount lower, writable, and take the mount away in the end.
func mountProgram(t testing.TB, veneer, io, lower string) (dir string) {
	t.Helper()
	return mountProgramAt(t, veneer, io, lower).dir
}

func mountProgramAt(t testing.TB, veneer, io, lower string) *programMount {
	t.Helper()
	m := &programMount{t.TempDir(), t.TempDir(), []string{veneer, "--root", t.TempDir(), "--run-root", t.TempDir()}}
	m.mount(t, io, lower)
	t.Cleanup(func() { m.run(t, "umount", m.dir) })
	return m
}

func (m *programMount) mount(t testing.TB, io, lower string) {
	t.Helper()
	m.run(t, "mount", "--rw", "--state", m.state, "--io", io, "--layer", "dir:"+lower, m.dir)
}

func (m *programMount) run(t testing.TB, args ...string) {
	t.Helper()
	output(t, m.veneer[0], append(m.veneer[1:len(m.veneer):len(m.veneer)], args...)...)
}

func buildProgram(t testing.TB) (veneer string) {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIP: -short: the program is not built")
	}
	veneer = filepath.Join(t.TempDir(), "veneer")
	output(t, "go", "build", "-o", veneer, "../cmd/veneer")
	return veneer
}

// forEachRung runs test for the real program on each rung.
func forEachRung(t *testing.T, test func(t *testing.T, veneer, io string)) {
	veneer := buildProgram(t)
	for _, io := range []string{IOCached, IOPassthrough} {
		t.Run(io, func(t *testing.T) { test(t, veneer, io) })
	}
}

func output(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}
