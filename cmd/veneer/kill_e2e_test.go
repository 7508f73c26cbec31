package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// killed is a container in the foreground that has written something and waits to be killed.
type killed struct {
	*lab
	cmd    *exec.Cmd
	id     string
	image  string
	stdout *bufio.Reader
	stderr *strings.Builder
}

func startVictim(t *testing.T, flags ...string) *killed {
	t.Helper()
	l := newLab(t)
	k := &killed{lab: l, image: l.image(), stderr: new(strings.Builder)}
	args := append(append([]string{"run"}, flags...), k.image, "sh", "-c",
		"echo kept > /kept; rm /etc/motd; mkdir -p /d; mv /not-executable /d/moved; echo ready; while :; do sleep 1; echo alive; done")
	k.cmd = l.command(args...)
	k.cmd.Stderr = k.stderr
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	k.stdout = bufio.NewReader(out)
	if line, err := k.stdout.ReadString('\n'); line != "ready\n" {
		t.Fatalf("first output %q, %v, stderr %q", line, err, k.stderr)
	}
	k.id = l.only()
	return k
}

// end waits for the command line and returns its exit status.
func (k *killed) end() int {
	k.t.Helper()
	io.Copy(io.Discard, k.stdout)
	k.cmd.Wait()
	return k.cmd.ProcessState.ExitCode()
}

// checkEnd checks how the end is recorded, that nothing is left, and that what was written is.
func (k *killed) checkEnd(code int) {
	k.t.Helper()
	if s := k.state(k.id); s.Status != statusExited || s.ExitCode != code {
		k.t.Errorf("state %+v; want exited (%d)", s, code)
	}
	if ps := k.want("ps", "-a"); !strings.Contains(ps, "Exited (137)") && code == exitKilled {
		k.t.Errorf("ps -a: %s", ps)
	}
	k.checkNoLeaks(k.id)
	k.checkKept()
}

// checkKept mounts the container's writable layer and looks at what it wrote.
func (k *killed) checkKept() {
	k.t.Helper()
	dir := filepath.Join(k.dir, "look")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		k.t.Fatal(err)
	}
	k.want("mount", "--rw", "--state", k.places.file(k.id, "delta"), k.image, dir)
	defer k.want("umount", dir)
	for name, want := range map[string]string{"kept": "kept\n", "d/moved": "data\n"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); string(b) != want {
			k.t.Errorf("%s: %q, %v; want %q", name, b, err, want)
		}
	}
	for _, name := range []string{"etc/motd", "not-executable"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			k.t.Errorf("%s is back: %v", name, err)
		}
	}
}

func TestKilledProcess(t *testing.T) {
	k := startVictim(t)
	k.state(k.id).Process.signal(unix.SIGKILL)
	if code := k.end(); code != 137 || k.stderr.Len() != 0 {
		t.Errorf("exit status %d, stderr %q; want 137", code, k.stderr)
	}
	k.checkEnd(137)
}

// The passthrough rung cannot be taken over.
func TestKilledServerOfPassthrough(t *testing.T) {
	k := startVictim(t, "--io", "passthrough")
	k.server(k.id).signal(unix.SIGKILL)
	if code := k.end(); code != 125 || k.stderr.String() != "veneer: the file server died; what the container wrote is kept\n" {
		t.Errorf("exit status %d, stderr %q; want 125", code, k.stderr)
	}
	k.checkEnd(137)
	if s := k.state(k.id); !strings.Contains(s.Error, "file server died") {
		t.Errorf("recorded: %q", s.Error)
	}
}

func TestKilledMonitor(t *testing.T) {
	k := startVictim(t)
	k.monitor(k.id).signal(unix.SIGKILL)
	if code := k.end(); code != 125 || !strings.Contains(k.stderr.String(), "the monitor of container "+k.id[:12]+" died") {
		t.Errorf("exit status %d, stderr %q; want 125", code, k.stderr)
	}
	k.checkEnd(137)
}

