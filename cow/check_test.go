package cow

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

func (x *fixture) inspect() *Report {
	x.t.Helper()
	r, err := Check(x.dir, x.img.tree, Options{})
	must(x.t, err)
	return r
}

func wantSound(t testing.TB, r *Report, when string) {
	t.Helper()
	if len(r.Problems) > 0 {
		t.Fatalf("%s: %v", when, r.Problems)
	}
}

func TestCheckFindsNothingInSoundStates(t *testing.T) {
	for seed := range uint64(4) {
		w := newWalker(t, 700+seed)
		for i := range 300 {
			w.step()
			switch i % 30 {
			case 7:
				wantSound(t, w.inspect(), "live, after "+w.last)
			case 17:
				w.m.forget()
				w.crash()
				if r := w.inspect(); r.Damaged() {
					t.Fatalf("after a crash, after %s: %v", w.last, r.Problems)
				}
				w.open()
			case 27:
				w.m.forget()
				must(t, w.Close())
				wantSound(t, w.inspect(), "after a clean end, after "+w.last)
				w.open()
			}
		}
	}
}

// What is checked while it is changed all the time is sound.
func TestCheckOfALiveState(t *testing.T) {
	x := newFixture(t, smallImage())
	x.crash()
	x.opts.CheckpointBytes = 2000
	x.open()
	done := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < 1500 && err == nil; i++ {
			name := fmt.Sprint("f", i%50)
			var a unionfs.Attr
			if a, err = x.Mknod(unionfs.Root, name, unix.S_IFREG|0o644, 0, owner); err == nil {
				_, err = x.Write(t.Context(), a.Ino, []byte(name), 0, false)
			}
			if err == nil && i%50 > 10 {
				err = x.Unlink(unionfs.Root, name)
				x.Forget(a.Ino)
			} else if err == nil {
				err = x.Rename(unionfs.Root, name, unionfs.Root, "g", 0)
			}
		}
		done <- err
	}()
	for running := true; running; {
		select {
		case err := <-done:
			must(t, err)
			running = false
		default:
		}
		if r := x.inspect(); r.Damaged() {
			t.Fatal(r.Problems)
		}
	}
}

func wantProblem(t testing.TB, r *Report, words string, harmless bool) {
	t.Helper()
	if !slices.ContainsFunc(r.Problems, func(p Problem) bool {
		return strings.Contains(p.String(), words) && p.Harmless == harmless
	}) || r.Damaged() == harmless {
		t.Errorf("problems %v, want %q", r.Problems, words)
	}
}

func TestCheckFindsDamagedFiles(t *testing.T) {
	setUp := func(t *testing.T) (x *fixture, object string) {
		x = newFixture(t, smallImage())
		ino := x.create(unionfs.Root, "file", strings.Repeat("content", 10_000))
		x.create(unionfs.Root, "other", "content")
		x.crash()
		return x, filepath.Join(x.dir, objectName(ino))
	}
	edit := func(t *testing.T, path string, fn func([]byte) []byte) {
		b, err := os.ReadFile(path)
		must(t, err)
		must(t, os.WriteFile(path, fn(b), 0o600))
	}
	t.Run("a record", func(t *testing.T) {
		x, _ := setUp(t)
		edit(t, filepath.Join(x.dir, "journal.1"), func(b []byte) []byte { b[headerSize+frameHeader+2] ^= 1; return b })
		wantProblem(t, x.inspect(), "journal.1 at byte 64: ", false)
	})
	t.Run("a torn tail", func(t *testing.T) {
		x, _ := setUp(t)
		size := int64(0)
		edit(t, filepath.Join(x.dir, "journal.1"), func(b []byte) []byte { size = int64(len(b)); return append(b, "torn"...) })
		wantProblem(t, x.inspect(), fmt.Sprintf("journal.1 at byte %d: 4 bytes", size), true)
	})
	t.Run("a checkpoint", func(t *testing.T) {
		x, _ := setUp(t)
		x.open()
		must(t, x.Close())
		edit(t, filepath.Join(x.dir, checkpointName), func(b []byte) []byte { return b[:len(b)-1] })
		wantProblem(t, x.inspect(), "checkpoint at byte", false)
	})
	t.Run("a missing object", func(t *testing.T) {
		x, object := setUp(t)
		must(t, os.Remove(object))
		wantProblem(t, x.inspect(), "/file: its data object "+objectName(15), false)
	})
	t.Run("a short object", func(t *testing.T) {
		x, object := setUp(t)
		must(t, os.Truncate(object, 3))
		wantProblem(t, x.inspect(), "69997 are lost", false)
	})
	t.Run("a missing pack", func(t *testing.T) {
		x, _ := setUp(t)
		must(t, os.Remove(filepath.Join(x.dir, packName)))
		wantProblem(t, x.inspect(), "/other: the pack is missing: 7 bytes are lost", false)
	})
	t.Run("a short pack", func(t *testing.T) {
		x, _ := setUp(t)
		must(t, os.Truncate(filepath.Join(x.dir, packName), packUnit+3))
		wantProblem(t, x.inspect(), "/other: the pack has 4099 bytes", false)
	})
	t.Run("an object of nobody", func(t *testing.T) {
		x, object := setUp(t)
		must(t, os.WriteFile(filepath.Dir(object)+"/fff", []byte("12345"), 0o600))
		wantProblem(t, x.inspect(), "data/0/fff: no file has these 5 bytes", true)
	})
}

