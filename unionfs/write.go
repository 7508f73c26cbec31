package unionfs

import (
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// WriteFile ends the last layer and writes the tree to path, durably: either the whole file is there, also after a
// power loss, or path is what it was. An *EntryError is about a hard link of the last layer.
func (b *Builder) WriteFile(path string) (err error) {
	if err := b.endLayer(); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("create image tree: %w", err)
	}
	renamed := false
	defer func() {
		f.Close()
		if !renamed {
			os.Remove(f.Name())
		}
	}()
	if err := b.write(f); err != nil {
		return fmt.Errorf("write image tree %s: %w", path, err)
	}
	if err := f.Chmod(0o444); err != nil {
		return fmt.Errorf("write image tree %s: %w", path, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync image tree %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("publish image tree: %w", err)
	}
	renamed = true
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", path, err)
	}
	return nil
}

// write writes the sections one after the other, and the header when it knows them.
func (b *Builder) write(f io.WriterAt) error {
	a, err := b.arrange()
	if err != nil {
		return err
	}
	defer a.release()
	layers, err := b.encodeLayers(&a.strings)
	if err != nil {
		return err
	}
	contents, err := b.encodeContents(a)
	if err != nil {
		return err
	}
	w := &sectionWriter{f: f, off: headerSize}
	w.section(secLayers, func() { w.add(layers) })
	w.section(secInodes, func() { b.writeInodes(w, a) })
	w.section(secDirents, func() { a.writeDirents(w) })
	w.section(secNames, func() { a.writeNames(w) })
	w.section(secStrings, func() { w.add(a.strings.buf) })
	w.section(secXattrSets, func() { b.writeXattrSets(w, a) })
	w.section(secXattrData, func() {
		for _, i := range a.sets {
			w.add([]byte(b.xattrs.sets[i]))
		}
	})
	w.section(secContents, func() { w.add(contents) })
	w.section(secChunks, func() {
		for _, i := range a.contents {
			w.add(b.content.chunkRows(&b.content.list[i]))
		}
	})
	w.section(secChunkDigests, func() {
		for _, i := range a.contents {
			w.add(b.content.chunkDigests(&b.content.list[i]))
		}
	})
	if w.err != nil {
		return w.err
	}
	w.header.size, w.header.totals = w.off, a.totals
	_, err = f.WriteAt(w.header.encode(), 0)
	return err
}

func (b *Builder) encodeLayers(t *stringTable) ([]byte, error) {
	p := make([]byte, len(b.layers)*layerSize)
	for i := range b.layers {
		l, r := &b.layers[i], p[i*layerSize:]
		mediaType, err := t.addOnce(l.MediaType)
		if err != nil {
			return nil, err
		}
		path, err := t.addOnce(l.Path)
		if err != nil {
			return nil, err
		}
		copy(r, l.Digest[:])
		copy(r[32:], l.DiffID[:])
		le.PutUint64(r[64:], uint64(l.Size))
		le.PutUint32(r[72:], mediaType)
		le.PutUint32(r[76:], path)
		r[80] = byte(l.Format)
	}
	return p, nil
}

func (b *Builder) encodeContents(a *arrangement) ([]byte, error) {
	p := make([]byte, len(a.contents)*contentSize)
	chunks, digests := uint32(0), uint32(0)
	for i, at := range a.contents {
		c, r := &b.content.list[at], p[i*contentSize:]
		copy(r, c.digest[:])
		le.PutUint64(r[32:], uint64(c.size))
		le.PutUint32(r[48:], c.layer)
		le.PutUint32(r[52:], noDigests)
		if b.layers[c.layer].Format == FormatDir {
			path := b.content.paths[c.chunks]
			dir, err := a.strings.addOnce(path.dir)
			if err != nil {
				return nil, err
			}
			name, err := a.strings.add(path.name)
			if err != nil {
				return nil, err
			}
			le.PutUint32(r[40:], dir)
			le.PutUint32(r[44:], name)
			continue
		}
		le.PutUint32(r[40:], chunks)
		le.PutUint32(r[44:], c.n)
		chunks += c.n
		if c.digests != noDigests {
			le.PutUint32(r[52:], digests)
			digests += c.n
		}
	}
	return p, nil
}

