package cow

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

func (x *fixture) snapshot() *Snapshot {
	x.t.Helper()
	s, err := OpenSnapshot(x.dir, x.img.tree, x.img, Options{})
	must(x.t, err)
	x.t.Cleanup(func() { s.Close() })
	return s
}

func changeLines(t testing.TB, s *Snapshot, o ChangesOptions) (lines []string) {
	t.Helper()
	must(t, s.Changes(o, func(c Change) error {
		lines = append(lines, fmt.Sprintf("%c %s", c.Kind, c.Path))
		return nil
	}))
	return lines
}

// dockerDiff compares two whole trees as Docker does, by looking at every path.
func dockerDiff(path string, was, now *mInode) (lines []string) {
	names := maps.Clone(now.ents)
	if was.isDir() {
		for name, n := range was.ents {
			if names[name] == nil {
				names[name] = n
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		p, n := path+"/"+name, now.ents[name]
		var before *mInode
		if was.isDir() {
			before = was.ents[name]
		}
		var below []string
		switch {
		case n == nil:
			lines = append(lines, "D "+p)
			continue
		case n.isDir() && before != nil:
			below = dockerDiff(p, before, n)
		case n.isDir():
			below = dockerDiff(p, &mInode{}, n)
		}
		switch {
		case before == nil:
			lines = append(lines, "A "+p)
		case len(below) > 0 || n.differs(before):
			lines = append(lines, "C "+p)
		}
		lines = append(lines, below...)
	}
	return lines
}

func (n *mInode) differs(was *mInode) bool {
	return n.mode != was.mode || n.uid != was.uid || n.gid != was.gid || n.rdev != was.rdev ||
		!n.isDir() && (n.times[mtime] != was.times[mtime] || len(n.data)+len(n.target) != len(was.data)+len(was.target)) ||
		n.xattrs[capability] != was.xattrs[capability]
}

func TestChangesAreWhatDockerShows(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWalker(t, 300+seed)
			image := newModel(w.img)
			for i := range 240 {
				w.step()
				if i%12 != 0 {
					continue
				}
				s := w.snapshot()
				got := changeLines(t, s, ChangesOptions{Stat: true})
				want := dockerDiff("", image.inodes[unionfs.Root], w.m.inodes[unionfs.Root])
				if !slices.Equal(got, want) {
					t.Fatalf("after %s:\n%s\nwant\n%s", w.last, strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
				must(t, s.Close())
			}
		})
	}
}

func TestChangesOfOneOfEach(t *testing.T) {
	x := newFixture(t, smallImage())
	x.create(unionfs.Root, "new", "text")
	x.write(x.ino("etc/passwd"), "x", 0)
	must(t, x.Unlink(x.ino("bin"), "su"))
	must(t, x.Rename(x.ino("etc"), "rc.d", unionfs.Root, "moved", 0))
	got := changeLines(t, x.snapshot(), ChangesOptions{Stat: true})
	want := []string{"C /bin", "D /bin/su", "C /etc", "C /etc/passwd", "D /etc/rc.d", "A /moved", "A /moved/one", "A /moved/two", "A /new"}
	if !slices.Equal(got, want) {
		t.Errorf("changes: %q, want %q", got, want)
	}
}

func TestChangeOfALowerHardLinkIsAtAllItsNames(t *testing.T) {
	x := newFixture(t, smallImage())
	x.write(x.ino("bin/sh"), "x", 0)
	got := changeLines(t, x.snapshot(), ChangesOptions{Stat: true})
	if want := []string{"C /bin", "C /bin/ash", "C /bin/sh"}; !slices.Equal(got, want) {
		t.Errorf("changes: %q, want %q", got, want)
	}
}

func TestWhatChangedBackIsNoChange(t *testing.T) {
	x := newFixture(t, smallImage())
	for _, mode := range []uint32{0o700, 0o644} {
		_, err := x.SetAttr(x.ino("etc/passwd"), unionfs.SetAttr{Valid: unionfs.SetMode, Mode: mode})
		must(t, err)
	}
	old := x.attr("tmp")
	x.create(x.ino("tmp"), "f", "text")
	must(t, x.Unlink(x.ino("tmp"), "f"))
	_, err := x.SetAttr(old.Ino, unionfs.SetAttr{Valid: unionfs.SetMtime, Mtime: old.Mtime})
	must(t, err)
	for _, o := range []ChangesOptions{{}, {Stat: true}} {
		if got := changeLines(t, x.snapshot(), o); len(got) > 0 {
			t.Errorf("%+v: changes: %q, want none", o, got)
		}
	}
}

func TestPlaceholdersAreNoChange(t *testing.T) {
	x := newFixture(t, smallImage())
	o := ChangesOptions{Stat: true, Placeholders: map[string]bool{"/run": true, "/run/lock": true, "/etc/hosts": true, "/dev": true}}
	run, err := x.Mkdir(unionfs.Root, "run", 0o755, owner)
	must(t, err)
	_, err = x.Mkdir(run.Ino, "lock", 0o755, owner)
	must(t, err)
	_, err = x.Mkdir(unionfs.Root, "dev", 0o755, owner)
	must(t, err)
	hosts := x.create(x.ino("etc"), "hosts", "")
	if got := changeLines(t, x.snapshot(), o); len(got) > 0 {
		t.Errorf("changes: %q, want none", got)
	}
	x.write(hosts, "text", 0)
	x.create(run.Ino, "pid", "1")
	got := changeLines(t, x.snapshot(), o)
	if want := []string{"C /etc", "A /etc/hosts", "A /run", "A /run/pid"}; !slices.Equal(got, want) {
		t.Errorf("changes: %q, want %q", got, want)
	}
}

// A change in a big image is found without a walk of the image, and in a deep and wide one of ours without much memory.
func TestChangesOfADeepDirectory(t *testing.T) {
	x := newFixture(t, smallImage())
	dir := unionfs.Root
	for range 2000 {
		a, err := x.Mkdir(dir, "d", 0o755, owner)
		must(t, err)
		dir = a.Ino
	}
	x.create(dir, "f", "text")
	lines := changeLines(t, x.snapshot(), ChangesOptions{Stat: true})
	if want := "A " + strings.Repeat("/d", 2000) + "/f"; len(lines) != 2001 || lines[2000] != want {
		t.Errorf("%d changes", len(lines))
	}
}

func TestSnapshotChangesNothing(t *testing.T) {
	x := newFixture(t, smallImage())
	f := x.create(unionfs.Root, "f", "text")
	x.create(unionfs.Root, "gone", "text")
	must(t, x.Unlink(unionfs.Root, "gone")) // an orphan, and a data object
	x.crash()
	file, err := os.OpenFile(x.disk.path(journalName(1)), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = file.WriteString("half a record")
	must(t, err)
	must(t, file.Close())
	before := stateBytes(t, x.dir)
	s := x.snapshot()
	p := make([]byte, 10)
	if n, err := s.Read(t.Context(), f, p, 0); err != nil || string(p[:n]) != "text" {
		t.Errorf("read: %q, %v", p[:n], err)
	}
	_, err = s.Mkdir(unionfs.Root, "d", 0o755, owner)
	want(t, "mkdir", err, unix.EROFS)
	must(t, s.Close())
	if after := stateBytes(t, x.dir); !maps.Equal(before, after) {
		t.Error("the state directory has changed")
	}
}

// stateBytes is all that is in a state directory, by name, with mtimes.
func stateBytes(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	must(t, fsWalk(dir, func(path string, st os.FileInfo) error {
		all[path] = fmt.Sprint(st.ModTime(), st.Mode())
		if st.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			all[path] += string(b)
			return err
		}
		return nil
	}))
	return all
}

func fsWalk(dir string, fn func(string, os.FileInfo) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := dir + "/" + e.Name()
		st, err := os.Lstat(path)
		if err == nil {
			err = fn(path, st)
		}
		if err == nil && st.IsDir() {
			err = fsWalk(path, fn)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// A snapshot of a state that a server is writing, with checkpoints coming and going, is some state of the history: files that are
// made one after the other are there up to one and not after it.
func TestSnapshotOfALiveStateIsAPrefix(t *testing.T) {
	x := newFixture(t, smallImage())
	x.crash()
	x.opts.CheckpointBytes = 2000
	x.open()
	done := make(chan error, 1)
	go func() {
		for i := range 3000 {
			if _, err := x.Mknod(unionfs.Root, fmt.Sprintf("f%04d", i), unix.S_IFREG|0o644, 0, owner); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	last := 0
	for running := true; running; {
		select {
		case err := <-done:
			must(t, err)
			running = false
		default:
		}
		s, err := OpenSnapshot(x.dir, x.img.tree, x.img, Options{})
		must(t, err)
		lines := changeLines(t, s, ChangesOptions{Stat: true})
		must(t, s.Close())
		for i, line := range lines {
			if line != fmt.Sprintf("A /f%04d", i) {
				t.Fatalf("change %d of %d: %s", i, len(lines), line)
			}
		}
		if len(lines) < last {
			t.Fatalf("%d files after %d", len(lines), last)
		}
		last = len(lines)
	}
	if last != 3000 {
		t.Errorf("%d files at the end", last)
	}
}

// What has changed is found in the same time in a large image as in a small one.
func BenchmarkChanges(b *testing.B) {
	for _, dirs := range []int{10, 1000} {
		var entries []unionfs.Entry
		for d := range dirs {
			entries = append(entries, subdir(fmt.Sprintf("d%04d", d)))
			for i := range 1000 {
				entries = append(entries, unionfs.Entry{Name: fmt.Sprintf("d%04d/f%04d", d, i), Mode: unix.S_IFIFO | 0o644})
			}
		}
		x := newFixture(b, entries)
		for d := range 10 {
			dir := x.ino(fmt.Sprintf("d%04d", d))
			for i := range 50 {
				x.create(dir, fmt.Sprint("new", i), "")
				must(b, x.Unlink(dir, fmt.Sprintf("f%04d", i)))
				_, err := x.SetAttr(x.ino(fmt.Sprintf("d%04d/f%04d", d, 500+i)), unionfs.SetAttr{Valid: unionfs.SetUID, UID: 5})
				must(b, err)
			}
		}
		must(b, x.Close())
		b.Run(fmt.Sprintf("1510 in an image of %d", dirs*1001), func(b *testing.B) {
			for b.Loop() {
				s, err := OpenSnapshot(x.dir, x.img.tree, x.img, Options{})
				must(b, err)
				if n := len(changeLines(b, s, ChangesOptions{Stat: true})); n != 1510 {
					b.Fatalf("%d changes", n)
				}
				must(b, s.Close())
			}
		})
	}
}
