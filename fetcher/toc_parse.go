package fetcher

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// jsonEntry is an entry of a TOC as eStargz and zstd:chunked write it.
type jsonEntry struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	Size        int64             `json:"size"`
	ModTime     string            `json:"modtime"`
	LinkName    string            `json:"linkName"`
	Mode        int64             `json:"mode"`
	UID         int64             `json:"uid"`
	GID         int64             `json:"gid"`
	DevMajor    int64             `json:"devMajor"`
	DevMinor    int64             `json:"devMinor"`
	Xattrs      map[string][]byte `json:"xattrs"`
	Digest      string            `json:"digest"`
	Offset      int64             `json:"offset"`
	EndOffset   int64             `json:"endOffset"`   // zstd:chunked
	InnerOffset int64             `json:"innerOffset"` // eStargz
	ChunkOffset int64             `json:"chunkOffset"`
	ChunkSize   int64             `json:"chunkSize"`
	ChunkDigest string            `json:"chunkDigest"`
	ChunkType   string            `json:"chunkType"` // zstd:chunked; "zeros" is a run of zeros that the blob does not have
}

const chunkZeros = "zeros"

// tocParser makes the entries of a layer from those of its TOC.
type tocParser struct {
	end     int64 // of the part of the blob that files may be in
	limit   int   // of entries
	entries []*unionfs.Entry
	first   int64          // where the landmark of the files that are to be fetched first is; 0 without
	file    *unionfs.Entry // the regular file that chunks are added to; nil when the entry before is none
	covered int64          // bytes of file that its chunks cover
}

// parseTOC reads the JSON of a TOC. end is where the TOC begins in the blob. first is up to where the blob wants to be fetched first.
func parseTOC(r io.Reader, end int64) (entries []*unionfs.Entry, first int64, err error) {
	p := &tocParser{end: end, limit: maxEntries}
	if err := p.decode(json.NewDecoder(bufio.NewReaderSize(r, 64<<10))); err != nil {
		return nil, 0, err
	}
	if err := p.endFile(); err != nil {
		return nil, 0, err
	}
	if err := placeChunks(p.entries, end); err != nil {
		return nil, 0, err
	}
	return p.entries, p.first, nil
}

// decode reads {"version": 1, "entries": [...]}; it holds one entry at a time.
func (p *tocParser) decode(d *json.Decoder) error {
	if err := expect(d, json.Delim('{')); err != nil {
		return err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return tocErrorf("not JSON: %v", err)
		}
		switch key {
		case "version":
			err = p.version(d)
		case "entries":
			err = p.list(d)
		default:
			err = skipValue(d)
		}
		if err != nil {
			return err
		}
	}
	return expect(d, json.Delim('}'))
}

func expect(d *json.Decoder, want json.Delim) error {
	t, err := d.Token()
	if err != nil {
		return tocErrorf("not JSON: %v", err)
	}
	if t != want {
		return tocErrorf("not what it should be: %v where %v is expected", t, want)
	}
	return nil
}

