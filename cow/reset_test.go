package cow

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/veneerfs/veneer/unionfs"
)

// openOver opens the state directory over another image than the fixture's.
func openOver(t *testing.T, dir string) error {
	t.Helper()
	img := newImage(t, []unionfs.Entry{reg("other", 0o644, 1)})
	f, err := Open(dir, img.tree, img, Options{})
	if err == nil {
		err = f.Close()
	}
	return err
}

func TestResetLetsAnUnchangedStateGoOverAnotherTree(t *testing.T) {
	x := newFixture(t, smallImage())
	_, err := Reset(x.dir)
	var locked *LockedError
	if !asError(err, &locked) {
		t.Fatalf("reset of a state in use: %v", err)
	}
	must(t, x.Close())
	var tree *TreeError
	if err := openOver(t, x.dir); !asError(err, &tree) {
		t.Fatalf("opened over another tree before it was reset: %v", err)
	}
	if done, err := Reset(x.dir); !done || err != nil {
		t.Fatalf("reset: %v, %v", done, err)
	}
	must(t, openOver(t, x.dir))
}

func TestResetKeepsChanges(t *testing.T) {
	for name, end := range map[string]func(*fixture){
		"crashed": func(x *fixture) { x.crash() },
		"closed":  func(x *fixture) { must(x.t, x.Close()) },
	} {
		t.Run(name, func(t *testing.T) {
			x := newFixture(t, smallImage())
			x.create(unionfs.Root, "new", "text")
			end(x)
			if done, err := Reset(x.dir); done || err != nil {
				t.Fatalf("reset: %v, %v", done, err)
			}
			x.open()
			if got := x.read(x.ino("new")); got != "text" {
				t.Errorf("new is %q", got)
			}
		})
	}
}

// Whatever is in a state directory is known by its name.
func TestStateFilesAreKnown(t *testing.T) {
	x := newFixture(t, smallImage())
	for i := range 3 {
		ino := x.create(unionfs.Root, fmt.Sprint("new", i), "text")
		must(t, x.Fsync(ino, false))
		x.write(ino, strings.Repeat("x", 100_000), 0)
		x.remount()
	}
	entries, err := os.ReadDir(x.dir)
	must(t, err)
	for _, e := range entries {
		if !IsStateFile(e.Name()) {
			t.Errorf("%s is not known", e.Name())
		}
	}
}

// A crash of Reset leaves fewer of the empty journals, whichever; of Open, an unfinished one.
func TestResetAfterACrash(t *testing.T) {
	x := newFixture(t, smallImage())
	must(t, x.Close())
	header, err := os.ReadFile(filepath.Join(x.dir, journalName(1)))
	must(t, err)
	for _, left := range [][]string{{}, {journalName(1)}, {journalName(2)}, {journalName(1), journalName(2)}, {"journal.tmp", journalName(2)}} {
		must(t, os.Remove(filepath.Join(x.dir, journalName(1))))
		for _, name := range left {
			must(t, os.WriteFile(filepath.Join(x.dir, name), header, 0o600))
		}
		if done, err := Reset(x.dir); !done || err != nil {
			t.Fatalf("reset with %q: %v, %v", left, done, err)
		}
		must(t, openOver(t, x.dir))
	}
}
