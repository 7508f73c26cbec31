package unionfs

import "golang.org/x/sys/unix"

// Content tells where the bytes of a regular file come from. It allocates; ContentIndex, ChunkAt and ContentChunk don't.
func (t *Tree) Content(ino Ino) (Content, bool) {
	idx, ok := t.ContentIndex(ino)
	if !ok {
		return Content{}, false
	}
	c, ok := t.ContentInfo(idx)
	if !ok {
		return Content{}, false
	}
	n := t.NumChunks(idx)
	if n > 0 {
		c.Chunks = make([]Chunk, n)
	}
	for i := range c.Chunks {
		if c.Chunks[i], ok = t.ChunkAt(idx, i); !ok {
			return Content{}, false
		}
	}
	return c, true
}

// ContentIndex returns the place of a regular file's content in the content table, which is below Totals().Contents.
// Files with the same digest and size from one layer share it.
func (t *Tree) ContentIndex(ino Ino) (uint32, bool) {
	p := t.inodeOf(ino, unix.S_IFREG)
	if p == nil {
		return 0, false
	}
	idx := le.Uint32(p[40:])
	return idx, t.content(idx) != nil
}

// content returns a record of the content table, or nil.
func (t *Tree) content(idx uint32) []byte {
	if uint64(idx) >= uint64(len(t.contents)/contentSize) {
		return nil
	}
	i := int(idx) * contentSize
	return t.contents[i : i+contentSize : i+contentSize]
}

// ContentInfo returns a content without its chunks. It allocates only for the path of a FormatDir layer.
func (t *Tree) ContentInfo(idx uint32) (Content, bool) {
	p := t.content(idx)
	if p == nil {
		return Content{}, false
	}
	c := Content{Digest: Digest(p), Size: int64(le.Uint64(p[32:])), Layer: int(le.Uint32(p[48:]))}
	if c.Layer >= len(t.layers) || c.Size < 0 || c.Size > max48 {
		return Content{}, false
	}
	if t.layers[c.Layer].Format == FormatDir {
		dir, ok1 := t.str(le.Uint32(p[40:]))
		name, ok2 := t.str(le.Uint32(p[44:]))
		if !ok1 || !ok2 {
			return Content{}, false
		}
		c.Path = joinPath(dir, name)
	}
	return c, true
}

// joinPath joins a directory below a layer ("" is the layer itself) and a name. The result is never an alias.
func joinPath(dir, name string) string {
	if dir == "" {
		return string([]byte(name))
	}
	return dir + "/" + name
}

// chunkRange returns where the chunks of a content are in the chunk table, and its record.
func (t *Tree) chunkRange(idx uint32) (first, n int, p []byte) {
	if p = t.content(idx); p == nil {
		return 0, 0, nil
	}
	if layer := int(le.Uint32(p[48:])); layer >= len(t.layers) || t.layers[layer].Format == FormatDir {
		return 0, 0, nil
	}
	f, c, all := uint64(le.Uint32(p[40:])), uint64(le.Uint32(p[44:])), uint64(len(t.chunks)/chunkSize)
	if f > all || c > all-f {
		return 0, 0, nil
	}
	return int(f), int(c), p
}

// NumChunks returns the number of chunks of a content; 0 unless its layer is fetched by range.
func (t *Tree) NumChunks(idx uint32) int {
	_, n, _ := t.chunkRange(idx)
	return n
}

// ChunkAt returns chunk i of a content. It does not allocate.
func (t *Tree) ChunkAt(idx uint32, i int) (Chunk, bool) {
	first, n, p := t.chunkRange(idx)
	if i < 0 || i >= n {
		return Chunk{}, false
	}
	return t.chunk(first, n, p, i)
}

// ContentChunk returns the chunk of a content that covers the byte at off, and which one it is. It does not allocate.
func (t *Tree) ContentChunk(idx uint32, off int64) (c Chunk, i int, ok bool) {
	first, n, p := t.chunkRange(idx)
	if n == 0 || off < 0 || off >= int64(le.Uint64(p[32:])) {
		return Chunk{}, 0, false
	}
	lo, hi := 0, n // the last chunk that starts at or below off is in [lo, hi)
	for hi-lo > 1 {
		mid := int(uint(lo+hi) >> 1)
		if get48(t.chunks[(first+mid)*chunkSize:]) <= off {
			lo = mid
		} else {
			hi = mid
		}
	}
	if c, ok = t.chunk(first, n, p, lo); !ok || off < c.Offset || off-c.Offset >= c.Size {
		return Chunk{}, 0, false
	}
	return c, lo, true
}

// chunk decodes chunk i of the content p, whose n chunks start at first.
func (t *Tree) chunk(first, n int, p []byte, i int) (Chunk, bool) {
	r := t.chunks[(first+i)*chunkSize:]
	c := Chunk{Offset: get48(r), BlobOff: get48(r[6:]), BlobSize: get48(r[12:]), Inner: get48(r[18:])}
	end := int64(le.Uint64(p[32:]))
	if i+1 < n {
		end = get48(r[chunkSize:])
	}
	if c.Size = end - c.Offset; c.Size <= 0 || end < 0 || end > int64(le.Uint64(p[32:])) {
		return Chunk{}, false
	}
	d := le.Uint32(p[52:])
	if d == noDigests {
		c.Digest = Digest(p)
		return c, n == 1
	}
	at := uint64(d) + uint64(i)
	if at >= uint64(len(t.chunkDigests)/digestSize) {
		return Chunk{}, false
	}
	c.Digest = Digest(t.chunkDigests[at*digestSize:])
	return c, true
}
