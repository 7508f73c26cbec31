package runtime

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The first thread is kept out of the tests: some change the namespaces of theirs, and /proc/self shows the first's.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	Main()
	if role, ok := roles[os.Getenv("RUNTIME_TEST_ROLE")]; ok {
		os.Exit(role())
	}
	os.Exit(m.Run())
}

// roles are what this program does when a test starts it as another process.
var roles = map[string]func() int{
	"holder":  holderRole,
	"exeflag": exeFlagRole,
}

// newRootfs makes a root file system of busybox and its applets.
func newRootfs(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox-static is needed: ", err)
	}
	dir := t.TempDir()
	// TempDir is 0700, and users of containers are not root.
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
	root := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "etc", "tmp", "root", "proc", "dev", "sys"} {
		must(t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	program, err := os.ReadFile(busybox)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755))
	applets, err := exec.Command(busybox, "--list").Output()
	must(t, err)
	for _, a := range strings.Fields(string(applets)) {
		if a != "busybox" {
			must(t, os.Symlink("busybox", filepath.Join(root, "bin", a)))
		}
	}
	return root
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// result is what a container wrote and how it ended.
type result struct {
	stdout, stderr string
	status         Status
}

// newSpec is the default configuration for args.
func newSpec(args ...string) *specs.Spec {
	s := DefaultSpec()
	s.Process.Args = args
	s.Hostname = "box"
	return s
}

func sh(script string) *specs.Spec { return newSpec("/bin/sh", "-c", script) }

// create makes a container with its output in pipes. It must be started by the test.
func create(t *testing.T, root string, spec *specs.Spec) (c *Container, output func() (stdout, stderr string)) {
	t.Helper()
	c, output, err := tryCreate(t, root, spec)
	must(t, err)
	return c, output
}

func tryCreate(t *testing.T, root string, spec *specs.Spec) (*Container, func() (string, string), error) {
	t.Helper()
	outR, outW, err := os.Pipe()
	must(t, err)
	errR, errW, err := os.Pipe()
	must(t, err)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c, err := Create(context.Background(), CreateOptions{
		ID: testID(root), Bundle: filepath.Dir(root), Spec: spec, Root: root, Stdout: outW, Stderr: errW,
	})
	outW.Close()
	errW.Close()
	if err != nil {
		outR.Close()
		errR.Close()
		return nil, nil, err
	}
	t.Cleanup(func() { must(t, c.Delete()) })
	stdout, stderr := collect(outR), collect(errR)
	return c, func() (string, string) { return <-stdout, <-stderr }, nil
}

// privateMounts gives the rest of the test a mount namespace of its own, as a monitor has one. The thread ends with the test.
func privateMounts(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	must(t, unix.Unshare(unix.CLONE_NEWNS))
	must(t, unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""))
}

func testID(root string) string {
	dir := filepath.Dir(root)
	return "test-" + strings.ToLower(filepath.Base(filepath.Dir(dir))) + "-" + filepath.Base(dir)
}

func collect(r *os.File) chan string {
	text := make(chan string, 1)
	go func() {
		defer r.Close()
		b, _ := io.ReadAll(r)
		text <- string(b)
	}()
	return text
}

// run runs a container to its end.
func run(t *testing.T, root string, spec *specs.Spec) result {
	t.Helper()
	c, output := create(t, root, spec)
	must(t, c.Start())
	status, err := c.Wait()
	must(t, err)
	stdout, stderr := output()
	return result{stdout, stderr, status}
}

// runOK runs a container that must succeed, and returns what it printed.
func runOK(t *testing.T, root string, spec *specs.Spec) string {
	t.Helper()
	r := run(t, root, spec)
	if r.status.ExitCode() != 0 {
		t.Fatalf("exit status %+v, stderr: %s", r.status, r.stderr)
	}
	return r.stdout
}

func TestExitStatus(t *testing.T) {
	root := newRootfs(t)
	for _, c := range []struct {
		script string
		want   int
	}{{"exit 0", 0}, {"exit 3", 3}, {"kill -9 $$; (sleep 1; exit 5)", 5}, {"exit 255", 255}} {
		if got := run(t, root, sh(c.script)).status.ExitCode(); got != c.want {
			t.Errorf("%s: exit code %d, want %d", c.script, got, c.want)
		}
	}
}

func TestExecErrors(t *testing.T) {
	root := newRootfs(t)
	must(t, os.WriteFile(filepath.Join(root, "plain"), []byte("x"), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "text"), []byte("not a program"), 0o755))
	for _, c := range []struct {
		command string
		want    int
	}{
		{"missing", 127}, {"/missing", 127}, {"/bin/missing/x", 127}, {"/plain", 126}, {"/text", 126}, {"/etc", 126}, {"/plain/x", 126},
	} {
		box, _ := create(t, root, newSpec(c.command))
		err := box.Start()
		var e *ExecError
		if !errors.As(err, &e) || e.ExitCode() != c.want {
			t.Errorf("%s: %v, want *ExecError with code %d", c.command, err, c.want)
		}
		t.Log(err)
	}
}
