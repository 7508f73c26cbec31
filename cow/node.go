package cow

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// Ino is an inode number.
type Ino = unionfs.Ino

// maxSize is the largest size of a file.
const maxSize = 1<<63 - 1

// maxIno is the first number that no inode gets: an entry of a directory keeps a number in 59 bits.
const maxIno = 1 << 59

// The four times of an inode, as indices.
const (
	atime = iota
	mtime
	ctime
	btime
	nTimes
)

// meta is what an inode has besides its content: Attr without what is derived.
type meta struct {
	mode, nlink, uid, gid uint32
	// val is by type: the size of a regular file or symlink, the parent of a directory, the number of a device.
	val  uint64
	sec  [nTimes]int64
	nsec [nTimes]uint32
}

func (m *meta) isDir() bool     { return m.mode&unix.S_IFMT == unix.S_IFDIR }
func (m *meta) isRegular() bool { return m.mode&unix.S_IFMT == unix.S_IFREG }
func (m *meta) isDevice() bool {
	return m.mode&unix.S_IFMT == unix.S_IFBLK || m.mode&unix.S_IFMT == unix.S_IFCHR
}
func (m *meta) size() int64 { return int64(m.val) }

func (m *meta) setTime(which int, t unionfs.Time) { m.sec[which], m.nsec[which] = t.Sec, t.Nsec }
func (m *meta) time(which int) unionfs.Time {
	return unionfs.Time{Sec: m.sec[which], Nsec: m.nsec[which]}
}

// touch says that content changed.
func (m *meta) touch(now unionfs.Time) {
	m.setTime(mtime, now)
	m.setTime(ctime, now)
}

// killPriv drops what a write by others must not leave: S_ISUID, and S_ISGID where it is not a mark for
// mandatory locking (kernel: fs/attr.c, setattr_should_drop_suidgid).
func (m *meta) killPriv() {
	if m.isDir() {
		return
	}
	m.mode &^= unix.S_ISUID
	if m.mode&unix.S_IXGRP != 0 {
		m.mode &^= unix.S_ISGID
	}
}

// The flags of a node. A regular file of the image without flagPlain and without runs has the image's content.
const (
	flagPlain    uint32 = 1 << iota // regular: the data object is the content, the image has no part in it
	flagSparse                      // regular: has holes; st_blocks is what the host says
	flagLinkable                    // made by Tmpfile: may get its first name with nlink 0
	flagBacking                     // a write backing is open: size and mtime are those of the data object
	flagObject                      // regular: there may be a data object
	flagCut                         // in the pack, and shorter than it was in its slot
	flagGone                        // it has ended; what it had may be another's

	flagsKept = flagPlain | flagSparse | flagLinkable | flagObject | flagCut | flagGone // what a checkpoint has of them
)

// node is an inode that differs from the image, or is not of the image. 104 bytes; all else is in ext.
// Guarded by FS.st.
type node struct {
	ino Ino
	meta
	flags uint32
	slot  slot // regular, plain: the content is in the pack, in one piece and without holes. 0: it is not
	// dumped: if it is FS.dumpMark, the checkpoint that is on its way has the node. Guarded by op.
	dumped bool
	// measured: with flagSparse, the blocks that the host says the data object has (quota.go).
	measured uint32
	x        *ext // nil while there is nothing in it
}

// nodeSlab makes nodes, some at a time: a state of a million of them is there sooner. Their memory is free when all of
// a slab are.
type nodeSlab []node

func (s *nodeSlab) node() *node {
	if len(*s) == 0 {
		*s = make([]node, 39) // 4 KiB
	}
	n := &(*s)[0]
	*s = (*s)[1:]
	return n
}

// ext is what few nodes have.
type ext struct {
	dir    *dirDelta
	runs   *extents // regular, not plain: what is in the data object; the rest is the image's. Never empty
	xattrs []xattr  // sorted by name
	target string   // symlink that is not of the image
	cost   int64    // bytes that xattrs and target count (quota.go)
}

func (n *node) ext() *ext {
	if n.x == nil {
		n.x = new(ext)
	}
	return n.x
}

func (n *node) dir() *dirDelta {
	if n.x == nil {
		return nil
	}
	return n.x.dir
}

func (n *node) runs() *extents {
	if n.x == nil {
		return nil
	}
	return n.x.runs
}

// own makes [off,end) of a regular file ours. What lies between the old end of the file and off becomes ours
// too (zeros: the data object has no bytes after the size), so the image shows only where no run is.
func (n *node) own(off, end int64) {
	size := n.size()
	if off > size {
		if n.slot == 0 {
			n.setSparse()
		}
		off = size
	}
	if end > size {
		n.val = uint64(end)
	}
	if n.flags&flagPlain != 0 {
		return
	}
	x := n.ext()
	if x.runs == nil {
		x.runs = new(extents)
	}
	x.runs.add(off, end)
	n.settle()
}

