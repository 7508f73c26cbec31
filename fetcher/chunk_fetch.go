package fetcher

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
)

// flight is the fetch of one member. Who needs one of its chunks waits for done.
type flight struct {
	blobMember
	cause  cause       // why it began
	wanted atomic.Bool // a read waits for it
	done   chan struct{}

	// Set before done is closed, and not changed after.
	err error               // the member was not fetched
	bad map[chunkRef]error  // chunks that are not what they should be
	mem map[chunkRef][]byte // verified chunks that the store did not take
}

// readChunks fills p, or a part of it, with the bytes of a content that is fetched by range. f is its partial file, or nil. It returns 0 and errAgain when
// what it waited for is in the store now.
func (x *Contents) readChunks(w *waiter, idx uint32, f *contentFile, p []byte, off int64) (int, error) {
	flights, err := x.startMissing(idx, f, off, int64(len(p)))
	if err != nil {
		return 0, asEIO(err)
	}
	if len(flights) > 0 {
		x.stats.waits.Add(1)
		x.demand.enter()
		defer x.demand.leave()
		if x.recorder != nil {
			x.recorder.miss()
		}
	}
	done := 0
	for done < len(p) {
		k, i, ok := x.tree.ContentChunk(idx, off)
		if !ok {
			return done, asEIO(errors.New("the image tree is damaged"))
		}
		n := int(min(int64(len(p)-done), k.Offset+k.Size-off))
		if fl := flights[k.BlobOff]; fl != nil && !isZeros(&k) {
			if err := w.wait(fl.done); err != nil {
				return done, err
			}
		}
		err := x.copyChunk(chunkRef{idx, uint32(i)}, f, flights[k.BlobOff], p[done:done+n], off)
		if err != nil {
			return done, err
		}
		done += n
		off += int64(n)
	}
	return done, nil
}

// copyChunk copies bytes of a chunk that should be here to p. fl is the flight that was waited for, or nil.
func (x *Contents) copyChunk(r chunkRef, f *contentFile, fl *flight, p []byte, off int64) error {
	k, _ := x.tree.ChunkAt(r.content, int(r.chunk))
	if b := x.spill.get(r); b != nil {
		copy(p, b[off-k.Offset:])
		return nil
	}
	if fl != nil {
		switch b, bad := fl.mem[r], fl.bad[r]; {
		case b != nil:
			copy(p, b[off-k.Offset:])
			return nil
		case bad != nil:
			return asEIO(bad)
		case fl.err != nil && !errors.Is(fl.err, errAgain):
			return asEIO(fl.err)
		}
	}
	if f == nil {
		return errAgain // a single chunk is a whole content
	}
	here, err := f.part.has(int(r.chunk))
	if err != nil {
		return asEIO(err)
	}
	if !here {
		return errAgain
	}
	if _, err := f.part.data.ReadAt(p, off); err != nil {
		return asEIO(fmt.Errorf("read partial file: %w", noEOF(err)))
	}
	return nil
}

// startMissing begins to fetch the chunks of n bytes from off that are not here, and returns the flights to wait for, by
// their place in the blob.
func (x *Contents) startMissing(idx uint32, f *contentFile, off, n int64) (map[int64]*flight, error) {
	var need []int64
	first, last := -1, -1
	for at := off; at < off+n; {
		k, i, ok := x.tree.ContentChunk(idx, at)
		if !ok {
			return nil, errors.New("the image tree is damaged")
		}
		at = k.Offset + k.Size
		if isZeros(&k) || x.spill.get(chunkRef{idx, uint32(i)}) != nil {
			continue
		}
		if f != nil {
			here, err := f.part.has(i)
			if err != nil {
				return nil, err
			}
			if here {
				continue
			}
		}
		need = append(need, k.BlobOff)
		if first < 0 {
			first = i
		}
		last = i
	}
	if len(need) == 0 {
		return nil, nil
	}
	x.index.Do(x.buildIndex)
	c, _ := x.tree.ContentInfo(idx)
	slices.Sort(need)
	var members []blobMember
	for _, off := range slices.Compact(need) {
		m, ok := x.memberAt(c.Layer, off)
		if !ok || m.off != off {
			return nil, errors.New("the image tree is damaged")
		}
		members = append(members, m)
	}
	return x.start(c.Layer, members, x.plan(c.Layer, idx, f, first, last, members))
}

// start joins the flights of the members of need, and begins those that are not under way, also of extra.
func (x *Contents) start(layer int, need, extra []blobMember) (map[int64]*flight, error) {
	wait := make(map[int64]*flight, len(need))
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return nil, os.ErrClosed
	}
	var begin []*flight
	for i, m := range slices.Concat(need, extra) {
		why := causeDemand
		if i >= len(need) {
			why = causeWindow
		}
		fl, isNew := x.flight(layer, m, why)
		if isNew {
			begin = append(begin, fl)
		}
		if i < len(need) {
			fl.wanted.Store(true)
			wait[m.off] = fl
		}
	}
	for _, run := range runs(begin, maxRequest) {
		x.work.Go(func() {
			if err := x.slots.acquire(x.life, layer); err != nil {
				x.endAll(layer, run, err)
				return
			}
			defer x.slots.release(layer)
			x.fetch(layer, run)
		})
	}
	return wait, nil
}

// flight returns the flight of a member, and makes it if it is not under way; mu is held.
func (x *Contents) flight(layer int, m blobMember, why cause) (fl *flight, isNew bool) {
	key := memberKey{layer, m.off}
	if fl := x.flights[key]; fl != nil {
		return fl, false
	}
	fl = &flight{blobMember: m, cause: why, done: make(chan struct{})}
	x.flights[key] = fl
	return fl, true
}

