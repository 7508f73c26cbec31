package unionfs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// addDirs builds a tree from host directories, bottom first.
func addDirs(t testing.TB, dirs ...string) *Tree {
	t.Helper()
	b := NewBuilder()
	for _, d := range dirs {
		if err := b.AddDir(d); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := write(t, b)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// needRoot skips tests that make device nodes, owners and trusted xattrs.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can make the files")
	}
}

// hostDir makes a directory from a script; whiteouts and opaque marks as overlayfs has them.
func hostDir(t testing.TB, script string) string {
	t.Helper()
	dir := t.TempDir()
	makeHostDir(t, dir, parseScript(t, script))
	return dir
}

func makeHostDir(t testing.TB, root string, entries []Entry) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range entries {
		e := &entries[i]
		p := filepath.Join(root, e.Name)
		must(os.MkdirAll(filepath.Dir(p), 0755))
		if filepath.Base(p) == opaqueName {
			must(unix.Setxattr(filepath.Dir(p), "trusted.overlay.opaque", []byte("y"), 0))
			continue
		}
		if name, ok := strings.CutPrefix(filepath.Base(p), whiteoutPrefix); ok {
			must(unix.Mknod(filepath.Join(filepath.Dir(p), name), unix.S_IFCHR, 0))
			continue
		}
		switch e.Mode & unix.S_IFMT {
		case 0:
			must(os.Link(filepath.Join(root, e.Link), p))
			continue
		case unix.S_IFREG:
			writeFile(t, p, []byte(texts[e.Content.Digest]))
		case unix.S_IFDIR:
			must(os.MkdirAll(p, 0755))
		case unix.S_IFLNK:
			must(os.Symlink(e.Symlink, p))
		default:
			must(unix.Mknod(p, e.Mode, int(e.Rdev)))
		}
		must(os.Lchown(p, int(e.UID), int(e.GID)))
		if e.Mode&unix.S_IFMT != unix.S_IFLNK {
			must(unix.Chmod(p, e.Mode&07777))
		}
		for k, v := range e.Xattrs {
			must(unix.Lsetxattr(p, k, []byte(v), 0))
		}
	}
	for _, e := range slices.Backward(entries) { // children before parents
		if !strings.HasPrefix(filepath.Base(e.Name), whiteoutPrefix) {
			setMtime(t, filepath.Join(root, e.Name), e.Mtime)
		}
	}
	setMtime(t, root, Time{})
}

func setMtime(t testing.TB, path string, m Time) {
	t.Helper()
	at := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: m.Sec, Nsec: int64(m.Nsec)}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, at, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		t.Fatal(err)
	}
}

// readContents puts the texts of files into facts, by the paths that the tree gives their contents.
func readContents(t *testing.T, tree *Tree, facts []fact) {
	t.Helper()
	for i := range facts {
		f := &facts[i]
		if f.mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		ino := Root
		for name := range strings.SplitSeq(f.path, "/") {
			ino, _ = tree.Lookup(ino, name)
		}
		c, ok := tree.Content(ino)
		if !ok {
			t.Fatalf("%s has no content", f.path)
		}
		text, err := os.ReadFile(filepath.Join(tree.Layers()[c.Layer].Path, c.Path))
		if err != nil {
			t.Fatal(err)
		}
		f.text = string(text)
	}
}

func wantDirTree(t *testing.T, tree *Tree, want string) {
	t.Helper()
	got := facts(t, tree)
	readContents(t, tree, got)
	var lines []string
	for line := range strings.Lines(want) {
		lines = append(lines, strings.TrimSpace(line))
	}
	shown := show(got)
	for i := range shown {
		shown[i] = strings.TrimSpace(shown[i]) // an empty file has a space for its content
	}
	if !slices.Equal(shown, lines) {
		t.Errorf("the tree is\n\t%s\nand should be\n\t%s", strings.Join(shown, "\n\t"), strings.Join(lines, "\n\t"))
	}
}

func TestHostDirKeepsEverything(t *testing.T) {
	needRoot(t)
	dir := hostDir(t, "d d 1777 u=1:2 @5\n f d/f text 4755 u=3:4 @-6 user.a=1 trusted.b=2\n h g d/f\n s s some/target @3\n p p 0600\n c c 5:1")
	if err := unix.Mknod(filepath.Join(dir, "sock"), unix.S_IFSOCK|0600, 0); err != nil {
		t.Fatal(err)
	}
	setMtime(t, filepath.Join(dir, "sock"), Time{Sec: 7, Nsec: 123456789})
	setMtime(t, dir, Time{})
	wantDirTree(t, addDirs(t, dir), `c 5:1
		d/ 1777 u=1:2 @5
		d/f text 4755 u=3:4 @-6 trusted.b=2 user.a=1
		g = d/f
		p| 0600
		s -> some/target @3
		sock socket 0600 @7.123456789`)
}

