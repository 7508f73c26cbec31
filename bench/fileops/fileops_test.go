package fileops

import (
	"bytes"
	"errors"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMeasuresEveryRow runs the whole bench on an input of a few files. What it measures means nothing; that every row
// can be measured on every system does.
func TestMeasuresEveryRow(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	if testing.Short() {
		t.Skip("it builds the program and mounts for half a minute; one goroutine does all of it")
	}
	binary := filepath.Join(t.TempDir(), "veneer")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "github.com/veneerfs/veneer/cmd/veneer").CombinedOutput(); err != nil {
		t.Fatalf("build veneer: %v\n%s", err, out)
	}
	dir := t.TempDir()
	var said bytes.Buffer
	r, err := Measure(t.Context(), Options{Veneer: binary, Before: binary, Dir: dir, Rounds: 2, Scale: 0.001, Log: log.New(&said, "", 0)})
	if err != nil {
		t.Fatalf("%v\n%s", err, said.String())
	}
	for _, res := range r.rows {
		for _, system := range []string{overlayfs, fuseOverlayfs, before, veneer, passthrough, native} {
			if len(res.times[system]) != 2 || res.times[system][0] <= 0 {
				t.Errorf("%s on %s: measured %v", res.name, system, res.times[system])
			}
		}
		if res.failed[veneer] != nil || res.failed[native] != nil {
			t.Errorf("%s: %v", res.name, res.failed)
		}
	}
	text := r.Markdown("machine", "command")
	for _, want := range []string{"| overlayfs | native | fuse-overlayfs | veneer before | veneer | veneer, passthrough |", "| stat walk, warm |", "1.00 UNLINK", "private memory"} {
		if !strings.Contains(text, want) {
			t.Errorf("the report has no %q:\n%s", want, text)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestGoalsAreHeldAgainstMedians(t *testing.T) {
	ms := func(n ...int) (t []time.Duration) {
		for _, x := range n {
			t = append(t, time.Duration(x)*time.Millisecond)
		}
		return t
	}
	for _, c := range []struct {
		name            string
		goal            goal
		overlayfs, ours []time.Duration
		failed          error
		want            bool
	}{
		{"ratio", goal{ratio: 1}, ms(9, 10, 11), ms(1, 10, 90), nil, true},
		{"ratio missed", goal{ratio: 1}, ms(9, 10, 11), ms(1, 11, 12), nil, false},
		{"time", goal{limit: 10 * time.Millisecond}, ms(1), ms(10), nil, true},
		{"time missed", goal{limit: 10 * time.Millisecond}, ms(100), ms(11), nil, false},
		{"no goal", goal{}, ms(1), ms(100), nil, true},
		{"refused", goal{}, ms(1), ms(1), unix.EXDEV, false},
	} {
		r := result{row: row{name: c.name, goal: c.goal}, failed: map[string]error{},
			times: map[string][]time.Duration{overlayfs: c.overlayfs, veneer: c.ours}}
		if c.failed != nil {
			r.failed[veneer] = c.failed
		}
		if got := r.holds(); got != c.want {
			t.Errorf("%s: holds %v", c.name, got)
		}
		report := Report{rows: []result{r}}
		if missed := report.Missed(); (missed == nil) != c.want {
			t.Errorf("%s: missed %v", c.name, missed)
		}
	}
}

// TestWalkSeesEverything also holds removeTree to removing it.
func TestWalkSeesEverything(t *testing.T) {
	root := filepath.Join(t.TempDir(), "r")
	for _, name := range []string{"a/b/c", "a/d", "e"} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	if err := walk(root, func(_ int, name string, _ uint8) error { seen[name] = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 5 {
		t.Errorf("saw %v", seen)
	}
	if err := removeTree(root); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(root); !os.IsNotExist(err) {
		t.Errorf("after removal: %v", err)
	}
}
