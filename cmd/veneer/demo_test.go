package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/veneerfs/veneer/fetcher/embedded/hostimage"
)

// demoSmall is the demo on a fast link.
var demoSmall = demoScale{hostimage.Ballast{Parts: 3, Size: 12 << 20}, 4e9, time.Millisecond}

// testDemo makes a demo in a directory of the test's, and checks in the end that the directory is empty again.
func testDemo(t *testing.T, out io.Writer) *demo {
	t.Helper()
	exe, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Cleanup(func() {
		(&lab{t: t, dir: tmp}).checkNoLeaks()
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("the demo left %v, %v", left, err)
		}
	})
	a := &app{stdout: out, stderr: out}
	d, err := a.newDemo(exe, demoSmall)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDemoTellsItsStory(t *testing.T) {
	out := new(lockedBuffer)
	d := testDemo(t, out)
	if err := d.tell(t.Context()); err != nil {
		t.Errorf("%v; it said:\n%s", err, out)
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"hello from the image\n", "\nchanged in a container\n", "\nas the image has it\n", " 1000 1000 ", "What it took"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in its output:\n%s", want, out)
		}
	}
	if len(d.rows) != 3 {
		t.Fatalf("the table has %d rows", len(d.rows))
	}
	cold, warm, whole := d.rows[0], d.rows[1], d.rows[2]
	if cold.fetched == 0 || cold.fetched > d.built.Compressed/2 {
		t.Errorf("the first run fetched %d of %d bytes", cold.fetched, d.built.Compressed)
	}
	if warm.fetched != 0 {
		t.Errorf("the second run fetched %d bytes", warm.fetched)
	}
	if whole.fetched < d.built.Compressed {
		t.Errorf("the full pull fetched %d of %d bytes", whole.fetched, d.built.Compressed)
	}
}

// TestDemoInterruptedLeavesNothing interrupts the demo while a container runs.
func TestDemoInterruptedLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out := new(lockedBuffer)
	d := testDemo(t, writerFunc(func(p []byte) (int, error) {
		if bytes.HasPrefix(p, []byte("hello")) {
			cancel()
		}
		return out.Write(p)
	}))
	err := d.build(ctx)
	if err == nil {
		_, err = d.veneer(ctx, "lazy", nil, "run", d.image, "sh", "-c", "echo hello; exec sleep 1000")
		if err == nil {
			t.Error("the container was not interrupted")
		}
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
	if ctx.Err() == nil {
		t.Errorf("%v; it said:\n%s", err, out)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// lockedBuffer is a buffer that several goroutines write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestDemoCleansUpWhenNobodyReads runs the whole command, and goes away after its first line.
func TestDemoCleansUpWhenNobodyReads(t *testing.T) {
	exe, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	c := exec.Command(exe, "demo")
	c.Env = append(os.Environ(), "TMPDIR="+tmp)
	stderr := new(lockedBuffer)
	c.Stderr = stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	out.Close()
	if err := c.Wait(); c.ProcessState.ExitCode() != exitFailed || stderr.String() != "veneer: demo: interrupted\n" {
		t.Errorf("%v, %q", err, stderr)
	}
	(&lab{t: t, dir: tmp}).checkNoLeaks()
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("the demo left %v, %v", left, err)
	}
}
