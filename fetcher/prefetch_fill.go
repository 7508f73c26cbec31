package fetcher

import (
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// When a start is over, the rest of the image is fetched, so that the container needs its registry no more. That is at the lowest priority: nothing is
// fetched while a read waits, and one request is under way at a time.
const (
	fillAfter   = 10 * time.Second // since the start
	fillQuiet   = time.Second      // since a read waited last
	fillRequest = 4 << 20
	fillKeep    = 10 // per cent of the file system that stay free
)

// fill fetches what is missing, layer by layer.
func (x *Contents) fill() {
	if !x.sleep(fillAfter) {
		return
	}
	x.index.Do(x.buildIndex)
	for layer := range x.layers {
		for at := int64(0); ; {
			if !x.waitQuiet() {
				return
			}
			members, next := x.missingFrom(layer, at)
			if len(members) == 0 {
				break
			}
			if !x.roomToFill() {
				x.log.Info("the rest of the image is not fetched: the file system is nearly full")
				return
			}
			if !x.fetchAhead(layer, members, causeFill) || !x.waitFor(layer, members) {
				return
			}
			at = next
		}
	}
}

// missingFrom returns missing members of a layer from a place in its blob on, as much as one request brings.
func (x *Contents) missingFrom(layer int, at int64) (members []blobMember, next int64) {
	for {
		m, ok := x.memberAt(layer, at)
		if !ok || len(members) > 0 && m.end()-members[0].off > fillRequest {
			return members, at
		}
		at = m.end()
		if x.missing(&m) {
			members = append(members, m)
		} else if len(members) > 0 {
			return members, at
		}
	}
}

// waitFor waits until none of the members is being fetched; false when the Contents are closed.
func (x *Contents) waitFor(layer int, members []blobMember) bool {
	for _, m := range members {
		x.mu.Lock()
		fl := x.flights[memberKey{layer, m.off}]
		x.mu.Unlock()
		if fl == nil {
			continue
		}
		select {
		case <-fl.done:
		case <-x.life.Done():
			return false
		}
	}
	return x.life.Err() == nil
}

func (x *Contents) roomToFill() bool {
	var st unix.Statfs_t
	return unix.Statfs(x.store.root, &st) != nil || st.Bavail >= st.Blocks/100*fillKeep
}

// waitQuiet waits until no read has waited for a while; false when the Contents are closed.
func (x *Contents) waitQuiet() bool {
	for {
		left := fillQuiet - x.demand.quiet()
		if left <= 0 {
			return x.life.Err() == nil
		}
		if !x.sleep(left) {
			return false
		}
	}
}

// sleep returns false when the Contents are closed meanwhile.
func (x *Contents) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-x.life.Done():
		return false
	}
}

// demand counts the reads that wait.
type demand struct {
	mu      sync.Mutex
	waiting int       // guarded by mu
	last    time.Time // when there was none any more; guarded by mu
}

func (d *demand) enter() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting++
}

func (d *demand) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting--; d.waiting == 0 {
		d.last = time.Now()
	}
}

// quiet returns for how long no read has waited.
func (d *demand) quiet() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting > 0 {
		return 0
	}
	return time.Since(d.last)
}

func (d *demand) isWaiting() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting > 0
}

// polite returns the body of a request for part that is read at the priority of its cause.
func (x *Contents) polite(part []*flight, body io.Reader) io.Reader {
	if part[0].cause != causeFill {
		return body
	}
	return &fillReader{x: x, part: part, r: body, began: time.Now()}
}

// fillReader stands back while reads wait, and keeps to the rate of the fill, unless it is for this that they wait.
type fillReader struct {
	x     *Contents
	part  []*flight
	r     io.Reader
	began time.Time
	got   int64
}

// How much is read between two looks at who waits, and how long a fill stands back at a time: what is read may just have begun to be
// waited for.
const (
	fillPiece = 64 << 10
	fillPause = 100 * time.Millisecond
)

func (r *fillReader) Read(p []byte) (int, error) {
	for r.x.demand.isWaiting() && !r.isWanted() && r.x.sleep(fillPause) {
	}
	if rate := r.x.opts.FillRate; rate > 0 {
		due := time.Duration(float64(r.got) / float64(rate) * float64(time.Second))
		for early := due - time.Since(r.began); early > 0 && !r.isWanted(); early = due - time.Since(r.began) {
			if !r.x.sleep(min(early, fillPause)) {
				return 0, r.x.life.Err()
			}
		}
	}
	if err := r.x.life.Err(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p[:min(len(p), fillPiece)])
	r.got += int64(n)
	return n, err
}

func (r *fillReader) isWanted() bool {
	return slices.ContainsFunc(r.part, func(fl *flight) bool { return fl.wanted.Load() })
}
