package cow

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// move is a rename with all that it concerns. The metas are those of the tx; those of one inode are one.
type move struct {
	oldDir, newDir   Ino
	oldName, newName string
	from, to         Ino // to is 0 when newName is not there
	od, nd           *meta
	fm, tm           *meta
}

// Rename moves a name, whatever it is, at a cost that does not depend on what is below it. flags are renameat2's.
//
//	before: oldName is in oldDir. newName may be in newDir: it must not with RENAME_NOREPLACE, must with
//	        RENAME_EXCHANGE, and is replaced otherwise if types fit and it is no directory with entries.
//	after:  the inode has its new name and its old number; both directories' mtime and ctime are now, and its ctime;
//	        what was replaced has one name less. With RENAME_WHITEOUT a character device 0:0 has the old name.
//	        Two names of one inode: nothing happens, as POSIX wants.
//	crash:  one record: all of it or nothing. newName is never missing in between.
func (r Request) Rename(oldDir Ino, oldName string, newDir Ino, newName string, flags uint32) error {
	const known = unix.RENAME_NOREPLACE | unix.RENAME_EXCHANGE | unix.RENAME_WHITEOUT
	if flags&^known != 0 || flags&unix.RENAME_EXCHANGE != 0 && flags != unix.RENAME_EXCHANGE {
		return syscall.EINVAL
	}
	t, err := r.begin()
	if err != nil {
		return err
	}
	defer t.end()
	m := move{oldDir: oldDir, oldName: oldName, newDir: newDir, newName: newName}
	if err := t.findMove(&m); err != nil {
		return err
	}
	if err := r.checkMove(&m, flags); err != nil {
		return err
	}
	if m.from == m.to {
		return nil
	}
	switch {
	case flags&unix.RENAME_EXCHANGE != 0:
		t.exchange(&m)
	default:
		t.replace(&m)
	}
	if flags&unix.RENAME_WHITEOUT != 0 {
		if err := t.leaveWhiteout(&m); err != nil {
			return err
		}
	}
	m.fm.setTime(ctime, t.now)
	m.od.touch(t.now)
	m.nd.touch(t.now)
	return t.commit()
}

func (t *tx) findMove(m *move) (err error) {
	if err := checkName(m.newName); err != nil {
		return err
	}
	if m.nd, err = t.edit(m.newDir); err != nil {
		return err
	}
	if !m.nd.isDir() {
		return syscall.ENOTDIR
	}
	if m.od, m.fm, m.from, err = t.victim(m.oldDir, m.oldName); err != nil {
		return err
	}
	if m.nd.nlink == 0 {
		return syscall.ENOENT
	}
	if to, ok := t.f.lookup(m.newDir, m.newName); ok {
		m.to = to
		m.tm, err = t.edit(to)
	}
	return err
}

// checkMove says why a rename must not be (kernel: fs/namei.c, do_renameat2 and vfs_rename).
func (f *FS) checkMove(m *move, flags uint32) error {
	if m.fm.isDir() && f.isAbove(m.from, m.newDir) {
		return syscall.EINVAL
	}
	if flags&unix.RENAME_EXCHANGE != 0 {
		switch {
		case m.to == 0:
			return syscall.ENOENT
		case m.tm.isDir() && f.isAbove(m.to, m.oldDir):
			return syscall.EINVAL
		}
		return nil
	}
	switch {
	case m.to == 0 || m.to == m.from && flags&unix.RENAME_NOREPLACE == 0:
		return nil
	case flags&unix.RENAME_NOREPLACE != 0:
		return syscall.EEXIST
	case m.tm.isDir() && f.isAbove(m.to, m.oldDir):
		return syscall.ENOTEMPTY
	case m.fm.isDir() && !m.tm.isDir():
		return syscall.ENOTDIR
	case !m.fm.isDir() && m.tm.isDir():
		return syscall.EISDIR
	case m.tm.isDir() && f.dirLen(m.to) != 0:
		return syscall.ENOTEMPTY
	}
	return nil
}

// isAbove tells whether dir is below, or is, top. It needs st or op.
func (f *FS) isAbove(top, dir Ino) bool {
	for range f.next {
		if dir == top {
			return true
		}
		m, err := f.peek(dir)
		if err != nil || !m.isDir() || m.val == dir {
			return false
		}
		dir = m.val
	}
	return false
}

func (t *tx) replace(m *move) {
	if m.to != 0 {
		t.drop(m.nd, m.tm)
	}
	t.unlink(m.oldDir, m.oldName)
	t.link(m.newDir, m.newName, m.from, m.fm.mode&unix.S_IFMT)
	t.reparent(m.fm, m.od, m.nd, m.newDir)
}

func (t *tx) exchange(m *move) {
	t.link(m.oldDir, m.oldName, m.to, m.tm.mode&unix.S_IFMT)
	t.link(m.newDir, m.newName, m.from, m.fm.mode&unix.S_IFMT)
	t.reparent(m.fm, m.od, m.nd, m.newDir)
	t.reparent(m.tm, m.nd, m.od, m.oldDir)
	m.tm.setTime(ctime, t.now)
}

// reparent moves the link that a directory's ".." is from one directory to another.
func (t *tx) reparent(m, from, to *meta, parent Ino) {
	if m.isDir() && from != to {
		from.nlink--
		to.nlink++
		m.val = parent
	}
}

func (t *tx) leaveWhiteout(m *move) error {
	if err := t.need(Usage{costInode + costEntry + int64(len(m.oldName)), 1}); err != nil {
		return err
	}
	ino, err := t.create(meta{mode: unix.S_IFCHR, nlink: 1})
	if err != nil {
		return err
	}
	t.link(m.oldDir, m.oldName, ino, unix.S_IFCHR)
	return nil
}
