package cow

import (
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

const maxName = 255

func checkName(name string) error {
	switch {
	case len(name) > maxName:
		return syscall.ENAMETOOLONG
	case name == "":
		return syscall.ENOENT
	case name == "." || name == "..":
		return syscall.EINVAL
	case strings.ContainsAny(name, "/\x00"):
		return syscall.EINVAL
	}
	return nil
}

// dirMeta returns a directory's attributes. It needs st or op.
func (f *FS) dirMeta(ino Ino) (meta, error) {
	m, err := f.peek(ino)
	if err == nil && !m.isDir() {
		err = syscall.ENOTDIR
	}
	return m, err
}

// Lookup finds name in dir; ".." too, and in every inode "." (a file handle is looked up that way).
func (f *FS) Lookup(dir Ino, name string) (unionfs.Attr, error) {
	if len(name) > maxName {
		return unionfs.Attr{}, syscall.ENAMETOOLONG
	}
	f.st.RLock()
	ino, err := f.lookupRLocked(dir, name)
	if err != nil {
		f.st.RUnlock()
		return unionfs.Attr{}, err
	}
	return f.attrRUnlock(ino)
}

func (f *FS) lookupRLocked(dir Ino, name string) (Ino, error) {
	if name == "." {
		return dir, nil
	}
	m, err := f.dirMeta(dir)
	if err != nil {
		return 0, err
	}
	if name == ".." {
		return m.val, nil
	}
	ino, ok := f.lookup(dir, name)
	if !ok {
		return 0, syscall.ENOENT
	}
	return ino, nil
}

// newMeta is what a new inode in a directory starts with. A set-group-id directory passes its group on, and to
// directories the bit too (kernel: fs/inode.c, inode_init_owner).
func newMeta(parent *meta, mode uint32, c unionfs.Owner) meta {
	m := meta{mode: mode, nlink: 1, uid: c.UID, gid: c.GID}
	if parent.mode&unix.S_ISGID != 0 {
		m.gid = parent.gid
		if m.isDir() {
			m.mode |= unix.S_ISGID
		}
	}
	return m
}

// createIn is create for an inode that takes after a directory.
func (t *tx) createIn(dir Ino, m meta, umask uint32) (Ino, error) {
	access, byDefault := t.f.inheritACL(dir, &m, umask)
	if err := t.need(Usage{Bytes: costOfXattr(aclAccess, access) + costOfXattr(aclDefault, byDefault)}); err != nil {
		return 0, err
	}
	ino, err := t.create(m)
	if err != nil {
		return 0, err
	}
	if access != nil {
		t.setXattr(ino, aclAccess, access)
	}
	if byDefault != nil {
		t.setXattr(ino, aclDefault, byDefault)
	}
	return ino, nil
}

// room checks that a new name can be made in dir, and returns dir's attributes for the change.
func (t *tx) room(dir Ino, name string) (*meta, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	d, err := t.edit(dir)
	if err != nil {
		return nil, err
	}
	switch {
	case !d.isDir():
		return nil, syscall.ENOTDIR
	case d.nlink == 0:
		return nil, syscall.ENOENT
	}
	if _, ok := t.f.lookup(dir, name); ok {
		return nil, syscall.EEXIST
	}
	return d, nil
}

// Mknod makes a regular file, FIFO, socket or device.
//
//	before: name is not in dir.
//	after:  name is a new inode with a number that was never used; dir's mtime and ctime are now.
//	crash:  one record: all of it or nothing.
func (r Request) Mknod(dir Ino, name string, mode uint32, rdev uint64, c unionfs.Owner) (unionfs.Attr, error) {
	if mode&unix.S_IFMT == 0 {
		mode |= unix.S_IFREG
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
		rdev = 0
	case unix.S_IFCHR, unix.S_IFBLK:
	default:
		return unionfs.Attr{}, syscall.EINVAL
	}
	return r.make(dir, name, mode&(unix.S_IFMT|0o7777), rdev, "", c)
}

// Mkdir makes a directory: as Mknod, and dir has one link more, by the new one's "..".
func (r Request) Mkdir(dir Ino, name string, mode uint32, c unionfs.Owner) (unionfs.Attr, error) {
	return r.make(dir, name, unix.S_IFDIR|mode&0o7777, dir, "", c)
}

// Symlink makes a symbolic link: as Mknod.
func (r Request) Symlink(dir Ino, name, target string, c unionfs.Owner) (unionfs.Attr, error) {
	switch {
	case target == "":
		return unionfs.Attr{}, syscall.ENOENT
	case len(target) >= unix.PathMax:
		return unionfs.Attr{}, syscall.ENAMETOOLONG
	}
	return r.make(dir, name, unix.S_IFLNK|0o777, uint64(len(target)), target, c)
}

func (r Request) make(dir Ino, name string, mode uint32, val uint64, target string, c unionfs.Owner) (unionfs.Attr, error) {
	t, err := r.begin()
	if err != nil {
		return unionfs.Attr{}, err
	}
	defer t.end()
	d, err := t.room(dir, name)
	if err != nil {
		return unionfs.Attr{}, err
	}
	m := newMeta(d, mode, c)
	m.val = val
	if m.isDir() {
		m.nlink = 2
		d.nlink++
	}
	if err := t.need(Usage{costInode + costEntry + int64(len(name)+len(target)), 1}); err != nil {
		return unionfs.Attr{}, err
	}
	ino, err := t.createIn(dir, m, c.Umask)
	if err != nil {
		return unionfs.Attr{}, err
	}
	if target != "" {
		t.target(ino, target)
	}
	t.link(dir, name, ino, mode&unix.S_IFMT)
	d.touch(t.now)
	if err := t.commit(); err != nil {
		return unionfs.Attr{}, err
	}
	return r.nodes[ino].attr(), nil
}

// Tmpfile makes a regular file without a name.
//
//	before: nothing.
//	after:  an inode with nlink 0 that Link may give its first name; Forget ends it.
//	crash:  it is gone, as all inodes without a name, unless the session goes on.
func (f *FS) Tmpfile(dir Ino, mode uint32, c unionfs.Owner) (unionfs.Attr, error) {
	t, err := f.begin()
	if err != nil {
		return unionfs.Attr{}, err
	}
	defer t.end()
	d, err := f.dirMeta(dir)
	if err != nil {
		return unionfs.Attr{}, err
	}
	if d.nlink == 0 {
		return unionfs.Attr{}, syscall.EPERM // not ENOENT, as for a name (kernel: fs/ext4/ialloc.c, __ext4_new_inode)
	}
	m := newMeta(&d, unix.S_IFREG|mode&0o7777, c)
	m.nlink = 0
	if err := t.need(Usage{costInode, 1}); err != nil {
		return unionfs.Attr{}, err
	}
	ino, err := t.createIn(dir, m, c.Umask)
	if err != nil {
		return unionfs.Attr{}, err
	}
	if err := t.commit(); err != nil {
		return unionfs.Attr{}, err
	}
	return f.nodes[ino].attr(), nil
}

// Link gives an inode one more name.
//
//	before: name is not in dir; ino is no directory, and has a name or is fresh from Tmpfile.
//	after:  name is ino, whose nlink is one more and whose ctime is now; dir's mtime and ctime are now.
//	crash:  one record: all of it or nothing.
func (r Request) Link(ino, dir Ino, name string) (unionfs.Attr, error) {
	t, err := r.begin()
	if err != nil {
		return unionfs.Attr{}, err
	}
	defer t.end()
	m, err := t.edit(ino)
	if err != nil {
		return unionfs.Attr{}, err
	}
	switch n := r.nodes[ino]; {
	case m.isDir():
		return unionfs.Attr{}, syscall.EPERM
	case m.nlink == 0 && (n == nil || n.flags&flagLinkable == 0):
		return unionfs.Attr{}, syscall.ENOENT
	case m.nlink == 1<<32-1:
		return unionfs.Attr{}, syscall.EMLINK
	}
	d, err := t.room(dir, name)
	if err != nil {
		return unionfs.Attr{}, err
	}
	if err := t.need(Usage{Bytes: costEntry + int64(len(name))}); err != nil {
		return unionfs.Attr{}, err
	}
	t.link(dir, name, ino, m.mode&unix.S_IFMT)
	m.nlink++
	m.setTime(ctime, t.now)
	d.touch(t.now)
	if err := t.commit(); err != nil {
		return unionfs.Attr{}, err
	}
	return r.nodes[ino].attr(), nil
}

// victim finds an entry that is to go, and returns both ends of it for the change.
func (t *tx) victim(dir Ino, name string) (d, m *meta, ino Ino, err error) {
	if err := checkName(name); err != nil {
		return nil, nil, 0, err
	}
	if d, err = t.edit(dir); err != nil {
		return nil, nil, 0, err
	}
	if !d.isDir() {
		return nil, nil, 0, syscall.ENOTDIR
	}
	ino, ok := t.f.lookup(dir, name)
	if !ok {
		return nil, nil, 0, syscall.ENOENT
	}
	m, err = t.edit(ino)
	return d, m, ino, err
}

// drop takes one name from an inode whose entry in directory d goes.
func (t *tx) drop(d, m *meta) {
	if m.isDir() {
		m.nlink = 0
		d.nlink--
	} else {
		m.nlink--
	}
	t.frees = m.nlink == 0
	m.setTime(ctime, t.now)
}

// Unlink removes a name of something that is no directory.
//
//	before: name is in dir.
//	after:  it is not; the inode's nlink is one less and its ctime is now. With nlink 0 its content lives until Forget.
//	crash:  one record: all of it or nothing; an inode without a name is gone, unless the session goes on.
func (r Request) Unlink(dir Ino, name string) error {
	t, err := r.begin()
	if err != nil {
		return err
	}
	defer t.end()
	d, m, _, err := t.victim(dir, name)
	if err != nil {
		return err
	}
	if m.isDir() {
		return syscall.EISDIR
	}
	t.unlink(dir, name)
	t.drop(d, m)
	d.touch(t.now)
	return t.commit()
}

// Rmdir removes an empty directory: as Unlink, and dir has one link less. The directory's nlink is 0 then, and
// nothing can be made in it.
func (r Request) Rmdir(dir Ino, name string) error {
	t, err := r.begin()
	if err != nil {
		return err
	}
	defer t.end()
	d, m, ino, err := t.victim(dir, name)
	if err != nil {
		return err
	}
	if !m.isDir() {
		return syscall.ENOTDIR
	}
	if r.dirLen(ino) != 0 {
		return syscall.ENOTEMPTY
	}
	t.unlink(dir, name)
	t.drop(d, m)
	d.touch(t.now)
	return t.commit()
}

// Readlink returns the target of a symbolic link.
func (f *FS) Readlink(ino Ino) (string, error) {
	f.st.RLock()
	defer f.st.RUnlock()
	m, err := f.peek(ino)
	if err != nil {
		return "", err
	}
	if m.mode&unix.S_IFMT != unix.S_IFLNK {
		return "", syscall.EINVAL
	}
	if n := f.nodes[ino]; n != nil && !f.inImage(ino) {
		if n.x == nil { // a journal of somebody else's making
			return "", syscall.EIO
		}
		return n.x.target, nil
	}
	target, ok := f.tree.Readlink(ino)
	if !ok {
		return "", syscall.EIO
	}
	return target, nil
}

// Forget ends an inode that has no name and that the kernel does not know any more; for all others it does nothing.
//
//	before: nlink is 0.
//	after:  the number means nothing (ESTALE) and is never used again; after the next commit its content is gone.
//	crash:  the same: recovery ends all inodes without a name, but for a session that goes on: then those that were ended before the
//	        last record, and the others at the end of the session.
func (f *FS) Forget(ino Ino) {
	if f.ro {
		return
	}
	f.st.RLock()
	n := f.nodes[ino]
	orphan := n != nil && n.nlink == 0
	f.st.RUnlock()
	if !orphan {
		return
	}
	lock := f.dataLock(ino)
	lock.Lock() // no write is under way
	defer lock.Unlock()
	f.op.Lock()
	defer f.op.Unlock()
	if !f.closed {
		f.end(n)
	}
}

// end takes an orphan away. What it had is given back when the record that took its last name is committed. It needs op.
func (f *FS) end(n *node) {
	if f.nodes[n.ino] != n || n.nlink != 0 {
		return // Forget ran twice, or a Link came first
	}
	f.dumpNow(n)
	seq := f.journal.last()
	if n.flags&flagObject != 0 {
		f.freed.add(freed{seq: seq, ino: n.ino, ended: true}, n)
		if n.val >= wakeBytes {
			f.nudge() // somebody may be waiting for that room, and not here
		}
	}
	f.st.Lock()
	defer f.st.Unlock()
	f.noteGone(n)
	u := f.cost(n)
	f.usage.add(Usage{-u.Bytes, -u.Inodes})
	f.setSlot(n, 0)
	if b := f.backings[n.ino]; b != nil {
		b.close()
		delete(f.backings, n.ino)
	}
	delete(f.nodes, n.ino)
	if f.inImage(n.ino) {
		f.dead.set(n.ino, f.maxImage+1)
	}
}
