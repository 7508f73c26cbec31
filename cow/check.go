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

// Problem is something in a state directory that is not as it should be.
type Problem struct {
	File   string // in the state directory; "" when it is about an inode
	Offset int64  // bytes from the start of File; -1 when it is about all of it
	Ino    Ino    // 0 when it is about no inode
	Path   string // a name of the inode; "" when it has none
	Reason string
	// Harmless: a crash may leave it, and nothing that was answered is lost.
	Harmless bool
}

func (p Problem) String() string {
	switch {
	case p.File != "" && p.Offset >= 0:
		return fmt.Sprintf("%s at byte %d: %s", p.File, p.Offset, p.Reason)
	case p.File != "":
		return p.File + ": " + p.Reason
	case p.Path != "":
		return fmt.Sprintf("inode %d, %s: %s", p.Ino, p.Path, p.Reason)
	}
	return fmt.Sprintf("inode %d: %s", p.Ino, p.Reason)
}

// Report is what a check found.
type Report struct {
	Problems []Problem
	More     int    // problems that are not named, for they are too many
	Records  uint64 // of the history
	Inodes   int    // that differ from the image
	Objects  int    // data objects
	Bytes    int64  // sizes of the data objects
}

// maxProblems bounds a report.
const maxProblems = 1000

func (r *Report) add(p Problem) {
	if len(r.Problems) == maxProblems {
		r.More++
		return
	}
	r.Problems = append(r.Problems, p)
}

// Damaged reports whether anything but harmless problems was found.
func (r *Report) Damaged() bool {
	return r.More > 0 || slices.ContainsFunc(r.Problems, func(p Problem) bool { return !p.Harmless })
}

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
	for _, ino := range slices.Sorted(maps.Keys(s.nodes)) {
		c.inode(s.nodes[ino])
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

// content looks whether the data object of a file has what it should. What is missing after a power failure was
// not synced.
func (c *checker) content(n *node) {
	need := int64(0)
	switch runs := n.runs(); {
	case n.flags&flagPlain != 0:
		need = n.size()
	case runs != nil:
		last := runs.leaves[len(runs.leaves)-1]
		if need = last[len(last)-1].end; need > n.size() {
			c.bad(n.ino, "it has content up to byte %d, and %d bytes", need, n.size())
		}
		if !c.inImage(n.ino) {
			c.bad(n.ino, "it has content of the image, of which it is not")
		}
	}
	if n.flags&flagSparse != 0 || n.nlink == 0 || need == 0 { // what a hole is and what is missing looks the same
		return
	}
	size, _, err := c.statObject(n.ino)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.bad(n.ino, "its data object %s is missing: %d bytes are lost", objectName(n.ino), need)
	case err != nil:
		c.bad(n.ino, "its data object %s cannot be opened: %v", objectName(n.ino), errno(err))
	case size < need:
		c.bad(n.ino, "its data object %s has %d bytes: %d are lost", objectName(n.ino), size, need-size)
	}
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
