package fs

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// requestContext is the context of one request that may wait. The kernel sends INTERRUPT for any signal, also for one that the
// process handles and goes on after; a read of a file system must not fail for that (a page fault would become SIGBUS). So the context
// ends only if the process is dying, or the connection is gone.
//
//	            INTERRUPT            SIGKILL pending, thread gone, or connection dead
//	waiting ──────────────▶ asked ──────────────────────────────────────────────────▶ done
//
// INTERRUPT comes once; a process that is killed later says nothing more, so in asked we look again and again. All of
// it starts when somebody calls Done, which the read of a local file never does.
type requestContext struct {
	asked <-chan struct{}       // closed on INTERRUPT and when the connection dies
	pid   uint32                // the asking thread; 0 if it is in another PID namespace
	dead  func() bool           // whether the connection is
	waits func(<-chan struct{}) // called with asked before anybody waits

	mu   sync.Mutex
	done chan struct{} // closed when the request is not wanted any more; nil until somebody asks
	over chan struct{} // closed when the handler has returned; made with done
	late bool          // the handler has returned
}

// askAgain is how late the death of a process that was interrupted before may be noticed.
const askAgain = 20 * time.Millisecond

var closedChannel = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (w *wire) context(cancel <-chan struct{}, pid uint32) *requestContext {
	return &requestContext{asked: cancel, pid: pid, dead: w.dead, waits: w.waits}
}

// end must be called before the handler returns: the channel is used again.
func (c *requestContext) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.late = true
	if c.over != nil {
		close(c.over)
	}
}

// Done implements context.Context.
func (c *requestContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.done != nil:
	case c.late:
		return closedChannel
	default:
		c.waits(c.asked)
		c.done, c.over = make(chan struct{}), make(chan struct{})
		go c.watch(c.done, c.over)
	}
	return c.done
}

// Err implements context.Context.
func (c *requestContext) Err() error {
	c.mu.Lock()
	done, late := c.done, c.late
	c.mu.Unlock()
	if late {
		return context.Canceled
	}
	select {
	case <-done: // never, if nil
		return context.Canceled
	default:
		return nil
	}
}

// Deadline implements context.Context.
func (c *requestContext) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value implements context.Context.
func (c *requestContext) Value(any) any { return nil }

func (c *requestContext) watch(done, over chan struct{}) {
	defer close(done)
	select {
	case <-c.asked:
	case <-over:
		return
	}
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for !dying(c.pid) && !c.dead() {
		select {
		case <-tick.C:
		case <-over:
			return
		}
	}
}

// dying reports whether thread pid is gone or has SIGKILL pending: the kernel turns every fatal signal into one for each
// thread (kernel/signal.c complete_signal). A thread that we cannot see is taken for dying: its reader would hang otherwise.
func dying(pid uint32) bool {
	if pid == 0 {
		return true
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/status")
	if err != nil {
		return true
	}
	_, rest, ok := bytes.Cut(status, []byte("\nSigPnd:\t"))
	if !ok || len(rest) < 16 {
		return true
	}
	pending, err := strconv.ParseUint(string(rest[:16]), 16, 64)
	return err != nil || pending&(1<<(unix.SIGKILL-1)) != 0
}
