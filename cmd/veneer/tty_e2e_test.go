package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// terminal is a user at a terminal with a veneer command in the foreground.
type terminal struct {
	t      *testing.T
	master console.Console
	slave  *os.File // keeps the terminal open and tells its modes
	out    *bufio.Reader
	cmd    *exec.Cmd
	before unix.Termios
}

func (l *lab) terminal(args ...string) *terminal {
	l.t.Helper()
	master, path, err := console.NewPty()
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { master.Close() })
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { slave.Close() })
	tt := &terminal{t: l.t, master: master, slave: slave, out: bufio.NewReader(master), cmd: l.command(args...)}
	tt.before = tt.modes()
	tt.resize(100, 30)
	tt.cmd.Stdin, tt.cmd.Stdout, tt.cmd.Stderr = slave, slave, slave
	tt.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := tt.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	return tt
}

func (tt *terminal) modes() unix.Termios {
	tt.t.Helper()
	m, err := unix.IoctlGetTermios(int(tt.slave.Fd()), unix.TCGETS)
	if err != nil {
		tt.t.Fatal(err)
	}
	return *m
}

func (tt *terminal) resize(width, height uint16) {
	tt.t.Helper()
	if err := tt.master.Resize(console.WinSize{Width: width, Height: height}); err != nil {
		tt.t.Fatal(err)
	}
}

func (tt *terminal) typed(s string) {
	tt.t.Helper()
	if _, err := io.WriteString(tt.master, s); err != nil {
		tt.t.Fatal(err)
	}
}

// await reads the screen until it ends with what is awaited.
func (tt *terminal) await(want string) string {
	tt.t.Helper()
	var seen bytes.Buffer
	for !strings.HasSuffix(seen.String(), want) {
		b, err := tt.out.ReadByte()
		if err != nil {
			tt.t.Fatalf("screen %q: %v; want %q", seen.String(), err, want)
		}
		seen.WriteByte(b)
	}
	return seen.String()
}

func (tt *terminal) end() int {
	tt.t.Helper()
	tt.cmd.Wait()
	if m := tt.modes(); m != tt.before {
		tt.t.Errorf("the terminal is left in another mode: %+v; it was %+v", m, tt.before)
	}
	return tt.cmd.ProcessState.ExitCode()
}

func TestTerminal(t *testing.T) {
	l := newLab(t)
	tt := l.terminal("run", "--rm", "-it", "-e", "PS1=prompt> ", l.image(), "sh")
	prompt := "prompt> \x1b[6n" // ash asks the terminal where its cursor is
	tt.await(prompt)
	tt.typed("tty; stty size; echo $TERM\n")
	if s := tt.await(prompt); !strings.Contains(s, "/dev/pts/0\r\n30 100\r\nxterm\r\n") {
		t.Errorf("screen %q", s)
	}
	// The size follows.
	tt.typed("while [ \"$(stty size)\" != '22 77' ]; do :; done; echo resized\n")
	tt.resize(77, 22)
	tt.await("\r\nresized\r\n")
	// Ctrl-C is a key, for the process in the foreground of the container.
	// (A shell that is between reading a command and its exec may lose it: what tail prints says that tail runs.)
	tt.typed("tail -f /etc/motd\n")
	tt.await("\r\nwelcome\r\n")
	tt.typed("\x03")
	tt.await(prompt)
	tt.typed("exit 9\n")
	if code := tt.end(); code != 9 {
		t.Errorf("exit status %d; want 9", code)
	}
}

func TestTerminalOfAnEndedContainerIsRestored(t *testing.T) {
	l := newLab(t)
	tt := l.terminal("run", "-it", "--io", "passthrough", l.image(), "sh", "-c", "echo ready; sleep 1000")
	tt.await("ready\r\n")
	l.server(l.only()).signal(unix.SIGKILL)
	tt.await("the file server died; what the container wrote is kept\r\n")
	if code := tt.end(); code != 125 {
		t.Errorf("exit status %d; want 125", code)
	}
}

func TestHangUpLeavesTheContainerRunning(t *testing.T) {
	l := newLab(t)
	tt := l.terminal("run", "-it", l.image(), "sh", "-c", "trap '' HUP; echo ready; while :; do echo more than the terminal holds; done")
	tt.await("ready\r\n")
	tt.cmd.Process.Signal(unix.SIGHUP)
	if code := tt.end(); code != 128+int(unix.SIGHUP) {
		t.Errorf("exit status %d; want 129", code)
	}
	if ps := l.want("ps", "-q"); strings.TrimSpace(ps) != l.only()[:12] {
		t.Errorf("ps: %q", ps)
	}
}
