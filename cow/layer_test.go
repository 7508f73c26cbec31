package cow

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// layer exports the changes, twice, and returns the tar.
func (x *fixture) layer() []byte {
	x.t.Helper()
	s := x.snapshot()
	defer s.Close()
	var first, second bytes.Buffer
	_, err := s.WriteLayer(x.t.Context(), &first, nil)
	must(x.t, err)
	_, err = s.WriteLayer(x.t.Context(), &second, nil)
	must(x.t, err)
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		x.t.Error("a second export has other bytes")
	}
	return first.Bytes()
}

// tarEntries reads a tar as the entries of a layer. A file's digest is that of its bytes.
func tarEntries(t testing.TB, b []byte) (entries []unionfs.Entry) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return entries
		}
		must(t, err)
		e := unionfs.Entry{
			Name: h.Name, Mode: uint32(h.Mode), UID: uint32(h.Uid), GID: uint32(h.Gid), Size: h.Size,
			Mtime: unionfs.Time{Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond())}, Xattrs: map[string]string{},
		}
		e.Mode |= map[byte]uint32{tar.TypeReg: unix.S_IFREG, tar.TypeDir: unix.S_IFDIR, tar.TypeSymlink: unix.S_IFLNK,
			tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
		e.Rdev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
		switch h.Typeflag {
		case tar.TypeLink:
			e.Link, e.Mode = h.Linkname, 0
		case tar.TypeSymlink:
			e.Symlink, e.Size = h.Linkname, 0
		case tar.TypeReg:
			text, err := io.ReadAll(r)
			must(t, err)
			e.Content = unionfs.Content{Size: h.Size, Digest: sha256.Sum256(text)}
		}
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				e.Xattrs[name] = v
			}
		}
		entries = append(entries, e)
	}
}

// apply merges a layer over an image.
func apply(t testing.TB, image []unionfs.Entry, layer []byte) *unionfs.Tree {
	t.Helper()
	b := unionfs.NewBuilder()
	for _, entries := range [][]unionfs.Entry{image, tarEntries(t, layer)} {
		must(t, b.AddLayer(unionfs.Layer{Format: unionfs.FormatPlain}))
		for i := range entries {
			must(t, b.Add(&entries[i]))
		}
	}
	path := t.TempDir() + "/tree"
	must(t, b.WriteFile(path))
	tree, err := unionfs.Open(path)
	must(t, err)
	t.Cleanup(func() { tree.Close() })
	return tree
}

// describeTree has a line for each path with all that a layer carries. Files of the image are known by contents that are
// made of the inode number.
func describeTree(t testing.TB, img *image, tree *unionfs.Tree) []string {
	texts := make(map[unionfs.Digest]unionfs.Digest)
	for ino := unionfs.Root; ino <= img.tree.MaxIno(); ino++ {
		if c, ok := img.tree.Content(ino); ok {
			texts[c.Digest] = sha256.Sum256([]byte(imageText(ino, c.Size)))
		}
	}
	d := describer{first: map[Ino]string{}}
	var walk func(path string, ino Ino)
	walk = func(path string, ino Ino) {
		a, _ := tree.Attr(ino)
		target, _ := tree.Readlink(ino)
		xattrs := make(map[string]string)
		for _, name := range tree.Xattrs(ino) {
			v, _ := tree.Xattr(ino, name)
			xattrs[name] = string(v)
		}
		var digest unionfs.Digest
		if c, ok := tree.Content(ino); ok {
			if digest = c.Digest; texts[digest] != (unionfs.Digest{}) {
				digest = texts[digest]
			}
		}
		d.line(path, &a, target, xattrs, digest)
		for i := range tree.DirLen(ino) {
			name, child, _ := tree.DirAt(ino, i)
			walk(path+"/"+name, child)
		}
	}
	walk("", unionfs.Root)
	return d.lines
}

func (m *model) describe() []string {
	d := describer{first: map[Ino]string{}}
	var walk func(path string, n *mInode)
	walk = func(path string, n *mInode) {
		a := unionfs.Attr{Ino: n.ino, Mode: n.mode, Nlink: n.nlink, UID: n.uid, GID: n.gid, Rdev: n.rdev, Size: int64(len(n.data)), Mtime: n.times[mtime]}
		var digest unionfs.Digest
		if n.typ() == unix.S_IFREG {
			digest = sha256.Sum256(n.data)
		}
		d.line(path, &a, n.target, n.xattrs, digest)
		for _, name := range slices.Sorted(maps.Keys(n.ents)) {
			walk(path+"/"+name, n.ents[name])
		}
	}
	walk("", m.inodes[unionfs.Root])
	return d.lines
}

