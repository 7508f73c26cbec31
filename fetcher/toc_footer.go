package fetcher

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"path"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// An eStargz blob ends in an empty gzip member whose extra field tells where the TOC begins: 16 hexadecimal digits and
// "STARGZ", in a subfield "SG" (51 bytes in all), or in older blobs without one (47 bytes). The TOC reaches from
// there to the footer and is a gzip member with a tar that holds one file.
const (
	stargzFooterSize = 51
	legacyFooterSize = 47
	stargzMagic      = "STARGZ"
	stargzTOCName    = "stargz.index.json"
)

func parseStargzFooter(b []byte, p *tocPlace) error {
	extra, err := gzipExtra(b, stargzFooterSize)
	if err != nil {
		return err
	}
	if len(extra) != 4+16+len(stargzMagic) || extra[0] != 'S' || extra[1] != 'G' ||
		int(binary.LittleEndian.Uint16(extra[2:])) != len(extra)-4 {
		return tocErrorf("the blob has no eStargz footer")
	}
	return parseStargzOffset(extra[4:], p)
}

func parseLegacyFooter(b []byte, p *tocPlace) error {
	extra, err := gzipExtra(b, legacyFooterSize)
	if err != nil {
		return err
	}
	return parseStargzOffset(extra, p)
}

func gzipExtra(b []byte, size int) ([]byte, error) {
	if len(b) != size {
		return nil, tocErrorf("the blob has no eStargz footer")
	}
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, tocErrorf("the blob has no eStargz footer: %v", err)
	}
	return r.Extra, nil
}

func parseStargzOffset(b []byte, p *tocPlace) error {
	if len(b) != 16+len(stargzMagic) || string(b[16:]) != stargzMagic {
		return tocErrorf("the blob has no eStargz footer")
	}
	off, err := strconv.ParseUint(string(b[:16]), 16, 63)
	if err != nil {
		return tocErrorf("the footer's offset %q is no number", b[:16])
	}
	p.off, p.size = int64(off), -1
	return nil
}

// openStargzTOC returns the JSON of an eStargz TOC.
func openStargzTOC(raw []byte) (io.Reader, func(), error) {
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, nil, tocErrorf("cannot decompress it: %v", err)
	}
	t := tar.NewReader(z)
	h, err := t.Next()
	if err != nil && !(errors.Is(err, tar.ErrInsecurePath) && h != nil) {
		return nil, nil, tocErrorf("cannot read its tar: %v", err)
	}
	if path.Clean(h.Name) != stargzTOCName {
		return nil, nil, tocErrorf("it is named %q and not %q", h.Name, stargzTOCName)
	}
	if h.Size > maxTOCSize {
		return nil, nil, tocErrorf("it has %d bytes of JSON: more than the %d that are allowed", h.Size, int64(maxTOCSize))
	}
	return t, func() {}, nil
}

// A zstd:chunked blob ends in a skippable frame of 40 bytes (newer ones are longer, and described by annotations):
// where the TOC is, its compressed and raw sizes, its type (1), and a magic. The TOC is a zstd frame within a
// skippable one.
const (
	zstdFooterSize = 40
	zstdTOCType    = 1
)

var zstdFooterMagic = []byte("GnUlInUx")

func parseZstdFooter(b []byte, p *tocPlace) error {
	if len(b) != zstdFooterSize || !bytes.Equal(b[32:], zstdFooterMagic) {
		return tocErrorf("the blob has no zstd:chunked footer")
	}
	var v [4]int64
	for i := range v {
		u := binary.LittleEndian.Uint64(b[i*8:])
		if u > math.MaxInt64 {
			return tocErrorf("the footer's number %d overflows", u)
		}
		v[i] = int64(u)
	}
	return p.set(v)
}

// parsePosition reads the annotation that says the same: OFFSET:SIZE:RAWSIZE:TYPE.
func (p *tocPlace) parsePosition(s string) error {
	parts := strings.Split(s, ":")
	var v [4]int64
	if len(parts) != len(v) {
		return tocErrorf("annotation %s is not four numbers: %q", annotationZstdPosition, s)
	}
	for i := range v {
		u, err := strconv.ParseUint(parts[i], 10, 63)
		if err != nil {
			return tocErrorf("annotation %s is not four numbers: %q", annotationZstdPosition, s)
		}
		v[i] = int64(u)
	}
	return p.set(v)
}

func (p *tocPlace) set(v [4]int64) error {
	if v[3] != zstdTOCType {
		return tocErrorf("it is of type %d: only %d is known", v[3], zstdTOCType)
	}
	p.off, p.size, p.rawSize = v[0], v[1], v[2]
	if p.json == "" && p.compressed == "" {
		return tocErrorf("no annotation pins its digest")
	}
	return nil
}

// openZstdTOC returns the JSON of a zstd:chunked TOC.
func openZstdTOC(raw []byte) (io.Reader, func(), error) {
	z, err := zstd.NewReader(bytes.NewReader(raw), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxZstdWindow))
	if err != nil {
		return nil, nil, tocErrorf("cannot decompress it: %v", err)
	}
	return z, z.Close, nil
}
