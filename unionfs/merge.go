package unionfs

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// inode is an inode of the tree being built.
type inode struct {
	mtime         Time
	size          int64  // of a regular file or symlink; of a device its number
	mode          uint32 // 0 for a hard link that is not resolved yet
	uid, gid      uint32
	xattrs        uint32 // place in the xattrTable + 1, or 0
	data          uint32 // regular file: content; symlink: target; unresolved link: place in Builder.pending
	nlink, number uint32 // while the tree is written
	dir           *directory
}

// directory is what only directories have.
type directory struct {
	parent   *inode // the root's is the root
	name     string // in parent
	children map[string]dirent
	touched  uint32 // last layer that had an entry for it or below it
	attrs    uint32 // layer whose entry gave the attributes; 0 when they are made up
	hidden   uint32 // last layer that hid everything lower in it

	first, entry uint32 // while the tree is written: places of its first entry, and of its own
}

// dirent is a name. gen is the layer that put it there; directories have directory.touched for that.
type dirent struct {
	*inode
	gen uint32
}

// from says whether a layer has had an entry for this name, or below it.
func (e dirent) from(gen uint32) bool {
	if e.dir != nil {
		return e.dir.touched == gen
	}
	return e.gen == gen
}

func (n *inode) is(typ uint32) bool { return n.mode&unix.S_IFMT == typ }

func (b *Builder) newInode() (*inode, error) {
	if b.inodes >= b.limits.inodes {
		return nil, fmt.Errorf("the image has more than %d entries", b.limits.inodes)
	}
	b.inodes++
	if len(b.slab) == 0 {
		b.slab = make([]inode, min(1024, 16+b.inodes))
	}
	n := &b.slab[0]
	b.slab = b.slab[1:]
	return n, nil
}

// newDir makes a directory as it is made for want of an entry. A nil parent is for the root.
func (b *Builder) newDir(parent *inode) *inode {
	n := &inode{mode: madeUpMode, dir: &directory{parent: parent}}
	if parent == nil {
		n.dir.parent = n
	}
	b.inodes++
	return n
}

const madeUpMode = unix.S_IFDIR | 0755

// setDir gives a directory the attributes of an entry of the current layer.
func (b *Builder) setDir(n *inode, e *Entry, set uint32) {
	n.mode, n.uid, n.gid, n.mtime, n.xattrs = e.Mode, owner(e.UID), owner(e.GID), e.Mtime, set
	n.dir.attrs = b.gen
	b.touch(n)
}

// unsetDir takes a directory's attributes away, because they came from a lower layer that no longer shows.
func (n *inode) unsetDir() {
	n.mode, n.uid, n.gid, n.mtime, n.xattrs = madeUpMode, 0, 0, Time{}, 0
	n.dir.attrs = 0
}

// touch marks a directory and all above it as used by the current layer.
func (b *Builder) touch(n *inode) {
	for n.dir.touched != b.gen {
		n.dir.touched = b.gen
		n = n.dir.parent
	}
}

// put makes name in dir a name of n, which is no directory, in place of whatever was there.
func (b *Builder) put(dir *inode, name string, n *inode) {
	b.setChild(dir, name, n)
	b.touch(dir)
}

// setChild returns a copy of name, which may be a part of a longer string, if that is what it kept.
func (b *Builder) setChild(dir *inode, name string, n *inode) string {
	d := dir.dir
	if d.children == nil {
		d.children = make(map[string]dirent)
	}
	if _, ok := d.children[name]; !ok {
		name = strings.Clone(name)
	}
	d.children[name] = dirent{n, b.gen}
	return name
}

// putDir adds a directory entry: to the directory that is there, or in place of whatever else is.
func (b *Builder) putDir(dir *inode, name string, e *Entry, set uint32) error {
	n, err := b.makeDir(dir, name)
	if err != nil {
		return err
	}
	b.setDir(n, e, set)
	return nil
}

// makeDir returns the directory called name in dir, which it makes if there is none.
func (b *Builder) makeDir(dir *inode, name string) (*inode, error) {
	if old, ok := dir.dir.children[name]; ok && old.dir != nil {
		return old.inode, nil
	}
	if b.inodes >= b.limits.inodes {
		return nil, fmt.Errorf("the image has more than %d entries", b.limits.inodes)
	}
	n := b.newDir(dir)
	n.dir.name = b.setChild(dir, name, n)
	b.touch(n)
	return n, nil
}

