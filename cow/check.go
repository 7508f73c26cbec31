package cow

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// Check looks for what is not as it should be in the state in dir, which belongs to tree: each record of the journal and the checkpoint;
// that every entry leads to an inode, every inode has as many names as it should, and every directory one, from which the root
// is reached; that the data objects have the bytes that files have in them. It changes nothing.
//
// It works on a snapshot, also while a server writes: then only what is found again, after the state has changed, is reported.
// *VersionError, *TreeError: the state cannot be checked.
func Check(dir string, tree *unionfs.Tree, o Options) (*Report, error) {
	var found []Problem
	for try := 1; ; try++ {
		before, err := stampOf(dir)
		if err != nil {
			return nil, err
		}
		r, err := check(dir, tree, o)
		if err != nil {
			return nil, err
		}
		after, err := stampOf(dir)
		if err != nil {
			return nil, err
		}
		if try > 1 {
			r.Problems = slices.DeleteFunc(r.Problems, func(p Problem) bool { return !slices.Contains(found, p) })
		}
		if len(r.Problems) == 0 || after == before || try == snapshotTries {
			return r, nil
		}
		found = r.Problems
	}
}

func check(dir string, tree *unionfs.Tree, o Options) (*Report, error) {
	r := new(Report)
	s, err := OpenSnapshot(dir, tree, nil, o)
	var damage *DamageError
	if errors.As(err, &damage) {
		r.add(Problem{File: damage.File, Offset: damage.Offset, Reason: damage.Reason + "; nothing else was checked"})
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if s.torn > 0 {
		r.add(Problem{File: s.last, Offset: s.end, Reason: fmt.Sprintf("%d bytes are no record: an operation that was never answered", s.torn), Harmless: true})
	}
	r.Records, r.Inodes = s.seq, len(s.nodes)
	c := &checker{Snapshot: s, r: r, names: make(map[Ino]nameCount, len(s.nodes)), subdirs: make(map[Ino]uint32)}
	c.countNames()
	var used unitSet
	for _, ino := range slices.Sorted(maps.Keys(s.nodes)) {
		n := s.nodes[ino]
		c.inode(n)
		if n.slot == 0 || n.nlink == 0 {
			continue
		}
		r.Bytes += n.size()
		if !used.take(n.slot) {
			c.bad(ino, "its content is in the pack where another has its own")
		}
	}
	c.ways()
	return r, c.objects()
}

// checker looks at a state whose records are sound.
type checker struct {
	*Snapshot
	r       *Report
	names   map[Ino]nameCount // of changed inodes
	subdirs map[Ino]uint32    // of changed directories
}

// nameCount is how many names an inode has, and one of them.
type nameCount struct {
	n    uint32
	dir  Ino
	name string
}

func (c *checker) bad(ino Ino, format string, a ...any) {
	c.r.add(Problem{Ino: ino, Path: c.pathOf(ino), Reason: fmt.Sprintf(format, a...)})
}

// pathOf returns a path that leads to an inode, for messages.
func (c *checker) pathOf(ino Ino) (path string) {
	for range 1000 {
		if ino == unionfs.Root {
			return "/" + path
		}
		n, ok := c.names[ino]
		if !ok {
			c.tree.Names([]Ino{ino}, func(_, dir Ino, i int) {
				n.dir = dir
				n.name, _, _ = c.tree.DirAt(dir, i)
			})
		}
		if n.dir == 0 {
			return ""
		}
		if path != "" {
			path = "/" + path
		}
		ino, path = n.dir, n.name+path
	}
	return ""
}

// countNames counts the names of all inodes that have changed or are gone.
func (c *checker) countNames() {
	var image []Ino
	for ino := range c.nodes {
		if c.inImage(ino) {
			image = append(image, ino)
		}
	}
	for ino := Ino(0); ino <= c.maxImage; ino++ {
		if c.dead.has(ino) {
			image = append(image, ino)
		}
	}
	slices.Sort(image)
	c.tree.Names(slices.Compact(image), func(ino, dir Ino, i int) {
		if c.shows(dir, i) {
			name, _, typ := c.tree.DirAt(dir, i)
			c.count(dir, name, ino, typ)
		}
	})
	for dir, n := range c.nodes {
		if n.nlink > 0 && n.isDir() {
			c.entries(dir, n)
		}
	}
}

func (c *checker) count(dir Ino, name string, ino Ino, typ uint32) {
	n := c.names[ino]
	if n.n++; n.n == 1 {
		n.dir, n.name = dir, name
	}
	c.names[ino] = n
	switch m, err := c.peek(ino); {
	case err != nil || m.nlink == 0:
		c.bad(dir, "its entry %q leads to inode %d, which is gone", name, ino)
	case m.mode&unix.S_IFMT != typ:
		c.bad(dir, "its entry %q is of type %#o, and inode %d of type %#o", name, typ, ino, m.mode&unix.S_IFMT)
	case m.isDir() && m.val != dir:
		c.bad(ino, "its parent is inode %d, and its name %q is in inode %d", m.val, name, dir)
	}
}

// entries looks at what a changed directory has of its own, and counts its directories.
func (c *checker) entries(dir Ino, n *node) {
	d := n.dir()
	live := 0
	base := 0
	if c.inImage(dir) {
		base = c.tree.DirLen(dir)
	}
	for i := range base {
		name, ino, typ := c.tree.DirAt(dir, i)
		if d == nil || !d.hidden.has(uint64(i)) {
			live++
			if typ == unix.S_IFDIR {
				c.subdirs[dir]++
			}
		} else if c.nodes[ino] == nil && !c.dead.has(ino) {
			c.bad(ino, "it has lost its name %q in inode %d without having changed", name, dir)
		}
	}
	if d == nil {
		return
	}
	for i := range d.ents {
		e := &d.ents[i]
		if e.name == "" {
			continue
		}
		live++
		at, inImage := c.imageIndex(dir, e.name)
		switch {
		case checkName(e.name) != nil:
			c.bad(dir, "it has an entry that cannot be: %q", e.name)
		case d.find(e.name) != i:
			c.bad(dir, "it has the entry %q twice", e.name)
		case e.inPlace() != inImage || inImage && !d.hidden.has(uint64(at)):
			c.bad(dir, "its entry %q does not go with the image's", e.name)
		case e.seq >= d.next:
			c.bad(dir, "its entry %q has a place that is to be given to another", e.name)
		case c.nodes[e.ino()] == nil && c.inImage(e.ino()) && !c.dead.has(e.ino()):
			c.bad(e.ino(), "it has got the name %q in inode %d without having changed", e.name, dir)
		}
		if e.typ() == unix.S_IFDIR {
			c.subdirs[dir]++
		}
		c.count(dir, e.name, e.ino(), e.typ())
	}
	if live != d.live {
		c.bad(dir, "it has %d entries, and says that it has %d", live, d.live)
	}
}

// inode looks at one that has changed.
func (c *checker) inode(n *node) {
	names := c.names[n.ino].n
	switch {
	case n.isDir() && n.nlink == 0:
	case n.ino == unionfs.Root && names != 0:
		c.bad(n.ino, "the root has a name")
	case n.isDir() && n.ino != unionfs.Root && names != 1:
		c.bad(n.ino, "it is a directory with %d names", names)
	case n.isDir() && n.nlink != 2+c.subdirs[n.ino]:
		c.bad(n.ino, "it has %d directories, and %d links", c.subdirs[n.ino], n.nlink)
	case !n.isDir() && n.nlink != names:
		c.bad(n.ino, "it has %d names, and %d links", names, n.nlink)
	}
	if n.ino >= c.next {
		c.bad(n.ino, "the number is to be given to another")
	}
	switch n.mode & unix.S_IFMT {
	case unix.S_IFREG:
		c.content(n)
	case unix.S_IFLNK:
		if !c.inImage(n.ino) && (n.x == nil || n.x.target == "" || int64(len(n.x.target)) != n.size()) {
			c.bad(n.ino, "it is a symlink of %d bytes that leads to another number of them", n.size())
		}
	case unix.S_IFDIR, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
	default:
		c.bad(n.ino, "mode %#o has no type", n.mode)
	}
	if n.x == nil {
		return
	}
	before := ""
	for _, x := range n.x.xattrs {
		if checkXattr(x.name) != nil || x.name <= before || len(x.value) > maxXattr {
			c.bad(n.ino, "extended attribute %q cannot be", x.name)
		}
		before = x.name
	}
}

// content looks at the extents of a file.
func (c *checker) content(n *node) {
	if runs := n.runs(); runs != nil {
		if end := runs.end(); end > n.size() {
			c.bad(n.ino, "it has content up to byte %d, and %d bytes", end, n.size())
		}
		if !c.inImage(n.ino) {
			c.bad(n.ino, "it has content of the image, of which it is not")
		}
	}
	if missing := c.missing(n); missing != "" {
		c.bad(n.ino, "%s", missing)
	}
}

// missing says what of a file's content is not in its data object. After a power failure that was not synced. Of a file with
// holes nobody knows: what is missing looks like one.
func (s *Snapshot) missing(n *node) string {
	if !n.isRegular() || n.flags&flagSparse != 0 || n.nlink == 0 {
		return ""
	}
	need := int64(0)
	if runs := n.runs(); runs != nil {
		need = runs.end()
	} else if n.flags&flagPlain != 0 {
		need = n.size()
	}
	if need == 0 {
		return ""
	}
	if n.slot != 0 {
		return s.missingPacked(n, need)
	}
	size, _, err := s.statObject(n.ino)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("its data object %s is missing: %d bytes are lost", objectName(n.ino), need)
	case err != nil:
		return fmt.Sprintf("its data object %s cannot be opened: %v", objectName(n.ino), err)
	case size < need:
		return fmt.Sprintf("its data object %s has %d bytes: %d are lost", objectName(n.ino), size, need-size)
	}
	return ""
}

