package fs

import (
	"context"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// fakeFS is a Backend in memory, with the semantics of a local file system, and hooks for faults.
type fakeFS struct {
	mu     sync.Mutex
	next   unionfs.Ino
	inodes map[unionfs.Ino]*fakeInode
	forgot chan unionfs.Ino // unlinked inodes that Forget has let go, while there is room

	objects string // directory of data objects; the files have none when empty

	// onRead runs before a Read, without the lock; an error from it is the answer.
	onRead func(ctx context.Context, ino unionfs.Ino) error
	// onLookup runs before a Lookup.
	onLookup func(name string) error
}

type fakeInode struct {
	attr    unionfs.Attr
	data    []byte
	object  *os.File // holds the data in place of data
	writers int      // OpenBacking for writing, not yet closed
	shared  string   // path of shared content that is equal to data
	target  string
	xattrs  map[string][]byte
	parent  unionfs.Ino
	entries []fakeEntry // in the order of their positions
	lastPos uint64
}

type fakeEntry struct {
	name string
	ino  unionfs.Ino
	pos  uint64
}

func newFakeFS() *fakeFS {
	f := &fakeFS{next: unionfs.Root, inodes: make(map[unionfs.Ino]*fakeInode), forgot: make(chan unionfs.Ino, 1000)}
	root := f.newInode(syscall.S_IFDIR|0o755, 0, unionfs.Owner{})
	root.attr.Nlink, root.parent = 2, unionfs.Root
	return f
}

func now() unionfs.Time {
	t := time.Now()
	return unionfs.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
}

func (f *fakeFS) newInode(mode uint32, rdev uint64, c unionfs.Owner) *fakeInode {
	t := now()
	n := &fakeInode{attr: unionfs.Attr{Ino: f.next, Mode: mode &^ c.Umask, UID: c.UID, GID: c.GID, Rdev: rdev,
		Atime: t, Mtime: t, Ctime: t, Btime: t}, lastPos: 2}
	f.next++
	f.inodes[n.attr.Ino] = n
	return n
}

func (f *fakeFS) inode(ino unionfs.Ino) (*fakeInode, error) {
	if n := f.inodes[ino]; n != nil {
		return n, nil
	}
	return nil, syscall.ESTALE
}

func (f *fakeFS) dir(ino unionfs.Ino) (*fakeInode, error) {
	n, err := f.inode(ino)
	if err == nil && !n.isDir() {
		return nil, syscall.ENOTDIR
	}
	return n, err
}

func (n *fakeInode) isDir() bool { return n.attr.Mode&syscall.S_IFMT == syscall.S_IFDIR }

func (n *fakeInode) find(name string) int {
	return slices.IndexFunc(n.entries, func(e fakeEntry) bool { return e.name == name })
}

func (n *fakeInode) touchDir() { n.attr.Mtime = now(); n.attr.Ctime = n.attr.Mtime }

func (n *fakeInode) add(name string, child *fakeInode) {
	n.lastPos++
	n.entries = append(n.entries, fakeEntry{name, child.attr.Ino, n.lastPos})
	if child.isDir() {
		n.attr.Nlink++
		child.parent = n.attr.Ino
	}
	n.touchDir()
}

func (n *fakeInode) remove(name string, child *fakeInode) {
	n.entries = slices.Delete(n.entries, n.find(name), n.find(name)+1)
	if child.isDir() {
		n.attr.Nlink--
	}
	n.touchDir()
}

func (f *fakeFS) GetAttr(ino unionfs.Ino) (unionfs.Attr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.inode(ino)
	if err != nil {
		return unionfs.Attr{}, err
	}
	return n.stat(), nil
}

func (f *fakeFS) SetAttr(ino unionfs.Ino, s unionfs.SetAttr) (unionfs.Attr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.inode(ino)
	if err != nil {
		return unionfs.Attr{}, err
	}
	n.stat()
	a := &n.attr
	a.Ctime = now()
	if s.Valid&unionfs.SetKillPriv != 0 && !n.isDir() {
		n.killPriv()
	}
	if s.Valid&unionfs.SetKillSGID != 0 && !n.isDir() {
		a.Mode &^= unix.S_ISGID
	}
	if s.Valid&unionfs.SetMode != 0 {
		a.Mode = a.Mode&^07777 | s.Mode
	}
	if s.Valid&unionfs.SetUID != 0 {
		a.UID = s.UID
	}
	if s.Valid&unionfs.SetGID != 0 {
		a.GID = s.GID
	}
	if s.Valid&unionfs.SetSize != 0 {
		n.resize(s.Size)
		a.Mtime = a.Ctime
	}
	if s.Valid&unionfs.SetAtime != 0 {
		a.Atime = s.Atime
	}
	if s.Valid&unionfs.SetMtime != 0 {
		a.Mtime = s.Mtime
		n.setObjectTime()
	}
	return n.stat(), nil
}

func (n *fakeInode) killPriv() {
	n.attr.Mode &^= syscall.S_ISUID
	if n.attr.Mode&0o10 != 0 {
		n.attr.Mode &^= syscall.S_ISGID
	}
	delete(n.xattrs, "security.capability")
}

func (f *fakeFS) Lookup(dir unionfs.Ino, name string) (unionfs.Attr, error) {
	if f.onLookup != nil {
		if err := f.onLookup(name); err != nil {
			return unionfs.Attr{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.dir(dir)
	if err != nil {
		return unionfs.Attr{}, err
	}
	i := d.find(name)
	if i < 0 {
		return unionfs.Attr{}, syscall.ENOENT
	}
	return f.inodes[d.entries[i].ino].stat(), nil
}

func (f *fakeFS) Forget(ino unionfs.Ino) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.inodes[ino]; n != nil && n.attr.Nlink == 0 {
		delete(f.inodes, ino)
		select {
		case f.forgot <- ino:
		default:
		}
	}
}

func (f *fakeFS) ReadDir(dir unionfs.Ino, after uint64, yield func(unionfs.Dirent) bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.dir(dir)
	if err != nil {
		return err
	}
	all := append([]fakeEntry{{".", dir, 1}, {"..", d.parent, 2}}, d.entries...)
	for _, e := range all {
		if e.pos <= after {
			continue
		}
		typ := uint32(syscall.S_IFDIR)
		if e.pos > 2 {
			typ = f.inodes[e.ino].attr.Mode & syscall.S_IFMT
		}
		if !yield(unionfs.Dirent{Name: e.name, Ino: e.ino, Type: typ, Next: e.pos}) {
			return nil
		}
	}
	return nil
}

func (f *fakeFS) Readlink(ino unionfs.Ino) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.inode(ino)
	if err != nil {
		return "", err
	}
	return n.target, nil
}

func (f *fakeFS) create(dir unionfs.Ino, name string, mode uint32, rdev uint64, c unionfs.Owner) (*fakeInode, error) {
	d, err := f.dir(dir)
	switch {
	case err != nil:
		return nil, err
	case len(name) > 255:
		return nil, syscall.ENAMETOOLONG
	case d.attr.Nlink == 0:
		return nil, syscall.ENOENT
	case d.find(name) >= 0:
		return nil, syscall.EEXIST
	}
	if d.attr.Mode&syscall.S_ISGID != 0 {
		c.GID = d.attr.GID
		if mode&syscall.S_IFMT == syscall.S_IFDIR {
			mode |= syscall.S_ISGID
		}
	}
	n := f.newInode(mode, rdev, c)
	n.attr.Nlink = 1
	if n.isDir() {
		n.attr.Nlink = 2
	}
	d.add(name, n)
	return n, nil
}

func (f *fakeFS) Mknod(dir unionfs.Ino, name string, mode uint32, rdev uint64, c unionfs.Owner) (unionfs.Attr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.create(dir, name, mode, rdev, c)
	if err != nil {
		return unionfs.Attr{}, err
	}
	return n.attr, nil
}

func (f *fakeFS) Mkdir(dir unionfs.Ino, name string, mode uint32, c unionfs.Owner) (unionfs.Attr, error) {
	return f.Mknod(dir, name, syscall.S_IFDIR|mode, 0, c)
}

func (f *fakeFS) Symlink(dir unionfs.Ino, name, target string, c unionfs.Owner) (unionfs.Attr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.create(dir, name, syscall.S_IFLNK|0o777, 0, c)
	if err != nil {
		return unionfs.Attr{}, err
	}
	n.target, n.attr.Size = target, int64(len(target))
	return n.attr, nil
}

func (f *fakeFS) Tmpfile(dir unionfs.Ino, mode uint32, c unionfs.Owner) (unionfs.Attr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.dir(dir); err != nil {
		return unionfs.Attr{}, err
	}
	return f.newInode(mode, 0, c).attr, nil
}

func (f *fakeFS) Link(ino, dir unionfs.Ino, name string) (unionfs.Attr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.inode(ino)
	if err != nil {
		return unionfs.Attr{}, err
	}
	d, err := f.dir(dir)
	if err != nil {
		return unionfs.Attr{}, err
	}
	if d.find(name) >= 0 {
		return unionfs.Attr{}, syscall.EEXIST
	}
	n.attr.Nlink++
	n.attr.Ctime = now()
	d.add(name, n)
	return n.attr, nil
}

func (f *fakeFS) unlink(dir unionfs.Ino, name string, wantDir bool) error {
	d, err := f.dir(dir)
	if err != nil {
		return err
	}
	i := d.find(name)
	if i < 0 {
		return syscall.ENOENT
	}
	n := f.inodes[d.entries[i].ino]
	switch {
	case wantDir && !n.isDir():
		return syscall.ENOTDIR
	case !wantDir && n.isDir():
		return syscall.EISDIR
	case len(n.entries) > 0:
		return syscall.ENOTEMPTY
	}
	d.remove(name, n)
	n.attr.Ctime = now()
	if n.attr.Nlink--; n.isDir() {
		n.attr.Nlink = 0
	}
	return nil
}

func (f *fakeFS) Unlink(dir unionfs.Ino, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unlink(dir, name, false)
}

func (f *fakeFS) Rmdir(dir unionfs.Ino, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unlink(dir, name, true)
}

func (f *fakeFS) Rename(oldDir unionfs.Ino, oldName string, newDir unionfs.Ino, newName string, flags uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	od, err := f.dir(oldDir)
	if err != nil {
		return err
	}
	nd, err := f.dir(newDir)
	if err != nil {
		return err
	}
	i, j := od.find(oldName), nd.find(newName)
	if i < 0 {
		return syscall.ENOENT
	}
	n := f.inodes[od.entries[i].ino]
	n.attr.Ctime = now()
	switch {
	case flags&unix.RENAME_EXCHANGE != 0:
		if j < 0 {
			return syscall.ENOENT
		}
		m := f.inodes[nd.entries[j].ino]
		m.attr.Ctime = now()
		od.remove(oldName, n)
		nd.remove(newName, m)
		od.add(oldName, m)
		nd.add(newName, n)
		return nil
	case flags&^unix.RENAME_NOREPLACE != 0:
		return syscall.EINVAL
	case j >= 0 && flags&unix.RENAME_NOREPLACE != 0:
		return syscall.EEXIST
	case j >= 0 && nd.entries[j].ino == n.attr.Ino:
		return nil
	case j >= 0:
		if err := f.unlink(newDir, newName, n.isDir()); err != nil {
			return err
		}
	}
	od.remove(oldName, n)
	nd.add(newName, n)
	return nil
}

func (f *fakeFS) Fsync(unionfs.Ino, bool) error { return nil }

func (f *fakeFS) GetXattr(ino unionfs.Ino, name string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.inode(ino)
	if err != nil {
		return nil, err
	}
	v, ok := n.xattrs[name]
	if !ok {
		return nil, syscall.ENODATA
	}
	return v, nil
}

func (f *fakeFS) ListXattr(ino unionfs.Ino) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.inode(ino)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(n.xattrs)), nil
}

