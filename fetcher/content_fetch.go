package fetcher

import (
	"context"

	"github.com/veneerfs/veneer/unionfs"
)

// Fetch brings all of some files into the store: in few large requests what comes by range, then what is still missing as a reader would. Errors are those
// of ReadAt.
func (x *Contents) Fetch(ctx context.Context, inos []unionfs.Ino) error {
	var list []memberRef
	seen := map[memberKey]bool{}
	for _, ino := range inos {
		idx, ok := x.tree.ContentIndex(ino)
		if !ok {
			continue
		}
		c, _ := x.tree.ContentInfo(idx)
		for i := range x.tree.NumChunks(idx) {
			k, ok := x.tree.ChunkAt(idx, i)
			if !ok || isZeros(&k) || x.have(chunkRef{idx, uint32(i)}) {
				continue
			}
			x.index.Do(x.buildIndex)
			key := memberKey{c.Layer, k.BlobOff}
			if m, ok := x.memberAt(c.Layer, k.BlobOff); ok && !seen[key] {
				seen[key] = true
				list = append(list, memberRef{c.Layer, m})
			}
		}
	}
	x.fetchInOrder(list)
	for _, ino := range inos {
		if err := x.readOver(ctx, ino); err != nil {
			return err
		}
	}
	return nil
}

// readOver reads a byte of each chunk of a file.
func (x *Contents) readOver(ctx context.Context, ino unionfs.Ino) error {
	idx, ok := x.tree.ContentIndex(ino)
	if !ok {
		return nil
	}
	var one [1]byte
	if x.tree.NumChunks(idx) == 0 {
		_, err := x.ReadAt(ctx, ino, one[:], 0)
		return err
	}
	for i := range x.tree.NumChunks(idx) {
		k, _ := x.tree.ChunkAt(idx, i)
		if _, err := x.ReadAt(ctx, ino, one[:], k.Offset); err != nil {
			return err
		}
	}
	return nil
}
