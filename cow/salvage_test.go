package cow

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

func (x *fixture) salvage() (to string, r *Report) {
	x.t.Helper()
	to = filepath.Join(x.t.TempDir(), "out")
	r, err := Salvage(x.t.Context(), x.dir, x.img.tree, x.img, Options{}, nil, to)
	must(x.t, err)
	return to, r
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("owners and devices need root")
	}
}

// compareSalvaged wants at every path that the model has and the image has not so, what the model has.
func (m *model) compareSalvaged(t testing.TB, img *image, to string) {
	t.Helper()
	was := newModel(img)
	paths := 0
	var walk func(path string, old, now *mInode)
	walk = func(path string, old, now *mInode) {
		same := old != nil && old.ino == now.ino && old.mode == now.mode && old.uid == now.uid && old.gid == now.gid &&
			bytes.Equal(old.data, now.data) && old.times[mtime] == now.times[mtime]
		if !same && path != "" {
			paths++
			now.compareFile(t, to+path)
		}
		for name, child := range now.ents {
			var before *mInode
			if old != nil {
				before = old.ents[name]
			}
			walk(path+"/"+name, before, child)
		}
	}
	walk("", was.inodes[unionfs.Root], m.inodes[unionfs.Root])
	if paths == 0 {
		t.Error("nothing was compared")
	}
}

func (n *mInode) compareFile(t testing.TB, path string) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Errorf("%s: %v", path, err)
		return
	}
	mode := n.mode
	if n.typ() == unix.S_IFLNK {
		mode = unix.S_IFLNK | 0o777
		if target, _ := os.Readlink(path); target != n.target {
			t.Errorf("%s leads to %q, want %q", path, target, n.target)
		}
	}
	if n.typ() == unix.S_IFREG {
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, n.data) {
			t.Errorf("%s: %d bytes, %v; want %d", path, len(b), err, len(n.data))
		}
	}
	when := unionfs.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}
	if max := int64(1) << 34; n.times[mtime].Sec > max { // ext4 has 34 bits
		when = n.times[mtime]
	}
	if st.Mode != mode || st.Uid != n.uid || st.Gid != n.gid || st.Rdev != n.rdev || when != n.times[mtime] {
		t.Errorf("%s: mode %o owner %d:%d device %d mtime %v, want %o %d:%d %d %v", path, st.Mode, st.Uid, st.Gid, st.Rdev, when,
			mode, n.uid, n.gid, n.rdev, n.times[mtime])
	}
	for name, want := range n.xattrs {
		v := make([]byte, 100)
		k, err := unix.Lgetxattr(path, name, v)
		if strings.HasPrefix(name, "user.") && n.typ() != unix.S_IFREG && n.typ() != unix.S_IFDIR || name == capability {
			continue // only our own file system takes these everywhere
		}
		if err != nil || string(v[:k]) != want {
			t.Errorf("%s: xattr %s is %q, %v; want %q", path, name, v[:max(k, 0)], err, want)
		}
	}
}

func TestSalvageOfASoundState(t *testing.T) {
	needRoot(t)
	for seed := range uint64(6) {
		w := newWalker(t, 800+seed)
		for range 250 {
			w.step()
		}
		w.m.forget()
		w.crash()
		to, _ := w.salvage()
		w.m.compareSalvaged(t, w.img, to)
		if _, err := os.Lstat(filepath.Join(to, lostFound)); err == nil {
			t.Error("something was lost")
		}
	}
}

// Of a journal that is damaged in the middle everything before the damage is there.
func TestSalvageOfADamagedRecord(t *testing.T) {
	needRoot(t)
	for seed := range uint64(4) {
		w := newWalker(t, 900+seed)
		for range 100 {
			w.step()
		}
		must(t, w.Sync())
		size, before := w.JournalSize(), w.m.clone()
		before.forget()
		for range 2 { // content of files that change later would be newer
			_, err := w.Mkdir(unionfs.Root, fmt.Sprint("later", w.JournalSize()), 0o755, owner)
			must(t, err)
		}
		w.crash()
		name := w.journalFile()
		b, err := os.ReadFile(name)
		must(t, err)
		b[size+frameHeader] ^= 0x10
		must(t, os.WriteFile(name, b, 0o600))
		to, r := w.salvage()
		wantProblem(t, r, fmt.Sprintf("%s at byte %d: a record is damaged; it and 1 whole ones after it are left out", filepath.Base(name), size), false)
		before.compareSalvaged(t, w.img, to)
		if names, _ := filepath.Glob(to + "/later*"); len(names) > 0 {
			t.Errorf("what came after the damage is there: %q", names)
		}
	}
}

