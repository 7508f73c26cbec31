package unionfs

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// arrangement is a tree in the order in which the file has it.
type arrangement struct {
	nodes    []*inode     // by number - 1
	names    []sortedName // directory by directory
	nameLen  uint64       // bytes of the name section
	contents []uint32     // places in the Builder's table of those in use
	content  []uint32     // the reverse
	sets     []uint32     // likewise the xattr sets
	set      []uint32
	strings  stringTable
	targets  []uint32 // of the symlinks among nodes, in their order
	totals   Totals
}

type sortedName struct {
	name string
	node *inode
}

// arrange numbers all inodes, sorts all directories and finds out which contents and xattr sets are in use.
func (b *Builder) arrange() (*arrangement, error) {
	a := &arrangement{strings: stringTable{limit: b.limits.strings}}
	a.walk(b.root)
	if a.nameLen > b.limits.strings {
		return nil, errStrings
	}
	a.content = make([]uint32, len(b.content.list))
	a.set = make([]uint32, len(b.xattrs.sets))
	for _, n := range a.nodes {
		if err := a.count(b, n); err != nil {
			return nil, err
		}
	}
	a.totals.Inodes, a.totals.Names, a.totals.Contents = len(a.nodes), len(a.names), len(a.contents)
	return a, nil
}

// walk numbers the inodes below root, depth first by directory.
func (a *arrangement) walk(root *inode) {
	a.number(root)
	for todo := []*inode{root}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		first := len(a.names)
		for name, n := range dir.dir.children {
			a.names = append(a.names, sortedName{name, n.inode})
			a.nameLen += 1 + uint64(len(name))
		}
		names := a.names[first:]
		slices.SortFunc(names, func(x, y sortedName) int { return strings.Compare(x.name, y.name) })
		dir.dir.first, dir.nlink = uint32(first), 2
		for i, c := range names {
			if c.node.number == 0 {
				a.number(c.node)
			}
			if c.node.dir != nil {
				c.node.dir.entry = uint32(first + i)
				dir.nlink++
			} else {
				c.node.nlink++
			}
		}
		for _, c := range slices.Backward(names) {
			if c.node.dir != nil {
				todo = append(todo, c.node)
			}
		}
	}
}

func (a *arrangement) number(n *inode) {
	a.nodes = append(a.nodes, n)
	n.number, n.nlink = uint32(len(a.nodes)), 0
}

// count counts an inode in, with what it uses.
func (a *arrangement) count(b *Builder, n *inode) (err error) {
	if n.xattrs != 0 && a.set[n.xattrs-1] == 0 {
		a.sets = append(a.sets, n.xattrs-1)
		a.set[n.xattrs-1] = uint32(len(a.sets)) // + 1, as in the file
	}
	switch n.mode & unix.S_IFMT {
	case unix.S_IFREG:
		a.totals.Files++
		if a.content[n.data] == 0 {
			a.contents = append(a.contents, n.data)
			a.content[n.data] = uint32(len(a.contents)) // + 1
			a.totals.ContentBytes += n.size
		}
	case unix.S_IFDIR:
		a.totals.Dirs++
	case unix.S_IFLNK:
		a.totals.Symlinks++
		at, err := a.strings.add(b.targets[n.data])
		if err != nil {
			return err
		}
		a.targets = append(a.targets, at)
	default:
		a.totals.Specials++
	}
	return nil
}

// release forgets the numbers, so that the tree can be arranged again.
func (a *arrangement) release() {
	for _, n := range a.nodes {
		n.number, n.nlink = 0, 0
	}
}