// skipValue reads past a value without keeping it.
func skipValue(d *json.Decoder) error {
	for depth := 0; ; {
		t, err := d.Token()
		if err != nil {
			return tocErrorf("not JSON: %v", err)
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
}

func (p *tocParser) version(d *json.Decoder) error {
	var v int64
	if err := d.Decode(&v); err != nil {
		return tocErrorf("not JSON: %v", err)
	}
	if v != 1 {
		return tocErrorf("version %d is not known", v)
	}
	return nil
}

func (p *tocParser) list(d *json.Decoder) error {
	if err := expect(d, json.Delim('[')); err != nil {
		return err
	}
	for n := 0; d.More(); n++ {
		if n == p.limit {
			return tocErrorf("over %d entries: more than are allowed", p.limit)
		}
		var e jsonEntry
		if err := d.Decode(&e); err != nil {
			return tocErrorf("entry %d: %v", n, err)
		}
		switch err := p.add(&e); {
		case errors.Is(err, errStreamInstead):
			return err
		case err != nil:
			return tocErrorf("entry %d, %q: %v", n, short(e.Name), err)
		}
	}
	return expect(d, json.Delim(']'))
}

// short cuts a name that is too long for a message.
func short(s string) string {
	if len(s) > 256 {
		return s[:256] + "…"
	}
	return s
}

func (p *tocParser) add(e *jsonEntry) error {
	if e.Type == "chunk" {
		return p.addChunk(e)
	}
	if err := p.endFile(); err != nil {
		return err
	}
	if isLandmark(e.Name) {
		if path.Base(e.Name) == prefetchLandmark && e.Offset > 0 && e.Offset <= p.end {
			p.first = e.Offset
		}
		return nil
	}
	out, err := p.entry(e)
	if err != nil {
		return err
	}
	p.entries = append(p.entries, out)
	if e.Type != "reg" {
		return nil
	}
	p.file, p.covered = out, 0
	if out.Size == 0 {
		return nil
	}
	return p.appendChunk(e)
}

// prefetchLandmark is behind the files that a layer wants to be fetched first.
const prefetchLandmark = ".prefetch.landmark"

// isLandmark reports whether an entry belongs to the format and not to the image.
func isLandmark(name string) bool {
	switch strings.TrimPrefix(path.Clean("/"+name), "/") {
	case stargzTOCName, prefetchLandmark, ".no.prefetch.landmark":
		return true
	}
	return false
}

// types are the S_IFMT bits of the types of a TOC.
var types = map[string]uint32{
	"dir": unix.S_IFDIR, "reg": unix.S_IFREG, "symlink": unix.S_IFLNK, "hardlink": 0,
	"char": unix.S_IFCHR, "block": unix.S_IFBLK, "fifo": unix.S_IFIFO,
}

// entry makes an entry of e, without chunks.
func (p *tocParser) entry(e *jsonEntry) (*unionfs.Entry, error) {
	typ, ok := types[e.Type]
	if !ok {
		return nil, fmt.Errorf("unknown type %q", short(e.Type))
	}
	if err := checkTOCName(e.Name); err != nil {
		return nil, err
	}
	out := &unionfs.Entry{Name: e.Name, Mode: typ | uint32(e.Mode)&0o7777}
	switch typ {
	case 0:
		if err := checkTOCName(e.LinkName); err != nil {
			return nil, fmt.Errorf("hard link: %w", err)
		}
		out.Link, out.Mode = e.LinkName, 0
		return out, nil
	case unix.S_IFLNK:
		out.Symlink = e.LinkName
	case unix.S_IFCHR, unix.S_IFBLK:
		if !fits32(e.DevMajor) || !fits32(e.DevMinor) {
			return nil, fmt.Errorf("device number %d:%d overflows", e.DevMajor, e.DevMinor)
		}
		out.Rdev = unix.Mkdev(uint32(e.DevMajor), uint32(e.DevMinor))
	case unix.S_IFREG:
		if err := setContent(out, e); err != nil {
			return nil, err
		}
	}
	if !fits32(e.UID) || !fits32(e.GID) {
		return nil, fmt.Errorf("owner %d:%d overflows", e.UID, e.GID)
	}
	out.UID, out.GID = uint32(e.UID), uint32(e.GID)
	if len(e.Xattrs) > 0 {
		out.Xattrs = make(map[string]string, len(e.Xattrs))
		for k, v := range e.Xattrs {
			out.Xattrs[k] = string(v)
		}
	}
	var err error
	out.Mtime, err = parseTime(e.ModTime)
	return out, err
}

// checkTOCName refuses what would leave the layer. What else a name must not be is the Builder's to say.
func checkTOCName(name string) error {
	if name == "" {
		return fmt.Errorf("no name")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return fmt.Errorf("name %q leaves the layer", short(name))
		}
	}
	return nil
}

func parseTime(s string) (unionfs.Time, error) {
	if s == "" {
		return unionfs.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return unionfs.Time{}, fmt.Errorf("modtime %q is no time", short(s))
	}
	return unionfs.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}, nil
}

func setContent(out *unionfs.Entry, e *jsonEntry) (err error) {
	if e.Size < 0 || e.Size > maxFileSize {
		return fmt.Errorf("size %d is not allowed", e.Size)
	}
	out.Size, out.Content.Size = e.Size, e.Size
	if e.Size == 0 {
		out.Content.Digest = emptyDigest
		return nil
	}
	claimed := e.Digest
	if claimed == "" && (e.ChunkSize == 0 || e.ChunkSize == e.Size) {
		claimed = e.ChunkDigest // the only chunk is the file
	}
	out.Content.Digest, err = parseDigest(claimed)
	if err != nil {
		return fmt.Errorf("digest: %w", err)
	}
	return nil
}