// missingPacked is missing for a file of the pack.
func (s *Snapshot) missingPacked(n *node, need int64) string {
	st, err := os.Stat(s.disk.path(packName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("the pack is missing: %d bytes are lost", need)
	case err != nil:
		return fmt.Sprintf("the pack cannot be looked at: %v", err)
	case need > n.slot.size():
		return fmt.Sprintf("it has %d bytes, in a slot of %d", need, n.slot.size())
	case st.Size() < n.slot.off()+need:
		return fmt.Sprintf("the pack has %d bytes of those from %d to %d", st.Size(), n.slot.off(), n.slot.off()+need)
	}
	return ""
}

// ways looks whether every changed directory reaches the root by its parents.
func (c *checker) ways() {
	const onTheWay, arrives = 1, 2
	state := map[Ino]int{unionfs.Root: arrives}
	for ino, n := range c.nodes {
		if !n.isDir() || n.nlink == 0 {
			continue
		}
		var way []Ino
		for at := ino; state[at] != arrives; {
			if state[at] == onTheWay {
				c.bad(ino, "it is below itself")
				break
			}
			state[at] = onTheWay
			way = append(way, at)
			m, err := c.dirMeta(at)
			if err != nil || m.nlink == 0 {
				c.bad(ino, "inode %d above it is no directory", at)
				break
			}
			at = m.val
		}
		for _, ino := range way {
			state[ino] = arrives // or it has been said
		}
	}
}

// objects looks for data objects that no file has.
func (c *checker) objects() error {
	root := c.disk.path("data")
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && e.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		st, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(c.disk.dir, path)
		ino, err := strconv.ParseUint(filepath.Base(path), 16, 64)
		if n := c.nodes[ino]; err != nil || name != objectName(ino) || n == nil || !n.isRegular() {
			c.r.add(Problem{File: name, Offset: -1, Reason: fmt.Sprintf("no file has these %d bytes", st.Size()), Harmless: true})
			return nil
		}
		c.r.Objects++
		c.r.Bytes += st.Size()
		return nil
	})
}
