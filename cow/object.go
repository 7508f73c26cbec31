package cow

import (
	"container/list"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// objects are the files that hold content of ours: data/<ino/4096>/<ino>, both in hex. It keeps some of them open.
type objects struct {
	disk *disk
	max  int // descriptors kept open
	ro   bool

	mu    sync.Mutex
	open  map[Ino]*object
	lru   list.List // of the *object that nobody uses, oldest last
	dirty map[Ino]struct{}
	many  bool // too many dirty ones to keep count of
}

// object is an open data object.
type object struct {
	ino  Ino
	fd   int
	uses int           // guarded by objects.mu
	idle *list.Element // guarded by objects.mu
	gone bool          // removed: close it after the last use; guarded by objects.mu
	// trimmed: the object has no bytes after the file's size. Guarded by the inode's data lock.
	trimmed bool
}

// maxDirty bounds the memory that unsynced objects take: with more of them Sync syncs the file system.
const maxDirty = 1024

func newObjects(d *disk, max int) *objects {
	return &objects{disk: d, max: max, open: make(map[Ino]*object), dirty: make(map[Ino]struct{})}
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

	fd, isNew, err := s.openFD(ino, create)
	if fd < 0 || err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.open[ino]; o != nil { // another reader opened it meanwhile
		unix.Close(fd)
		s.use(o)
		return o, nil
	}
	o := &object{ino: ino, fd: fd, uses: 1, trimmed: isNew}
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
		unix.Close(o.fd)
	}
}

func (s *objects) put(o *object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.uses--; o.uses > 0 {
		return
	}
	if o.gone {
		unix.Close(o.fd)
		return
	}
	o.idle = s.lru.PushFront(o)
	s.evict()
}

// openFD opens the file of an object; -1 when there is none.
func (s *objects) openFD(ino Ino, create bool) (fd int, isNew bool, err error) {
	path := s.disk.path(objectName(ino))
	how := unix.O_RDWR | unix.O_CLOEXEC
	if s.ro {
		how = unix.O_RDONLY | unix.O_CLOEXEC
	}
	fd, err = unix.Open(path, how, 0)
	if err == nil {
		return fd, false, nil
	}
	if err != unix.ENOENT {
		return -1, false, fmt.Errorf("open data object %d: %w", ino, err)
	}
	if !create {
		return -1, false, nil
	}
	if err := s.disk.step("create data object"); err != nil {
		return -1, false, err
	}
	const flags = unix.O_RDWR | unix.O_CREAT | unix.O_EXCL | unix.O_CLOEXEC
	fd, err = unix.Open(path, flags, 0o600)
	if err == unix.ENOENT {
		if err = unix.Mkdir(s.disk.path(fanOut(ino)), 0o700); err == nil || err == unix.EEXIST {
			fd, err = unix.Open(path, flags, 0o600)
		}
	}
	if err != nil {
		return -1, false, fmt.Errorf("create data object %d: %w", ino, err)
	}
	return fd, true, nil
}

// openFile returns a descriptor of its own, for the kernel.
func (s *objects) openFile(ino Ino, flags int) (*os.File, error) {
	return s.disk.open(objectName(ino), flags)
}

// remove deletes an object, if there is one.
func (s *objects) remove(ino Ino) error {
	if err := s.disk.step("remove data object"); err != nil {
		return err
	}
	if err := unix.Unlink(s.disk.path(objectName(ino))); err != nil && err != unix.ENOENT {
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
		unix.Close(o.fd)
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
			unix.Close(o.fd)
		} else {
			o.gone = true
		}
	}
}

func (s *objects) markDirty(ino Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.dirty[ino]; ok || s.many {
		return
	}
	if len(s.dirty) >= maxDirty {
		s.many = true
		clear(s.dirty)
		return
	}
	s.dirty[ino] = struct{}{}
}

// syncOne puts an object's bytes and its name on stable storage.
func (s *objects) syncOne(ino Ino) error {
	o, err := s.get(ino, false)
	if err != nil || o == nil {
		return err
	}
	defer s.put(o)
	s.mu.Lock()
	_, dirty := s.dirty[ino]
	dirty = dirty || s.many
	delete(s.dirty, ino) // before the sync: what is written meanwhile is dirty again
	s.mu.Unlock()
	if err := s.disk.step("sync data object"); err != nil {
		return err
	}
	if err := unix.Fdatasync(o.fd); err != nil {
		s.markDirty(ino)
		return fmt.Errorf("sync data object %d: %w", ino, err)
	}
	if !dirty {
		return nil
	}
	if err := s.disk.syncDir(fanOut(ino)); err != nil {
		return err
	}
	return s.disk.syncDir("data")
}

// syncAll is syncOne for every object.
func (s *objects) syncAll() error {
	s.mu.Lock()
	many := s.many
	inos := make([]Ino, 0, len(s.dirty))
	for ino := range s.dirty {
		inos = append(inos, ino)
	}
	s.many = false
	s.mu.Unlock()
	if many {
		return s.syncFS()
	}
	for _, ino := range inos {
		if err := s.syncOne(ino); err != nil {
			return err
		}
	}
	return nil
}

func (s *objects) syncFS() error {
	dir, err := os.Open(s.disk.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		s.mu.Lock()
		s.many = true
		s.mu.Unlock()
		return fmt.Errorf("sync data objects: %w", err)
	}
	return nil
}

// trim cuts off what an operation that was never answered left after the file's size, so that the file can grow
// over zeros. It needs the inode's data lock.
func (o *object) trim(size int64) error {
	if o.trimmed {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(o.fd, &st); err != nil {
		return err
	}
	if st.Size > size {
		if err := unix.Ftruncate(o.fd, size); err != nil {
			return err
		}
	}
	o.trimmed = true
	return nil
}

// setSize gives the object the size of its file.
func (o *object) setSize(size int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(o.fd, &st); err != nil {
		return err
	}
	if st.Size == size {
		return nil
	}
	return unix.Ftruncate(o.fd, size)
}

// write writes all of p, or returns how much it wrote and why not all.
func (o *object) write(p []byte, off int64) (int, error) {
	for n := 0; ; {
		k, err := unix.Pwrite(o.fd, p[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if n += k; n == len(p) {
			return n, nil
		}
		if k == 0 {
			return n, syscall.EIO
		}
	}
}

// read fills p; what the object does not have is zeros.
func (o *object) read(p []byte, off int64) error {
	for len(p) > 0 {
		k, err := unix.Pread(o.fd, p, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if k == 0 {
			clear(p)
			return nil
		}
		p, off = p[k:], off+int64(k)
	}
	return nil
}
