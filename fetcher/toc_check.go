package fetcher

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/veneerfs/veneer/unionfs"
)

// zerosDigest stands for the digest of a run of zeros, of which the blob holds nothing. In a tree such a chunk has BlobSize 0.
var zerosDigest = unionfs.Digest(bytes.Repeat([]byte{0xff}, len(unionfs.Digest{})))

// maxZeros is the longest run of zeros that is one chunk of a tree.
const maxZeros = 1 << 30

func isZeros(c *unionfs.Chunk) bool { return c.BlobSize == 0 }

// placeChunks gives every chunk the compressed size of its member and checks that members, and chunks within a member, don't overlap.
// A member whose end the TOC does not say reaches to the next one, or to end; there may be tar headers behind its last chunk.
func placeChunks(entries []*unionfs.Entry, end int64) error {
	var all []*unionfs.Chunk
	for _, e := range entries {
		for i := range e.Content.Chunks {
			if c := &e.Content.Chunks[i]; c.Digest != zerosDigest {
				all = append(all, c)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b *unionfs.Chunk) int {
		return cmp.Or(cmp.Compare(a.BlobOff, b.BlobOff), cmp.Compare(a.Inner, b.Inner))
	})
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].BlobOff == all[0].BlobOff {
			n++
		}
		next := end
		if n < len(all) {
			next = all[n].BlobOff
		}
		if err := placeMember(all[:n], next); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

// placeMember does so for the chunks of one member, ordered by where they are in it.
func placeMember(chunks []*unionfs.Chunk, next int64) error {
	size := next - chunks[0].BlobOff
	for _, c := range chunks {
		if c.BlobSize > size {
			return tocErrorf("chunks overlap in the blob at %d", next)
		}
		if c.BlobSize > 0 && chunks[0].BlobSize != c.BlobSize {
			return tocErrorf("chunks at %d of the blob have different ends", c.BlobOff)
		}
	}
	if chunks[0].BlobSize > 0 {
		size = chunks[0].BlobSize
	}
	for i, c := range chunks {
		c.BlobSize = size
		if i == 0 {
			continue
		}
		before := chunks[i-1]
		same := c.Inner == before.Inner && c.Size == before.Size && c.Digest == before.Digest
		if !same && c.Inner < before.Inner+before.Size {
			return tocErrorf("chunks overlap at %d+%d of the blob", c.BlobOff, c.Inner)
		}
	}
	return nil
}