type describer struct {
	first map[Ino]string
	lines []string
}

func (d *describer) line(path string, a *unionfs.Attr, target string, xattrs map[string]string, digest unionfs.Digest) {
	if a.Mode&unix.S_IFMT == unix.S_IFLNK {
		a.Mode |= 0o777 // as the kernel shows it
		a.Mode &^= 0o7000
	}
	line := fmt.Sprintf("%s mode %o owner %d:%d mtime %v device %d to %q", path, a.Mode, a.UID, a.GID, a.Mtime, a.Rdev, target)
	if a.Mode&unix.S_IFMT == unix.S_IFREG {
		line += fmt.Sprintf(" size %d %x", a.Size, digest[:4])
	}
	if !isDirMode(a.Mode) {
		if d.first[a.Ino] == "" {
			d.first[a.Ino] = path
		}
		line += fmt.Sprintf(" links %d, first %s", a.Nlink, d.first[a.Ino])
	}
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		line += fmt.Sprintf(" %s=%q", name, xattrs[name])
	}
	d.lines = append(d.lines, line)
}

// The layer, over the image, is the container's tree: with times to the nanosecond, xattrs, devices, and names that are one file.
func TestLayerOverTheImageIsTheTree(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWalker(t, 500+seed)
			for i := range 200 {
				w.step()
				if i%20 != 19 {
					continue
				}
				layer := w.layer()
				got, want := describeTree(t, w.img, apply(t, smallImage(), layer)), w.m.describe()
				if !slices.Equal(got, want) {
					t.Fatalf("after %s: %s", w.last, firstDifference(got, want))
				}
			}
		})
	}
}

func firstDifference(got, want []string) string {
	for i := range max(len(got), len(want)) {
		a, b := "nothing", "nothing"
		if i < len(got) {
			a = got[i]
		}
		if i < len(want) {
			b = want[i]
		}
		if a != b {
			return "\n" + a + "\nwant\n" + b
		}
	}
	return ""
}

// tarNames are the entries' names, with what a hard link leads to.
func tarNames(t testing.TB, b []byte) (names []string) {
	for _, e := range tarEntries(t, b) {
		if e.Link != "" {
			e.Name += " -> " + e.Link
		}
		names = append(names, e.Name)
	}
	return names
}

func wantEntries(t testing.TB, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("entries %q, want %q", got, want)
	}
}

// Only with all its names in the layer a file stays one file, though only one of them is new.
func TestLayerHasAllNamesOfAFileThatGotOne(t *testing.T) {
	x := newFixture(t, smallImage())
	_, err := x.Link(x.ino("etc/passwd"), x.ino("tmp"), "copy")
	must(t, err)
	wantEntries(t, tarNames(t, x.layer()), "./", "etc/", "etc/passwd", "tmp/", "tmp/copy -> etc/passwd")
}

func TestLayerOfAMovedDirectoryKeepsLinksOutOfIt(t *testing.T) {
	x := newFixture(t, append(smallImage(), unionfs.Entry{Name: "etc/rc.d/sh", Link: "bin/sh"}))
	must(t, x.Rename(x.ino("etc"), "rc.d", unionfs.Root, "rc", 0))
	wantEntries(t, tarNames(t, x.layer()), "./", "bin/", "bin/ash", "bin/sh -> bin/ash", "etc/", "etc/.wh.rc.d",
		"rc/", "rc/one", "rc/sh -> bin/ash", "rc/two")
}

