package fetcher

import "sync"

// A miss brings what is behind it in the blob along, because files that are read together were often packed together: the start of a program
// is many small files, and each would cost a round trip. How much is learned for each layer: the more of what came along is read, the more comes
// along next time. When the reader gets to the middle of that, the next part is brought before it is missed, so a reader of one file after the
// other never waits for a round trip.
const (
	minWindow   = 64 << 10
	firstWindow = 256 << 10
	maxWindow   = 4 << 20 // if ContentsOptions.Neighbours is not less
)

// window is what was learned of a layer. Sizes and offsets are of its blob.
type window struct {
	mu      sync.Mutex
	size    int64 // to bring next; 0 before the first time; guarded by mu
	trigger int64 // a first read of what was brought, at or behind this, brings the next; guarded by mu
	end     int64 // of what was brought last; guarded by mu
	brought int64 // bytes that came along, lately: halved each time that size is set; guarded by mu
	used    int64 // bytes of them that were read; guarded by mu
}

// next returns how much to bring, from the start of first or more, up to limit.
func (w *window) next(first, limit int64) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.size == 0:
		w.size = first
	case w.brought < minWindow:
	case w.used*2 >= w.brought:
		w.size *= 2
	case w.used*4 < w.brought:
		w.size /= 2
	}
	w.brought, w.used = w.brought/2, w.used/2
	w.size = min(max(w.size, min(minWindow, limit)), limit)
	return w.size
}

// bring notes that the members from start to end come along.
func (w *window) bring(start, end int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.brought += end - start
	w.trigger, w.end = start+(end-start)/2, end
}

// use notes the first read of a member that came along. It reports whether the next part is to be brought now, and from where.
func (w *window) use(m *blobMember) (from int64, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.used += m.size
	if m.off < w.trigger || m.off >= w.end {
		return 0, false
	}
	w.trigger = w.end // once
	return w.end, true
}

// firstRead is called when a content is read that was not before.
func (x *Contents) firstRead(idx uint32) {
	if !x.cameAlong.has(idx) {
		return
	}
	k, ok := x.tree.ChunkAt(idx, 0)
	c, _ := x.tree.ContentInfo(idx)
	if !ok || isZeros(&k) {
		return
	}
	m, ok := x.memberAt(c.Layer, k.BlobOff)
	if !ok {
		return
	}
	if from, ok := x.layers[c.Layer].window.use(&m); ok {
		x.start(c.Layer, nil, x.along(c.Layer, from))
	}
}

// along returns the missing members from a place in the blob on that are worth bringing.
func (x *Contents) along(layer int, from int64) []blobMember {
	w := &x.layers[layer].window
	limit := min(x.opts.Neighbours, maxWindow)
	if limit <= 0 {
		return nil
	}
	var out []blobMember
	left := w.next(min(limit, firstWindow), limit)
	at := from
	for {
		m, ok := x.memberAt(layer, at)
		if !ok || m.off-at > maxGap || m.size > left || !x.missing(&m) {
			break
		}
		out = append(out, m)
		left -= m.size
		at = m.end()
	}
	if len(out) > 0 {
		w.bring(out[0].off, at)
		for i := range out {
			for _, r := range out[i].refs {
				x.cameAlong.set(r.content)
			}
		}
	}
	return out
}
