package fetcher

import (
	"context"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// hedger sends a request a second time when its answer is much later than others were, and takes the answer that comes first. How often it may is
// bounded, so that a registry that is slow to everyone is not asked twice for all. Use newHedger.
type hedger struct {
	mu      sync.Mutex
	recent  [hedgeSamples]time.Duration // guarded by mu; until the header of an answer
	samples int                         // guarded by mu; that there have been
	credit  int                         // guarded by mu; each answer earns one, a second request costs hedgeCost
}

const (
	hedgeSamples = 32
	hedgeCost    = 16
	hedgeBurst   = 2 // so many second requests at most in a row
	minHedge     = 250 * time.Millisecond
	firstHedge   = 3 * time.Second // while little is known
)

func newHedger() *hedger { return &hedger{credit: hedgeBurst * hedgeCost} }

// after returns when an answer is late.
func (h *hedger) after() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := min(h.samples, hedgeSamples)
	if n < hedgeSamples/4 {
		return firstHedge
	}
	sorted := slices.Clone(h.recent[:n])
	slices.Sort(sorted)
	return max(minHedge, 4*sorted[n*9/10])
}

func (h *hedger) learn(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.recent[h.samples%hedgeSamples] = d
	h.samples++
	h.credit = min(h.credit+1, hedgeBurst*hedgeCost)
}

// pay takes what a second request costs, if there is enough.
func (h *hedger) pay() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.credit < hedgeCost {
		return false
	}
	h.credit -= hedgeCost
	return true
}

// answer is how one of the tries of a request ended.
type answer struct {
	try  int
	resp *http.Response
	err  error
}

// do calls send, and once more if there is no answer after that time. The context of the try that is taken ends when the body is closed.
func (h *hedger) do(ctx context.Context, after time.Duration, send func(context.Context) (*http.Response, error)) (*http.Response, error) {
	var cancels []context.CancelFunc
	answers := make(chan answer, 2)
	begin := func() {
		ctx, cancel := context.WithCancel(ctx)
		try := len(cancels)
		if try > 0 {
			ctx = context.WithValue(ctx, secondTryKey{}, true)
		}
		cancels = append(cancels, cancel)
		go func() {
			began := time.Now()
			resp, err := send(ctx)
			if err == nil {
				h.learn(time.Since(began))
			}
			answers <- answer{try, resp, err}
		}()
	}
	begin()
	late := time.NewTimer(after)
	defer late.Stop()
	for ended := 0; ; {
		select {
		case <-late.C:
			if h.pay() {
				begin()
			}
		case a := <-answers:
			if ended++; a.err != nil {
				cancels[a.try]()
				if ended < len(cancels) {
					continue // the other may be answered
				}
				return nil, a.err
			}
			if ended < len(cancels) {
				cancels[1-a.try]()
				go closeAnswer(answers)
			}
			a.resp.Body = &cancelBody{a.resp.Body, cancels[a.try]}
			return a.resp, nil
		}
	}
}

// secondTryKey marks the context of a second try, which may go elsewhere.
type secondTryKey struct{}

func isSecondTry(ctx context.Context) bool { return ctx.Value(secondTryKey{}) != nil }

// closeAnswer waits for the answer that is not wanted.
func closeAnswer(answers <-chan answer) {
	if a := <-answers; a.err == nil {
		a.resp.Body.Close()
	}
}

type cancelBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *cancelBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel()
	return err
}
