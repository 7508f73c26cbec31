package fetcher

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/veneerfs/veneer/unionfs"
)

// What a table of contents (TOC) records of an entry is less than what its tar does. Lost are, for eStargz: the fraction of a second of
// mtime (it is rounded), atime and ctime, user and group names where they repeat, PAX records other than
// xattrs, the order of PAX records, and bytes of names that are not UTF-8 (JSON replaces them).
// zstd:chunked keeps the fraction of a second, and knows runs of zeros. A tree that was built from
// a TOC shows what the TOC says.

// The annotations of a layer that can be fetched by range.
const (
	annotationTOCDigest    = "containerd.io/snapshot/stargz/toc.digest"
	annotationZstdChecksum = "io.github.containers.zstd-chunked.manifest-checksum"
	annotationZstdPosition = "io.github.containers.zstd-chunked.manifest-position"
)

// The bounds of a TOC. A layer beyond them is refused.
const (
	maxTOCSize       = 256 << 20 // bytes of JSON
	maxTOCCompressed = 64 << 20  // bytes in the blob
	maxTOCRatio      = 256       // JSON bytes for one byte in the blob, beyond minTOCBound
	minTOCBound      = 8 << 20
	maxEntries       = 4 << 20 // of one layer, also of a tar
	maxFileSize      = 1 << 40
	maxChunkSize     = 32 << 20 // a larger chunk makes no sense to fetch by range: such a layer is streamed
	maxInner         = 1 << 30  // bytes decompressed in vain before a chunk
)

// TOCError means that a layer's table of contents is damaged, or lies.
type TOCError struct{ Reason string }

func (e *TOCError) Error() string { return "table of contents: " + e.Reason }

func tocErrorf(format string, a ...any) error {
	return &TOCError{Reason: fmt.Sprintf(format, a...)}
}

// errStreamInstead means that a layer is annotated as lazy but has to be streamed.
var errStreamInstead = errors.New("the layer is not worth fetching by range")

// tocPlace is where the TOC of a layer is, and what its digests must be.
type tocPlace struct {
	off, size  int64 // in the blob; compressed
	rawSize    int64 // of the JSON, or -1 when nothing says it
	compressed digest.Digest
	json       digest.Digest // each "" when not pinned, but not both
}

// lazyFormat tells from a layer's media type and annotations how it is fetched. FormatPlain when by streaming.
func lazyFormat(d *ocispec.Descriptor) unionfs.Format {
	zstd := strings.HasSuffix(d.MediaType, "+zstd") || strings.HasSuffix(d.MediaType, ".zstd")
	gzip := strings.HasSuffix(d.MediaType, "gzip")
	switch {
	case zstd && d.Annotations[annotationZstdChecksum] != "" && d.Annotations[annotationZstdPosition] != "",
		zstd && d.Annotations[annotationTOCDigest] != "":
		return unionfs.FormatZstdChunked
	case gzip && d.Annotations[annotationTOCDigest] != "":
		return unionfs.FormatEStargz
	}
	return unionfs.FormatPlain
}

// fetchTOC reads and verifies the TOC of a layer, and returns its entries in order, and up to where the blob wants to be fetched first. chunks of files are checked against
// the size of the blob and against each other.
func fetchTOC(ctx context.Context, b Blob, d *ocispec.Descriptor, f unionfs.Format, got func(int64)) (entries []*unionfs.Entry, first int64, err error) {
	blob := tail{ctx: ctx, blob: b, size: d.Size, got: got}
	place, err := findTOC(&blob, d, f)
	if err != nil {
		return nil, 0, err
	}
	raw, err := blob.read(place.off, place.size)
	if err != nil {
		return nil, 0, fmt.Errorf("read table of contents: %w", err)
	}
	if err := verifyTOC(raw, place, f); err != nil {
		return nil, 0, err
	}
	r, closeTOC, err := openTOC(raw, place, f)
	if err != nil {
		return nil, 0, err
	}
	defer closeTOC()
	return parseTOC(r, place.off)
}

// findTOC finds the TOC by the annotations, or by the footer of the blob.
func findTOC(b *tail, d *ocispec.Descriptor, f unionfs.Format) (*tocPlace, error) {
	p := &tocPlace{rawSize: -1}
	for _, a := range []struct {
		name string
		to   *digest.Digest
	}{{annotationTOCDigest, &p.json}, {annotationZstdChecksum, &p.compressed}} {
		v := digest.Digest(d.Annotations[a.name])
		if v != "" && (v.Validate() != nil || v.Algorithm() != digest.SHA256) {
			return nil, tocErrorf("annotation %s is no sha256 digest: %q", a.name, v)
		}
		*a.to = v
	}
	var err error
	switch position := d.Annotations[annotationZstdPosition]; {
	case f == unionfs.FormatZstdChunked && position != "":
		err = p.parsePosition(position)
	case f == unionfs.FormatZstdChunked:
		err = findByFooter(b, p, zstdFooterSize, parseZstdFooter)
	default:
		p.compressed = "" // not this format's
		if err = findByFooter(b, p, stargzFooterSize, parseStargzFooter); err != nil && !errors.As(err, new(*readError)) {
			err = findByFooter(b, p, legacyFooterSize, parseLegacyFooter)
		}
	}
	if err != nil {
		return nil, err
	}
	return p, p.check(d.Size)
}

