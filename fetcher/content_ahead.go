package fetcher

import (
	"sync"

	"golang.org/x/sys/unix"
)

// readOrder notices who reads a tree file by file, as tar, cp -r and grep -r do, and has the host's kernel bring the next files meanwhile: what
// such a reader waits for is one small read of the disk after the other. Contents are numbered in the order in which a walk of the tree meets
// them, so the next file is the next number.
type readOrder struct {
	mu    sync.Mutex
	last  uint32 // the content that was read last; guarded by mu
	run   int    // how often the one after the last came next, or nearly; guarded by mu
	until uint32 // contents below it were brought, or are being; guarded by mu
	busy  bool   // somebody brings; guarded by mu
}

const (
	aheadRun   = 3       // in order, before anything is brought
	aheadGap   = 4       // so many may be left out: not every reader wants all
	aheadFiles = 16      // are brought, unless half of the open files is less
	aheadBytes = 1 << 20 // of each; a reader of more is seen by the kernel's own read-ahead
)

// next notes that content idx is read from its start, and returns which contents to bring for that: none most of the time, else up to files.
func (a *readOrder) next(idx, files uint32) (from, to uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	last := a.last
	a.last = idx
	switch {
	case idx == last:
		return 0, 0
	case idx < last || idx-last > aheadGap:
		a.run, a.until = 0, 0
		return 0, 0
	}
	a.run++
	if a.run < aheadRun || a.busy || a.until > idx+files/2 {
		return 0, 0
	}
	from, to = max(a.until, idx+1), idx+1+files
	a.until, a.busy = to, true
	return from, to
}

func (a *readOrder) done() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy = false
}

// readAhead notes that content idx is read from its start, and brings what is likely to be read next. It does not wait for it.
func (x *Contents) readAhead(idx uint32) {
	from, to := x.order.next(idx, uint32(min(aheadFiles, x.opts.OpenFiles/2)))
	if from == to {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return
	}
	x.work.Go(func() {
		defer x.order.done()
		for i := from; i < to && x.bring(i); i++ {
		}
	})
}

// bring opens a content that is complete here, for who reads it next, and has its bytes read. It reports false where a reader would have
// to wait for more than the disk: what is fetched has an order of its own (plan).
func (x *Contents) bring(idx uint32) bool {
	if f := x.files.get(idx); f != nil {
		x.files.release(f)
		return true
	}
	c, ok := x.tree.ContentInfo(idx)
	if !ok {
		return false
	}
	if c.Size == 0 {
		return true
	}
	whole, err := x.openWhole(&c)
	if err != nil {
		return false
	}
	f := x.files.add(&contentFile{idx: idx, whole: whole})
	defer x.files.release(f)
	if f.whole != nil {
		unix.Fadvise(int(f.whole.Fd()), 0, min(c.Size, aheadBytes), unix.FADV_WILLNEED) // an advice: what fails is read later
	}
	return true
}
