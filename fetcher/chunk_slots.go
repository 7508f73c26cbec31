package fetcher

import (
	"context"
	"slices"
	"sync"
)

// requestSlots bounds the requests under way, of all layers and of each one: a layer whose source hardly answers holds up its own reads, and leaves
// room for those of others. Who waits longest goes first, among those whose layer has room. Use newRequestSlots.
type requestSlots struct {
	perLayer int // immutable

	mu      sync.Mutex
	free    int           // guarded by mu
	busy    map[int]int   // requests by layer; guarded by mu
	waiting []*slotWaiter // guarded by mu
}

type slotWaiter struct {
	layer int
	ready chan struct{} // closed when the slot is the waiter's
}

func newRequestSlots(total int) *requestSlots {
	return &requestSlots{free: total, perLayer: max(1, total*2/3), busy: map[int]int{}}
}

// acquire waits for a slot; the error is ctx's.
func (s *requestSlots) acquire(ctx context.Context, layer int) error {
	w := &slotWaiter{layer, make(chan struct{})}
	s.mu.Lock()
	s.waiting = append(s.waiting, w)
	s.next()
	s.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.waiting, w); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
		return ctx.Err()
	}
	s.put(layer) // it had just been given
	return ctx.Err()
}

func (s *requestSlots) release(layer int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(layer)
}

// put takes a slot back; mu is held.
func (s *requestSlots) put(layer int) {
	s.free++
	s.busy[layer]--
	s.next()
}

// next gives free slots to those who wait; mu is held.
func (s *requestSlots) next() {
	for i := 0; s.free > 0 && i < len(s.waiting); {
		w := s.waiting[i]
		if s.busy[w.layer] >= s.perLayer {
			i++
			continue
		}
		s.free--
		s.busy[w.layer]++
		s.waiting = slices.Delete(s.waiting, i, i+1)
		close(w.ready)
	}
}
