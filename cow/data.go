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
		switch where {
		case inImage:
			err = f.readImage(ctx, ino, part, pos)
		case inPack:
			var k int
			if k, err = f.readPacked(ino, part, pos); k == 0 && err == nil {
				continue // it is not there any more
			}
			part = part[:k]
		default:
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
	inPack
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
	switch {
	case n.slot != 0:
		return inPack, rest, nil
	case n.flags&flagPlain != 0:
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

// readPacked reads what it can of a file that may be in the pack.
func (f *FS) readPacked(ino Ino, p []byte, off int64) (int, error) {
	f.pack.gate.RLock()
	defer f.pack.gate.RUnlock()
	f.st.RLock()
	n := f.nodes[ino]
	if n == nil || n.slot == 0 {
		f.st.RUnlock()
		return 0, nil
	}
	s, size := n.slot, n.size()
	f.st.RUnlock()
	p = p[:max(0, min(int64(len(p)), size-off))]
	return len(p), f.pack.read(s, p, off)
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

// content is where the content of a regular file is that is not the image's. It needs the data lock to stay true.
type content struct {
	size   int64
	slot   slot // of the pack; 0: the content is in a data object, or nowhere
	plain  bool
	object bool // there may be a data object
	cut    bool // flagCut
	sparse bool
	ours   bool // of the range that was asked for there is nothing that is not ours already
}

// contentOf asks about a file, and about [off,end) of it.
func (f *FS) contentOf(ino Ino, off, end int64) (c content, err error) {
	f.st.RLock()
	defer f.st.RUnlock()
	m, err := f.peek(ino)
	if err == nil {
		err = readable(&m)
	}
	c.size = m.size()
	n := f.nodes[ino]
	if n == nil || err != nil {
		c.plain = m.val == 0
		return c, err
	}
	c.slot, c.plain, c.object, c.cut = n.slot, n.flags&flagPlain != 0, n.flags&flagObject != 0, n.flags&flagCut != 0
	c.sparse = n.flags&flagSparse != 0
	c.ours = c.plain && end <= c.size
	if runs := n.runs(); runs != nil {
		inside, to := runs.at(off)
		c.ours = inside && end <= to
	}
	return c, nil
}

// Write writes p at off.
//
//	before: the inode is a regular file.
//	after:  [off,off+len(p)) is p and in the pack or the data object, whatever the image has there; nothing was fetched,
//	        and nothing copied but a file of the pack that outgrows its slot. mtime and ctime are now.
//	        security.capability is gone, and with killPriv the set-id bits.
//	crash:  before the record: old size and, where the file did not have the bytes of its own yet, old content;
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
	f.relieve()
	n, err := f.write(ino, p, off, killPriv)
	if n == 0 && errors.Is(err, syscall.ENOSPC) && f.reclaim() {
		return f.write(ino, p, off, killPriv)
	}
	return n, err
}

func (f *FS) write(ino Ino, p []byte, off int64, killPriv bool) (int, error) {
	lock := f.dataLock(ino)
	lock.Lock()
	defer lock.Unlock()
	if err := f.fold(ino); err != nil {
		return 0, err
	}
	c, err := f.contentOf(ino, off, off+int64(len(p)))
	if err != nil || len(p) == 0 {
		return 0, err
	}
	u, end, err := f.reserveWrite(ino, &c, off, off+int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer f.usage.release(u)
	if p = p[:end-off]; f.packs(ino, &c, off, end) {
		n, err := f.writePacked(ino, &c, p, off, killPriv)
		if !errors.Is(err, errPackFull) {
			return n, err
		}
	}
	if err := f.leavePack(ino); err != nil {
		return 0, err
	}
	return f.writeObject(ino, &c, p, off, killPriv)
}

// packs reports whether a file belongs into the pack when [off,end) of it is written: it is small, has no holes, and
// the kernel does not have its data object.
func (f *FS) packs(ino Ino, c *content, off, end int64) bool {
	return c.plain && (c.slot != 0 || c.size == 0) && max(end, c.size) <= packMax && off-c.size < packUnit && !f.held.has(ino)
}

// writePacked is Write for a file of the pack, or one that is to be. The slot that it has is written when p fits and
// nothing that it lost would be written over: that is there until it is committed.
func (f *FS) writePacked(ino Ino, c *content, p []byte, off int64, killPriv bool) (int, error) {
	end := off + int64(len(p))
	if c.slot != 0 && end <= c.slot.size() && (end <= c.size || !c.cut) {
		if err := f.zeroSlot(c, off); err != nil {
			return 0, err
		}
		n, err := f.pack.write(c.slot, p, off)
		if n == 0 {
			return 0, err
		}
		return n, f.wrote(ino, off, n, killPriv, 0)
	}
	s, err := f.pack.alloc(max(end, c.size))
	if err != nil {
		return 0, err
	}
	if off > 0 || c.size > end {
		p, err = f.unpacked(c, p, off)
	}
	if err == nil {
		_, err = f.pack.write(s, p, 0)
	}
	if err == nil {
		err = f.wrote(ino, off, int(end-off), killPriv, s)
	}
	if err != nil {
		f.pack.unalloc(s)
		return 0, err
	}
	return int(end - off), nil
}

// zeroSlot makes what lies in the slot between the file's end and off zeros.
func (f *FS) zeroSlot(c *content, off int64) error {
	if off <= c.size {
		return nil
	}
	_, err := f.pack.write(c.slot, make([]byte, off-c.size), c.size)
	return err
}

// unpacked is the content of a file of the pack with p at off.
func (f *FS) unpacked(c *content, p []byte, off int64) ([]byte, error) {
	b := make([]byte, max(c.size, off+int64(len(p))))
	if c.slot != 0 {
		if err := f.pack.read(c.slot, b[:c.size], 0); err != nil {
			return nil, err
		}
	}
	copy(b[off:], p)
	return b, nil
}

// leavePack moves a file of the pack to a data object. It needs the data lock.
//
//	crash:  before the record the content is in the slot; after it, in the object.
func (f *FS) leavePack(ino Ino) error {
	c, err := f.contentOf(ino, 0, 0)
	if err != nil || c.slot == 0 {
		return err
	}
	b, err := f.unpacked(&c, nil, 0)
	if err != nil {
		return err
	}
	o, err := f.objs.get(ino, true)
	if err != nil {
		return err
	}
	defer f.objs.put(o)
	if err := f.trim(o, 0); err != nil {
		return err
	}
	f.objs.markDirty(ino, true)
	o.trimmed = false
	if _, err := o.write("move to data object", b, 0); err != nil {
		return err
	}
	t, err := f.begin()
	if err != nil {
		return err
	}
	defer t.end()
	t.tag(tagObject, ino)
	if err := t.commit(); err != nil {
		return err
	}
	o.trimmed = true
	return nil
}

// writeObject is Write for all other files.
func (f *FS) writeObject(ino Ino, c *content, p []byte, off int64, killPriv bool) (int, error) {
	o, err := f.objs.get(ino, true)
	if err != nil {
		return 0, err
	}
	defer f.objs.put(o)
	if off+int64(len(p)) > c.size {
		if err := f.trim(o, c.size); err != nil {
			return 0, err
		}
	}
	f.objs.markDirty(ino, !c.ours)
	n, err := o.write("write data object", p, off)
	if n == 0 {
		return 0, err
	}
	if err := f.wrote(ino, off, n, killPriv, 0); err != nil {
		o.trimmed = false
		return 0, err
	}
	if c.sparse || off > c.size {
		f.measure(ino)
	}
	return n, nil
}

// wrote is the record of Write; s is the slot that the content is in now, if that is new.
func (f *FS) wrote(ino Ino, off int64, n int, killPriv bool, s slot) error {
	t, err := f.begin()
	if err != nil {
		return err
	}
	defer t.end()
	if s != 0 {
		t.slot(ino, s)
	}
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
	c, err := f.contentOf(ino, 0, 0)
	return c.size, err
}

// trim cuts off what an object has after the file's size, so that the file can grow over zeros: what an operation that
// was never answered left there, or what the file has lost, which must not be gone before that is committed. It needs
// the data lock.
func (f *FS) trim(o *object, size int64) error {
	if o.trimmed {
		return nil
	}
	st, err := o.stat()
	if err != nil {
		return err
	}
	if st.Size > size {
		if err := f.commit(); err != nil {
			return err
		}
		if err := o.truncate("trim data object", size); err != nil {
			return err
		}
	}
	o.trimmed = true
	return nil
}

// grow gets a file ready to be longer: what it gets is zeros, and its data object has the new size, which
// those who have the object open as the file expect. It needs the data lock.
func (f *FS) grow(ino Ino, to int64) error {
	c, err := f.contentOf(ino, 0, 0)
	if err != nil || to <= c.size {
		return err
	}
	if c.slot != 0 && !c.cut && to <= c.slot.size() && to-c.size < packUnit {
		return f.zeroSlot(&c, to)
	}
	if err := f.leavePack(ino); err != nil {
		return err
	}
	o, err := f.objs.get(ino, false)
	if err != nil || o == nil {
		return err
	}
	defer f.objs.put(o)
	if err := f.trim(o, c.size); err != nil {
		return err
	}
	o.trimmed = false // until the file has that size
	f.objs.markDirty(ino, true)
	return o.setSize(to)
}

// shrinkObject gives back what a file has lost, when that is committed, or at once where the kernel writes the object:
// it knows the file's size by it. Nothing is wrong when that does not work: what is after the end of a file is cut off
// before the file grows. It needs the data lock.
func (f *FS) shrinkObject(ino Ino, to int64) {
	c, err := f.contentOf(ino, 0, 0)
	if err != nil || !c.object {
		return
	}
	o, err := f.objs.get(ino, false)
	if err != nil || o == nil {
		return
	}
	defer f.objs.put(o)
	o.trimmed = false
	if f.held.has(ino) {
		_ = o.setSize(to)
		return
	}
	f.freed.add(freed{seq: f.changed.Load(), ino: ino}, nil)
}