func TestHostDirsAreLayers(t *testing.T) {
	needRoot(t)
	lower := hostDir(t, "f a 1\n f b 1\n d d 0700\n f d/x 1\n d e\n f e/x 1\n f f 1\n h g f")
	writeFile(t, filepath.Join(lower, ".wh.c"), nil)
	setMtime(t, filepath.Join(lower, ".wh.c"), Time{Sec: scriptMtime})
	middle := hostDir(t, "w a\n d d\n o d\n f d/y 2\n d e 0711 user.a=1\n f e/y 2\n f f 2")
	upper := hostDir(t, "f a 3\n d d\n f d/z 3\n d e 0700\n w e/x")
	setMtime(t, upper, Time{Sec: 5})
	tree := addDirs(t, lower, middle, upper)
	wantDirTree(t, tree, `./ @5
		.wh.c
		a 3
		b 1
		d/
		d/y 2
		d/z 3
		e/ 0700
		e/y 2
		f 2
		g 1`)
}

func TestHostDirShowsNoneOfOverlaysAttributes(t *testing.T) {
	needRoot(t)
	dir := hostDir(t, "d d trusted.overlay.origin=x user.overlay.impure=y trusted.overlay.overlay.opaque=z user.other=1\n f f - trusted.overlay.nlink=U+1")
	wantDirTree(t, addDirs(t, dir), "d/ trusted.overlay.opaque=z user.other=1\nf -")
}

func TestHostDirWithWhiteoutAttributes(t *testing.T) {
	needRoot(t)
	lower := hostDir(t, "f d/a 1\n f d/b 1\n f e/a 1\n f f/a 1")
	upper := hostDir(t, "d d trusted.overlay.opaque=x\n d e\n d f user.overlay.opaque=y")
	for _, name := range []string{"d/a", "e/a"} { // e says nothing of whiteouts in it
		writeFile(t, filepath.Join(upper, name), nil)
		if err := unix.Setxattr(filepath.Join(upper, name), "trusted.overlay.whiteout", []byte("y"), 0); err != nil {
			t.Fatal(err)
		}
		setMtime(t, filepath.Join(upper, name), Time{Sec: scriptMtime})
		setMtime(t, filepath.Dir(filepath.Join(upper, name)), Time{Sec: scriptMtime})
	}
	tree := addDirs(t, lower, upper)
	got := show(facts(t, tree))
	if want := []string{"d/", "d/b ", "e/", "e/a ", "f/"}; !slices.Equal(got, want) {
		t.Errorf("the tree is %q, should be %q", got, want)
	}
}

func TestHostDirThatRedirectsIsRefused(t *testing.T) {
	needRoot(t)
	for script, name := range map[string]string{
		"d a/d trusted.overlay.redirect=/x":  "a/d",
		"f a/f - trusted.overlay.metacopy=x": "a/f",
		"f a/f - user.overlay.metacopy=x":    "a/f",
	} {
		err := NewBuilder().AddDir(hostDir(t, script))
		wantEntryError(t, err, name, "overlayfs finds its data")
	}
}

