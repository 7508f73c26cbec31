package cow

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// backing is a data object that the kernel writes without telling us. What it has for size and mtime is what the
// file has, until the last writer closes it.
type backing struct {
	file    *os.File // nil until recovery has looked at the object
	writers int      // guarded by op
	// mtime is the object's when it was last compared: while it has not changed the node's holds. Guarded by st.
	mtime unionfs.Time
}

func (b *backing) stat() (size int64, mtime unionfs.Time, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(b.file.Fd()), &st); err != nil {
		return 0, mtime, err
	}
	return st.Size, unionfs.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}, nil
}

// size is the object's, or was if it cannot be asked.
func (b *backing) size(was int64) int64 {
	if size, _, err := b.stat(); err == nil {
		return size
	}
	return was
}

// show corrects attributes by the object's.
func (b *backing) show(a *unionfs.Attr) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(b.file.Fd()), &st); err != nil {
		return err
	}
	a.Size, a.Blocks = st.Size, st.Blocks
	if t := (unionfs.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}); t != b.mtime {
		a.Mtime, a.Ctime = t, t
	}
	return nil
}

func (b *backing) close() {
	if b.file != nil {
		b.file.Close()
	}
}

// OpenBacking opens the one local file that holds all of ino's bytes, or returns nil if there is none: the shared
// content of a file that has not changed, for reading only, or the data object of one that has nothing of the image.
// A file of the pack has none to read; for writing it moves to a data object.
//
//	before: for writing: the file is plain.
//	after:  the journal knows that the data object may change behind our back, until the last CloseBacking.
//	crash:  recovery takes size and mtime from the data object.
func (f *FS) OpenBacking(ino Ino, write bool) (*os.File, error) {
	file, err := f.openBacking(ino, write)
	if file != nil {
		f.held.opened(ino)
	}
	return file, err
}

func (f *FS) openBacking(ino Ino, write bool) (*os.File, error) {
	f.st.RLock()
	m, err := f.peek(ino)
	n := f.nodes[ino]
	unchanged := n == nil || n.flags&flagPlain == 0 && n.runs() == nil && f.wholeImage(ino, m.size())
	plain := n != nil && n.flags&flagPlain != 0
	f.st.RUnlock()
	switch {
	case err != nil:
		return nil, err
	case !m.isRegular():
		return nil, nil
	case unchanged && !write:
		return f.contents.Local(ino)
	case !plain || f.ro, write && f.usage.limit.Bytes > 0: // the kernel does not know of our quota
		return nil, nil
	}
	lock := f.dataLock(ino)
	lock.Lock()
	defer lock.Unlock()
	if err := f.fold(ino); err != nil {
		return nil, err
	}
	if write {
		return f.openWritten(ino)
	}
	return f.openPlain(ino, false)
}

// held counts the files that were given to the kernel: an inode's data object must stay what it is until it closes them.
type held struct {
	mu sync.Mutex
	n  map[Ino]int
}

func (h *held) opened(ino Ino) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.n[ino]++
}

func (h *held) closed(ino Ino) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.n[ino]--; h.n[ino] <= 0 {
		delete(h.n, ino)
	}
}

func (h *held) has(ino Ino) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.n[ino] > 0
}

// wholeImage reports whether size is that of the image's content: a file that was only cut has no bytes of ours.
func (f *FS) wholeImage(ino Ino, size int64) bool {
	a, ok := f.tree.Attr(ino)
	return ok && a.Size == size
}

// openPlain opens the data object of a plain file, with the size that the file has; it needs the data lock. It is open for
// writing too, whatever it is for: so the caller knows that it is no shared content.
func (f *FS) openPlain(ino Ino, create bool) (*os.File, error) {
	c, err := f.contentOf(ino, 0, 0)
	if err != nil || c.slot != 0 && !create {
		return nil, err
	}
	if err := f.leavePack(ino); err != nil {
		return nil, err
	}
	size := c.size
	o, err := f.objs.get(ino, create)
	if err != nil || o == nil {
		return nil, err
	}
	defer f.objs.put(o)
	if err := f.trim(o, size); err != nil {
		return nil, err
	}
	if err := o.setSize(size); err != nil {
		return nil, err
	}
	f.objs.markDirty(ino, true)
	return f.objs.openFile(ino)
}

