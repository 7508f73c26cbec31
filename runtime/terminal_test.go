package runtime

import (
	"bufio"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func createTerminal(t *testing.T, root string, spec *specs.Spec) (*Container, *bufio.Reader) {
	t.Helper()
	spec.Process.Terminal = true
	c, err := Create(context.Background(), CreateOptions{ID: testID(root), Root: root, Spec: spec})
	must(t, err)
	t.Cleanup(func() { must(t, c.Delete()) })
	if c.Console() == nil {
		t.Fatal("there is no console")
	}
	must(t, c.Start())
	return c, bufio.NewReader(c.Console())
}

func readLine(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	line, err := r.ReadString('\n')
	must(t, err)
	return strings.TrimRight(line, "\r\n")
}

func TestTerminal(t *testing.T) {
	root := newRootfs(t)
	spec := sh(`stty -echo; tty; stty size; [ -c /dev/console ] && echo console > /dev/console; echo tty > /dev/tty
		read x; echo "read $x"; read x; stty size; trap 'stty size; exit 4' WINCH; echo waiting; while :; do sleep 0.01; done`)
	spec.Process.ConsoleSize = &specs.Box{Height: 33, Width: 111}
	c, out := createTerminal(t, root, spec)
	for _, want := range []string{"/dev/pts/0", "33 111", "console", "tty"} {
		if got := readLine(t, out); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	say := func(s string) {
		_, err := io.WriteString(c.Console(), s)
		must(t, err)
	}
	say("hello\n")
	if got := readLine(t, out); got != "read hello" {
		t.Errorf("got %q", got)
	}
	must(t, c.Resize(40, 80))
	say("\n")
	for _, want := range []string{"40 80", "waiting"} {
		if got := readLine(t, out); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	must(t, c.Resize(41, 81)) // the kernel sends SIGWINCH to the foreground process group
	if got := readLine(t, out); got != "41 81" {
		t.Errorf("got %q", got)
	}
	if st, _ := c.Wait(); st.ExitCode() != 4 {
		t.Errorf("ended with %+v", st)
	}
}

func TestTerminalEndsWithTheProcess(t *testing.T) {
	c, out := createTerminal(t, newRootfs(t), newSpec("/bin/echo", "bye"))
	text, err := io.ReadAll(out) // EIO is how the master says that the last slave is closed
	if string(text) != "bye\r\n" || err == nil {
		t.Errorf("got %q, %v", text, err)
	}
	_, err = c.Wait()
	must(t, err)
}

func TestControlCInterruptsTheForegroundProcess(t *testing.T) {
	c, out := createTerminal(t, newRootfs(t), sh("trap 'exit 9' INT; echo ready; while :; do sleep 0.01; done"))
	if got := readLine(t, out); got != "ready" {
		t.Errorf("got %q", got)
	}
	_, err := c.Console().Write([]byte{3})
	must(t, err)
	if st, _ := c.Wait(); st.ExitCode() != 9 {
		t.Errorf("ended with %+v", st)
	}
}

func TestTerminalIsTheUsers(t *testing.T) {
	spec := sh("stat -L -c '%u %a' /dev/stdin; echo x > /dev/tty && echo y > /dev/stdout")
	spec.Process.User.UID = 1000
	_, out := createTerminal(t, newRootfs(t), spec)
	for _, want := range []string{"1000 620", "x", "y"} {
		if got := readLine(t, out); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestTerminalDoesNotTrustTheImage(t *testing.T) {
	// An image that has a ptmx and a console of its own: /dev without a tmpfs.
	root := newRootfs(t)
	target := filepath.Join(filepath.Dir(root), "target")
	must(t, os.WriteFile(target, nil, 0o600))
	must(t, os.Symlink("../../../../../../"+target, filepath.Join(root, "dev/console")))
	spec := sh("ls -l /dev/console | cut -c1")
	spec.Mounts = append(spec.Mounts[:1:1], spec.Mounts[2])
	c, out := createTerminal(t, root, spec)
	if got := readLine(t, out); got != "l" {
		t.Errorf("got %q", got)
	}
	must(t, c.Delete())
	if st, err := os.Stat(target); err != nil || st.Mode()&os.ModeType != 0 || st.Size() != 0 {
		t.Errorf("the host's file is %v, %v", st, err)
	}
	// Without a devpts there is no terminal, whatever file is in its place.
	must(t, os.MkdirAll(filepath.Join(root, "dev/pts"), 0o755))
	must(t, unix.Mknod(filepath.Join(root, "dev/pts/ptmx"), unix.S_IFCHR|0o666, int(unix.Mkdev(5, 2))))
	spec = sh("true")
	spec.Process.Terminal = true
	spec.Mounts = spec.Mounts[:1]
	wantSetupError(t, root, spec, "allocate the terminal")
}
