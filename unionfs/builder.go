package unionfs

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Builder merges the layers of an image into one tree. It is not safe for concurrent use.
// After an error it is only good for being dropped: all methods return that error again.
type Builder struct {
	limits limits
	layers []Layer
	gen    uint32 // the current layer, counted from 1
	err    error  // sticky

	root    *inode
	slab    []inode                   // not yet used ones
	inodes  int                       // made, whether or not they are still in the tree
	pending []link                    // hard links of the current layer that wait for its end
	held    [len(housekeeping)]*Entry // entries of a plain layer that may be eStargz's own

	targets []string // of symlinks
	xattrs  xattrTable
	content contentTable
	missing []string // walk's result, kept for its capacity
}

// NewBuilder returns a Builder without layers: its tree is an empty root directory.
func NewBuilder() *Builder {
	b := &Builder{limits: defaultLimits}
	b.root = b.newDir(nil)
	return b
}

// EntryError says which entry of which layer can't be part of a tree, and why.
type EntryError struct {
	Layer int    // from 0, bottom first
	Name  string // as the layer has it
	Err   error
}

func (e *EntryError) Error() string {
	name := e.Name
	if len(name) > 300 {
		name = name[:300] + "…"
	}
	return fmt.Sprintf("layer %d: entry %q: %v", e.Layer, name, e.Err)
}

func (e *EntryError) Unwrap() error { return e.Err }

// entryError makes err the Builder's last word.
func (b *Builder) entryError(name string, err error) error {
	b.err = &EntryError{Layer: len(b.layers) - 1, Name: strings.Clone(name), Err: err}
	return b.err
}

// AddLayer ends the current layer and starts the next one, bottom first. An *EntryError is about a hard link of the
// layer that it ends.
func (b *Builder) AddLayer(l Layer) error {
	if err := b.endLayer(); err != nil {
		return err
	}
	if err := b.limits.checkLayer(len(b.layers), &l); err != nil {
		b.err = fmt.Errorf("add layer %d: %w", len(b.layers), err)
		return b.err
	}
	b.layers = append(b.layers, l)
	b.gen = uint32(len(b.layers))
	b.content.startLayer()
	return nil
}

// endLayer adds what had to wait for the last entry of the current layer.
func (b *Builder) endLayer() error {
	if b.err != nil {
		return b.err
	}
	if err := b.releaseHeld(); err != nil {
		return err
	}
	return b.resolveLinks()
}

// Add adds an entry to the current layer. The Builder keeps nothing of e. The error is an *EntryError when e is at fault.
func (b *Builder) Add(e *Entry) error {
	if b.err != nil {
		return b.err
	}
	if len(b.layers) == 0 {
		return errors.New("add entry: no layer was started")
	}
	if err := b.add(e); err != nil {
		return b.entryError(e.Name, err)
	}
	return nil
}

func (b *Builder) add(e *Entry) error {
	p, err := splitPath(e.Name)
	if err != nil {
		return err
	}
	if p.aufs {
		return nil
	}
	if strings.HasPrefix(p.base, whiteoutPrefix) {
		return b.whiteout(p)
	}
	if err := b.limits.checkEntry(e); err != nil {
		return err
	}
	if p.depth == 0 {
		return b.setRoot(e)
	}
	if p.depth == 1 && b.holdBack(p.base, e) {
		return nil
	}
	return b.place(p, e)
}

// setRoot gives the root the attributes of e.
func (b *Builder) setRoot(e *Entry) error {
	if e.Mode&unix.S_IFMT != unix.S_IFDIR {
		return errors.New("the root can only be a directory")
	}
	set, err := b.xattrs.add(&b.limits, e.Xattrs)
	if err != nil {
		return err
	}
	b.setDir(b.root, e, set)
	return nil
}

// place puts a checked entry where its path says.
func (b *Builder) place(p layerPath, e *Entry) error {
	dir, missing, err := b.walk(p.dir)
	if err != nil {
		return err
	}
	if dir, err = b.makeDirs(dir, missing); err != nil {
		return err
	}
	if e.Link != "" {
		return b.addLink(dir, p.base, e)
	}
	set, err := b.xattrs.add(&b.limits, e.Xattrs)
	if err != nil {
		return err
	}
	if e.Mode&unix.S_IFMT == unix.S_IFDIR {
		return b.putDir(dir, p.base, e, set)
	}
	n, err := b.newFile(e, set)
	if err != nil {
		return err
	}
	b.put(dir, p.base, n)
	return nil
}

// newFile makes the inode of an entry that is no directory.
func (b *Builder) newFile(e *Entry, set uint32) (*inode, error) {
	n, err := b.newInode()
	if err != nil {
		return nil, err
	}
	n.mode, n.uid, n.gid, n.mtime, n.xattrs = e.Mode, owner(e.UID), owner(e.GID), e.Mtime, set
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.size = e.Size
		n.data, err = b.content.add(&b.limits, &b.layers[b.gen-1], b.gen-1, &e.Content)
	case unix.S_IFLNK:
		n.mode, n.size, n.data = unix.S_IFLNK|0777, int64(len(e.Symlink)), uint32(len(b.targets))
		b.targets = append(b.targets, strings.Clone(e.Symlink))
	case unix.S_IFCHR, unix.S_IFBLK:
		n.size = int64(e.Rdev)
	}
	return n, err
}

// owner is what chown(2) makes of an id: -1 leaves a new file to root.
func owner(id uint32) uint32 {
	if id == ^uint32(0) {
		return 0
	}
	return id
}

// housekeeping are the names that an eStargz layer has at its root for its own use; the TOC is the first.
var housekeeping = [...]string{"stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark"}

// holdBack keeps an entry at the layer's root out of the tree if it is, or may turn out to be, eStargz's own.
func (b *Builder) holdBack(name string, e *Entry) bool {
	i := slices.Index(housekeeping[:], name)
	if i < 0 {
		return false
	}
	b.held[i] = nil // the later entry counts
	if e.Mode&unix.S_IFMT != unix.S_IFREG {
		return false
	}
	switch b.layers[b.gen-1].Format {
	case FormatEStargz, FormatZstdChunked:
		return true
	case FormatPlain:
		held := *e
		held.Name, held.Xattrs = strings.Clone(e.Name), maps.Clone(e.Xattrs)
		b.held[i] = &held
		return true
	}
	return false
}

// releaseHeld adds the entries held back if there was no TOC among them.
func (b *Builder) releaseHeld() error {
	held := b.held
	clear(b.held[:])
	if held[0] != nil {
		return nil
	}
	for _, e := range held {
		if e == nil {
			continue
		}
		p, err := splitPath(e.Name)
		if err == nil {
			err = b.place(p, e)
		}
		if err != nil {
			return b.entryError(e.Name, err)
		}
	}
	return nil
}
