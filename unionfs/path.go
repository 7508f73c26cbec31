package unionfs

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Path returns a path of an inode below the root, the first of several; "." is the root. It is meant for messages:
// for a file it looks at every entry of the tree until it finds the inode.
func (t *Tree) Path(ino Ino) (string, bool) {
	var names []string
	for ino != Root { // ends: a directory's parent has a lower number
		dir, name := t.nameOf(ino)
		if dir == 0 {
			return "", false
		}
		names, ino = append(names, strings.Clone(name)), dir
	}
	if len(names) == 0 {
		return ".", t.inode(Root) != nil
	}
	slices.Reverse(names)
	return strings.Join(names, "/"), true
}

// nameOf returns the directory that has an entry for ino, and its name there. The directory is 0 if there is none.
func (t *Tree) nameOf(ino Ino) (dir Ino, name string) {
	if p := t.inodeOf(ino, unix.S_IFDIR); p != nil {
		e := t.entries(t.Parent(ino))
		if i := int(le.Uint32(p[12:])) - e.first; i >= 0 && i < e.n {
			return e.dir, e.name(i)
		}
		return 0, ""
	}
	for dir := Root; dir <= t.MaxIno(); dir++ {
		e := t.entries(dir)
		for i := range e.n {
			if found, _ := e.target(i); found == ino {
				return dir, e.name(i)
			}
		}
	}
	return 0, ""
}
