package fetcher

import (
	"container/list"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// contentFile is an open file of a content: the whole of it, or its partial file.
type contentFile struct {
	idx   uint32
	whole *os.File // nil while partial
	part  *partial

	refs int           // guarded by fileCache.mu; the cache's own included
	elem *list.Element // guarded by fileCache.mu; nil when not in the cache
}

func (f *contentFile) close() {
	if f.whole != nil {
		f.whole.Close()
	}
	if f.part != nil {
		f.part.close()
	}
}

// fileCache keeps the files of the contents that were read last. The zero value with a limit is ready.
type fileCache struct {
	limit int // immutable

	mu     sync.Mutex
	files  map[uint32]*contentFile // guarded by mu
	recent list.List               // guarded by mu; the last used is in front
}

func defaultOpenFiles() int {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return 64
	}
	return int(min(512, max(16, lim.Cur/4)))
}

// get returns the file of a content, or nil. The caller releases it.
func (c *fileCache) get(idx uint32) *contentFile {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.files[idx]
	if f != nil {
		f.refs++
		c.recent.MoveToFront(f.elem)
	}
	return f
}

// add adds f and returns what the cache has for its content then: f, or what another goroutine added before. The caller
// releases it.
func (c *fileCache) add(f *contentFile) *contentFile {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.files[f.idx]; old != nil {
		if f.whole == nil || old.whole != nil {
			old.refs++
			defer f.close()
			return old
		}
		c.remove(old)
	}
	if c.files == nil {
		c.files = map[uint32]*contentFile{}
	}
	f.refs = 2
	f.elem = c.recent.PushFront(f)
	c.files[f.idx] = f
	if len(c.files) > c.limit {
		c.remove(c.recent.Back().Value.(*contentFile))
	}
	return f
}

// release gives back what get or add returned. f may be nil.
func (c *fileCache) release(f *contentFile) {
	if f == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unref(f)
}

// drop forgets the file of a content: it is opened again when it is needed next.
func (c *fileCache) drop(idx uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.files[idx]; f != nil {
		c.remove(f)
	}
}

func (c *fileCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.files {
		c.remove(f)
	}
}

// remove takes f out; c.mu is held.
func (c *fileCache) remove(f *contentFile) {
	delete(c.files, f.idx)
	c.recent.Remove(f.elem)
	f.elem = nil
	c.unref(f)
}

// unref gives up a reference; c.mu is held.
func (c *fileCache) unref(f *contentFile) {
	if f.refs--; f.refs == 0 {
		f.close()
	}
}

// bitset is a set of small numbers that only grows. Its methods may be called concurrently.
type bitset []atomic.Uint64

func newBitset(n int) bitset { return make(bitset, (n+63)/64) }

// set adds i. It reports whether it was not there.
func (b bitset) set(i uint32) bool {
	w, bit := &b[i/64], uint64(1)<<(i%64)
	return w.Load()&bit == 0 && w.Or(bit)&bit == 0
}

func (b bitset) has(i uint32) bool { return b[i/64].Load()&(1<<(i%64)) != 0 }
