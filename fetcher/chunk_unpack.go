package fetcher

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/veneerfs/veneer/unionfs"
)

// unpack decompresses a member, verifies its chunks and keeps them. What is wrong with them goes into fl, unless it was the body that broke. It returns the
// contents of which the last chunk came.
func (x *Contents) unpack(layer int, fl *flight, r *memberReader) (whole []uint32) {
	fl.bad, fl.mem = map[chunkRef]error{}, map[chunkRef][]byte{}
	z, err := openMember(x.layers[layer].Format, r)
	if err != nil {
		if !r.broken() {
			x.damaged(fl, fl.refs, err)
		}
		return nil
	}
	defer z.Close()
	buf := chunkBuffers.Get().(*[]byte)
	defer chunkBuffers.Put(buf)
	var at int64
	var b []byte
	for i, ref := range fl.refs {
		k, ok := x.tree.ChunkAt(ref.content, int(ref.chunk))
		if !ok {
			x.damaged(fl, fl.refs[i:i+1], fmt.Errorf("the image tree is damaged"))
			continue
		}
		if k.Inner >= at { // else it is the chunk before once more
			if b, err = readChunk(z, k.Inner-at, k.Size, buf); err != nil {
				if !r.broken() {
					x.damaged(fl, fl.refs[i:], err)
				}
				return whole
			}
			at = k.Inner + k.Size
		}
		if got := unionfs.Digest(sha256.Sum256(b)); got != k.Digest {
			x.damaged(fl, fl.refs[i:i+1], fmt.Errorf("its digest should be %s but is %s", k.Digest, got))
			continue
		}
		x.stats.chunksVerified.Add(1)
		if x.keep(fl, ref.chunkRef, b) {
			whole = append(whole, ref.content)
		}
	}
	return whole
}

// chunkBuffers are of type *[]byte. A chunk has at most maxChunkSize bytes.
var chunkBuffers = sync.Pool{New: func() any { return new([]byte) }}

// readChunk reads size bytes, skip bytes further on, into buf, which grows.
func readChunk(z io.Reader, skip, size int64, buf *[]byte) ([]byte, error) {
	if _, err := io.CopyN(io.Discard, z, skip); err != nil {
		return nil, fmt.Errorf("decompress: %w", noEOF(err))
	}
	if int64(cap(*buf)) < size {
		*buf = make([]byte, size)
	}
	b := (*buf)[:size]
	if _, err := io.ReadFull(z, b); err != nil {
		return nil, fmt.Errorf("decompress: %w", noEOF(err))
	}
	return b, nil
}

// keep puts a verified chunk into the store, or where the store doesn't take it, into memory. It returns true when the
// content is whole now and has to be completed.
func (x *Contents) keep(fl *flight, r chunkRef, b []byte) (whole bool) {
	c, _ := x.tree.ContentInfo(r.content)
	var err error
	if !x.hasPartial(r.content) {
		err = x.store.putBytes(c.Digest, b) // its only chunk has its digest
	} else {
		whole, err = x.keepPart(r, &c, b)
	}
	if err == nil {
		x.full.Store(false)
		return whole
	}
	fl.mem[r] = bytes.Clone(b)
	x.spill.put(r, fl.mem[r])
	x.tellFull(err)
	return false
}

func (x *Contents) keepPart(r chunkRef, c *unionfs.Content, b []byte) (bool, error) {
	f, err := x.open(r.content, c)
	if err != nil {
		return false, err
	}
	if f == nil {
		return false, fmt.Errorf("there is no partial file for it")
	}
	defer x.files.release(f)
	if f.whole != nil {
		return false, nil
	}
	whole, err := f.part.write(int(r.chunk), b)
	if err != nil {
		return false, x.store.full(err)
	}
	return whole, nil
}

// completeContent moves a content of which every chunk is here to the whole ones.
func (x *Contents) completeContent(idx uint32) {
	f := x.files.get(idx)
	if f == nil {
		return
	}
	defer x.files.release(f)
	if f.part == nil || !f.part.whole() {
		return
	}
	if err := x.store.complete(f.part); err != nil {
		x.tellFull(err)
		return
	}
	if f.part.isPlaced() {
		x.files.drop(idx)
	}
}

// openMember returns what a member of a blob holds. It keeps to the member when r ends with it.
func openMember(f unionfs.Format, r io.Reader) (io.ReadCloser, error) {
	if f == unionfs.FormatZstdChunked {
		return openZstdMember(r)
	}
	z, _ := gzipReaders.Get().(*gzip.Reader)
	if z == nil {
		z = new(gzip.Reader)
	}
	if err := z.Reset(r); err != nil {
		return nil, fmt.Errorf("decompress gzip: %w", noEOF(err))
	}
	return pooledGzip{z}, nil
}

func openZstdMember(r io.Reader) (io.ReadCloser, error) {
	z, _ := zstdReaders.Get().(*zstd.Decoder)
	if z == nil {
		var err error
		z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, fmt.Errorf("decompress zstd: %w", err)
		}
	}
	if err := z.Reset(r); err != nil {
		return nil, fmt.Errorf("decompress zstd: %w", noEOF(err))
	}
	return pooledZstd{z}, nil
}

// Decompressors are large, and used for a moment.
var gzipReaders, zstdReaders sync.Pool

type pooledGzip struct{ *gzip.Reader }

func (z pooledGzip) Close() error {
	gzipReaders.Put(z.Reader)
	return nil
}

type pooledZstd struct{ *zstd.Decoder }

func (z pooledZstd) Close() error {
	z.Reset(nil) // lets go of the body
	zstdReaders.Put(z.Decoder)
	return nil
}
