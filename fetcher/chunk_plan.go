package fetcher

import "slices"

// maxGap is up to how many bytes between two members are fetched in vain to save a request. zstd:chunked has tar headers there.
const maxGap = 4 << 10

// maxRequest is up to how many bytes are asked for at once, unless a single member is larger.
const maxRequest = 8 << 20

// plan returns the members that come along with those of need, which a read of content idx up to its chunk last waits for: what is
// likely to be needed next and costs little. f is the content's partial file, or nil.
func (x *Contents) plan(layer int, idx uint32, f *contentFile, first, last int, need []blobMember) []blobMember {
	end := x.tree.NumChunks(idx) - 1
	var out []blobMember
	if f != nil && f.part != nil {
		out = x.ahead(layer, idx, f.part, first, last)
		last += len(out)
	}
	if last < end {
		return out
	}
	// The file ends here: what follows in the blob are others.
	tail := slices.Concat(need, out)
	return append(out, x.along(layer, tail[len(tail)-1].end())...)
}

// ahead returns the members of the chunks behind last, if the file is being read from one end to the other: the more, the
// longer that goes on.
func (x *Contents) ahead(layer int, idx uint32, p *partial, first, last int) []blobMember {
	window := p.window(first, last, x.opts.Readahead)
	var out []blobMember
	for i := last + 1; i < x.tree.NumChunks(idx); i++ {
		k, ok := x.tree.ChunkAt(idx, i)
		if !ok || isZeros(&k) || k.BlobSize > window {
			break
		}
		m, ok := x.memberAt(layer, k.BlobOff)
		if !ok || m.off != k.BlobOff || !x.missing(&m) {
			break
		}
		window -= m.size
		out = append(out, m)
	}
	p.expect(last + 1 + len(out))
	return out
}

// sequence tells a file that is read from one end to the other from one that is read here and there.
type sequence struct {
	next  int   // the chunk that is missed next if so
	bytes int64 // compressed, to bring ahead of the next miss
}

// minAhead is what the second miss in sequence brings ahead. It doubles from there.
const minAhead = 1 << 20

// window returns how many bytes to bring ahead of a miss of the chunks first to last.
func (p *partial) window(first, last int, limit int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if first != p.seq.next || first == 0 {
		p.seq.bytes = 0
		return 0
	}
	p.seq.bytes = max(0, min(limit, max(minAhead, 2*p.seq.bytes)))
	return p.seq.bytes
}

// expect says which chunk is missed next if the file is read on.
func (p *partial) expect(next int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seq.next = next
}