func TestHostDirErrors(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	err := NewBuilder().AddDir(missing)
	wantEntryError(t, err, ".", missing)
	if !errors.Is(err, unix.ENOENT) {
		t.Errorf("error %v is not ENOENT", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	writeFile(t, file, nil)
	if err := NewBuilder().AddDir(file); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("error %v is not ENOTDIR", err)
	}
}

func TestHostDirGivenAsSymlinkIsFollowed(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a"), []byte("1"))
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if tree := addDirs(t, link); tree.DirLen(Root) != 1 {
		t.Error("the directory behind the symlink was not read")
	}
}

func TestHostDirUsesTheLayerJustStarted(t *testing.T) {
	dir := t.TempDir()
	b := NewBuilder()
	if err := b.AddLayer(Layer{Format: FormatDir, MediaType: "mine"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.AddDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := write(t, b)
	if err != nil {
		t.Fatal(err)
	}
	if l := tree.Layers(); len(l) != 2 || l[0].MediaType != "mine" || l[0].Path != dir || l[1].Path != dir {
		t.Errorf("layers are %+v", l)
	}
}

// TestHostDirDeeperThanPathMax walks a path of 20 KiB, with fewer descriptors than it has levels.
func TestHostDirDeeperThanPathMax(t *testing.T) {
	name := strings.Repeat("n", 255)
	depth := 3 * maxOpenDirs
	if depth*len(name) < 2*unix.PathMax {
		t.Fatal("not deep enough")
	}
	root := t.TempDir()
	t.Cleanup(func() { removeDeep(t, root, name, depth) })
	fd, err := unix.Open(root, openDirFlags, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range depth {
		// Two files, for the walk has to come back to each level: "z" is a directory, read after the deep one.
		for _, err := range []error{unix.Mkdirat(fd, name, 0755), unix.Mkdirat(fd, "z", 0755),
			unix.Mknodat(fd, "z/f", unix.S_IFREG, 0)} {
			if err != nil {
				t.Fatal(i, err)
			}
		}
		next, err := unix.Openat(fd, name, openDirFlags, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	tree := addDirs(t, root)
	dir, path := Root, ""
	for range depth {
		z, ok := tree.Lookup(dir, "z")
		f, ok2 := tree.Lookup(z, "f")
		c, ok3 := tree.Content(f)
		if !ok || !ok2 || !ok3 || c.Path != path+"z/f" {
			t.Fatalf("content of the file at depth %d is %+v", len(path)/256, c)
		}
		dir, _ = tree.Lookup(dir, name)
		path += name + "/"
	}
	if got := tree.Totals(); got.Dirs != 1+2*depth || got.Files != depth {
		t.Errorf("totals are %+v", got)
	}
}

// removeDeep removes what os.RemoveAll can't name.
func removeDeep(t *testing.T, root, name string, depth int) {
	fds := make([]int, depth+1)
	fds[0], _ = unix.Open(root, openDirFlags, 0)
	for i := range depth {
		fds[i+1], _ = unix.Openat(fds[i], name, openDirFlags, 0)
	}
	for _, fd := range slices.Backward(fds) {
		unix.Unlinkat(fd, "z/f", 0)
		unix.Unlinkat(fd, "z", unix.AT_REMOVEDIR)
		unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
		unix.Close(fd)
	}
}

// TestOverlayfsAgreesOnHostDirs mounts the same random directories with the kernel's overlayfs.
func TestOverlayfsAgreesOnHostDirs(t *testing.T) {
	needRoot(t)
	for seed := range uint64(30) {
		r := randomLayers{rand: rand.New(rand.NewPCG(seed, 2)), tidy: true}
		var dirs []string
		for _, entries := range r.image(5, 40) {
			dir := t.TempDir()
			makeHostDir(t, dir, asOnDisk(entries))
			dirs = append(dirs, dir)
		}
		want := overlayFacts(t, dirs)
		got := facts(t, addDirs(t, dirs...))
		readContents(t, addDirs(t, dirs...), got)
		if a, b := show(got), show(want); !slices.Equal(a, b) {
			t.Fatalf("seed %d: we make\n\t%s\noverlayfs makes\n\t%s", seed, strings.Join(a, "\n\t"), strings.Join(b, "\n\t"))
		}
	}
}

// asOnDisk leaves those entries that a directory can hold together: one for a name.
func asOnDisk(entries []Entry) []Entry {
	last := map[string]int{}
	name := func(e *Entry) string {
		if filepath.Base(e.Name) == opaqueName {
			return e.Name
		}
		return filepath.Join(filepath.Dir(e.Name), strings.TrimPrefix(filepath.Base(e.Name), whiteoutPrefix))
	}
	for i := range entries {
		last[name(&entries[i])] = i
	}
	var out []Entry
	for i := range entries {
		e := &entries[i]
		target, linked := last[e.Link]
		if last[name(e)] == i && (!linked || target < i) {
			out = append(out, *e)
		}
	}
	return out
}

// overlayFacts mounts directories as lower layers, in a mount namespace that ends with the goroutine's thread.
func overlayFacts(t *testing.T, dirs []string) []fact {
	t.Helper()
	all := append([]string{}, dirs...)
	slices.Reverse(all)
	all = append(all, t.TempDir()) // overlayfs wants two
	at := t.TempDir()
	var got []fact
	inMountNamespace(t, func() error {
		if err := unix.Mount("overlay", at, "overlay", 0, "lowerdir="+strings.Join(all, ":")); err != nil {
			return fmt.Errorf("mount overlay: %w", err)
		}
		got = hostFacts(t, at)
		return nil
	})
	return got
}

// inMountNamespace calls f where its mounts are its own, and end with it.
func inMountNamespace(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		defer close(done)      // also when f ends the goroutine
		runtime.LockOSThread() // and never unlocked: the thread ends
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
		} else if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			done <- fmt.Errorf("make mounts private: %w", err)
		} else if err := f(); err != nil {
			done <- err
		}
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if t.Failed() {
		t.FailNow()
	}
}