// Records that are whole but say what cannot be, as an error in this package would write them.
func TestCheckFindsWhatCannotBe(t *testing.T) {
	for what, c := range map[string]struct {
		record func(x *fixture, t *tx)
		words  string
	}{
		"a link too many":  {func(x *fixture, t *tx) { x.edit(t, "etc/passwd").nlink = 2 }, "/etc/passwd: it has 1 names, and 2 links"},
		"a lost name":      {func(x *fixture, t *tx) { t.unlink(x.ino("etc"), "passwd") }, "/etc/passwd: it has lost its name"},
		"a new name":       {func(x *fixture, t *tx) { t.link(x.ino("etc"), "p", x.ino("bin/su"), unix.S_IFREG) }, `it has got the name "p"`},
		"an entry to none": {func(x *fixture, t *tx) { t.link(x.ino("etc"), "p", 999, unix.S_IFREG) }, `leads to inode 999, which is gone`},
		"a wrong type":     {func(x *fixture, t *tx) { t.link(x.ino("etc"), "passwd", x.ino("bin"), unix.S_IFREG) }, "is of type"},
		"a wrong parent":   {func(x *fixture, t *tx) { x.edit(t, "etc/rc.d").val = x.ino("bin") }, "/etc/rc.d: its parent is inode"},
		"a second parent": {func(x *fixture, t *tx) {
			t.link(x.ino("bin"), "d", x.ino("etc/rc.d"), unix.S_IFDIR)
			x.edit(t, "etc/rc.d")
		}, "it is a directory with 2 names"},
		"a bad name": {func(x *fixture, t *tx) {
			t.link(x.ino("etc"), "../x", x.ino("bin/su"), unix.S_IFREG)
			x.edit(t, "bin/su")
		}, "an entry that cannot be"},
		"a bad xattr": {func(x *fixture, t *tx) { t.setXattr(x.ino("etc"), "bogus", nil) }, `extended attribute "bogus"`},
		"content after end": {func(x *fixture, t *tx) {
			x.edit(t, "etc/rc.d/two")
			t.tag(tagRuns, x.ino("etc/rc.d/two"))
			t.u(1)
			t.u(0)
			t.u(1)
		}, "is missing: 1 bytes are lost"},
		"a slot of two": {func(x *fixture, t *tx) { t.slot(x.ino("tmp/two"), x.nodes[x.ino("tmp/one")].slot) }, "in the pack where another has its own"},
		"a cycle": {func(x *fixture, t *tx) {
			t.unlink(x.ino(""), "etc")
			t.link(x.ino("etc/rc.d"), "etc", x.ino("etc"), unix.S_IFDIR)
			x.edit(t, "etc").val = x.ino("etc/rc.d")
			x.edit(t, "etc/rc.d").nlink++
			x.edit(t, "").nlink--
		}, "it is below itself"},
	} {
		t.Run(what, func(t *testing.T) {
			x := newFixture(t, smallImage())
			x.create(x.ino("tmp"), "one", "1")
			x.create(x.ino("tmp"), "two", "2")
			tx, err := x.begin()
			must(t, err)
			c.record(x, tx)
			for i := range tx.staged[:tx.n] {
				tx.staged[i].meta.setTime(ctime, tx.now)
			}
			must(t, tx.commit())
			tx.end()
			wantProblem(t, x.inspect(), c.words, false)
		})
	}
}

func (x *fixture) edit(t *tx, path string) *meta {
	x.t.Helper()
	m, err := t.edit(x.ino(path))
	must(x.t, err)
	return m
}
