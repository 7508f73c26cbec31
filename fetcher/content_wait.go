package fetcher

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"
)

// How long a source that could not be reached is left alone, at most; and how long one that asks for it.
const (
	maxPause      = 15 * time.Second
	maxAskedPause = 5 * time.Minute // a longer Retry-After is not believed
)

// patiently calls f, which asks a layer's source, until it succeeds, or fails for good, or the time for it is over. The source has
// tried several times itself before it calls an error Temporary. When any layer could be read again, all try again at once.
func (x *Contents) patiently(layer int, f func() error) error {
	began := time.Now()
	for tries := 0; ; tries++ {
		back := x.back.wait()
		err := f()
		if err == nil && tries > 0 {
			x.log.Info("a layer can be read again", "layer", x.layers[layer].Digest.String(), "after", time.Since(began))
			x.back.tell()
		}
		if !Temporary(err) {
			x.layers[layer].trouble.Store(nil)
			return err
		}
		x.layers[layer].trouble.Store(&err)
		wait := pause(x.opts.Backoff, tries)
		if asked := askedPause(err); asked > 0 {
			wait, back = max(wait, asked), nil
		}
		if limit := x.opts.FailAfter; limit > 0 {
			left := limit - time.Since(began)
			if left <= 0 {
				return err
			}
			wait = min(wait, left)
		}
		if tries == 0 {
			x.log.Warn("a layer cannot be read now: reads wait", "layer", x.layers[layer].Digest.String(), "error", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-back:
			timer.Stop()
		case <-x.life.Done():
			timer.Stop()
			return err
		}
	}
}

// pause returns half to all of base doubled tries times.
func pause(base time.Duration, tries int) time.Duration {
	d := min(maxPause, base<<min(tries, 10))
	return d/2 + rand.N(d/2+1)
}

// askedPause returns how long the source wants to be left alone; 0 when it doesn't say.
func askedPause(err error) time.Duration {
	var status *StatusError
	if !errors.As(err, &status) {
		return 0
	}
	return min(status.RetryAfter, maxAskedPause)
}

// signal tells any number of waiters that something has happened. The zero value is ready.
type signal struct {
	mu sync.Mutex
	ch chan struct{} // guarded by mu; closed by tell
}

// wait returns what the next tell closes.
func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// waiter bounds how long one read waits, for all that it waits for.
type waiter struct {
	ctx   context.Context
	layer *contentLayer
	limit time.Duration
	late  <-chan time.Time // nil without a limit
	timer *time.Timer      // nil without a limit
}

// newWaiter begins to count; stop ends that.
func (x *Contents) newWaiter(ctx context.Context, layer int) *waiter {
	w := &waiter{ctx: ctx, layer: &x.layers[layer], limit: x.opts.FailAfter}
	if w.limit > 0 {
		w.timer = time.NewTimer(w.limit)
		w.late = w.timer.C
	}
	return w
}

func (w *waiter) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// wait returns when done is closed. The error is EINTR when the reader's context ended first, EIO when its time was over. What was waited for
// goes on, for the next read.
func (w *waiter) wait(done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-w.ctx.Done():
		return syscall.EINTR
	case <-w.late:
		err := fmt.Errorf("its source did not bring it within %v", w.limit)
		if trouble := w.layer.trouble.Load(); trouble != nil {
			err = fmt.Errorf("%w: %w", err, *trouble)
		}
		return asEIO(err)
	}
}