// openWritten is openPlain for writing, with its record. It needs the data lock.
func (f *FS) openWritten(ino Ino) (_ *os.File, err error) {
	file, err := f.openPlain(ino, true)
	if file == nil || err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	t, err := f.begin()
	if err != nil {
		return nil, err
	}
	defer t.end()
	if b := f.backings[ino]; b != nil {
		b.writers++
		return file, nil
	}
	own, err := f.objs.openFile(ino)
	if err != nil {
		return nil, err
	}
	b := &backing{file: own, writers: 1}
	f.setBacking(ino, b) // before flagBacking is: who sees that finds the file
	_, seen, err := b.stat()
	if err == nil {
		t.tag(tagBacking, ino)
		t.time(seen)
		err = t.commit()
	}
	if err != nil {
		f.setBacking(ino, nil)
		own.Close()
		return nil, fmt.Errorf("open data object %d for writing: %w", ino, err)
	}
	return file, nil
}

// setBacking needs op.
func (f *FS) setBacking(ino Ino, b *backing) {
	f.st.Lock()
	defer f.st.Unlock()
	if b == nil {
		delete(f.backings, ino)
	} else {
		f.backings[ino] = b
	}
}

// CloseBacking ends what OpenBacking began. The last writer's size and mtime become the file's.
func (f *FS) CloseBacking(ino Ino, write bool) {
	if f.ro {
		return
	}
	f.held.closed(ino)
	if !write {
		return
	}
	t, err := f.begin()
	if err != nil {
		return
	}
	defer t.end()
	b := f.backings[ino]
	if b == nil {
		return
	}
	if b.writers--; b.writers > 0 {
		return
	}
	if err := t.closeBacking(ino, b); err != nil {
		// It stays open: size and mtime go on being the object's.
		f.opts.Log.Error("a written file's size is not in the journal yet", "ino", ino, "error", err)
	}
}

// closeBacking writes what a backing left.
func (t *tx) closeBacking(ino Ino, b *backing) error {
	if _, err := t.noBacking(ino, b); err != nil {
		return err
	}
	if err := t.commit(); err != nil {
		return err
	}
	t.f.measureBacking(ino, b)
	t.f.setBacking(ino, nil)
	b.close() // nobody looks at it without st and an entry in backings
	return nil
}

// noBacking adds the change that takes size and mtime from the object, whose mtime it returns.
func (t *tx) noBacking(ino Ino, b *backing) (seen unionfs.Time, err error) {
	size, seen, err := b.stat()
	if err != nil {
		return seen, err
	}
	m, err := t.f.peek(ino)
	if err != nil {
		return seen, err
	}
	if seen != b.mtime {
		m.touch(seen)
	}
	t.f.objs.markDirty(ino, true)
	t.frees = true // not so, but what the kernel has written must be known
	t.tag(tagNoBacking, ino)
	t.u(uint64(size))
	t.time(m.time(mtime))
	t.time(m.time(ctime))
	return seen, nil
}

// fold adds the change that takes size and mtime from the object while it stays open, if the kernel has written since:
// what the operation does itself comes after that.
func (t *tx) fold(ino Ino, b *backing) error {
	size, seen, err := b.stat()
	if err != nil || seen == b.mtime && size == t.f.nodes[ino].size() {
		return err
	}
	seen, err = t.noBacking(ino, b)
	if err != nil {
		return err
	}
	t.tag(tagBacking, ino)
	t.time(seen)
	return nil
}

// fold takes the attributes of a file that the kernel writes as they are now, before something else is done to it.
func (f *FS) fold(ino Ino) error {
	f.st.RLock()
	open := f.backings[ino] != nil
	f.st.RUnlock()
	if !open {
		return nil
	}
	t, err := f.begin()
	if err != nil {
		return err
	}
	defer t.end()
	b := f.backings[ino]
	if b == nil {
		return nil // closed meanwhile
	}
	if b.writers == 0 {
		return t.closeBacking(ino, b)
	}
	if err := t.fold(ino, b); err != nil {
		return err
	}
	return t.commit()
}

// closeBackings is closeBacking for all of them, when no writer is left to do it. It needs op.
func (f *FS) closeBackings() error {
	var all error
	for ino, b := range f.backings {
		t := f.fill()
		if err := t.closeBacking(ino, b); err != nil {
			all = errors.Join(all, fmt.Errorf("size of inode %d: %w", ino, err))
		}
	}
	return all
}

// recoverBackings takes size and mtime of the files that were open for writing when the last server died.
func (f *FS) recoverBackings() error {
	for ino, b := range f.backings {
		n := f.nodes[ino]
		if n == nil || n.flags&flagBacking == 0 {
			delete(f.backings, ino)
			continue
		}
		file, err := f.objs.openFile(ino)
		if err != nil {
			return fmt.Errorf("size of inode %d: %w", ino, err)
		}
		b.file = file
	}
	return f.closeBackings()
}
