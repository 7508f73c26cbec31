package fs

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// loop reads requests from /dev/fuse, has them answered and writes the replies. What a request costs is nearly all waking
// CPUs and threads, so there is one reader at a time, and it answers what it reads by itself:
//
//	hot      it has the turn: it waits in read(2), and answers the request before it reads the next
//	away     it answers a request and has given up the turn, or has lost it, because that takes time
//	parked   its last request is answered, and another one is hot; bounded in number, the rest ends
//
// A reader that is about to wait gives up its turn itself: for the network (requestContext.Done is the sign), or before an operation
// that waits for the disk (yields). One that is held up unforeseen loses it to the watch, after watchTick to twice that. So a slow
// request delays no other one for long, and a quick one wakes nobody.
//
// turn counts, so that a reader which comes back late sees that it has lost it:
//
//	even   the hot reader is in read(2)      set by it alone
//	odd    it is answering                   + 1 by it when it is done, or gives up the turn; by the watch, to take it
type loop struct {
	fd       int
	dispatch func(*request) int // answers a request into its out, and returns the length of the reply: 0 for none
	log      *slog.Logger
	latency  *latency
	// first is told of requests before they count as read, until it returns true; nil mostly. Only the hot reader uses it.
	first func(h *fuse.InHeader) bool
	// large: a request may be large, so that buffers are populated before it is read. From the first one on, and from the start in a server
	// that takes over: that one may be among what is sent again. Only the hot reader uses it.
	large bool

	turn     atomic.Uint64
	watching atomic.Bool
	watched  chan struct{} // tells the watch to begin
	over     chan struct{} // closed when the connection has ended
	readers  sync.WaitGroup

	mu     sync.Mutex // guards what follows; innermost
	all    []*request // of the readers that exist
	parked []*request
	spare  uint64 // a turn that nobody took, else noTurn
	dead   bool   // the connection has ended
	err    error
}

const (
	maxParked = 4
	// watchTick is how long a request may keep the turn, unless it gives it up; at most twice that.
	watchTick = 2 * time.Millisecond
)

func newLoop(fd int, log *slog.Logger, l *latency) *loop {
	return &loop{fd: fd, log: log, latency: l, watched: make(chan struct{}, 1), over: make(chan struct{}), spare: noTurn}
}

// serve returns when the connection has ended and all requests are answered or given up.
func (l *loop) serve() error {
	r, err := newRequest()
	if err != nil {
		return err
	}
	var watch sync.WaitGroup
	watch.Go(l.watch)
	l.begin(r, 0)
	l.readers.Wait()
	watch.Wait()
	return l.err
}

// pass lets somebody have the turn, which is even.
func (l *loop) pass(turn uint64) {
	l.mu.Lock()
	if n := len(l.parked); n > 0 {
		r := l.parked[n-1]
		l.parked = l.parked[:n-1]
		l.mu.Unlock()
		r.wake <- turn
		return
	}
	defer l.mu.Unlock()
	r, err := newRequest()
	if err != nil {
		l.log.Error("no memory for one more reader: requests wait for those that are away", "err", err)
		l.spare = turn
		return
	}
	l.begin(r, turn)
}

// begin starts a hot reader. It needs mu, or a loop without readers.
func (l *loop) begin(r *request, turn uint64) {
	l.all = append(l.all, r)
	l.readers.Add(1)
	go l.read(r, turn)
}

// read is the life of a reader, which begins hot.
func (l *loop) read(r *request, turn uint64) {
	defer l.readers.Done()
	for {
		if errno := l.next(r); errno != 0 {
			l.end(errno)
			break
		}
		l.latency.request(time.Now()) // before the watch may take the turn
		r.turn.Store(turn + 1)
		l.turn.Store(turn + 1)
		l.stir()
		l.answer(r)
		if l.turn.CompareAndSwap(turn+1, turn+2) {
			turn += 2
		} else if turn = l.park(r); turn == noTurn {
			break
		}
	}
	l.drop(r)
}

// next reads a request into r.
func (l *loop) next(r *request) syscall.Errno {
	if l.large {
		r.populate()
	}
	for {
		n, _, errno := syscall.Syscall(unix.SYS_READ, uintptr(l.fd), uintptr(unsafe.Pointer(&r.in[0])), uintptr(len(r.in)))
		switch errno {
		case 0:
			l.large = l.large || n > thinBuffer
			if r.begin(int(n)); l.first != nil && r.n >= inHeaderSize && l.first(r.header()) {
				l.first = nil
			}
			return 0
		case unix.EINTR, unix.EAGAIN, unix.ENOENT: // ENOENT: it was interrupted before we had it
		default:
			return errno
		}
	}
}

