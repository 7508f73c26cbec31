package cow

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// GetAttr returns what stat shows.
func (f *FS) GetAttr(ino Ino) (unionfs.Attr, error) {
	f.st.RLock()
	return f.attrRUnlock(ino)
}

// attrRUnlock returns an inode's attributes and gives up st, which the caller has for reading.
func (f *FS) attrRUnlock(ino Ino) (unionfs.Attr, error) {
	n := f.nodes[ino]
	if n == nil {
		gone := f.dead.has(ino)
		f.st.RUnlock()
		if gone || !f.inImage(ino) {
			return unionfs.Attr{}, syscall.ESTALE
		}
		a, ok := f.tree.Attr(ino)
		if !ok {
			return unionfs.Attr{}, syscall.ESTALE
		}
		return a, nil
	}
	a := n.attr()
	flags := n.flags
	if n.slot != 0 {
		flags &^= flagSparse
	}
	f.st.RUnlock()
	if flags&(flagSparse|flagBacking) != 0 {
		return f.hostAttr(a, flags)
	}
	return a, nil
}

// hostAttr corrects the attributes of a file by what only its data object knows.
func (f *FS) hostAttr(a unionfs.Attr, flags uint32) (unionfs.Attr, error) {
	if flags&flagBacking != 0 {
		f.st.RLock()
		defer f.st.RUnlock()
		if b := f.backings[a.Ino]; b != nil {
			return a, b.show(&a)
		}
		return a, nil
	}
	if flags&flagPlain == 0 || flags&flagObject == 0 {
		if flags&flagPlain != 0 {
			a.Blocks = 0
		}
		return a, nil
	}
	o, err := f.objs.get(a.Ino, false)
	if err != nil {
		return a, err
	}
	if o == nil {
		a.Blocks = 0
		return a, nil
	}
	defer f.objs.put(o)
	st, err := o.stat()
	if err != nil {
		return a, err
	}
	a.Blocks = st.Blocks
	return a, nil
}

// SetAttr changes attributes.
//
//	before: the inode exists; a size is for regular files.
//	after:  what set names has its new value; ctime is now. A size changes mtime too; what a growing file gets is
//	        zeros, and what a shrinking one loses is lost for good: it reads as zeros when the file grows again.
//	        A new size or owner takes security.capability away, and set-id bits if the kernel asks.
//	crash:  one record: all of it or nothing. The data object is cut after the record is committed.
func (f *FS) SetAttr(ino Ino, set unionfs.SetAttr) (unionfs.Attr, error) {
	if f.ro {
		return unionfs.Attr{}, syscall.EROFS
	}
	resize := set.Valid&unionfs.SetSize != 0
	if resize {
		lock := f.dataLock(ino)
		lock.Lock()
		defer lock.Unlock()
		if err := f.checkRegular(ino); err != nil {
			return unionfs.Attr{}, err
		}
		if set.Size < 0 {
			return unionfs.Attr{}, syscall.EINVAL
		}
	}
	if err := f.fold(ino); err != nil {
		return unionfs.Attr{}, err
	}
	if resize {
		if err := f.grow(ino, set.Size); err != nil {
			return unionfs.Attr{}, err
		}
	}
	before, err := f.setAttr(ino, &set)
	if err != nil {
		return unionfs.Attr{}, err
	}
	if resize && set.Size < before {
		f.shrinkObject(ino, set.Size)
	}
	if resize {
		f.measure(ino)
	}
	return f.GetAttr(ino)
}

// setAttr is the record of SetAttr; it returns the size before. It needs the data lock when the size changes.
func (f *FS) setAttr(ino Ino, set *unionfs.SetAttr) (size int64, err error) {
	t, err := f.begin()
	if err != nil {
		return 0, err
	}
	defer t.end()
	m, err := t.edit(ino)
	if err != nil {
		return 0, err
	}
	size = m.size()
	if set.Valid&unionfs.SetSize != 0 {
		t.frees = set.Size < size
		t.resize(ino, set.Size)
		m.touch(t.now)
	}
	m.set(set, t.now)
	if set.Valid&unionfs.SetMode != 0 {
		t.chmodACL(ino, m)
	}
	if set.Valid&(unionfs.SetSize|unionfs.SetUID|unionfs.SetGID|unionfs.SetKillPriv) != 0 && !m.isDir() {
		t.dropCapability(ino)
	}
	return size, t.commit()
}

func (m *meta) set(s *unionfs.SetAttr, now unionfs.Time) {
	if s.Valid&unionfs.SetMode != 0 {
		m.mode = m.mode&unix.S_IFMT | s.Mode&0o7777
	}
	if s.Valid&unionfs.SetUID != 0 {
		m.uid = s.UID
	}
	if s.Valid&unionfs.SetGID != 0 {
		m.gid = s.GID
	}
	if s.Valid&unionfs.SetAtime != 0 {
		m.setTime(atime, s.Atime)
	}
	if s.Valid&unionfs.SetMtime != 0 {
		m.setTime(mtime, s.Mtime)
	}
	m.setTime(ctime, now)
	if s.Valid&unionfs.SetCtime != 0 {
		m.setTime(ctime, s.Ctime)
	}
	if s.Valid&unionfs.SetKillPriv != 0 {
		m.killPriv()
	}
	if s.Valid&unionfs.SetKillSGID != 0 && !m.isDir() {
		m.mode &^= unix.S_ISGID
	}
}

// checkRegular says whether an inode has content that can be changed.
func (f *FS) checkRegular(ino Ino) error {
	f.st.RLock()
	defer f.st.RUnlock()
	m, err := f.peek(ino)
	switch {
	case err != nil:
		return err
	case m.isDir():
		return syscall.EISDIR
	case !m.isRegular():
		return syscall.EINVAL
	}
	return nil
}
