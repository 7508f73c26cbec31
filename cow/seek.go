package cow

import (
	"context"
	"math"
	"syscall"

	"golang.org/x/sys/unix"
)

// Lseek finds data or a hole. What is the image's counts as data while it is not on this host.
func (f *FS) Lseek(ino Ino, off int64, whence int) (int64, error) {
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, syscall.EINVAL
	}
	if off < 0 {
		return 0, syscall.ENXIO
	}
	if err := f.fold(ino); err != nil {
		return 0, err
	}
	for pos := off; ; {
		where, length, err := f.segment(ino, pos)
		if err != nil {
			return 0, err
		}
		if length == 0 { // the end of the file, which counts as a hole
			if whence == unix.SEEK_HOLE && pos > off {
				return pos, nil
			}
			return 0, syscall.ENXIO
		}
		at, err := f.seekSegment(ino, where, pos, pos+length, whence)
		if err != nil {
			return 0, err
		}
		if at < pos+length {
			return at, nil
		}
		pos += length
	}
}

// seekSegment finds data or a hole in [pos,end), which is all in one place; end says there is none.
func (f *FS) seekSegment(ino Ino, where int, pos, end int64, whence int) (int64, error) {
	switch {
	case where == inObject:
		return f.seekObject(ino, pos, end, whence)
	case where == inImage:
		return f.seekImage(ino, pos, end, whence)
	case whence == unix.SEEK_DATA: // what is in the pack has no holes
		return pos, nil
	}
	return end, nil
}

// seekObject finds data or a hole in [pos,end) of a data object; end says there is none.
func (f *FS) seekObject(ino Ino, pos, end int64, whence int) (int64, error) {
	hole := pos // where there is no object there is no data
	if whence == unix.SEEK_DATA {
		hole = end
	}
	o, err := f.objs.get(ino, false)
	if err != nil || o == nil {
		return hole, err
	}
	defer f.objs.put(o)
	return seekFile(o.fd, pos, end, whence)
}

// seekImage is seekObject for the image's content: all of it counts as data while it is not whole on this host.
func (f *FS) seekImage(ino Ino, pos, end int64, whence int) (int64, error) {
	file, err := f.contents.Local(ino)
	if err != nil || file == nil {
		if whence == unix.SEEK_DATA {
			return pos, nil
		}
		return end, nil
	}
	defer file.Close()
	return seekFile(int(file.Fd()), pos, end, whence)
}

// seekFile finds data or a hole in [pos,end) of a host's file; end says there is none. The file may be shorter: there is a
// hole where its last block ends.
func seekFile(fd int, pos, end int64, whence int) (int64, error) {
	at, err := unix.Seek(fd, pos, whence)
	switch {
	case err == unix.ENXIO && whence == unix.SEEK_HOLE:
		return pos, nil
	case err == unix.ENXIO:
		return end, nil
	case err != nil:
		return 0, err
	case whence == unix.SEEK_HOLE && at > pos:
		at = (at + seekBlock - 1) / seekBlock * seekBlock
	}
	return min(at, end), nil
}

// seekBlock is what holes begin and end at, bytes.
const seekBlock = 4096

// Fallocate reserves, zeroes or gives back space of [off,off+length).
//
//	before: the inode is a regular file.
//	after:  mode 0 and FALLOC_FL_KEEP_SIZE: the host has room for the range. PUNCH_HOLE and ZERO_RANGE: it reads as
//	        zeros. Without KEEP_SIZE the file is at least off+length long; what it gained is zeros. mtime and ctime
//	        are now.
//	crash:  before the record: old size; zeros or the old bytes where they were ours, old bytes where the image's.
//
// EOPNOTSUPP: another mode, or one that the host's file system does not have.
func (f *FS) Fallocate(_ context.Context, ino Ino, mode uint32, off, length int64) error {
	switch {
	case f.ro:
		return syscall.EROFS
	case off < 0 || length <= 0:
		return syscall.EINVAL
	case off > math.MaxInt64-length:
		return syscall.EFBIG
	}
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	switch mode {
	case 0, keep, keep | punch, zero, keep | zero:
	default:
		return syscall.EOPNOTSUPP
	}
	lock := f.dataLock(ino)
	lock.Lock()
	defer lock.Unlock()
	if err := f.fold(ino); err != nil {
		return err
	}
	size, err := f.sizeOf(ino)
	if err == syscall.EINVAL {
		err = syscall.ENODEV
	}
	if err != nil {
		return err
	}
	grown := size
	if mode&keep == 0 {
		grown = max(size, off+length)
	}
	u := Usage{}
	if mode&punch == 0 {
		if u, err = f.needOfAllocation(ino, off, off+length); err != nil {
			return err
		}
	}
	if !f.usage.reserve(u) {
		return syscall.ENOSPC
	}
	defer f.usage.release(u)
	if err := f.allocObject(ino, mode, off, length, size, grown); err != nil {
		return err
	}
	if err := f.allocated(ino, mode&(punch|zero) != 0, off, off+length, size, grown); err != nil {
		return err
	}
	f.measure(ino)
	return nil
}

// allocObject is Fallocate for the data object. It needs the data lock.
func (f *FS) allocObject(ino Ino, mode uint32, off, length, size, grown int64) error {
	if err := f.leavePack(ino); err != nil {
		return err
	}
	o, err := f.objs.get(ino, true)
	if err != nil {
		return err
	}
	defer f.objs.put(o)
	if err := f.trim(o, size); err != nil {
		return err
	}
	f.objs.markDirty(ino, true)
	// The object's size is set apart: it may be shorter than the file's.
	if err := o.allocate("allocate in data object", mode, off, length); err != nil {
		return err
	}
	if grown > size {
		return o.setSize(grown)
	}
	return nil
}

// allocated is the record of Fallocate.
func (f *FS) allocated(ino Ino, zeroed bool, off, end, size, grown int64) error {
	t, err := f.begin()
	if err != nil {
		return err
	}
	defer t.end()
	// Only what is zero now is ours: a range that is merely reserved still shows the image's bytes.
	from, to := size, grown
	if zeroed {
		from, to = min(off, grown), min(end, grown)
	}
	if from > size { // zeros up to there
		from = size
	}
	t.data(ino, from, max(0, to-from), true)
	t.dropCapability(ino)
	return t.commit()
}
