package cow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"syscall"
)

// Read fills p from off and returns how much there was. It holds no lock over I/O: what is read while somebody
// writes may be old in one part and new in another, as on a local file system.
func (f *FS) Read(ctx context.Context, ino Ino, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, syscall.EINVAL
	}
	n := 0
	for n < len(p) {
		pos := off + int64(n)
		where, length, err := f.segment(ino, pos)
		if err != nil {
			return n, err
		}
		if length == 0 {
			break
		}
		part := p[n : n+int(min(length, int64(len(p)-n)))]
		if where == inImage {
			err = f.readImage(ctx, ino, part, pos)
		} else {
			err = f.readObject(ino, part, pos)
		}
		if err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

const (
	inImage = iota
	inObject
)

// segment tells where the bytes at pos are, and of how many that holds; 0 at the end of the file.
func (f *FS) segment(ino Ino, pos int64) (where int, length int64, err error) {
	f.st.RLock()
	defer f.st.RUnlock()
	n := f.nodes[ino]
	if n == nil {
		m, err := f.peek(ino)
		if err == nil {
			err = readable(&m)
		}
		return inImage, max(0, m.size()-pos), err
	}
	if err := readable(&n.meta); err != nil {
		return 0, 0, err
	}
	size := n.size()
	if n.flags&flagBacking != 0 {
		if b := f.backings[ino]; b != nil {
			size = b.size(size)
		}
	}
	rest := max(0, size-pos)
	if n.flags&flagPlain != 0 {
		return inObject, rest, nil
	}
	runs := n.runs()
	if runs == nil || rest == 0 {
		return inImage, rest, nil
	}
	inside, end := runs.at(pos)
	if inside {
		where = inObject
	}
	return where, min(rest, end-pos), nil
}

func readable(m *meta) error {
	switch {
	case m.isRegular():
		return nil
	case m.isDir():
		return syscall.EISDIR
	}
	return syscall.EINVAL
}

// readImage fills p with the image's content.
func (f *FS) readImage(ctx context.Context, ino Ino, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := f.contents.ReadAt(ctx, ino, p, off)
		p, off = p[n:], off+int64(n)
		switch {
		case len(p) == 0:
			return nil
		case err == nil && n > 0:
		case ctx.Err() != nil:
			return syscall.EINTR
		case err == nil || errors.Is(err, io.EOF):
			return fmt.Errorf("read image content of inode %d at %d: it is shorter than the tree says: %w", ino, off, syscall.EIO)
		default:
			return err
		}
	}
	return nil
}

func (f *FS) readObject(ino Ino, p []byte, off int64) error {
	o, err := f.objs.get(ino, false)
	if err != nil {
		return err
	}
	if o == nil { // never written: all holes
		clear(p)
		return nil
	}
	defer f.objs.put(o)
	return o.read(p, off)
}

// Write writes p at off.
//
//	before: the inode is a regular file.
//	after:  [off,off+len(p)) is p and in the data object, whatever the image has there; nothing was fetched or copied.
//	        mtime and ctime are now. security.capability is gone, and with killPriv the set-id bits.
//	crash:  before the record: old size and, where the file did not have the bytes in the data object yet, old content;
//	        bytes of ours that were there may be old or new. After it: all new.
//
// When the disk is full in the middle of p it returns how much was written; with nothing written, ENOSPC.
func (f *FS) Write(_ context.Context, ino Ino, p []byte, off int64, killPriv bool) (int, error) {
	switch {
	case f.ro:
		return 0, syscall.EROFS
	case off < 0:
		return 0, syscall.EINVAL
	case off > math.MaxInt64-int64(len(p)):
		return 0, syscall.EFBIG
	}
	lock := f.dataLock(ino)
	lock.Lock()
	defer lock.Unlock()
	if err := f.fold(ino); err != nil {
		return 0, err
	}
	size, err := f.sizeOf(ino)
	if err != nil || len(p) == 0 {
		return 0, err
	}
	o, err := f.objs.get(ino, true)
	if err != nil {
		return 0, err
	}
	defer f.objs.put(o)
	if off+int64(len(p)) > size {
		if err := o.trim(size); err != nil {
			return 0, err
		}
	}
	if err := f.disk.step("write data object"); err != nil {
		return 0, err
	}
	f.objs.markDirty(ino)
	n, err := o.write(p, off)
	if n == 0 {
		return 0, err
	}
	if err := f.wrote(ino, off, n, killPriv); err != nil {
		o.trimmed = false
		return 0, err
	}
	return n, nil
}

// wrote is the record of Write.
func (f *FS) wrote(ino Ino, off int64, n int, killPriv bool) error {
	t, err := f.begin()
	if err != nil {
		return err
	}
	defer t.end()
	t.data(ino, off, int64(n), false)
	t.dropCapability(ino)
	if killPriv {
		m, err := t.edit(ino)
		if err != nil {
			return err
		}
		m.killPriv()
	}
	return t.commit()
}

// sizeOf returns the size of a regular file. It needs the inode's data lock to stay true.
func (f *FS) sizeOf(ino Ino) (int64, error) {
	f.st.RLock()
	defer f.st.RUnlock()
	m, err := f.peek(ino)
	if err == nil {
		err = readable(&m)
	}
	return m.size(), err
}

// growObject gets a data object ready for its file to grow: no bytes after the old end, and the new size, which
// those who have the object open as the file expect. It needs the data lock.
func (f *FS) growObject(ino Ino, from, to int64) error {
	o, err := f.objs.get(ino, false)
	if err != nil || o == nil {
		return err
	}
	defer f.objs.put(o)
	if err := o.trim(from); err != nil {
		return err
	}
	return o.setSize(to)
}

// shrinkObject gives back what a file has lost. Nothing is wrong when that does not work: what is after the end of a
// file is cut off before the file grows. It needs the data lock.
func (f *FS) shrinkObject(ino Ino, to int64) {
	o, err := f.objs.get(ino, false)
	if err != nil || o == nil {
		return
	}
	defer f.objs.put(o)
	o.trimmed = false
	_ = o.trim(to)
}