// resize changes the size of a regular file. A file of the pack that has nothing left gives its slot back.
func (f *FS) resize(n *node, size int64) {
	if size > n.size() {
		n.own(size, size)
		return
	}
	if size < n.size() && n.slot != 0 {
		n.flags |= flagCut
	}
	if size == 0 {
		f.setSlot(n, 0)
		n.flags &^= flagSparse
	}
	n.val = uint64(size)
	if runs := n.runs(); runs != nil {
		runs.cut(size)
	}
	if n.flags&flagPlain == 0 {
		n.settle()
	}
}

// setSlot moves a file of the pack; what it had waits to be used again. At recovery nothing does: what no node
// has is free.
func (f *FS) setSlot(n *node, s slot) {
	if n.slot != 0 && n.slot != s && f.pack != nil {
		f.pack.give(n.slot, f.journal.last())
	}
	n.slot = s
	n.flags &^= flagCut
}

// settle makes a file plain when nothing of the image is left in it.
func (n *node) settle() {
	runs := n.runs()
	switch {
	case n.val == 0 || runs != nil && runs.covers(n.size()):
		n.flags |= flagPlain
		if n.x != nil {
			n.x.runs = nil
		}
	case runs != nil && runs.n == 0:
		n.x.runs = nil
	}
}

// metaOf turns a tree's attributes into a meta; parent is the directory's parent.
func metaOf(a *unionfs.Attr, parent Ino) meta {
	m := meta{mode: a.Mode, nlink: a.Nlink, uid: a.UID, gid: a.GID, val: uint64(a.Size)}
	switch {
	case m.isDir():
		m.val = parent
	case m.isDevice():
		m.val = a.Rdev
	}
	m.setTime(atime, a.Atime)
	m.setTime(mtime, a.Mtime)
	m.setTime(ctime, a.Ctime)
	m.setTime(btime, a.Btime)
	return m
}

// dirSize is the st_size of every directory, as in the image.
const dirSize = 4096

// attr is what stat shows of a node. For a sparse file Blocks is a guess that needs the data object.
func (n *node) attr() unionfs.Attr {
	a := unionfs.Attr{
		Ino: n.ino, Mode: n.mode, Nlink: n.nlink, UID: n.uid, GID: n.gid,
		Atime: n.time(atime), Mtime: n.time(mtime), Ctime: n.time(ctime), Btime: n.time(btime),
	}
	switch {
	case n.isDir():
		a.Size = dirSize
		a.Blocks = blocks(a.Size)
	case n.isDevice():
		a.Rdev = n.val
	default:
		a.Size = n.size()
		if n.isRegular() {
			a.Blocks = blocks(a.Size)
		}
	}
	return a
}

func blocks(size int64) int64 { return size/512 + (size%512+511)/512 }

func (f *FS) inImage(ino Ino) bool { return ino <= f.maxImage }

// peek returns the attributes of an inode as they are now. It needs st, or op. ESTALE: there is no such inode.
func (f *FS) peek(ino Ino) (meta, error) {
	if n := f.nodes[ino]; n != nil {
		return n.meta, nil
	}
	if !f.inImage(ino) || f.dead.has(ino) {
		return meta{}, syscall.ESTALE
	}
	return f.imageMeta(ino)
}

func (f *FS) imageMeta(ino Ino) (meta, error) {
	a, ok := f.tree.Attr(ino)
	if !ok {
		return meta{}, syscall.ESTALE
	}
	var parent Ino
	if a.Mode&unix.S_IFMT == unix.S_IFDIR {
		parent = f.tree.Parent(ino)
	}
	return metaOf(&a, parent), nil
}

// change returns the node of an inode for a change, made from the image's when this is the first. It needs st and op.
func (f *FS) change(ino Ino) (*node, error) {
	if n := f.nodes[ino]; n != nil {
		f.dumpNow(n)
		return n, nil
	}
	if !f.inImage(ino) || f.dead.has(ino) {
		return nil, syscall.ESTALE
	}
	m, err := f.imageMeta(ino)
	if err != nil {
		return nil, err
	}
	n := f.slab.node()
	*n = node{ino: ino, meta: m, dumped: f.dumpMark}
	if n.isRegular() {
		n.settle()
	}
	f.nodes[ino] = n
	return n, nil
}

// bitmap is a set of image inodes.
type bitmap []uint64

func (b bitmap) has(i uint64) bool {
	w := i / 64
	return w < uint64(len(b)) && b[w]&(1<<(i%64)) != 0
}

// set adds i; n is how large the set may become.
func (b *bitmap) set(i, n uint64) {
	if uint64(len(*b)) <= i/64 {
		*b = append(make(bitmap, 0, n/64+1), *b...)[:n/64+1]
	}
	(*b)[i/64] |= 1 << (i % 64)
}
