package cow

import (
	"fmt"
	"maps"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// ChangeKind is what became of a path, as docker diff shows it.
type ChangeKind byte

const (
	Added   ChangeKind = 'A'
	Changed ChangeKind = 'C'
	Deleted ChangeKind = 'D'
)

// Change is a path at which the tree differs from the image.
type Change struct {
	Kind ChangeKind
	Path string       // from the root, which is "/"
	Attr unionfs.Attr // of what is there now; zero when Deleted
}

// ChangesOptions say what is a change.
type ChangesOptions struct {
	// Stat: only what docker diff looks at is compared: type, mode, owner, device and security.capability, and of all but
	// directories size and mtime. The root is no change. Without it everything that a layer carries is: also other
	// extended attributes, content, the root, directories' mtime, and which names are one file.
	Stat bool
	// Placeholders are paths that are no change while they are an empty file, or a directory that has nothing but
	// placeholders in it, and were not in the image: a runtime makes such to mount on.
	Placeholders map[string]bool
}

// Changes yields what differs from the image, as paths: a directory before what is in it, and the names of a directory in
// the order of their bytes. A directory with a change below it is a change. Of a directory that is gone only its own name
// is Deleted; of one that is new, or moved, everything below is Added.
//
// It costs what has changed, what was added or moved with everything below it, and a pass over the names of the image if
// a file of it with several names has changed. An error of yield ends it.
func (s *Snapshot) Changes(o ChangesOptions, yield func(Change) error) error {
	w := &changeWalk{f: s.FS, o: o, yield: yield}
	if err := w.prepare(); err != nil {
		return err
	}
	return w.walk()
}

// changeWalk compares the tree with the image, name by name.
type changeWalk struct {
	f     *FS
	o     ChangesOptions
	yield func(Change) error

	// Where to look in directories that are the image's: those below which anything has changed, and the places of the
	// image's entries, still there, that lead to a change.
	marked map[Ino]bool
	places map[Ino][]int
	linked map[Ino]bool // image files of which all names are changes, because some are

	path   []byte // of what is being looked at; empty for the root
	above  []above
	told   int          // how many of above are known to be changes
	walked map[Ino]bool // directories

	// Of a damaged state: troubled is told what is passed over, and met is what else was looked at. Both nil else.
	troubled func(error)
	met      map[Ino]bool
}

// above is a directory on the way, which becomes a change with the first one below it.
type above struct {
	ino  Ino
	path int // its length
	kind ChangeKind
}

// prepare finds out where to look.
func (w *changeWalk) prepare() error {
	w.marked, w.places = make(map[Ino]bool), make(map[Ino][]int)
	var files []Ino
	for ino, n := range w.f.nodes {
		switch {
		case n.nlink == 0:
		case n.isDir():
			w.mark(ino)
		case w.f.inImage(ino):
			files = append(files, ino)
		}
	}
	w.markNames(files)
	if w.o.Stat || w.troubled != nil {
		return nil
	}
	return w.findLinked()
}

// mark marks a directory and those above it.
func (w *changeWalk) mark(dir Ino) {
	for !w.marked[dir] {
		w.marked[dir] = true
		if dir == unionfs.Root {
			return
		}
		w.markNames([]Ino{dir})
		m, err := w.f.peek(dir)
		if err != nil {
			return // a damaged state
		}
		dir = m.val
	}
}

// markNames notes the names that the image gave and that are still there. All other names are in the delta of their directory.
func (w *changeWalk) markNames(inos []Ino) {
	slices.Sort(inos)
	w.f.tree.Names(inos, func(_, dir Ino, i int) {
		if !w.f.shows(dir, i) {
			return
		}
		w.places[dir] = append(w.places[dir], i)
		w.mark(dir)
	})
}

// shows tells whether the entry at place i of the image's directory is as it was. It needs st or op.
func (f *FS) shows(dir Ino, i int) bool {
	n := f.nodes[dir]
	if n == nil {
		return !f.dead.has(dir)
	}
	d := n.dir()
	return n.nlink > 0 && (d == nil || !d.hidden.has(uint64(i)))
}

// findLinked looks for files of the image that get or lose names: only when all names of one are in a layer do they
// stay one file.
func (w *changeWalk) findLinked() error {
	linked := make(map[Ino]bool)
	yield := w.yield
	w.yield = func(c Change) error {
		if ino := c.Attr.Ino; c.Attr.Nlink > 1 && c.Attr.Mode&unix.S_IFMT != unix.S_IFDIR && w.f.inImage(ino) {
			linked[ino] = true
		}
		return nil
	}
	err := w.walk()
	w.yield, w.linked = yield, linked
	if len(linked) > 0 {
		w.markNames(slices.Collect(maps.Keys(linked)))
	}
	return err
}

func (w *changeWalk) walk() error {
	w.walked = make(map[Ino]bool)
	w.path, w.above, w.told = w.path[:0], w.above[:0], 0
	now, err := w.f.bareAttr(unionfs.Root)
	if err != nil {
		return fmt.Errorf("look at the root: %w", err)
	}
	return w.both(&now, unionfs.Root)
}

// dir compares the contents of a directory with those of an image directory; old 0 stands for an empty one.
func (w *changeWalk) dir(ino, old Ino) error {
	if w.walked[ino] {
		return w.trouble(fmt.Errorf("directory %d has a second name, %s", ino, w.path))
	}
	w.walked[ino] = true
	names, err := w.names(ino, old)
	if err != nil {
		return fmt.Errorf("list directory %s: %w", w.path, err)
	}
	base := len(w.path)
	for _, name := range names {
		if w.troubled != nil && checkName(name) != nil {
			w.troubled(fmt.Errorf("there cannot be a file %q in %s", name, w.path[:base]))
			continue
		}
		w.path = append(append(w.path[:base], '/'), name...)
		if err := w.name(ino, old, name); err != nil {
			return err
		}
	}
	w.path = w.path[:base]
	return nil
}

// names are those to look at, sorted.
func (w *changeWalk) names(ino, old Ino) (names []string, err error) {
	if ino == old {
		names = w.suspects(ino)
	} else {
		err = w.f.ReadDir(ino, 2, func(e unionfs.Dirent) bool {
			names = append(names, e.Name)
			return true
		})
		if err != nil {
			return nil, err
		}
		for i := range w.f.tree.DirLen(old) {
			if name, _, _ := w.f.tree.DirAt(old, i); name != "" {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// suspects are the names of an image directory at which something may have changed.
func (w *changeWalk) suspects(dir Ino) (names []string) {
	at := func(i int) {
		if name, _, _ := w.f.tree.DirAt(dir, i); name != "" {
			names = append(names, name)
		}
	}
	for _, i := range w.places[dir] {
		at(i)
	}
	n := w.f.nodes[dir]
	if n == nil || n.dir() == nil {
		return names
	}
	for i := range w.f.tree.DirLen(dir) {
		if n.dir().hidden.has(uint64(i)) {
			at(i)
		}
	}
	for i := range n.dir().ents {
		if name := n.dir().ents[i].name; name != "" {
			names = append(names, name)
		}
	}
	return names
}

// trouble ends the walk of a sound state.
func (w *changeWalk) trouble(err error) error {
	if w.troubled == nil {
		return err
	}
	w.troubled(err)
	return nil
}

// name compares what a name leads to in a directory and in an image directory.
func (w *changeWalk) name(dir, oldDir Ino, name string) error {
	ino, isThere := w.f.lookup(dir, name)
	old, wasThere := w.f.tree.Lookup(oldDir, name)
	switch {
	case !isThere && !wasThere:
		return nil
	case !isThere:
		return w.tell(Change{Kind: Deleted})
	}
	now, err := w.f.bareAttr(ino)
	if err != nil {
		return w.trouble(fmt.Errorf("look at %s, inode %d: %w", w.path, ino, err))
	}
	if w.met != nil {
		w.met[ino] = true
	}
	if !wasThere {
		return w.added(&now)
	}
	return w.both(&now, old)
}

// bareAttr is GetAttr without a look at the data object, which only knows how many blocks a file with holes has.
func (f *FS) bareAttr(ino Ino) (unionfs.Attr, error) {
	if n := f.nodes[ino]; n != nil {
		return n.attr(), nil
	}
	a, ok := f.tree.Attr(ino)
	if !ok || f.dead.has(ino) {
		return unionfs.Attr{}, syscall.ESTALE
	}
	return a, nil
}

func isDirMode(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFDIR }

func (w *changeWalk) added(now *unionfs.Attr) error {
	place := w.o.Placeholders[string(w.path)]
	if !isDirMode(now.Mode) {
		if place && now.Mode&unix.S_IFMT == unix.S_IFREG && now.Size == 0 {
			return nil
		}
		return w.tell(Change{Kind: Added, Attr: *now})
	}
	return w.into(now, Added, !place, 0)
}

// both looks at a name that leads to something in the tree and in the image.
func (w *changeWalk) both(now *unionfs.Attr, old Ino) error {
	was, ok := w.f.tree.Attr(old)
	if !ok {
		return w.trouble(fmt.Errorf("look at %s in the image: there is no inode %d", w.path, old))
	}
	differs := w.differs(now, &was)
	if !isDirMode(now.Mode) {
		if !differs {
			return nil
		}
		return w.tell(Change{Kind: Changed, Attr: *now})
	}
	if !isDirMode(was.Mode) {
		old = 0
	}
	return w.into(now, Changed, differs, old)
}

// into looks at a directory, and then into it.
func (w *changeWalk) into(now *unionfs.Attr, kind ChangeKind, tell bool, old Ino) error {
	w.above = append(w.above, above{now.Ino, len(w.path), kind})
	defer func() {
		w.above = w.above[:len(w.above)-1]
		w.told = min(w.told, len(w.above))
	}()
	if tell {
		if err := w.tellAbove(); err != nil {
			return err
		}
	}
	if now.Ino == old && !w.marked[old] {
		return nil
	}
	return w.dir(now.Ino, old)
}

// tell yields a change of the path, after all directories above it.
func (w *changeWalk) tell(c Change) error {
	if err := w.tellAbove(); err != nil {
		return err
	}
	c.Path = string(w.path)
	return w.yield(c)
}

func (w *changeWalk) tellAbove() error {
	for ; w.told < len(w.above); w.told++ {
		a := &w.above[w.told]
		if a.path == 0 && w.o.Stat {
			continue
		}
		now, err := w.f.bareAttr(a.ino)
		if err != nil {
			return err
		}
		c := Change{Kind: a.kind, Path: string(w.path[:a.path]), Attr: now}
		if a.path == 0 {
			c.Path = "/"
		}
		if err := w.yield(c); err != nil {
			return err
		}
	}
	return nil
}