func (p *tocPlace) check(blobSize int64) error {
	switch {
	case p.off < 0 || p.size <= 0 || p.off > blobSize || p.size > blobSize-p.off:
		return tocErrorf("it should be at %d+%d of a blob of %d bytes", p.off, p.size, blobSize)
	case p.size > maxTOCCompressed:
		return tocErrorf("it has %d bytes: more than the %d that are allowed", p.size, int64(maxTOCCompressed))
	case p.rawSize > maxTOCSize:
		return tocErrorf("it has %d bytes of JSON: more than the %d that are allowed", p.rawSize, int64(maxTOCSize))
	}
	return nil
}

// bound returns how many bytes of JSON the TOC may have.
func (p *tocPlace) bound() int64 {
	return min(maxTOCSize, max(minTOCBound, p.size*maxTOCRatio))
}

func findByFooter(b *tail, p *tocPlace, size int64, parse func(footer []byte, p *tocPlace) error) error {
	if b.size < size {
		return tocErrorf("a blob of %d bytes has no footer", b.size)
	}
	footer, err := b.read(b.size-size, size)
	if err != nil {
		return &readError{fmt.Errorf("read footer: %w", err)}
	}
	if err := parse(footer, p); err != nil {
		return err
	}
	if p.size < 0 {
		p.size = b.size - size - p.off
	}
	return nil
}

// readError tells a footer that could not be read from one that is wrong.
type readError struct{ error }

func (e *readError) Unwrap() error { return e.error }

// verifyTOC holds the TOC against its pinned digests. Nothing of it is parsed before.
func verifyTOC(raw []byte, p *tocPlace, f unionfs.Format) error {
	if p.compressed != "" {
		if got := digest.FromBytes(raw); got != p.compressed {
			return tocErrorf("its digest should be %s but is %s", p.compressed, got)
		}
	}
	r, closeTOC, err := openTOC(raw, p, f)
	if err != nil {
		return err
	}
	defer closeTOC()
	h := sha256.New()
	n, err := copyBounded(h, r, p.bound())
	if err != nil {
		return err
	}
	if p.rawSize >= 0 && n != p.rawSize {
		return tocErrorf("it has %d bytes of JSON and not %d", n, p.rawSize)
	}
	if got := sha256Digest(h); p.json != "" && got != p.json {
		return tocErrorf("its digest should be %s but is %s", p.json, got)
	}
	return nil
}

func sha256Digest(h hash.Hash) digest.Digest {
	return digest.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
}

func copyBounded(w io.Writer, r io.Reader, limit int64) (int64, error) {
	n, err := io.Copy(w, io.LimitReader(r, limit+1))
	switch {
	case n > limit:
		return n, tocErrorf("it is over %d bytes of JSON: more than are allowed", limit)
	case err != nil:
		return n, tocErrorf("cannot decompress it: %v", err)
	}
	return n, nil
}

// openTOC returns the JSON of a TOC.
func openTOC(raw []byte, p *tocPlace, f unionfs.Format) (io.Reader, func(), error) {
	if f == unionfs.FormatZstdChunked {
		return openZstdTOC(raw)
	}
	return openStargzTOC(raw)
}

// tail reads ranges near the end of a blob, with few requests: the first brings a good part of the end.
type tail struct {
	ctx  context.Context
	blob Blob
	size int64 // of the blob
	got  func(int64)

	off  int64 // data is the blob from off to its end; set by the first read
	data []byte
}

// The first request brings this part of the blob, within bounds. The TOC of a layer has about 1 % of its bytes.
const (
	tailPart = 64
	minTail  = 16 << 10
	maxTail  = 512 << 10
)

func (t *tail) read(off, n int64) ([]byte, error) {
	if t.data == nil {
		t.off = min(off, t.size-min(max(t.size/tailPart, minTail), maxTail, t.size))
		if err := t.prepend(t.off, t.size); err != nil {
			return nil, err
		}
	}
	if off < t.off {
		if err := t.prepend(off, t.off); err != nil {
			return nil, err
		}
		t.off = off
	}
	return t.data[off-t.off:][:n], nil
}

// prepend puts the blob's bytes from..to before data.
func (t *tail) prepend(from, to int64) error {
	r, err := t.blob.ReadRange(t.ctx, from, to-from)
	if err != nil {
		return err
	}
	defer r.Close()
	var b bytes.Buffer
	b.Grow(int(to - from + int64(len(t.data)) + bytes.MinRead))
	n, err := io.Copy(&b, io.LimitReader(r, to-from))
	t.got(n)
	if err == nil && n < to-from {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	b.Write(t.data)
	t.data = b.Bytes()
	return nil
}