func (b *Builder) writeInodes(w *sectionWriter, a *arrangement) {
	targets := a.targets
	for _, n := range a.nodes {
		var r [inodeSize]byte
		le.PutUint64(r[0:], uint64(n.mtime.Sec))
		le.PutUint64(r[8:], uint64(n.size))
		le.PutUint32(r[16:], n.mtime.Nsec)
		le.PutUint32(r[20:], n.mode)
		le.PutUint32(r[24:], n.uid)
		le.PutUint32(r[28:], n.gid)
		le.PutUint32(r[32:], n.nlink)
		if n.xattrs != 0 {
			le.PutUint32(r[36:], a.set[n.xattrs-1])
		}
		switch {
		case n.dir != nil:
			le.PutUint32(r[8:], n.dir.first)
			le.PutUint32(r[12:], n.dir.entry)
			le.PutUint32(r[40:], uint32(len(n.dir.children)))
			le.PutUint32(r[44:], n.dir.parent.number)
		case n.is(unix.S_IFREG):
			le.PutUint32(r[40:], a.content[n.data]-1)
		case n.is(unix.S_IFLNK):
			le.PutUint32(r[40:], targets[0])
			targets = targets[1:]
		}
		w.add(r[:])
	}
}

func (a *arrangement) writeDirents(w *sectionWriter) {
	name := uint32(0)
	for _, c := range a.names {
		var r [direntSize]byte
		le.PutUint32(r[0:], name)
		le.PutUint32(r[4:], c.node.number)
		w.add(r[:])
		name += 1 + uint32(len(c.name))
	}
}

func (a *arrangement) writeNames(w *sectionWriter) {
	for _, c := range a.names {
		w.addName(c.name)
	}
}

func (b *Builder) writeXattrSets(w *sectionWriter, a *arrangement) {
	off := uint64(0)
	for _, i := range a.sets {
		var r [xattrSetSize]byte
		set := b.xattrs.sets[i]
		le.PutUint64(r[0:], off)
		le.PutUint32(r[8:], uint32(len(set)))
		w.add(r[:])
		off += uint64(len(set))
	}
}

// sectionWriter writes sections and fills in the section table. The first error stays in err.
type sectionWriter struct {
	f      io.WriterAt
	header header
	off    uint64 // in the file, of the end of buf
	crc    uint32
	buf    []byte
	err    error
}

const writeUnit = 1 << 20

// section writes section i as fill adds it.
func (w *sectionWriter) section(i int, fill func()) {
	if pad := -w.off % sectionUnit; pad > 0 {
		w.add(make([]byte, pad))
		w.flush()
	}
	w.crc = 0
	start := w.off
	fill()
	w.flush()
	w.header.sections[i] = section{crc: w.crc, off: start, len: w.off - start}
}

func (w *sectionWriter) add(p []byte) {
	w.buf = append(w.buf, p...)
	w.added(len(p))
}

func (w *sectionWriter) addName(s string) {
	w.buf = append(append(w.buf, byte(len(s))), s...)
	w.added(1 + len(s))
}

func (w *sectionWriter) added(n int) {
	w.off += uint64(n)
	if len(w.buf) >= writeUnit {
		w.flush()
	}
}

// flush writes what was added so far.
func (w *sectionWriter) flush() {
	w.crc = crc32.Update(w.crc, castagnoli, w.buf)
	if w.err == nil && len(w.buf) > 0 {
		_, w.err = w.f.WriteAt(w.buf, int64(w.off)-int64(len(w.buf)))
	}
	w.buf = w.buf[:0]
}