// attached says whether a directory is still in the tree.
func (b *Builder) attached(n *inode) bool {
	for ; n != b.root; n = n.dir.parent {
		if n.dir.parent.dir.children[n.dir.name].inode != n {
			return false
		}
	}
	return true
}

// makeDirs makes the directories that walk didn't find.
func (b *Builder) makeDirs(dir *inode, missing []string) (*inode, error) {
	for _, name := range missing {
		if len(name) > maxName {
			return nil, errors.New("its parent, behind a symlink, has a name of more than 255 bytes")
		}
		var err error
		if dir, err = b.makeDir(dir, name); err != nil {
			return nil, err
		}
	}
	return dir, nil
}

// The kernel's MAXSYMLINKS, and how many bytes of targets may come together, which bounds the work for an entry.
const (
	maxFollow       = 40
	maxFollowTarget = 4 * 4096
)

var errLoop = errors.New("too many symlinks in the path of its parent")

// walk finds the directory at path: the last one that exists, and the names below it that don't, or are no
// directories. Symlinks are followed inside the root: ".." stops there, and a target's "/" is there.
// missing is valid until the next walk.
func (b *Builder) walk(path string) (dir *inode, missing []string, err error) {
	dir, missing = b.root, b.missing[:0]
	for followed, bytes := 0, 0; path != ""; {
		var name string
		name, path, _ = strings.Cut(path, "/")
		switch {
		case name == "" || name == ".":
			continue
		case name == ".." && len(missing) > 0:
			missing = missing[:len(missing)-1]
			continue
		case name == "..":
			dir = dir.dir.parent
			continue
		case len(missing) > 0:
			missing = append(missing, name)
			continue
		}
		switch n, ok := dir.dir.children[name]; {
		case ok && n.dir != nil:
			dir = n.inode
		case ok && n.is(unix.S_IFLNK):
			target := b.targets[n.data]
			followed, bytes = followed+1, bytes+len(target)
			if followed > maxFollow || bytes > maxFollowTarget {
				return nil, nil, errLoop
			}
			if target[0] == '/' {
				dir = b.root
			}
			path = target + "/" + path
		default:
			missing = append(missing, name)
		}
	}
	b.missing = missing
	return dir, missing, nil
}

const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
)

// whiteout hides what lower layers have at the place of a whiteout or of an opaque mark.
func (b *Builder) whiteout(p layerPath) error {
	name := p.base[len(whiteoutPrefix):]
	if name == "" || name == "." || name == ".." {
		return errors.New("the whiteout hides nothing that could have a name")
	}
	dir, missing, err := b.walk(p.dir)
	if err != nil || len(missing) > 0 {
		return err
	}
	if p.base == opaqueName {
		b.hideIn(dir)
	} else {
		b.hide(dir, name)
	}
	return nil
}

// hide takes away what lower layers have put at name in dir.
func (b *Builder) hide(dir *inode, name string) {
	n, ok := dir.dir.children[name]
	switch {
	case !ok:
	case !n.from(b.gen):
		delete(dir.dir.children, name)
	case n.dir != nil:
		if n.dir.attrs != b.gen {
			n.unsetDir()
		}
		b.hideIn(n.inode)
	}
}

// hideIn takes away what lower layers have put into dir. All calls for a layer together visit each directory once:
// nothing lower comes back to where it was hidden.
func (b *Builder) hideIn(dir *inode) {
	for todo := []*inode{dir}; len(todo) > 0; {
		d := todo[len(todo)-1].dir
		todo = todo[:len(todo)-1]
		if d.hidden == b.gen {
			continue
		}
		d.hidden = b.gen
		for name, n := range d.children {
			if !n.from(b.gen) {
				delete(d.children, name)
				continue
			}
			if n.dir == nil {
				continue
			}
			if n.dir.attrs != b.gen {
				n.unsetDir()
			}
			todo = append(todo, n.inode)
		}
	}
}