func (l *loop) answer(r *request) {
	if n := l.dispatch(r); n > 0 {
		_, _, errno := syscall.RawSyscall(unix.SYS_WRITE, uintptr(l.fd), uintptr(unsafe.Pointer(&r.out[0])), uintptr(n))
		// ENOENT: nobody waits for it any more. ENODEV: the connection has ended.
		if errno != 0 && errno != unix.ENOENT && errno != unix.ENODEV {
			l.log.Error("reply", "opcode", r.header().Opcode, "bytes", n, "err", errno)
		}
	}
	r.unique.Store(0)
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.interrupted {
		r.cancel, r.interrupted = make(chan struct{}), false
	}
}

const noTurn = ^uint64(0)

// park waits for another turn; noTurn says that there will be none.
func (l *loop) park(r *request) (turn uint64) {
	l.mu.Lock()
	if l.spare != noTurn {
		turn, l.spare = l.spare, noTurn
		l.mu.Unlock()
		return turn
	}
	if l.dead || len(l.parked) >= maxParked {
		l.mu.Unlock()
		return noTurn
	}
	l.parked = append(l.parked, r)
	l.mu.Unlock()
	return <-r.wake
}

// yield gives up the turn, if r's reader still has it: what it does next takes time.
func (l *loop) yield(r *request) {
	if turn := r.turn.Load(); l.turn.CompareAndSwap(turn, turn+1) {
		l.pass(turn + 1)
	}
}

// waits is yield for whose request can be cancelled by that channel.
func (l *loop) waits(cancel <-chan struct{}) {
	l.mu.Lock()
	i := slices.IndexFunc(l.all, func(r *request) bool { return r.cancel == cancel })
	var r *request
	if i >= 0 {
		r = l.all[i]
	}
	l.mu.Unlock()
	if r != nil {
		r.giveBack() // its handler does not return before we do
		l.yield(r)
	}
}

// stir has the watch look while requests come. It comes after turn is odd: what the watch sees before it stops looking.
func (l *loop) stir() {
	if !l.watching.Load() && l.watching.CompareAndSwap(false, true) {
		l.watched <- struct{}{}
	}
}

// watch takes the turn from a reader that is held up. It sleeps while no requests come.
func (l *loop) watch() {
	defer l.latency.release()
	tick := time.NewTicker(watchTick)
	defer tick.Stop()
	for {
		tick.Stop()
		select {
		case <-l.watched:
		case <-l.over:
			return
		}
		tick.Reset(watchTick)
		for l.watching.Load() {
			last := l.turn.Load()
			select {
			case <-tick.C:
			case <-l.over:
				return
			}
			l.look(last)
		}
	}
}

// look compares the turn with what it was a tick ago.
func (l *loop) look(last uint64) {
	if l.turn.Load() != last {
		return
	}
	if last%2 == 1 {
		if l.turn.CompareAndSwap(last, last+1) {
			l.pass(last + 1)
		}
		return
	}
	l.rest()
	l.watching.Store(false)
	// A request that came just before that counts on us.
	if l.turn.Load() != last {
		l.watching.Store(true)
	}
}

// rest gives back what only a busy loop needs.
func (l *loop) rest() {
	l.latency.release()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.parked {
		r.trim()
	}
}

// interrupt tells the handler of a request that the kernel does not need the answer any more. False: there is none, so the
// kernel should ask again should it still wait.
func (l *loop) interrupt(unique uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.all {
		if r.unique.Load() == unique {
			r.interrupt()
			return true
		}
	}
	return false
}

// end is called by the hot reader when the connection has ended. Who waits for something is told.
func (l *loop) end(errno syscall.Errno) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
	if errno != unix.ENODEV {
		l.err = fmt.Errorf("read %s: %w", fuseDevice, errno)
	}
	for _, r := range l.all {
		r.interrupt()
	}
	for _, r := range l.parked {
		r.wake <- noTurn
	}
	l.parked = nil
	close(l.over)
}

func (l *loop) drop(r *request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = slices.DeleteFunc(l.all, func(o *request) bool { return o == r })
	r.free()
}