// Of a checkpoint with a damaged record the other records are read; what has lost its directory is in lost+found.
func TestSalvageOfADamagedCheckpoint(t *testing.T) {
	x := newFixture(t, smallImage())
	for d := range 8 {
		dir, err := x.Mkdir(unionfs.Root, fmt.Sprint("dir", d), 0o755, owner)
		must(t, err)
		for i := range 120 {
			_, err := x.Symlink(dir.Ino, fmt.Sprintf("link%d-%s", i, strings.Repeat("n", 100)), fmt.Sprintf("to %d of %d", i, d), owner)
			must(t, err)
		}
	}
	must(t, x.Close())
	name := filepath.Join(x.dir, checkpointName)
	b, err := os.ReadFile(name)
	must(t, err)
	b[len(b)/2] ^= 1
	must(t, os.WriteFile(name, b, 0o600))
	to, r := x.salvage()
	wantProblem(t, r, "bytes are damaged, and what they say of inodes is lost", false)
	found := make(map[string]bool)
	must(t, filepath.WalkDir(to, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type() == fs.ModeSymlink {
			target, _ := os.Readlink(path)
			found[target] = true
		}
		return err
	}))
	if len(found) < 300 || len(found) == 960 {
		t.Errorf("%d of 960 links were found", len(found))
	}
	if lost, _ := os.ReadDir(filepath.Join(to, lostFound)); len(lost) == 0 {
		t.Error("nothing is in lost+found")
	}
}

func TestSalvageOfMissingParts(t *testing.T) {
	x := newFixture(t, smallImage())
	ino := x.create(unionfs.Root, "gone", strings.Repeat("content", 10_000))
	x.create(unionfs.Root, "kept", "content")
	x.write(x.ino("etc/passwd"), "ours", 0)
	must(t, x.Close())
	must(t, os.Remove(filepath.Join(x.dir, objectName(ino))))
	x.img.fail = unix.EIO
	to, r := x.salvage()
	wantProblem(t, r, "/gone: its data object", false)
	wantProblem(t, r, "/etc/passwd: 1230 bytes of it cannot be read", false)
	b, err := os.ReadFile(filepath.Join(to, "etc/passwd"))
	if err != nil || len(b) != 1234 || !strings.HasPrefix(string(b), "ours\x00") {
		t.Errorf("/etc/passwd: %d bytes, %v", len(b), err)
	}
	if b, err := os.ReadFile(filepath.Join(to, "kept")); string(b) != "content" {
		t.Errorf("/kept: %q, %v", b, err)
	}
	must(t, os.Remove(filepath.Join(x.dir, checkpointName)))
	_, r = x.salvage()
	wantProblem(t, r, "checkpoint: it is missing", false)
}

// Nothing that a container can do to its tree leads out of the directory, or makes the walk end early.
func TestSalvageOfAHostileTree(t *testing.T) {
	x := newFixture(t, smallImage())
	outside := t.TempDir()
	mk := func(dir Ino, name string) Ino {
		a, err := x.Mkdir(dir, name, 0o755, owner)
		must(t, err)
		return a.Ino
	}
	_, err := x.Symlink(unionfs.Root, lostFound, outside, owner)
	must(t, err)
	deep := unionfs.Root
	for range 1000 {
		deep = mk(deep, "deep")
	}
	x.create(deep, "bottom", "content")
	d := mk(unionfs.Root, "d")
	tx, err := x.begin()
	must(t, err)
	for i, name := range []string{"..", "../../escaped", ".", "a/b", "nul\x00", strings.Repeat("n", 300)} {
		ino := x.next
		tx.tag(tagNew, ino)
		for _, v := range []uint64{unix.S_IFREG | 0o644, 1, 0, 0, uint64(i)} {
			tx.u(v)
		}
		tx.time(tx.now)
		tx.link(d, name, ino, unix.S_IFREG)
		must(t, tx.commit())
		tx = x.fill()
	}
	tx.end()
	x.crash()
	to, r := x.salvage()
	wantProblem(t, r, "there cannot be a file", false)
	lost, err := os.ReadDir(filepath.Join(to, lostFound))
	must(t, err)
	if len(lost) < 8 { // six files with bad names, the symlink, and parts of the deep directory
		t.Errorf("in lost+found: %v", lost)
	}
	found := false
	for _, e := range lost {
		path := filepath.Join(to, lostFound, e.Name())
		for e.IsDir() && !found {
			if _, err := os.Lstat(path + "/bottom"); err == nil {
				found = true
			}
			path += "/deep"
			if _, err := os.Lstat(path); err != nil {
				break
			}
		}
	}
	if !found {
		t.Error("the bottom of the deep directory is not there")
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("outside: %v", left)
	}
	if left, _ := os.ReadDir(filepath.Dir(to)); len(left) != 1 {
		t.Errorf("beside: %v", left)
	}
}

