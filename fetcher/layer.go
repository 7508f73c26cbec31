package fetcher

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/veneerfs/veneer/unionfs"
)

// LayerError says with which layer something is wrong.
type LayerError struct {
	Layer  int // from 0, bottom first
	Digest unionfs.Digest
	Err    error
}

func (e *LayerError) Error() string {
	return fmt.Sprintf("layer %d (%s): %v", e.Layer, e.Digest, e.Err)
}
func (e *LayerError) Unwrap() error { return e.Err }

// layerSource is a layer of an image as the store sees it.
type layerSource struct {
	index int
	desc  ocispec.Descriptor
	diff  unionfs.Digest // of the uncompressed tar
	blob  Blob
}

// layerSources returns the layers of img, bottom first.
func layerSources(img *Image, blob func(layer int) Blob) ([]layerSource, error) {
	if len(img.DiffIDs) != len(img.Layers) {
		return nil, imageErrorf("the image has %d layers and %d diff IDs", len(img.Layers), len(img.DiffIDs))
	}
	out := make([]layerSource, len(img.Layers))
	for i := range img.Layers {
		diff, err := parseDigest(string(img.DiffIDs[i]))
		if err != nil {
			return nil, fmt.Errorf("diff ID of layer %d: %w", i, err)
		}
		out[i] = layerSource{index: i, desc: img.Layers[i], diff: diff, blob: blob(i)}
	}
	return out, nil
}

// describe returns what a tree says of the layer.
func (l *layerSource) describe(f unionfs.Format) (unionfs.Layer, error) {
	d, err := parseDigest(string(l.desc.Digest))
	if err != nil {
		return unionfs.Layer{}, err
	}
	return unionfs.Layer{Format: f, Digest: d, DiffID: l.diff, Size: l.desc.Size, MediaType: l.desc.MediaType}, nil
}

// loaded is a layer that is ready to be merged.
type loaded struct {
	layer   unionfs.Layer
	entries []*unionfs.Entry
	first   int64 // up to where the blob wants to be fetched first; 0: nowhere
}

// loadLayer reads a layer: its TOC if it has one and ranges can be had, else all of it, into the store. Who streams a layer holds a place in
// plain meanwhile.
func (s *Store) loadLayer(ctx context.Context, src *layerSource, plain chan struct{}, p Progress) (*loaded, error) {
	format := lazyFormat(&src.desc)
	l, err := src.describe(format)
	if err != nil {
		return nil, &LayerError{Layer: src.index, Err: err}
	}
	out := &loaded{layer: l}
	if format != unionfs.FormatPlain {
		out.entries, out.first, err = s.loadTOC(ctx, src, format, p)
	}
	if format == unionfs.FormatPlain || errors.Is(err, ErrRangeIgnored) || errors.Is(err, errStreamInstead) {
		if err != nil {
			s.log.Info("streaming a layer instead of fetching it by range", "layer", l.Digest.String(), "why", err.Error())
		}
		out.layer.Format = unionfs.FormatPlain
		out.entries, out.first = nil, 0
		select {
		case plain <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		defer func() { <-plain }()
		err = s.stream(ctx, src, p, func(e *unionfs.Entry) error {
			if format == unionfs.FormatPlain || !isLandmark(e.Name) {
				out.entries = append(out.entries, e)
			}
			return nil
		})
	}
	if err != nil {
		return nil, &LayerError{Layer: src.index, Digest: l.Digest, Err: err}
	}
	return out, nil
}

func (s *Store) loadTOC(ctx context.Context, src *layerSource, f unionfs.Format, p Progress) (_ []*unionfs.Entry, first int64, err error) {
	p.LayerStarted(src.index, src.desc, 0)
	defer func() { p.LayerDone(src.index, err) }()
	return fetchTOC(ctx, src.blob, &src.desc, f, func(n int64) { p.LayerBytes(src.index, n) })
}

// stream reads all of a layer, puts its files into the store and calls emit for each entry. When it returns nil, the blob's digest and the
// diff ID were the right ones.
func (s *Store) stream(ctx context.Context, src *layerSource, p Progress, emit func(*unionfs.Entry) error) (err error) {
	p.LayerStarted(src.index, src.desc, src.desc.Size)
	defer func() { p.LayerDone(src.index, err) }()
	body, err := src.blob.Stream(ctx)
	if err != nil {
		return fmt.Errorf("read layer: %w", err)
	}
	defer body.Close()
	compressed := bufio.NewReaderSize(&progressReader{r: body, layer: src.index, p: p}, 128<<10)
	plain, err := decompress(compressed)
	if err != nil {
		return fmt.Errorf("read layer: %w", err)
	}
	defer plain.Close()
	h := sha256.New()
	r := &hashReader{r: plain, h: h}
	if err := newTarReader(s, r).each(ctx, emit); err != nil {
		return err
	}
	// Behind the tar's end there may be more: padding, and what the digests cover.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return fmt.Errorf("read layer: %w", err)
	}
	if _, err := io.Copy(io.Discard, compressed); err != nil {
		return fmt.Errorf("read layer: %w", err)
	}
	if got := digestOf(h); got != src.diff {
		return fmt.Errorf("the layer's diff ID should be %s but is %s", src.diff, got)
	}
	return nil
}

// hashReader hashes what is read through it.
type hashReader struct {
	r io.Reader
	h hash.Hash
}

func (r *hashReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.h.Write(b[:n])
	return n, err
}
