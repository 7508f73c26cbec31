package fetcher

import (
	"cmp"
	"slices"
	"sort"
)

// chunkRef names a chunk of the tree.
type chunkRef struct {
	content uint32
	chunk   uint32
}

// blobRef is a chunk at its place in a layer's blob.
type blobRef struct {
	off   int64 // of its member
	inner int64
	chunkRef
}

// memberKey names a member of a layer's blob.
type memberKey struct {
	layer int
	off   int64
}

// blobMember is a part of a blob that is decompressed by itself, and its chunks, ordered by where they are in it.
type blobMember struct {
	off, size int64
	refs      []blobRef
}

func (m *blobMember) end() int64 { return m.off + m.size }

// buildIndex orders the chunks of each layer by their place in the blob. It is done at the first fetch: a start that finds all in the
// store doesn't pay for it.
func (x *Contents) buildIndex() {
	n := uint32(x.tree.Totals().Contents)
	for idx := range n {
		count := x.tree.NumChunks(idx)
		if count == 0 {
			continue
		}
		c, _ := x.tree.ContentInfo(idx)
		l := &x.layers[c.Layer]
		for i := range count {
			k, ok := x.tree.ChunkAt(idx, i)
			if ok && !isZeros(&k) {
				l.index = append(l.index, blobRef{k.BlobOff, k.Inner, chunkRef{idx, uint32(i)}})
			}
		}
	}
	for i := range x.layers {
		slices.SortFunc(x.layers[i].index, func(a, b blobRef) int {
			return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.inner, b.inner), cmp.Compare(a.content, b.content))
		})
	}
}

// memberAt returns the member of layer l that starts at or behind off.
func (x *Contents) memberAt(l int, off int64) (blobMember, bool) {
	index := x.layers[l].index
	i := sort.Search(len(index), func(i int) bool { return index[i].off >= off })
	if i == len(index) {
		return blobMember{}, false
	}
	n := i + 1
	for n < len(index) && index[n].off == index[i].off {
		n++
	}
	k, ok := x.tree.ChunkAt(index[i].content, int(index[i].chunk))
	return blobMember{off: k.BlobOff, size: k.BlobSize, refs: index[i:n]}, ok
}

// missing reports whether a chunk of m is not here. Errors count as missing: the fetch will tell.
func (x *Contents) missing(m *blobMember) bool {
	return slices.ContainsFunc(m.refs, func(r blobRef) bool { return !x.have(r.chunkRef) })
}

// have reports whether a chunk is here.
func (x *Contents) have(r chunkRef) bool {
	c, ok := x.tree.ContentInfo(r.content)
	if !ok {
		return false
	}
	if x.store.hasContent(c.Digest, c.Size) {
		return true
	}
	if f, err := x.openWhole(&c); err == nil { // another process has brought it, and it is hashed now
		f.Close()
		return true
	}
	if !x.hasPartial(r.content) {
		return false
	}
	f, err := x.open(r.content, &c)
	if f == nil || err != nil {
		return false
	}
	defer x.files.release(f)
	if f.whole != nil {
		return true
	}
	here, err := f.part.has(int(r.chunk))
	return here && err == nil
}