func TestSalvageWantsAnEmptyDirectory(t *testing.T) {
	x := newFixture(t, smallImage())
	to := t.TempDir()
	must(t, os.WriteFile(to+"/file", nil, 0o600))
	if _, err := Salvage(t.Context(), x.dir, x.img.tree, x.img, Options{}, nil, to); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("error %v", err)
	}
}

func FuzzSalvage(f *testing.F) {
	img := fuzzSeeds(f, func(w *walker) string { return journalName(w.journal.gen) })
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerSize || len(b) > 1<<16 {
			return
		}
		body := b[headerSize:]
		j := header{magic: journalMagic, tree: treeID(img.tree), gen: 1}
		c := header{magic: checkpointMagic, tree: treeID(img.tree), gen: 2}
		for name, state := range map[string][]byte{
			"journal.1": b, "journal.2": resealed(append(j.encode(), body...), 0), checkpointName: resealed(append(c.encode(), body...), 0),
		} {
			trySalvage(t, img, strings.Replace(name, "journal.2", "journal.1", 1), state)
		}
	})
}

func trySalvage(t *testing.T, img *image, name string, b []byte) {
	dir := fastDir(t)
	state := filepath.Join(dir, "state")
	must(t, os.Mkdir(state, 0o700))
	must(t, os.WriteFile(filepath.Join(state, name), b, 0o600))
	before := stateBytes(t, state)
	_, _ = Check(state, img.tree, Options{})
	if snap, err := OpenSnapshot(state, img.tree, img, Options{}); err == nil {
		_ = snap.Changes(ChangesOptions{Stat: true}, func(Change) error { return nil })
		_, _ = snap.WriteLayer(t.Context(), &shortDisk{left: 1 << 20}, nil)
		must(t, snap.Close())
	}
	_, _ = Salvage(t.Context(), state, img.tree, img, Options{}, nil, filepath.Join(dir, "out"))
	if !maps.Equal(before, stateBytes(t, state)) {
		t.Error("the state has changed")
	}
	if left, _ := os.ReadDir(dir); len(left) > 2 {
		t.Errorf("beside: %v", left)
	}
}

// After the machine went down the history ends with the last commit, for all who look at it.
func TestSalvageAndCheckEndWithTheLastCommit(t *testing.T) {
	x := newFixture(t, smallImage())
	x.crash()
	x.opts.boot, x.opts.CommitInterval = 1, -1
	x.dir = t.TempDir()
	x.open()
	x.create(unionfs.Root, "before", "content")
	must(t, x.Sync())
	x.create(unionfs.Root, "after", "content")
	x.crash()
	next := Options{boot: 2}
	to := filepath.Join(t.TempDir(), "out")
	r, err := Salvage(t.Context(), x.dir, x.img.tree, x.img, next, nil, to)
	must(t, err)
	wantProblem(t, r, "were not on stable storage when the machine went down", true)
	if names, _ := filepath.Glob(to + "/*"); len(names) != 1 || filepath.Base(names[0]) != "before" {
		t.Errorf("salvaged: %q", names)
	}
	r, err = Check(x.dir, x.img.tree, next)
	must(t, err)
	if r.Damaged() {
		t.Errorf("check: %v", r.Problems)
	}
	s, err := OpenSnapshot(x.dir, x.img.tree, x.img, next)
	must(t, err)
	defer s.Close()
	if lines := changeLines(t, s, ChangesOptions{Stat: true}); !slices.Equal(lines, []string{"A /before"}) {
		t.Errorf("changes: %q", lines)
	}
}

// shortDisk is full after some bytes.
type shortDisk struct{ left int }

func (d *shortDisk) Write(p []byte) (int, error) {
	if d.left -= len(p); d.left < 0 {
		return 0, unix.ENOSPC
	}
	return len(p), nil
}
