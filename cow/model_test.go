package cow

import (
	"maps"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// model is what the file system should be, written as simply as possible: whole files in memory, directories as maps.
// Its methods take the time of the operation and, where something is born, the number that it has got.
type model struct {
	inodes map[Ino]*mInode
}

type mInode struct {
	ino         Ino
	mode, nlink uint32
	uid, gid    uint32
	rdev        uint64
	data        []byte
	target      string
	ents        map[string]*mInode
	parent      *mInode
	xattrs      map[string]string
	times       [nTimes]unionfs.Time
	tmp         bool // may be linked though it has no name
}

func (n *mInode) typ() uint32 { return n.mode & unix.S_IFMT }
func (n *mInode) isDir() bool { return n.typ() == unix.S_IFDIR }
func (n *mInode) touch(now unionfs.Time) {
	n.times[mtime], n.times[ctime] = now, now
}

// newModel is the image without changes.
func newModel(img *image) *model {
	m := &model{inodes: make(map[Ino]*mInode)}
	m.load(img, unionfs.Root, nil)
	return m
}

func (m *model) load(img *image, ino Ino, parent *mInode) *mInode {
	if n := m.inodes[ino]; n != nil {
		return n
	}
	a, _ := img.tree.Attr(ino)
	n := &mInode{
		ino: ino, mode: a.Mode, nlink: a.Nlink, uid: a.UID, gid: a.GID, rdev: a.Rdev,
		xattrs: make(map[string]string),
		times:  [nTimes]unionfs.Time{a.Atime, a.Mtime, a.Ctime, a.Btime},
	}
	m.inodes[ino] = n
	n.target, _ = img.tree.Readlink(ino)
	for _, name := range img.tree.Xattrs(ino) {
		v, _ := img.tree.Xattr(ino, name)
		n.xattrs[name] = string(v)
	}
	switch n.typ() {
	case unix.S_IFREG:
		n.data = []byte(imageText(ino, a.Size))
	case unix.S_IFDIR:
		if n.parent = parent; parent == nil {
			n.parent = n
		}
		n.ents = make(map[string]*mInode)
		for i := range img.tree.DirLen(ino) {
			name, child, _ := img.tree.DirAt(ino, i)
			n.ents[name] = m.load(img, child, n)
		}
	}
	return n
}

func (m *model) clone() *model {
	c := &model{inodes: make(map[Ino]*mInode)}
	for ino, n := range m.inodes {
		k := *n
		k.data, k.xattrs = slices.Clone(n.data), maps.Clone(n.xattrs)
		c.inodes[ino] = &k
	}
	for _, n := range c.inodes {
		if n.isDir() {
			n.parent = c.inodes[n.parent.ino]
			ents := make(map[string]*mInode)
			for name, child := range n.ents {
				ents[name] = c.inodes[child.ino]
			}
			n.ents = ents
		}
	}
	return c
}

// forget drops all inodes without a name.
func (m *model) forget() {
	maps.DeleteFunc(m.inodes, func(_ Ino, n *mInode) bool { return n.nlink == 0 })
}

func (m *model) make(dir *mInode, name string, n *mInode, now unionfs.Time) error {
	if err := checkRoom(dir, name); err != nil {
		return err
	}
	if dir.mode&unix.S_ISGID != 0 {
		n.gid = dir.gid
	}
	n.nlink, n.times, n.xattrs = 1, [nTimes]unionfs.Time{now, now, now, now}, make(map[string]string)
	if n.isDir() {
		n.nlink, n.ents, n.parent = 2, make(map[string]*mInode), dir
		n.mode |= dir.mode & unix.S_ISGID
		dir.nlink++
	}
	dir.ents[name] = n
	dir.touch(now)
	return nil
}

func checkRoom(dir *mInode, name string) error {
	switch {
	case len(name) > 255:
		return syscall.ENAMETOOLONG
	case !dir.isDir():
		return syscall.ENOTDIR
	case dir.nlink == 0:
		return syscall.ENOENT
	case dir.ents[name] != nil:
		return syscall.EEXIST
	}
	return nil
}

func (m *model) tmpfile(dir, n *mInode, now unionfs.Time) error {
	switch {
	case !dir.isDir():
		return syscall.ENOTDIR
	case dir.nlink == 0:
		return syscall.ENOENT
	}
	if dir.mode&unix.S_ISGID != 0 {
		n.gid = dir.gid
	}
	n.times, n.xattrs, n.tmp = [nTimes]unionfs.Time{now, now, now, now}, make(map[string]string), true
	return nil
}

func (m *model) link(n, dir *mInode, name string, now unionfs.Time) error {
	switch {
	case n.isDir():
		return syscall.EPERM
	case n.nlink == 0 && !n.tmp:
		return syscall.ENOENT
	}
	if err := checkRoom(dir, name); err != nil {
		return err
	}
	dir.ents[name] = n
	n.nlink++
	n.times[ctime] = now
	dir.touch(now)
	return nil
}

func (m *model) remove(dir *mInode, name string, rmdir bool, now unionfs.Time) error {
	if !dir.isDir() {
		return syscall.ENOTDIR
	}
	n := dir.ents[name]
	switch {
	case n == nil:
		return syscall.ENOENT
	case rmdir && !n.isDir():
		return syscall.ENOTDIR
	case !rmdir && n.isDir():
		return syscall.EISDIR
	case len(n.ents) > 0:
		return syscall.ENOTEMPTY
	}
	delete(dir.ents, name)
	m.unlinked(dir, n, now)
	dir.touch(now)
	return nil
}

func (m *model) unlinked(dir, n *mInode, now unionfs.Time) {
	if n.isDir() {
		n.nlink = 0
		dir.nlink--
	} else {
		n.nlink--
	}
	n.times[ctime] = now
}

func under(top, n *mInode) bool {
	for ; ; n = n.parent {
		if n == top {
			return true
		}
		if n.parent == n {
			return false
		}
	}
}

func (m *model) rename(od *mInode, oname string, nd *mInode, nname string, flags uint32, whiteout Ino, now unionfs.Time) error {
	if !od.isDir() || !nd.isDir() {
		return syscall.ENOTDIR
	}
	from, to := od.ents[oname], nd.ents[nname]
	exchange := flags == unix.RENAME_EXCHANGE
	switch {
	case from == nil:
		return syscall.ENOENT
	case nd.nlink == 0:
		return syscall.ENOENT
	case from.isDir() && under(from, nd):
		return syscall.EINVAL
	case exchange && to == nil:
		return syscall.ENOENT
	case exchange && to.isDir() && under(to, od):
		return syscall.EINVAL
	case exchange:
	case to != nil && flags&unix.RENAME_NOREPLACE != 0:
		return syscall.EEXIST
	case to != nil && to != from:
		switch {
		case to.isDir() && under(to, od):
			return syscall.ENOTEMPTY
		case from.isDir() && !to.isDir():
			return syscall.ENOTDIR
		case !from.isDir() && to.isDir():
			return syscall.EISDIR
		case len(to.ents) > 0:
			return syscall.ENOTEMPTY
		}
	}
	if from == to {
		return nil
	}
	if exchange {
		od.ents[oname] = to
		moved(to, nd, od)
		to.times[ctime] = now
	} else {
		if to != nil {
			m.unlinked(nd, to, now)
		}
		delete(od.ents, oname)
		if flags&unix.RENAME_WHITEOUT != 0 {
			w := &mInode{ino: whiteout, mode: unix.S_IFCHR, nlink: 1, times: [nTimes]unionfs.Time{now, now, now, now}, xattrs: map[string]string{}}
			od.ents[oname], m.inodes[whiteout] = w, w
		}
	}
	nd.ents[nname] = from
	moved(from, od, nd)
	from.times[ctime] = now
	od.touch(now)
	nd.touch(now)
	return nil
}

func moved(n, from, to *mInode) {
	if n.isDir() {
		from.nlink--
		to.nlink++
		n.parent = to
	}
}

func (n *mInode) resize(size int64) {
	if size < int64(len(n.data)) {
		n.data = n.data[:size:size]
	}
	n.data = append(n.data, make([]byte, size-int64(len(n.data)))...)
}

func (n *mInode) killPriv() {
	if n.isDir() {
		return
	}
	n.mode &^= unix.S_ISUID
	if n.mode&unix.S_IXGRP != 0 {
		n.mode &^= unix.S_ISGID
	}
}

func (m *model) write(n *mInode, p []byte, off int64, kill bool, now unionfs.Time) error {
	switch {
	case n.isDir():
		return syscall.EISDIR
	case n.typ() != unix.S_IFREG:
		return syscall.EINVAL
	}
	n.resize(max(int64(len(n.data)), off+int64(len(p))))
	copy(n.data[off:], p)
	n.touch(now)
	delete(n.xattrs, capability)
	if kill {
		n.killPriv()
	}
	return nil
}

func (m *model) setAttr(n *mInode, s unionfs.SetAttr, now unionfs.Time) error {
	if s.Valid&unionfs.SetSize != 0 {
		switch {
		case n.isDir():
			return syscall.EISDIR
		case n.typ() != unix.S_IFREG:
			return syscall.EINVAL
		}
		n.resize(s.Size)
		n.times[mtime] = now
	}
	if s.Valid&unionfs.SetMode != 0 {
		n.mode = n.typ() | s.Mode
	}
	if s.Valid&unionfs.SetUID != 0 {
		n.uid = s.UID
	}
	if s.Valid&unionfs.SetGID != 0 {
		n.gid = s.GID
	}
	if s.Valid&unionfs.SetAtime != 0 {
		n.times[atime] = s.Atime
	}
	if s.Valid&unionfs.SetMtime != 0 {
		n.times[mtime] = s.Mtime
	}
	if s.Valid&unionfs.SetKillPriv != 0 {
		n.killPriv()
	}
	if s.Valid&(unionfs.SetKillPriv|unionfs.SetSize|unionfs.SetUID|unionfs.SetGID) != 0 && !n.isDir() {
		delete(n.xattrs, capability)
	}
	n.times[ctime] = now
	return nil
}

func (m *model) fallocate(n *mInode, mode uint32, off, length int64, now unionfs.Time) error {
	switch {
	case n.isDir():
		return syscall.EISDIR
	case n.typ() != unix.S_IFREG:
		return syscall.ENODEV
	}
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		n.resize(max(int64(len(n.data)), off+length))
	}
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 && off < int64(len(n.data)) {
		clear(n.data[off:min(off+length, int64(len(n.data)))])
	}
	n.touch(now)
	delete(n.xattrs, capability)
	return nil
}

func (m *model) setXattr(n *mInode, name, value string, flags uint32, now unionfs.Time) error {
	_, there := n.xattrs[name]
	switch {
	case there && flags == unix.XATTR_CREATE:
		return syscall.EEXIST
	case !there && flags == unix.XATTR_REPLACE:
		return syscall.ENODATA
	}
	n.xattrs[name] = value
	n.times[ctime] = now
	return nil
}

func (m *model) removeXattr(n *mInode, name string, now unionfs.Time) error {
	if _, ok := n.xattrs[name]; !ok {
		return syscall.ENODATA
	}
	delete(n.xattrs, name)
	n.times[ctime] = now
	return nil
}