// runs splits flights into those that one request of up to limit bytes can bring.
func runs(all []*flight, limit int64) [][]*flight {
	slices.SortFunc(all, func(a, b *flight) int { return int(min(1, max(-1, a.off-b.off))) })
	var out [][]*flight
	for i, fl := range all {
		if i > 0 {
			run := out[len(out)-1]
			before := run[len(run)-1]
			if gap := fl.off - before.end(); gap >= 0 && gap <= maxGap && fl.end()-run[0].off <= limit {
				out[len(out)-1] = append(run, fl)
				continue
			}
		}
		out = append(out, []*flight{fl})
	}
	return out
}

// fetch brings a run of members and ends their flights, each as soon as it is here. The blob's range is locked meanwhile, so that of all
// processes that want it one fetches it, and the others find it in the store. The caller holds a slot.
func (x *Contents) fetch(layer int, run []*flight) {
	l := &x.layers[layer]
	held, err := l.lock.acquire(x.life, run[0].off, run[len(run)-1].end()-run[0].off)
	switch {
	case x.life.Err() != nil:
		x.endAll(layer, run, x.life.Err())
		return
	case err != nil: // the lock saves others a request, no more
		x.tellFull(err)
	}
	defer held.release()

	// Another process may have fetched them while this one waited for the lock.
	var left []*flight
	for _, fl := range run {
		if x.missing(&fl.blobMember) {
			left = append(left, fl)
			continue
		}
		x.endFlight(layer, fl, errAgain)
	}
	for _, part := range runs(left, maxRequest) {
		x.request(layer, part, held)
	}
}

// request fetches the members of part with one request, or more where it is cut.
func (x *Contents) request(layer int, part []*flight, held *heldRange) {
	err := x.patiently(layer, func() (err error) {
		for {
			if part, err = x.receiveAll(layer, part, held); !errors.Is(err, errMirrorLies) {
				return err
			}
		}
	})
	switch {
	case errors.Is(err, ErrRangeIgnored):
		x.log.Warn("a layer cannot be fetched by range: it is streamed", "layer", x.layers[layer].Digest.String(), "error", err)
		x.streamInstead(layer, part)
	case err != nil:
		x.endAll(layer, part, err)
	}
}

// errMirrorLies means that damaged bytes came from a mirror, which is not asked any more.
var errMirrorLies = errors.New("a mirror sent damaged bytes")

// receiveAll makes one request for the members of part, and returns those that did not come.
func (x *Contents) receiveAll(layer int, part []*flight, held *heldRange) ([]*flight, error) {
	off, end := part[0].off, part[len(part)-1].end()
	x.stats.requests.Add(1)
	body, err := x.layers[layer].source.blob.ReadRange(x.life, off, end-off)
	if err != nil {
		return part, fmt.Errorf("fetch %d bytes at %d: %w", end-off, off, err)
	}
	defer body.Close()
	in := &bodyReader{r: x.polite(part, body), count: &x.stats.fetchedBytes}
	at := off
	for i, fl := range part {
		whole, err := x.receive(layer, fl, in, fl.off-at)
		switch {
		case err == nil && len(fl.bad) > 0 && x.distrust(layer):
			err = errMirrorLies
		case err == nil:
			x.stats.byCause[fl.cause].Add(fl.size)
			x.tellDamaged(layer, fl)
			x.endFlight(layer, fl, nil)
		}
		// After those who wait have gone on: it hashes the file.
		for _, idx := range whole {
			x.completeContent(idx)
		}
		if err != nil {
			return part[i:], fmt.Errorf("fetch %d bytes at %d: %w", end-off, off, err)
		}
		at = fl.end()
		held.releaseTo(at)
	}
	return nil, nil
}

// endFlight lets those who wait for fl go on.
func (x *Contents) endFlight(layer int, fl *flight, err error) {
	fl.err = err
	x.mu.Lock()
	delete(x.flights, memberKey{layer, fl.off})
	x.mu.Unlock()
	close(fl.done)
}

func (x *Contents) endAll(layer int, run []*flight, err error) {
	for _, fl := range run {
		x.endFlight(layer, fl, err)
	}
}

// receive reads one member, skip bytes further on in the body, and keeps its chunks. It returns the contents of which the last
// chunk came. The error is the body's; a member that is damaged ends in fl.bad.
func (x *Contents) receive(layer int, fl *flight, in *bodyReader, skip int64) (whole []uint32, err error) {
	if _, err := io.CopyN(io.Discard, in, skip); err != nil {
		return nil, noEOF(err)
	}
	body := &memberReader{LimitedReader: io.LimitedReader{R: in, N: fl.size}, body: in}
	whole = x.unpack(layer, fl, body)
	if !body.broken() {
		// What is behind the last chunk: tar headers.
		io.Copy(io.Discard, body)
	}
	if body.broken() {
		return whole, noEOF(in.err)
	}
	return whole, nil
}

// bodyReader counts what comes, and remembers the error it ended with.
type bodyReader struct {
	r     io.Reader
	count interface{ Add(int64) int64 }
	err   error
}

func (r *bodyReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.r.Read(p)
	r.count.Add(int64(n))
	r.err = err
	return n, err
}

// memberReader reads the bytes of one member.
type memberReader struct {
	io.LimitedReader
	body *bodyReader
}

// broken reports whether the body ended, or failed, before the member's end. Then it is not the member's fault if it can't be
// decompressed.
func (r *memberReader) broken() bool { return r.N > 0 && r.body.err != nil }
