package spawn

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

func start(t *testing.T, slack time.Duration, script string) (p *Process, out *os.File) {
	t.Helper()
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	t.Cleanup(func() { out.Close() })
	p, err = Start("/bin/sh", []string{"sh", "-c", script}, []*os.File{os.Stdin, w}, Attr{Slack: slack})
	if err != nil {
		t.Fatal(err)
	}
	return p, out
}

func TestEndOfAProcess(t *testing.T) {
	p, _ := start(t, 0, "exit 3")
	if ws, err := p.Wait(); err != nil || ws.ExitStatus() != 3 {
		t.Errorf("status %v, %v", ws, err)
	}
	if err := p.Kill(); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v, want os.ErrProcessDone", err)
	}
	p, _ = start(t, 0, "kill -STOP $$")
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	if ws, err := p.Wait(); err != nil || ws.Signal() != syscall.SIGKILL {
		t.Errorf("status %v, %v", ws, err)
	}
}

func TestMissingProgram(t *testing.T) {
	if _, err := Start("/missing", []string{"x"}, nil, Attr{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestSlackIsOfTheProcessAlone(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	was := setTimerSlack(7 * time.Microsecond)
	defer setTimerSlack(was)
	for slack, want := range map[time.Duration]string{0: "50000", time.Millisecond: "1000000"} {
		p, out := start(t, slack, "cat /proc/$$/timerslack_ns")
		text := make([]byte, 32)
		n, err := out.Read(text)
		if got := strings.TrimSpace(string(text[:n])); err != nil || got != want {
			t.Errorf("slack %v: the process has %q, want %q (%v)", slack, got, want, err)
		}
		p.Wait()
	}
	if got := setTimerSlack(was); got != 7*time.Microsecond {
		t.Errorf("the thread has %v now", got)
	}
}

func TestSysmonIsSlowedAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	SlowSysmon()
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	threads, err := dir.Readdirnames(0)
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range threads {
		slack, err := os.ReadFile("/proc/" + id + "/timerslack_ns")
		if err != nil {
			continue // it has ended
		}
		if slow := string(slack) == "1000000\n"; slow != (i == 1) {
			t.Errorf("thread %d of %d has a slack of %s", i, len(threads), slack)
		}
	}
}
