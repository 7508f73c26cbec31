package cow

import (
	"container/list"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// objects are the files that hold content of ours: data/<ino/4096>/<ino>, both in hex. It keeps some of them open.
type objects struct {
	disk *disk
	max  int // descriptors kept open

	mu    sync.Mutex
	open  map[Ino]*object
	lru   list.List    // of the *object that nobody uses, oldest last
	dirty map[Ino]dirt // those that were written and not synced
	many  bool         // too many of them to keep count of
	marks uint64       // calls of markDirty
}

// dirt is what is known of an object that was written.
type dirt struct {
	mark    uint64 // of the last write
	exposed bool   // a record makes bytes of it the file's that were not before
}

// object is an open data object.
type object struct {
	*file
	ino  Ino
	uses int           // guarded by objects.mu
	idle *list.Element // guarded by objects.mu
	gone bool          // removed: close it after the last use; guarded by objects.mu
	// trimmed: the object has no bytes after the file's size. Guarded by the inode's data lock.
	trimmed bool
}

// maxDirty bounds the memory that unsynced objects take: with more of them Sync syncs the file system.
const maxDirty = 1024

func newObjects(d *disk, max int) *objects {
	return &objects{disk: d, max: max, open: make(map[Ino]*object), dirty: make(map[Ino]dirt)}
}

func fanOut(ino Ino) string     { return "data/" + strconv.FormatUint(ino>>12, 16) }
func objectName(ino Ino) string { return fanOut(ino) + "/" + strconv.FormatUint(ino, 16) }

// get returns the data object of ino, for put when it is no longer used. Without create, nil says there is none.
func (s *objects) get(ino Ino, create bool) (*object, error) {
	s.mu.Lock()
	if o := s.open[ino]; o != nil {
		s.use(o)
		s.mu.Unlock()
		return o, nil
	}
	s.mu.Unlock()

	file, isNew, err := s.openObject(ino, create)
	if file == nil || err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.open[ino]; o != nil { // another reader opened it meanwhile
		file.close()
		s.use(o)
		return o, nil
	}
	o := &object{file: file, ino: ino, uses: 1, trimmed: isNew}
	s.open[ino] = o
	s.evict()
	return o, nil
}

// use and evict need mu.
func (s *objects) use(o *object) {
	if o.uses++; o.idle != nil {
		s.lru.Remove(o.idle)
		o.idle = nil
	}
}

func (s *objects) evict() {
	for len(s.open) > s.max && s.lru.Len() > 0 {
		o := s.lru.Remove(s.lru.Back()).(*object)
		delete(s.open, o.ino)
		o.close()
	}
}

func (s *objects) put(o *object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.uses--; o.uses > 0 {
		return
	}
	if o.gone {
		o.close()
		return
	}
	o.idle = s.lru.PushFront(o)
	s.evict()
}

// openObject opens the file of an object; nil when there is none.
func (s *objects) openObject(ino Ino, create bool) (f *file, isNew bool, err error) {
	name := objectName(ino)
	f, err = s.disk.open(name)
	if err == unix.ENOENT && !create {
		return nil, false, nil
	}
	if err == nil || err != unix.ENOENT {
		return f, false, err
	}
	f, err = s.disk.create("create data object", name, unix.O_EXCL)
	if err == unix.ENOENT {
		if err = s.disk.mkdir(fanOut(ino)); err == nil {
			f, err = s.disk.create("create data object", name, unix.O_EXCL)
		}
	}
	if err != nil {
		return nil, false, fmt.Errorf("create data object %d: %w", ino, err)
	}
	return f, true, nil
}

// openFile returns a descriptor of its own, for the kernel.
func (s *objects) openFile(ino Ino) (*os.File, error) {
	return os.OpenFile(s.disk.path(objectName(ino)), unix.O_RDWR|unix.O_CLOEXEC, 0)
}

// remove deletes an object, if there is one.
func (s *objects) remove(ino Ino) error {
	if err := s.disk.remove("remove data object", objectName(ino)); err != nil {
		return fmt.Errorf("remove data object %d: %w", ino, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.dirty, ino)
	o := s.open[ino]
	if o == nil {
		return nil
	}
	delete(s.open, ino)
	if o.idle != nil {
		s.lru.Remove(o.idle)
		o.close()
	} else {
		o.gone = true
	}
	return nil
}

func (s *objects) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ino, o := range s.open {
		delete(s.open, ino)
		if o.idle != nil {
			s.lru.Remove(o.idle)
			o.close()
		} else {
			o.gone = true
		}
	}
}

// markDirty says that an object is about to be written; exposed, that a record will make new bytes of it the file's.
func (s *objects) markDirty(ino Ino, exposed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.many {
		return
	}
	was, ok := s.dirty[ino]
	if !ok && len(s.dirty) >= maxDirty {
		s.many = true
		clear(s.dirty)
		return
	}
	s.marks++
	s.dirty[ino] = dirt{s.marks, was.exposed || exposed}
}

// syncOne puts an object's bytes and its name on stable storage.
func (s *objects) syncOne(ino Ino) error {
	o, err := s.get(ino, false)
	if err != nil || o == nil {
		return err
	}
	defer s.put(o)
	s.mu.Lock()
	was, dirty := s.dirty[ino]
	dirty = dirty || s.many
	s.mu.Unlock()
	if err := o.sync("sync data object"); err != nil {
		return fmt.Errorf("sync data object %d: %w", ino, err)
	}
	if !dirty {
		return nil
	}
	if err := s.disk.syncDir(fanOut(ino)); err != nil {
		return err
	}
	if err := s.disk.syncDir("data"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dirty[ino] == was { // else it was written meanwhile
		delete(s.dirty, ino)
	}
	return nil
}

// syncAll is syncOne for every object that was written, or only for those with exposed bytes. It needs FS.flushMu.
func (s *objects) syncAll(onlyExposed bool) error {
	s.mu.Lock()
	many := s.many
	var inos []Ino
	for ino, d := range s.dirty {
		if d.exposed || !onlyExposed {
			inos = append(inos, ino)
		}
	}
	s.many = false
	s.mu.Unlock()
	if many {
		if err := s.disk.syncFS(); err != nil {
			s.mu.Lock()
			s.many = true
			s.mu.Unlock()
			return fmt.Errorf("sync data objects: %w", err)
		}
		return nil
	}
	slices.Sort(inos)
	for _, ino := range inos {
		if err := s.syncOne(ino); err != nil {
			return err
		}
	}
	return nil
}

// setSize gives the object the size of its file.
func (o *object) setSize(size int64) error {
	st, err := o.stat()
	if err != nil || st.Size == size {
		return err
	}
	return o.truncate("resize data object", size)
}
