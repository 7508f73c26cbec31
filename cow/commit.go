package cow

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/veneerfs/veneer/unionfs"
)

// Commits
//
// What was answered is in the page cache and survives the server. A commit makes a point of the history survive a
// power loss too: after one, the state is that of the last commit, and never one in which the record of a write is
// there and the bytes are not.
//
//	before:  records up to S were answered
//	1 sync   the pack, and the data objects of which records up to S show bytes that were not their file's before
//	2 append tagCommit S
//	3 sync   the journal
//	after:   S is committed. What its records have set free is given back to the host or used again
//	crash:   the server's death: nothing is lost. The machine's: the last commit whose record is whole counts
//
// Bytes that are overwritten in place are their file's before and after: only Fsync of the file syncs them. Until its
// record is committed, an operation that takes bytes from a file only notes that they can go: a file that was synced
// once is not to lose them by an operation that a power loss undoes.
//
// Fsync and Sync commit, a checkpoint does, and what was answered is committed after CommitInterval at the latest.

// commitInterval is how long what was answered may stay uncommitted.
const commitInterval = 5 * time.Second

// The bounds of what waits for a commit. From the first on one is on its way, at the second writers wait for it.
const (
	wakeBytes  = 16 << 20
	waitBytes  = 64 << 20
	wakeFreed  = 1024
	waitFreed  = 8192
	wakeChance = 64 // how many changes may pass until the bounds are looked at
)

// freed is what a file has lost, for the time after the commit of seq.
type freed struct {
	seq   uint64
	ino   Ino
	ended bool // all of it: the data object goes. Else it is cut to the file's size
}

// freedList has its own lock, innermost.
type freedList struct {
	mu    sync.Mutex
	list  []freed
	ended map[Ino]*node // of the entries in list; checkpoints have them, so that no object is forgotten
}

func (l *freedList) add(x freed, n *node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, x)
	if x.ended {
		l.ended[x.ino] = n
	}
}

func (l *freedList) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.list)
}

// take returns what the commit of seq sets free.
func (l *freedList) take(seq uint64) []freed {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ready []freed
	l.list = slices.DeleteFunc(l.list, func(x freed) bool {
		if x.seq <= seq {
			ready = append(ready, x)
		}
		return x.seq <= seq
	})
	return ready
}

// done forgets an inode whose data object is removed.
func (l *freedList) done(ino Ino) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.ended, ino)
}

// commit puts everything that was answered on stable storage, but for bytes that were overwritten in place.
// The caller may have data locks; reap, after it, gives back what it has set free.
func (f *FS) commit() error {
	seq, err := f.flush()
	if err != nil {
		return err
	}
	f.op.Lock()
	err = f.markCommit(seq)
	f.op.Unlock()
	if err == nil {
		err = f.syncJournal()
	}
	if err == nil {
		f.committedUpTo(seq)
	}
	return err
}

// commitLocked is commit for who has op.
func (f *FS) commitLocked() error {
	seq, err := f.flush()
	if err == nil {
		err = f.markCommit(seq)
	}
	if err == nil {
		err = f.journal.sync()
	}
	if err == nil {
		f.committedUpTo(seq)
	}
	return err
}

// flush is step 1; it returns S.
func (f *FS) flush() (seq uint64, err error) {
	f.flushMu.Lock()
	defer f.flushMu.Unlock()
	seq = f.changed.Load() // before looking what is dirty: a write marks its file before it has a record
	if seq <= f.committed.Load() {
		return seq, nil
	}
	if err := f.pack.sync(); err != nil {
		return 0, err
	}
	return seq, f.objs.syncAll(true)
}

// markCommit is step 2. It needs op.
func (f *FS) markCommit(seq uint64) error {
	if seq <= f.marked {
		return nil
	}
	if f.closed {
		return syscall.EIO
	}
	frame := append(make([]byte, frameHeader, frameHeader+32), tagCommit)
	frame = binary.AppendUvarint(frame, unionfs.Root)
	frame = binary.AppendUvarint(frame, seq)
	frame = binary.AppendUvarint(frame, uint64(f.journal.durable()))
	if err := f.journal.append(frame, true); err != nil {
		return err
	}
	f.marked = seq
	return nil
}