func (f *fakeFS) SetXattr(ino unionfs.Ino, name string, value []byte, flags uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.inode(ino)
	if err != nil {
		return err
	}
	_, exists := n.xattrs[name]
	switch {
	case strings.HasPrefix(name, "system."): // it has no ACLs
		return syscall.EOPNOTSUPP
	case flags&unix.XATTR_CREATE != 0 && exists:
		return syscall.EEXIST
	case flags&unix.XATTR_REPLACE != 0 && !exists:
		return syscall.ENODATA
	}
	if n.xattrs == nil {
		n.xattrs = make(map[string][]byte)
	}
	n.xattrs[name] = slices.Clone(value)
	n.attr.Ctime = now()
	return nil
}

func (f *fakeFS) RemoveXattr(ino unionfs.Ino, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.inode(ino)
	if err != nil {
		return err
	}
	if _, ok := n.xattrs[name]; !ok {
		return syscall.ENODATA
	}
	delete(n.xattrs, name)
	n.attr.Ctime = now()
	return nil
}

func (f *fakeFS) StatFS() (unionfs.StatFS, error) {
	return unionfs.StatFS{Blocks: 1000, BlocksFree: 500, BlocksAvail: 400, Files: 100, FilesFree: 50, BlockSize: 4096, NameLen: 255}, nil
}
