package unionfs

import "errors"

// link is a hard link that waits for the end of its layer, because its target may still come.
type link struct {
	entry    string // name of the link's entry, for errors
	target   string
	dir      *inode // where the link stands
	name     string
	stand    *inode // holds the link's place in dir
	lower    *inode // the target as lower layers had it, or nil
	visiting bool   // is being resolved
}

var (
	errLinkCycle = errors.New("the hard link leads back to itself")
	errLinkDir   = errors.New("the hard link leads to a directory")
	errLinkNone  = errors.New("the hard link leads to nothing")
)

// addLink adds a hard link at name in dir.
func (b *Builder) addLink(dir *inode, name string, e *Entry) error {
	found, ok, err := b.linkTarget(e.Link)
	if err != nil {
		return err
	}
	if ok && found.dir == nil && found.mode != 0 && found.gen == b.gen {
		b.put(dir, name, found.inode)
		return nil
	}
	stand, err := b.newInode()
	if err != nil {
		return err
	}
	l := link{entry: string([]byte(e.Name)), target: string([]byte(e.Link)), dir: dir, name: string([]byte(name)), stand: stand}
	if ok && found.dir == nil && found.mode != 0 {
		l.lower = found.inode
	}
	stand.data = uint32(len(b.pending))
	b.pending = append(b.pending, l)
	b.put(dir, name, stand)
	return nil
}

// linkTarget finds what a hard link's target names now. Its last component is not followed.
func (b *Builder) linkTarget(target string) (dirent, bool, error) {
	p, err := splitPath(target)
	if err != nil {
		return dirent{}, false, errors.New("the hard link's target: " + err.Error())
	}
	if p.depth == 0 {
		return dirent{b.root, 0}, true, nil
	}
	if p.aufs {
		return dirent{}, false, nil
	}
	dir, missing, err := b.walk(p.dir)
	if err != nil || len(missing) > 0 {
		return dirent{}, false, err
	}
	n, ok := dir.dir.children[p.base]
	return n, ok, nil
}

// resolveLinks gives all links of the layer that ends their inodes.
func (b *Builder) resolveLinks() error {
	for i := range b.pending {
		if err := b.resolveLink(i); err != nil {
			return b.entryError(b.pending[i].entry, err)
		}
	}
	b.pending = b.pending[:0]
	return nil
}

// resolveLink resolves one link and the links that it leads over.
func (b *Builder) resolveLink(i int) error {
	var n *inode
	var chain []*link
	for n == nil {
		l := &b.pending[i]
		if len(chain) == 0 && (l.dir.dir.children[l.name].inode != l.stand || !b.attached(l.dir)) {
			return nil // resolved already, or replaced by a later entry
		}
		if l.visiting {
			return errLinkCycle
		}
		l.visiting = true
		chain = append(chain, l)
		found, ok, err := b.linkTarget(l.target)
		switch {
		case err != nil:
			return err
		case ok && found.dir != nil:
			return errLinkDir
		case ok && found.mode == 0:
			i = int(found.data)
		case ok && (found.gen == b.gen || l.lower == nil):
			n = found.inode
		case l.lower != nil:
			n = l.lower
		default:
			return errLinkNone
		}
	}
	for _, l := range chain {
		b.setChild(l.dir, l.name, n)
	}
	return nil
}
