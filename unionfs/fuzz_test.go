package unionfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzOpen reads arbitrary bytes, whose header gets its checksum made right, for else no input would come further. Then
// every accessor is called for everything.
func FuzzOpen(f *testing.F) {
	good := sampleFile(f)
	f.Add(good)
	f.Add(good[:headerSize])
	f.Add([]byte(magic))
	f.Add([]byte(nil))
	for _, off := range []int{16, totalsOff, tableOff + 8, headerSize + 80, len(good) / 2, len(good) - 1} {
		p := append([]byte(nil), good...)
		p[off] ^= 0xff
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 1<<14 {
			return
		}
		if p = bytes.Clone(p); len(p) >= headerSize {
			seal(p)
		}
		tree := &Tree{path: "fuzz", data: p}
		if err := tree.load(); err != nil {
			return
		}
		walkAll(t, tree)
		var fe *FormatError
		if err := tree.Verify(); err != nil && !errors.As(err, &fe) {
			t.Errorf("Verify says %v", err)
		}
	})
}

// FuzzBuilder merges arbitrary entries, decoded from the input. Either one is refused with an EntryError, or the tree
// is sound.
func FuzzBuilder(f *testing.F) {
	for _, c := range mergeCases {
		var script []byte
		for _, layer := range c.layers {
			script = append(script, fuzzLayer, byte(FormatPlain))
			for _, e := range parseScript(f, layer) {
				script = encodeFuzz(script, &e)
			}
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		b := NewBuilder()
		b.limits.inodes = 10000
		err := runFuzz(b, script)
		var tree *Tree
		if err == nil {
			tree, err = write(t, b)
		}
		var ee *EntryError
		if errors.As(err, &ee) {
			return
		}
		if err != nil {
			t.Fatalf("refused without an EntryError: %v", err)
		}
		facts(t, tree)
		walkAll(t, tree)
	})
}

// fuzzLayer in place of an entry's type starts a layer.
const fuzzLayer = 15

// encodeFuzz is the inverse of what runFuzz reads.
func encodeFuzz(p []byte, e *Entry) []byte {
	p = append(p, byte(e.Mode>>12))
	p = binary.BigEndian.AppendUint16(p, uint16(e.Mode&07777))
	p = append(p, byte(e.Size), byte(e.Rdev), byte(len(e.Xattrs)))
	for _, s := range []string{e.Name, e.Link + e.Symlink} {
		p = append(append(p, byte(len(s))), s...)
	}
	return p
}

// runFuzz adds the entries that the bytes stand for. Whatever they are, they stand for some.
func runFuzz(b *Builder, p []byte) error {
	next := func() byte {
		if len(p) == 0 {
			return 0
		}
		c := p[0]
		p = p[1:]
		return c
	}
	text := func() string {
		n := min(int(next()), len(p))
		s := string(p[:n])
		p = p[n:]
		return s
	}
	if err := b.AddLayer(Layer{Format: FormatPlain}); err != nil {
		return err
	}
	for len(p) > 0 {
		typ := next()
		if typ == fuzzLayer {
			if err := b.AddLayer(Layer{Format: 1 + Format(next())%3, Size: 1000}); err != nil {
				return err
			}
			continue
		}
		e := Entry{Mode: uint32(typ)<<12 | uint32(next())<<8 | uint32(next())}
		e.Size, e.Rdev = int64(next()), uint64(next())
		for range next() % 4 {
			if e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			e.Xattrs[text()] = text()
		}
		e.Name = text()
		switch s := text(); e.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			e.Symlink = s
		case unix.S_IFREG:
			e.Content = fuzzContent(e.Size, []byte(s))
		default:
			e.Link = s
		}
		if err := b.Add(&e); err != nil {
			return err
		}
	}
	return nil
}

// fuzzContent makes a content of size bytes with a chunk for each byte of p.
func fuzzContent(size int64, p []byte) Content {
	c := Content{Size: size, Digest: Digest{1}}
	if size == 0 {
		c.Digest = Digest{}
	}
	off := int64(0)
	for i, n := range p {
		c.Chunks = append(c.Chunks, Chunk{Offset: off, Size: int64(int8(n)), Digest: Digest{2, byte(i)}, BlobOff: off * 8, BlobSize: int64(n)})
		off += int64(int8(n))
	}
	return c
}
