package fetcher

import (
	"cmp"
	"errors"
	"io/fs"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/veneerfs/veneer/unionfs"
)

// What starts read is fetched ahead of the reads, in the order of the profile: in batches, of which each is a few large requests at a time. The first
// batches are small, because the process waits for them.
const (
	firstBatch     = 1 << 20
	maxBatch       = 8 << 20
	prefetchGap    = 32 << 10 // between two pieces, fetched to save a request
	prefetchAtOnce = 2 << 20  // bytes of one request: a reader waits for those before its own
)

// replay fetches what the profile of a command names and is not here. Without one, that of the same program with other arguments serves, else what
// the layers themselves want to be fetched first. tree is the path of the image's tree.
func (x *Contents) replay(tree string, image digest.Digest, command []string) {
	p, err := x.profileFor(image, command)
	if err != nil {
		x.log.Warn("a start is not fetched ahead of its reads", "error", err)
	}
	var list []memberRef
	if p != nil {
		list = x.missingOf(p)
	} else {
		list = x.missingFirst(tree)
		x.unknown.Store(len(list) == 0)
	}
	if len(list) == 0 {
		return
	}
	x.recorder.miss()
	x.fetchInOrder(list)
}

func (x *Contents) profileFor(image digest.Digest, command []string) (*Profile, error) {
	p, err := x.store.Profile(image, command)
	if !errors.Is(err, fs.ErrNotExist) || len(command) == 0 {
		return p, ignoring(err, fs.ErrNotExist)
	}
	all, err := x.store.Profiles(image)
	for _, p := range all {
		if len(p.Command) > 0 && p.Command[0] == command[0] {
			return p, nil
		}
	}
	return nil, err
}

// fetchInOrder fetches members in batches.
func (x *Contents) fetchInOrder(list []memberRef) {
	for size := int64(firstBatch); len(list) > 0; size = min(2*size, maxBatch) {
		n, sum := 0, int64(0)
		for n < len(list) && (n == 0 || sum+list[n].size <= size) {
			sum += list[n].size
			n++
		}
		if !x.bringAll(list[:n], causeProfile) {
			return
		}
		list = list[n:]
	}
}

// memberRef is a member of a layer.
type memberRef struct {
	layer int
	blobMember
}

// missingOf returns the members that a profile names and that are not here, in its order.
func (x *Contents) missingOf(p *Profile) []memberRef {
	wanted := make(map[unionfs.Digest][]uint32, len(p.Reads))
	for i := range p.Reads {
		wanted[p.Reads[i].Content] = nil
	}
	for idx := range uint32(x.tree.Totals().Contents) {
		c, _ := x.tree.ContentInfo(idx)
		if _, ok := wanted[c.Digest]; ok {
			wanted[c.Digest] = append(wanted[c.Digest], idx)
		}
	}
	seen := map[memberKey]bool{}
	var out []memberRef
	for i := range p.Reads {
		r := &p.Reads[i]
		for _, idx := range wanted[r.Content] {
			k, n, ok := x.tree.ContentChunk(idx, r.Offset)
			if !ok || isZeros(&k) || x.have(chunkRef{idx, uint32(n)}) {
				continue
			}
			x.index.Do(x.buildIndex)
			c, _ := x.tree.ContentInfo(idx)
			m, ok := x.memberAt(c.Layer, k.BlobOff)
			if key := (memberKey{c.Layer, k.BlobOff}); ok && m.off == k.BlobOff && !seen[key] {
				seen[key] = true
				out = append(out, memberRef{c.Layer, m})
			}
			break // one of the layers that have it is enough
		}
	}
	return out
}

// bringAll fetches members, several requests at a time, and returns when the last has begun. It returns false when the Contents are closed.
func (x *Contents) bringAll(list []memberRef, why cause) bool {
	slices.SortFunc(list, func(a, b memberRef) int { return cmp.Or(cmp.Compare(a.layer, b.layer), cmp.Compare(a.off, b.off)) })
	for len(list) > 0 {
		n := 1
		for n < len(list) && list[n].layer == list[0].layer && list[n].off-list[n-1].end() <= prefetchGap &&
			list[n].end()-list[0].off <= prefetchAtOnce {
			n++
		}
		if !x.fetchAhead(list[0].layer, x.between(list[:n]), why) {
			return false
		}
		list = list[n:]
	}
	return true
}

// between returns the members of list and what is missing between them.
func (x *Contents) between(list []memberRef) []blobMember {
	last := &list[len(list)-1]
	var out []blobMember
	for at := list[0].off; at < last.end(); {
		m, ok := x.memberAt(last.layer, at)
		if !ok || m.off > last.off {
			break
		}
		if x.missing(&m) {
			out = append(out, m)
		}
		at = m.end()
	}
	return out
}

// fetchAhead waits for one of the places for requests ahead of reads, and begins to fetch those of the members that nobody fetches. What is read meanwhile
// has not to wait for a place: it is no flight yet.
func (x *Contents) fetchAhead(layer int, members []blobMember, why cause) bool {
	if err := x.aheadSlots.acquire(x.life, layer); err != nil {
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	var begin []*flight
	for _, m := range members {
		if fl, isNew := x.flight(layer, m, why); isNew {
			begin = append(begin, fl)
		}
	}
	if x.closed || len(begin) == 0 {
		for _, fl := range begin {
			delete(x.flights, memberKey{layer, fl.off})
		}
		x.aheadSlots.release(layer)
		return !x.closed
	}
	x.work.Go(func() {
		defer x.aheadSlots.release(layer)
		for _, run := range runs(begin, prefetchAtOnce) {
			x.fetch(layer, run)
		}
	})
	return true
}

// missingFirst returns what is missing of what the layers of a tree want to be fetched first.
func (x *Contents) missingFirst(tree string) []memberRef {
	var out []memberRef
	for layer, end := range readFirst(tree, len(x.layers)) {
		if end == 0 {
			continue
		}
		x.index.Do(x.buildIndex)
		for at := int64(0); ; {
			m, ok := x.memberAt(layer, at)
			if !ok || m.off >= end {
				break
			}
			if at = m.end(); x.missing(&m) {
				out = append(out, memberRef{layer, m})
			}
		}
	}
	return out
}
