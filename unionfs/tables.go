package unionfs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// xattrTable holds the different sets of extended attributes, encoded as in the file.
type xattrTable struct {
	sets  []string
	place map[string]uint32 // + 1
	bytes uint64
	buf   []byte
}

// add returns the place of a set, counted from 1; 0 for an empty one.
func (t *xattrTable) add(l *limits, xattrs map[string]string) (uint32, error) {
	if len(xattrs) == 0 {
		return 0, nil
	}
	if err := t.encode(xattrs); err != nil {
		return 0, err
	}
	if i, ok := t.place[string(t.buf)]; ok {
		return i, nil
	}
	if t.bytes += uint64(len(t.buf)); t.bytes > l.xattrData {
		return 0, fmt.Errorf("the image's extended attributes have more than %d bytes", l.xattrData)
	}
	if t.place == nil {
		t.place = make(map[string]uint32)
	}
	t.sets = append(t.sets, string(t.buf))
	t.place[t.sets[len(t.sets)-1]] = uint32(len(t.sets))
	return uint32(len(t.sets)), nil
}

// encode checks a set and puts it into t.buf.
func (t *xattrTable) encode(xattrs map[string]string) error {
	names, list := make([]string, 0, len(xattrs)), 0
	for name, value := range xattrs {
		switch {
		case name == "" || len(name) > maxXattrName || strings.IndexByte(name, 0) >= 0:
			return fmt.Errorf("an extended attribute can't be called %.300q", name)
		case len(value) > maxXattr:
			return fmt.Errorf("extended attribute %s has more than %d bytes", name, maxXattr)
		}
		names, list = append(names, name), list+len(name)+1
	}
	if list > maxXattrList {
		return fmt.Errorf("the names of its extended attributes have more than %d bytes", maxXattrList)
	}
	slices.Sort(names)
	t.buf = t.buf[:0]
	for _, name := range names {
		t.buf = append(t.buf, byte(len(name)))
		t.buf = le.AppendUint32(t.buf, uint32(len(xattrs[name])))
		t.buf = append(append(t.buf, name...), xattrs[name]...)
	}
	return nil
}

var emptyDigest = Digest(sha256.Sum256(nil))

// contentTable holds the contents of regular files, also of such that were replaced since.
type contentTable struct {
	list    []content
	seen    map[contentKey]uint32 // contents of the current layer
	paths   []contentPath
	lastDir string // of the last path
	chunks  []byte // encoded as in the file
	digests []byte // of chunks
	bytes   int64
}

// content is one row; chunks is a place in the table of chunks, or in that of paths.
type content struct {
	digest    Digest
	size      int64
	layer     uint32
	chunks, n uint32
	digests   uint32 // place of the first chunk's digest, or noDigests
}

type contentKey struct {
	digest Digest
	size   int64
}

// contentPath is a path below a FormatDir layer. Files of one directory share the string dir.
type contentPath struct{ dir, name string }

func (t *contentTable) startLayer() { t.seen, t.lastDir = make(map[contentKey]uint32), "" }

// add returns the place of a content.
func (t *contentTable) add(lim *limits, l *Layer, layer uint32, c *Content) (uint32, error) {
	if err := checkContent(l, c); err != nil {
		return 0, err
	}
	row := content{digest: c.Digest, size: c.Size, layer: layer, digests: noDigests}
	if l.Format == FormatDir {
		row.chunks = t.addPath(c.Path)
		return t.append(lim, row)
	}
	if c.Size == 0 {
		row.digest = emptyDigest
	}
	key := contentKey{row.digest, row.size}
	if i, ok := t.seen[key]; ok {
		return i, nil
	}
	if err := t.addChunks(lim, &row, c); err != nil {
		return 0, err
	}
	i, err := t.append(lim, row)
	t.seen[key] = i
	return i, err
}

func (t *contentTable) append(lim *limits, row content) (uint32, error) {
	if row.size > lim.bytes-t.bytes {
		return 0, fmt.Errorf("the image's files have more than %d bytes", lim.bytes)
	}
	t.bytes += row.size
	t.list = append(t.list, row)
	return uint32(len(t.list) - 1), nil
}

func (t *contentTable) addPath(p string) uint32 {
	dir, name := "", p
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		dir, name = p[:i], p[i+1:]
	}
	if dir != t.lastDir {
		t.lastDir = strings.Clone(dir)
	}
	t.paths = append(t.paths, contentPath{t.lastDir, strings.Clone(name)})
	return uint32(len(t.paths) - 1)
}

func (t *contentTable) addChunks(lim *limits, row *content, c *Content) error {
	if len(c.Chunks) == 0 {
		return nil
	}
	row.chunks, row.n = uint32(len(t.chunks)/chunkSize), uint32(len(c.Chunks))
	if len(c.Chunks) > lim.chunks-int(row.chunks) {
		return fmt.Errorf("the image has more than %d chunks", lim.chunks)
	}
	if len(c.Chunks) > 1 || !bytes.Equal(c.Chunks[0].Digest[:], c.Digest[:]) {
		row.digests = uint32(len(t.digests) / digestSize)
	}
	for i := range c.Chunks {
		k := &c.Chunks[i]
		var r [chunkSize]byte
		put48(r[:], k.Offset)
		put48(r[6:], k.BlobOff)
		put48(r[12:], k.BlobSize)
		put48(r[18:], k.Inner)
		t.chunks = append(t.chunks, r[:]...)
		if row.digests != noDigests {
			t.digests = append(t.digests, k.Digest[:]...)
		}
	}
	return nil
}

// chunkRows returns the encoded chunks of a content. One of a directory has none: there, chunks is the place of its path.
func (t *contentTable) chunkRows(c *content) []byte {
	if c.n == 0 {
		return nil
	}
	return t.chunks[int(c.chunks)*chunkSize : int(c.chunks+c.n)*chunkSize]
}

// chunkDigests returns the digests that a content's chunks have of their own.
func (t *contentTable) chunkDigests(c *content) []byte {
	if c.digests == noDigests {
		return nil
	}
	return t.digests[int(c.digests)*digestSize : int(c.digests+c.n)*digestSize]
}

// stringTable lays out the string section.
type stringTable struct {
	place map[string]uint32 // only for strings that repeat
	buf   []byte
	limit uint64
}

var errStrings = errors.New("the image's names and targets have more bytes than a tree can hold")

func (t *stringTable) add(s string) (uint32, error) {
	if uint64(len(t.buf)+4+len(s)) > t.limit {
		return 0, errStrings
	}
	at := uint32(len(t.buf))
	t.buf = append(le.AppendUint32(t.buf, uint32(len(s))), s...)
	return at, nil
}

// addOnce is add for strings of which there are likely to be more.
func (t *stringTable) addOnce(s string) (uint32, error) {
	if at, ok := t.place[s]; ok {
		return at, nil
	}
	at, err := t.add(s)
	if t.place == nil {
		t.place = make(map[string]uint32)
	}
	t.place[s] = at
	return at, err
}