func TestLayerOfOddNamesAndNumbers(t *testing.T) {
	x := newFixture(t, smallImage())
	long, binary := strings.Repeat("n", 255), "\xff\xfe\x01"
	must(t, x.Rename(x.ino("etc"), "passwd", unionfs.Root, long, 0))
	x.create(unionfs.Root, binary, "text")
	x.create(unionfs.Root, ".wh.etc", "")
	x.create(unionfs.Root, ".wh..wh..opq", "")
	_, err := x.Mknod(unionfs.Root, "socket", unix.S_IFSOCK|0o644, 0, owner)
	must(t, err)
	_, err = x.Mknod(unionfs.Root, "block", unix.S_IFBLK|0o6644, unix.Mkdev(4095, 1<<20-1), unionfs.Owner{UID: 1<<32 - 2, GID: 1 << 21})
	must(t, err)
	must(t, x.SetXattr(x.ino("block"), "trusted.binary", []byte("\x00\n=\xff"), 0))
	must(t, x.SetXattr(x.ino("block"), "user.a=b", []byte("1"), 0))
	_, err = x.SetAttr(x.ino(binary), unionfs.SetAttr{Valid: unionfs.SetMtime, Mtime: unionfs.Time{Sec: -1 << 33, Nsec: 1}})
	must(t, err)
	s := x.snapshot()
	var b bytes.Buffer
	left, err := s.WriteLayer(t.Context(), &b, nil)
	must(t, err)
	for _, want := range []string{"/.wh..wh..opq", "/.wh.etc", "/block", "/socket"} {
		if !slices.ContainsFunc(left, func(l LeftOut) bool { return l.Path == want }) {
			t.Errorf("nothing says that %s is left out: %v", want, left)
		}
	}
	tree := apply(t, smallImage(), b.Bytes())
	for path, want := range map[string]unionfs.Attr{
		long:    x.attr(long),
		binary:  x.attr(binary),
		"block": x.attr("block"),
	} {
		ino, ok := tree.Lookup(unionfs.Root, path)
		got, _ := tree.Attr(ino)
		if !ok || got.Mode != want.Mode || got.UID != want.UID || got.Rdev != want.Rdev || got.Mtime != want.Mtime || got.Size != want.Size {
			t.Errorf("%q: %+v, want %+v", path, got, want)
		}
		if v, _ := tree.Xattr(ino, "trusted.binary"); path == "block" && string(v) != "\x00\n=\xff" {
			t.Errorf("xattr %q", v)
		}
	}
}

func TestTreeTarIsTheTree(t *testing.T) {
	w := newWalker(t, 600)
	for range 150 {
		w.step()
	}
	s := w.snapshot()
	var b bytes.Buffer
	_, err := s.WriteTree(t.Context(), &b)
	must(t, err)
	if got, want := describeTree(t, w.img, apply(t, nil, b.Bytes())), w.m.describe(); !slices.Equal(got, want) {
		t.Fatal(firstDifference(got, want))
	}
}

// What was written while it was read is told: the tar has it whole, but perhaps as it never was.
func TestExportTellsWhatChangedMeanwhile(t *testing.T) {
	for what, change := range map[string]func(x *fixture, ino Ino){
		"written":   func(x *fixture, ino Ino) { x.write(ino, "more", 2) },
		"cut":       func(x *fixture, ino Ino) { must(x.t, x.resizeTo(ino, 1)) },
		"removed":   func(x *fixture, ino Ino) { must(x.t, x.Unlink(unionfs.Root, "file")); x.Forget(ino) },
		"untouched": func(x *fixture, _ Ino) { x.create(unionfs.Root, "other", "text") },
	} {
		t.Run(what, func(t *testing.T) {
			x := newFixture(t, smallImage())
			ino := x.create(unionfs.Root, "file", "content")
			s := x.snapshot()
			change(x, ino)
			var b bytes.Buffer
			_, err := s.WriteLayer(t.Context(), &b, nil)
			var e *RewrittenError
			if what == "untouched" {
				must(t, err)
			} else if !errors.As(err, &e) || !slices.Equal(e.Paths, []string{"/file"}) {
				t.Errorf("error %v", err)
			}
			wantEntries(t, tarNames(t, b.Bytes()), "./", "file")
		})
	}
}

func (x *fixture) resizeTo(ino Ino, size int64) error {
	_, err := x.SetAttr(ino, unionfs.SetAttr{Valid: unionfs.SetSize, Size: size})
	return err
}

// Zeros in place of content that is lost would be wrong data.
func TestExportOfLostContentFails(t *testing.T) {
	x := newFixture(t, smallImage())
	ino := x.create(unionfs.Root, "file", strings.Repeat("content", 10_000))
	must(t, x.Close())
	must(t, os.Remove(x.disk.path(objectName(ino))))
	s := x.snapshot()
	if _, err := s.WriteLayer(t.Context(), io.Discard, nil); err == nil || !strings.Contains(err.Error(), "/file: its data object") {
		t.Errorf("error %v", err)
	}
}