func (f *FS) committedUpTo(seq uint64) {
	for {
		was := f.committed.Load()
		if was >= seq || f.committed.CompareAndSwap(was, seq) {
			return
		}
	}
}

// reap gives back what the last commit has set free. The caller has no locks.
func (f *FS) reap() {
	seq := f.committed.Load()
	f.pack.reap(seq)
	for _, x := range f.freed.take(seq) {
		if x.ended {
			f.removeEnded(x)
		} else {
			f.trimFreed(x.ino)
		}
	}
}

// removeEnded removes the data object of an inode that is gone.
func (f *FS) removeEnded(x freed) {
	if err := f.objs.remove(x.ino); err != nil {
		f.opts.Log.Error("a removed file's data stays until the next start", "ino", x.ino, "error", err)
		return
	}
	f.freed.done(x.ino)
}

func (f *FS) trimFreed(ino Ino) {
	lock := f.dataLock(ino)
	lock.Lock()
	defer lock.Unlock()
	f.st.RLock()
	_, written := f.backings[ino]
	f.st.RUnlock()
	if written {
		return // it was cut when it was opened, and only the kernel knows its size since
	}
	c, err := f.contentOf(ino, 0, 0)
	if err != nil {
		return // it is gone
	}
	o, err := f.objs.get(ino, false)
	if err != nil || o == nil {
		return
	}
	defer f.objs.put(o)
	size := c.size
	if c.slot != 0 {
		size = 0
	}
	// Nothing is wrong if that does not work: it is done before the file grows.
	_ = f.trim(o, size)
	f.measure(ino)
}

// reclaim makes room on a full disk by what only waits for a commit, and reports whether there may be some now.
// The caller has no locks.
func (f *FS) reclaim() bool {
	if f.pack.waitingBytes() == 0 && f.freed.len() == 0 {
		return false
	}
	if err := f.commit(); err != nil {
		return false
	}
	f.reap()
	return true
}

// reclaimLocked is reclaim under op, in the midst of an operation. It does not cut objects, which takes a data lock.
func (f *FS) reclaimLocked() bool {
	if f.pack == nil || f.pack.waitingBytes() == 0 && f.freed.len() == 0 {
		return false
	}
	if err := f.commitLocked(); err != nil {
		return false
	}
	seq := f.committed.Load()
	f.pack.reap(seq)
	for _, x := range f.freed.take(seq) {
		if x.ended {
			f.removeEnded(x)
		} else {
			f.freed.add(x, nil)
		}
	}
	return true
}

// relieve lets a writer wait when too much waits for a commit. The caller has no locks.
func (f *FS) relieve() {
	if f.pack.waitingBytes() > waitBytes || f.freed.len() > waitFreed {
		f.reclaim()
	}
}

// uncommitted sees to it that a change is committed in time. It needs op.
func (f *FS) uncommitted() {
	if f.inline() {
		return
	}
	if !f.timed {
		f.timed = true
		f.timer.Reset(f.opts.CommitInterval)
	}
	if f.sinceLook++; f.sinceLook < wakeChance {
		return
	}
	f.sinceLook = 0
	if f.pack.waitingBytes() > wakeBytes || f.freed.len() > wakeFreed {
		f.nudge()
	}
}

// nudge wakes the committer.
func (f *FS) nudge() {
	select {
	case f.wake <- struct{}{}:
	default: // it is awake
	}
}

// inline reports whether nothing is done in the background, as tests want it.
func (f *FS) inline() bool { return f.opts.CommitInterval < 0 }

// committer commits in the background, until stop is closed.
func (f *FS) committer() {
	defer f.background.Done()
	for {
		select {
		case <-f.stop:
			return
		case <-f.timer.C:
		case <-f.wake:
		}
		f.op.Lock()
		f.timed = false
		f.op.Unlock()
		if err := f.commit(); err != nil && !errors.Is(err, syscall.EIO) {
			f.opts.Log.Warn("what was answered is not committed", "error", err)
		}
		f.reap()
	}
}
