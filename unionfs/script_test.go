package unionfs

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Tests write layers as scripts, one entry a line:
//
//	d NAME            directory        f NAME CONTENT    regular file     s NAME TARGET   symlink
//	h NAME TARGET     hard link        p NAME            FIFO             c NAME MAJ:MIN  character device
//	w NAME            whiteout of NAME o DIR             opaque mark in DIR
//
// followed by attributes that are not the default: mode in octal (4 digits), UID:GID after "u=", mtime after "@",
// xattrs as name=value. Trees are printed in the same spirit, see show.

// scriptMtime is the mtime of entries that don't say otherwise. Made-up directories have 0.
const scriptMtime = 1000

func parseScript(t testing.TB, script string) []Entry {
	t.Helper()
	var entries []Entry
	for line := range strings.Lines(script) {
		if f := strings.Fields(line); len(f) > 0 {
			entries = append(entries, parseEntry(t, f))
		}
	}
	return entries
}

func parseEntry(t testing.TB, f []string) Entry {
	t.Helper()
	e := Entry{Name: f[1], Mtime: Time{Sec: scriptMtime}}
	more := f[2:]
	arg := func() string { a := more[0]; more = more[1:]; return a }
	switch f[0] {
	case "d":
		e.Mode = unix.S_IFDIR | 0755
	case "f":
		e.Mode = unix.S_IFREG | 0644
		e.Content = textContent(arg())
		e.Size = e.Content.Size
	case "s":
		e.Mode, e.Symlink = unix.S_IFLNK|0777, arg()
	case "h":
		e.Link = arg()
	case "p":
		e.Mode = unix.S_IFIFO | 0644
	case "c":
		major, minor, _ := strings.Cut(arg(), ":")
		e.Mode, e.Rdev = unix.S_IFCHR|0644, unix.Mkdev(uint32(number(t, major, 10)), uint32(number(t, minor, 10)))
	case "w":
		dir, name := filepath.Split(f[1])
		e.Name, e.Mode = dir+".wh."+name, unix.S_IFREG|0644
	case "o":
		e.Name, e.Mode = f[1]+"/.wh..wh..opq", unix.S_IFREG|0644
	default:
		t.Fatalf("script: what is %q?", f)
	}
	for _, a := range more {
		k, v, isPair := strings.Cut(a, "=")
		switch {
		case k == "u":
			uid, gid, _ := strings.Cut(v, ":")
			e.UID, e.GID = uint32(number(t, uid, 10)), uint32(number(t, gid, 10))
		case isPair:
			if e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			e.Xattrs[k] = v
		case a[0] == '@':
			e.Mtime.Sec = number(t, a[1:], 10)
		default:
			e.Mode = e.Mode&unix.S_IFMT | uint32(number(t, a, 8))
		}
	}
	return e
}

func number(t testing.TB, s string, base int) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, base, 64)
	if err != nil {
		t.Fatalf("script: %v", err)
	}
	return n
}

// texts knows what digest stands for what text, for show.
var texts = map[Digest]string{}

// textContent is the content of a file of a plain layer.
func textContent(text string) Content {
	d := Digest(sha256.Sum256([]byte(text)))
	texts[d] = text
	return Content{Digest: d, Size: int64(len(text))}
}

// mergeEntries builds a tree from plain layers. The error is the Builder's.
func mergeEntries(t testing.TB, layers ...[]Entry) (*Tree, error) {
	t.Helper()
	b := NewBuilder()
	for _, entries := range layers {
		if err := b.AddLayer(Layer{Format: FormatPlain}); err != nil {
			return nil, err
		}
		for i := range entries {
			if err := b.Add(&entries[i]); err != nil {
				return nil, err
			}
		}
	}
	return write(t, b)
}

// write loads what b writes, and verifies it, all in memory. Open and WriteFile have their own tests.
func write(t testing.TB, b *Builder) (*Tree, error) {
	t.Helper()
	if err := b.endLayer(); err != nil {
		return nil, err
	}
	var file memFile
	if err := b.write(&file); err != nil {
		return nil, err
	}
	tree := &Tree{path: "memory", data: file}
	if err := tree.load(); err != nil {
		t.Fatal(err)
	}
	if err := tree.Verify(); err != nil {
		t.Fatal(err)
	}
	return tree, nil
}

// memFile is an io.WriterAt.
type memFile []byte

func (m *memFile) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(*m) {
		*m = append(*m, make([]byte, end-len(*m))...)
	}
	return copy((*m)[off:], p), nil
}