func parseDigest(s string) (d unionfs.Digest, err error) {
	h, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(h) != 2*len(d) {
		return d, fmt.Errorf("%q is no sha256 digest", short(s))
	}
	if _, err := hex.Decode(d[:], []byte(h)); err != nil {
		return d, fmt.Errorf("%q is no sha256 digest", short(s))
	}
	return d, nil
}

func (p *tocParser) addChunk(e *jsonEntry) error {
	if p.file == nil || p.file.Name != e.Name {
		return fmt.Errorf("a chunk that does not follow its file")
	}
	if p.covered == p.file.Size {
		return fmt.Errorf("a chunk at %d, past the end of its file of %d bytes", e.ChunkOffset, p.file.Size)
	}
	return p.appendChunk(e)
}

// appendChunk adds the chunk that e describes, be it of type reg or chunk.
func (p *tocParser) appendChunk(e *jsonEntry) error {
	size := e.ChunkSize
	if size == 0 {
		size = p.file.Size - p.covered
	}
	switch {
	case e.ChunkOffset != p.covered:
		return fmt.Errorf("a chunk at %d where the next is at %d", e.ChunkOffset, p.covered)
	case size < 0 || size > p.file.Size-p.covered:
		return fmt.Errorf("a chunk of %d bytes at %d, in a file of %d", size, e.ChunkOffset, p.file.Size)
	case len(p.file.Content.Chunks) >= maxChunks:
		return fmt.Errorf("over %d chunks", maxChunks)
	}
	if e.ChunkType == chunkZeros {
		p.appendZeros(size)
		return nil
	}
	c, err := p.chunk(e, size)
	if err != nil {
		return err
	}
	p.file.Content.Chunks = append(p.file.Content.Chunks, c)
	p.covered += size
	return nil
}

func (p *tocParser) appendZeros(size int64) {
	for size > 0 {
		n := min(size, maxZeros)
		p.file.Content.Chunks = append(p.file.Content.Chunks, unionfs.Chunk{Offset: p.covered, Size: n, Digest: zerosDigest})
		p.covered += n
		size -= n
	}
}

func (p *tocParser) chunk(e *jsonEntry, size int64) (c unionfs.Chunk, err error) {
	c = unionfs.Chunk{Offset: e.ChunkOffset, Size: size, BlobOff: e.Offset, Inner: e.InnerOffset}
	if size > maxChunkSize {
		return c, errStreamInstead
	}
	claimed := e.ChunkDigest
	if claimed == "" && size == p.file.Size {
		claimed = e.Digest
	}
	if c.Digest, err = parseDigest(claimed); err != nil {
		return c, fmt.Errorf("chunk digest: %w", err)
	}
	if size == p.file.Size && c.Digest != p.file.Content.Digest {
		return c, fmt.Errorf("its only chunk has the digest %s and the file %s", c.Digest, p.file.Content.Digest)
	}
	if c.Inner < 0 || c.Inner > maxInner {
		return c, fmt.Errorf("inner offset %d is not allowed", c.Inner)
	}
	if c.BlobOff < 0 || c.BlobOff >= p.end || e.EndOffset < 0 || e.EndOffset > p.end {
		return c, fmt.Errorf("a chunk at %d..%d of the blob, of which only %d bytes can hold files", e.Offset, e.EndOffset, p.end)
	}
	if e.EndOffset > 0 {
		if e.EndOffset <= c.BlobOff {
			return c, fmt.Errorf("a chunk from %d to %d of the blob", e.Offset, e.EndOffset)
		}
		c.BlobSize = e.EndOffset - c.BlobOff
	}
	return c, nil
}

// endFile checks that the file before is whole.
func (p *tocParser) endFile() error {
	if p.file == nil {
		return nil
	}
	f := p.file
	p.file = nil
	if p.covered != f.Size {
		return tocErrorf("the chunks of %q cover %d of its %d bytes", short(f.Name), p.covered, f.Size)
	}
	return nil
}