func TestKilledMonitorOfDetached(t *testing.T) {
	k := startDetachedVictim(t)
	k.monitor(k.id).signal(unix.SIGKILL)
	k.awaitEnd(k.id)
	k.checkEnd(137)
}

func TestKilledMonitorOfContainerToBeRemoved(t *testing.T) {
	k := startVictim(t, "--rm")
	k.monitor(k.id).signal(unix.SIGKILL)
	if code := k.end(); code != 125 {
		t.Errorf("exit status %d, stderr %q; want 125", code, k.stderr)
	}
	k.checkNoLeaks(k.id)
	if ids, _ := k.places.ids(); len(ids) != 0 {
		t.Errorf("left with --rm: %q", ids)
	}
}

func TestKilledMonitorAndServer(t *testing.T) {
	k := startDetachedVictim(t)
	process, server, monitor := k.state(k.id).Process, k.server(k.id), k.monitor(k.id)
	server.signal(unix.SIGSTOP) // so that it sees the monitor's end no more
	monitor.signal(unix.SIGKILL)
	server.signal(unix.SIGKILL)
	k.awaitEnd(k.id)
	// Nobody is there who could end the container; the next command does.
	if ps := k.want("ps", "-a"); !strings.Contains(ps, "Exited (137)") {
		t.Errorf("ps -a: %s", ps)
	}
	if f := process.open(); f != nil {
		f.Close()
		t.Errorf("process %d still runs", process.PID)
	}
	k.checkEnd(137)
}

func TestKilledMonitorAndServerThenRm(t *testing.T) {
	k := startDetachedVictim(t)
	process, server, monitor := k.state(k.id).Process, k.server(k.id), k.monitor(k.id)
	server.signal(unix.SIGSTOP)
	monitor.signal(unix.SIGKILL)
	server.signal(unix.SIGKILL)
	k.awaitEnd(k.id)
	k.want("rm", k.id)
	if f := process.open(); f != nil {
		f.Close()
		t.Errorf("process %d still runs", process.PID)
	}
	k.checkNoLeaks(k.id)
}

func TestKilledCommandLine(t *testing.T) {
	k := startVictim(t)
	k.cmd.Process.Kill()
	k.cmd.Process.Wait() // not Cmd.Wait: the container still has the pipe to us
	if ps := k.want("ps", "-q", "--no-trunc"); ps != k.id+"\n" {
		t.Fatalf("the container does not go on: ps says %q", ps)
	}
	if f := k.state(k.id).Process.open(); f == nil {
		t.Error("the container's process is gone")
	} else {
		f.Close()
	}
	// Its output is still the command line's own.
	k.state(k.id).Process.signal(unix.SIGKILL)
	k.awaitEnd(k.id)
	k.checkEnd(137)
}

func TestForwardedSignal(t *testing.T) {
	l := newLab(t)
	cmd := l.command("run", "--rm", l.image(), "sh", "-c", "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.1; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	if line, _ := r.ReadString('\n'); line != "ready\n" {
		t.Fatalf("first output %q", line)
	}
	cmd.Process.Signal(unix.SIGTERM)
	rest, _ := io.ReadAll(r)
	cmd.Wait()
	if string(rest) != "got it\n" || cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("output %q, %v; want exit status 5", rest, cmd.ProcessState)
	}
}

// startDetachedVictim is startVictim with -d. A FIFO from the host tells when it has written everything.
func startDetachedVictim(t *testing.T) *killed {
	t.Helper()
	l := newLab(t)
	k := &killed{lab: l, image: l.image()}
	fifo := filepath.Join(l.dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	k.id = strings.TrimSpace(l.want("run", "-d", "-v", fifo+":/fifo", k.image, "sh", "-c",
		"echo kept > /kept; rm /etc/motd; mkdir -p /d; mv /not-executable /d/moved; echo ready > /fifo; while :; do sleep 1; done"))
	if b, err := os.ReadFile(fifo); string(b) != "ready\n" {
		t.Fatalf("read %q, %v", b, err)
	}
	return k
}