func merge(t testing.TB, scripts ...string) *Tree {
	t.Helper()
	tree, err := mergeScripts(t, scripts...)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func mergeScripts(t testing.TB, scripts ...string) (*Tree, error) {
	t.Helper()
	var layers [][]Entry
	for _, s := range scripts {
		layers = append(layers, parseScript(t, s))
	}
	return mergeEntries(t, layers...)
}

// wantTree compares a tree with the lines of show.
func wantTree(t *testing.T, tree *Tree, want string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(want) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if got := show(facts(t, tree)); !slices.Equal(got, lines) {
		t.Errorf("the tree is\n\t%s\nand should be\n\t%s", strings.Join(got, "\n\t"), strings.Join(lines, "\n\t"))
	}
}

// wantEntryError wants merging to be refused for the entry called name, with all of words in the reason.
func wantEntryError(t *testing.T, err error, name string, words ...string) {
	t.Helper()
	var ee *EntryError
	if !errors.As(err, &ee) || ee.Name != name {
		t.Fatalf("error is %v, should be an EntryError about %q", err, name)
	}
	for _, w := range words {
		if !strings.Contains(ee.Error(), w) {
			t.Errorf("error is %q, should say %q", ee, w)
		}
	}
}

// fact is what a tree, or a directory on the host, says of one name.
type fact struct {
	path   string
	mode   uint32
	uid    uint32
	gid    uint32
	nlink  uint32
	rdev   uint64
	mtime  Time
	same   string // the first path of the same inode, if it is another one
	text   string // content or target
	xattrs map[string]string
}

// facts returns all that there is to know of a tree, sorted by path; the root is ".".
func facts(t testing.TB, tree *Tree) []fact {
	t.Helper()
	var all []fact
	var walk func(ino Ino, path string)
	walk = func(ino Ino, path string) {
		all = append(all, factOf(t, tree, ino, path))
		for i := range tree.DirLen(ino) {
			name, child, _ := tree.DirAt(ino, i)
			if found, ok := tree.Lookup(ino, name); !ok || found != child {
				t.Errorf("Lookup(%d, %q) = %d, %v, should be %d", ino, name, found, ok, child)
			}
			walk(child, filepath.Join(path, name))
		}
	}
	walk(Root, ".")
	slices.SortFunc(all, func(a, b fact) int { return strings.Compare(a.path, b.path) })
	first := map[string]string{}
	for i := range all {
		key := all[i].same
		if all[i].same = first[key]; all[i].same == "" {
			first[key] = all[i].path
		}
		ino, _ := strconv.ParseUint(key, 10, 64)
		if p, ok := tree.Path(ino); !ok || all[i].nlink < 2 && p != all[i].path {
			t.Errorf("Path(%d) = %q, %v, should be %q", ino, p, ok, all[i].path)
		}
	}
	return all
}

func factOf(t testing.TB, tree *Tree, ino Ino, path string) fact {
	t.Helper()
	a, ok := tree.Attr(ino)
	if !ok {
		t.Fatalf("%s: inode %d has no attributes", path, ino)
	}
	f := fact{path: path, mode: a.Mode, uid: a.UID, gid: a.GID, nlink: a.Nlink, rdev: a.Rdev, mtime: a.Mtime,
		same: fmt.Sprint(ino), xattrs: map[string]string{}}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		c, ok := tree.Content(ino)
		if !ok || c.Size != a.Size {
			t.Errorf("%s: %d bytes with content %+v, %v", path, a.Size, c, ok)
		}
		f.text = texts[c.Digest]
	case unix.S_IFLNK:
		f.text, _ = tree.Readlink(ino)
	}
	for _, name := range tree.Xattrs(ino) {
		value, ok := tree.Xattr(ino, name)
		if !ok {
			t.Errorf("%s: xattr %s is listed and has no value", path, name)
		}
		f.xattrs[name] = string(value)
	}
	return f
}

// show prints facts, one a line: "NAME/" for a directory, "NAME CONTENT", "NAME -> TARGET", "NAME = FIRST" for a
// further name of an inode, and the attributes that are not a script's defaults. The root shows only if it has some.
func show(facts []fact) []string {
	var lines []string
	for i := range facts {
		if line := facts[i].String(); line != "./ @0" {
			lines = append(lines, line)
		}
	}
	return lines
}

func (f *fact) String() string {
	if f.same != "" {
		return f.path + " = " + f.same
	}
	line, perm := f.path, uint32(0644)
	switch f.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		line, perm = line+"/", 0755
	case unix.S_IFREG:
		line += " " + f.text
	case unix.S_IFLNK:
		line, perm = line+" -> "+f.text, 0777
	case unix.S_IFIFO:
		line += "|"
	case unix.S_IFSOCK:
		line += " socket"
	default:
		line += fmt.Sprintf(" %d:%d", unix.Major(f.rdev), unix.Minor(f.rdev))
	}
	if f.mode&07777 != perm {
		line += fmt.Sprintf(" %04o", f.mode&07777)
	}
	if f.uid != 0 || f.gid != 0 {
		line += fmt.Sprintf(" u=%d:%d", f.uid, f.gid)
	}
	if f.mtime.Nsec != 0 {
		line += fmt.Sprintf(" @%d.%09d", f.mtime.Sec, f.mtime.Nsec)
	} else if f.mtime.Sec != scriptMtime {
		line += fmt.Sprintf(" @%d", f.mtime.Sec)
	}
	for _, k := range slices.Sorted(maps.Keys(f.xattrs)) {
		line += " " + k + "=" + f.xattrs[k]
	}
	return line
}
