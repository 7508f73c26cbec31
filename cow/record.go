package cow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// The changes that a record is made of. Each is a tag and its fields; numbers are varints, signed ones zigzag,
// a string is its length and its bytes, a time is seconds and nanoseconds. All values are absolute, so a change
// that is applied twice does nothing the second time.
//
// The first group is what operations write to the journal; a checkpoint has the second as well.
const (
	tagNew       = 1  // ino mode nlink uid gid val time: an inode is born, all four times are time
	tagAttr      = 2  // ino mask field...: the fields of mask in the order of the bits
	tagLink      = 3  // dir name ino type
	tagUnlink    = 4  // dir name
	tagXattr     = 5  // ino name value
	tagNoXattr   = 6  // ino name
	tagTarget    = 7  // ino target
	tagData      = 8  // ino off len time: [off,off+len) is in the data object; mtime and ctime are time
	tagHole      = 9  // ino off len time: as tagData, and the file is sparse from here on
	tagResize    = 10 // ino size time
	tagBacking   = 11 // ino time: a write backing is open, the data object's mtime was time
	tagNoBacking = 12 // ino size mtime ctime: the write backings are closed and left these
	tagSlot      = 13 // ino unit class: the content is in this slot of the pack (pack.go)
	tagObject    = 14 // ino: the content is in the data object, not in the pack any more
	tagCommit    = 15 // Root seq offset: the bytes of records up to seq are on stable storage, and this journal up to offset
	tagSession   = 16 // Root session: from here on requests are that session's (session.go)
	tagExecuted  = 17 // Root unique: the record is what this request of the session asked for
	tagGone      = 18 // Root count ino...: these have ended, nobody has them open any more

	tagNode   = 32 // ino flags mode nlink uid gid val time*4: a whole node
	tagRuns   = 33 // ino count (gap length)...: more runs
	tagDir    = 34 // ino next live
	tagEnts   = 35 // ino count (seq ref name)...: more entries
	tagHidden = 36 // dir first words: 8-byte words of the bitmap, as a string
	tagDead   = 37 // Root first words: of the image inodes that are gone
	tagEnd    = 38 // next: the last change of a checkpoint, in a record of its own
)

// The bits of tagAttr's mask.
const (
	maskMode = 1 << iota
	maskNlink
	maskUID
	maskGID
	maskVal
	maskTime // nTimes bits from here
)

func appendTime(b []byte, sec int64, nsec uint32) []byte {
	return binary.AppendUvarint(binary.AppendVarint(b, sec), uint64(nsec))
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendAttr writes the fields in which m differs from old; nothing if there are none.
func appendAttr(b []byte, ino Ino, old, m *meta) []byte {
	var mask uint64
	if m.mode != old.mode {
		mask |= maskMode
	}
	if m.nlink != old.nlink {
		mask |= maskNlink
	}
	if m.uid != old.uid {
		mask |= maskUID
	}
	if m.gid != old.gid {
		mask |= maskGID
	}
	if m.val != old.val && m.isDir() {
		mask |= maskVal
	}
	for i := range m.sec {
		if m.sec[i] != old.sec[i] || m.nsec[i] != old.nsec[i] {
			mask |= maskTime << i
		}
	}
	if mask == 0 {
		return b
	}
	b = append(b, tagAttr)
	b = binary.AppendUvarint(b, ino)
	b = binary.AppendUvarint(b, mask)
	for i, v := range [...]uint64{uint64(m.mode), uint64(m.nlink), uint64(m.uid), uint64(m.gid), m.val} {
		if mask&(1<<i) != 0 {
			b = binary.AppendUvarint(b, v)
		}
	}
	for i := range m.sec {
		if mask&(maskTime<<i) != 0 {
			b = appendTime(b, m.sec[i], m.nsec[i])
		}
	}
	return b
}

// dec reads the fields of changes. After the first wrong one everything reads as zero and bad is set.
type dec struct {
	p   []byte
	bad bool
}

func (d *dec) u() uint64 {
	v, n := binary.Uvarint(d.p)
	if n <= 0 {
		d.p, d.bad = nil, true
		return 0
	}
	d.p = d.p[n:]
	return v
}

func (d *dec) u32() uint32 {
	v := d.u()
	if v > math.MaxUint32 {
		d.bad = true
	}
	return uint32(v)
}

// length reads a number that must be at most limit.
func (d *dec) length(limit int64) int64 {
	v := d.u()
	if v > uint64(limit) {
		d.bad = true
		return 0
	}
	return int64(v)
}

func (d *dec) bytes() []byte {
	n := d.u()
	if n > uint64(len(d.p)) { // what is left after the length
		d.bad = true
	}
	if d.bad {
		return nil
	}
	s := d.p[:n:n]
	d.p = d.p[n:]
	return s
}

func (d *dec) time() unionfs.Time {
	sec, n := binary.Varint(d.p)
	if n <= 0 {
		d.p, d.bad = nil, true
		return unionfs.Time{}
	}
	d.p = d.p[n:]
	nsec := d.u()
	if nsec >= 1e9 {
		d.bad = true
		nsec = 0
	}
	return unionfs.Time{Sec: sec, Nsec: uint32(nsec)}
}

var errRecord = errors.New("a change does not decode")

// apply makes the changes of one record. It needs st and op. An error means that the record was not written by
// this package over this tree; what was applied before it stays.
func (f *FS) apply(p []byte) error {
	d := dec{p: p}
	for len(d.p) > 0 {
		tag := d.p[0]
		d.p = d.p[1:]
		if err := f.applyOne(tag, &d); err != nil {
			return fmt.Errorf("change %d: %w", tag, err)
		}
		if d.bad {
			return errRecord
		}
	}
	return nil
}

func (f *FS) applyOne(tag byte, d *dec) error {
	switch tag {
	case tagNew:
		return f.applyNew(d)
	case tagNode:
		return f.applyNode(d)
	}
	ino := d.u()
	switch tag {
	case tagDead:
		return applyBitmap(&f.dead, d, f.maxImage+1)
	case tagCommit:
		d.u()
		d.u()
		return nil
	case tagSession:
		f.session.id, f.session.executed = d.u(), executed{}
		return nil
	case tagExecuted:
		f.session.executed.add(d.u())
		return nil
	case tagGone:
		f.applyGone(d)
		return nil
	}
	if d.bad {
		return errRecord
	}
	n, err := f.change(ino)
	if err != nil {
		return fmt.Errorf("inode %d is not known", ino)
	}
	was := f.cost(n)
	err = f.applyTo(tag, n, d)
	is := f.cost(n)
	f.usage.add(Usage{Bytes: is.Bytes - was.Bytes})
	return err
}

// applyTo makes a change of a node.
func (f *FS) applyTo(tag byte, n *node, d *dec) error {
	switch tag {
	case tagAttr:
		applyAttr(n, d)
		return nil
	case tagLink, tagUnlink, tagDir, tagEnts, tagHidden:
		if !n.isDir() {
			return fmt.Errorf("inode %d is not a directory", n.ino)
		}
		return f.applyDir(tag, n, d)
	case tagXattr:
		name, value := d.bytes(), d.bytes()
		n.setXattr(string(name), append([]byte{}, value...))
		return nil
	case tagNoXattr:
		f.removeXattr(n, string(d.bytes()))
		return nil
	case tagTarget:
		x := n.ext()
		x.cost -= int64(len(x.target))
		x.target = string(d.bytes())
		x.cost += int64(len(x.target))
		return nil
	}
	if !n.isRegular() {
		return fmt.Errorf("inode %d is not a regular file", n.ino)
	}
	return f.applyFile(tag, n, d)
}

func (f *FS) applyNew(d *dec) error {
	ino := d.u()
	m := meta{mode: d.u32(), nlink: d.u32(), uid: d.u32(), gid: d.u32(), val: d.u()}
	now := d.time()
	for i := range m.sec {
		m.setTime(i, now)
	}
	if d.bad || f.inImage(ino) || ino >= maxIno || f.nodes[ino] != nil || m.isRegular() && m.val > maxSize {
		return fmt.Errorf("inode %d cannot be new", ino)
	}
	n := f.slab.node()
	*n = node{ino: ino, meta: m, dumped: f.dumpMark}
	if n.isRegular() {
		n.flags |= flagPlain
	}
	if m.nlink == 0 {
		n.flags |= flagLinkable
	}
	f.nodes[ino] = n
	f.usage.add(f.cost(n))
	f.next = max(f.next, ino+1)
	return nil
}

func applyAttr(n *node, d *dec) {
	mask, typ := d.u(), n.mode&unix.S_IFMT
	for i, v := range [...]*uint32{&n.mode, &n.nlink, &n.uid, &n.gid} {
		if mask&(1<<i) != 0 {
			*v = d.u32()
		}
	}
	if mask&maskVal != 0 {
		n.val = d.u()
	}
	for i := range nTimes {
		if mask&(maskTime<<i) != 0 {
			n.setTime(i, d.time())
		}
	}
	if mask >= maskTime<<nTimes || n.mode&unix.S_IFMT != typ {
		d.bad = true
	}
}

func (f *FS) applyDir(tag byte, n *node, d *dec) error {
	switch tag {
	case tagLink:
		name, ino, typ := d.bytes(), d.u(), d.u32()
		if d.bad || len(name) == 0 || typ&^uint32(unix.S_IFMT) != 0 || ino >= maxIno {
			return errRecord
		}
		f.link(n, string(name), ino, typ)
	case tagUnlink:
		f.unlink(n, string(d.bytes()))
	case tagDir:
		dd := f.changeDir(n)
		dd.next, dd.live = d.u(), int(d.length(math.MaxInt32))
	case tagEnts:
		return f.applyEnts(n, d)
	case tagHidden:
		if !f.inImage(n.ino) {
			return errRecord
		}
		return applyBitmap(&f.changeDir(n).hidden, d, uint64(f.tree.DirLen(n.ino)))
	}
	return nil
}

func (f *FS) applyEnts(n *node, d *dec) error {
	dd := f.changeDir(n)
	for range d.length(int64(len(d.p))) {
		e := ent{seq: d.u(), ref: d.u(), name: string(d.bytes())}
		switch last := len(dd.ents) - 1; {
		case d.bad:
			return errRecord
		case e.seq >= dd.next || last >= 0 && e.seq <= dd.ents[last].seq:
			return errRecord
		case e.name == "": // removed, and not yet compacted away
			continue
		}
		dd.insert(e)
	}
	return nil
}

// applyBitmap sets words of a set of numbers below n.
func applyBitmap(b *bitmap, d *dec, n uint64) error {
	words := n/64 + 1
	first := d.u()
	p := d.bytes()
	if d.bad || len(p)%8 != 0 || first > words || uint64(len(p)/8) > words-first {
		return errRecord
	}
	if *b == nil {
		*b = make(bitmap, words)
	}
	for i := range len(p) / 8 {
		(*b)[first+uint64(i)] = binary.LittleEndian.Uint64(p[i*8:])
	}
	return nil
}

func (f *FS) applyFile(tag byte, n *node, d *dec) error {
	switch tag {
	case tagData, tagHole:
		off := d.length(maxSize)
		length := d.length(maxSize - off)
		now := d.time()
		if d.bad {
			return errRecord
		}
		if tag == tagHole {
			n.setSparse()
		}
		if n.slot == 0 {
			n.flags |= flagObject
		}
		n.own(off, off+length)
		n.touch(now)
	case tagResize:
		size, now := d.length(maxSize), d.time()
		if d.bad {
			return errRecord
		}
		f.resize(n, size)
		n.touch(now)
	case tagSlot:
		unit, class := d.length(packUnits-1), d.length(packClasses-1)
		if d.bad || unit == 0 || n.flags&flagPlain == 0 {
			return errRecord
		}
		f.setSlot(n, makeSlot(uint32(unit), int(class)))
	case tagObject:
		f.setSlot(n, 0)
		n.flags |= flagObject
	case tagBacking:
		if n.flags&flagPlain == 0 {
			return errRecord
		}
		n.flags |= flagBacking | flagObject
		b := f.backings[n.ino]
		if b == nil {
			b = new(backing)
			f.backings[n.ino] = b
		}
		b.mtime = d.time()
	case tagNoBacking:
		size := d.length(maxSize)
		if d.bad || n.flags&flagPlain == 0 {
			return errRecord
		}
		n.val = uint64(size)
		n.setTime(mtime, d.time())
		n.setTime(ctime, d.time())
		n.setSparse()
		n.flags |= flagObject // the server did not see what was written
		n.flags &^= flagBacking
	case tagRuns:
		return applyRuns(n, d)
	default:
		return errors.New("there is no such change")
	}
	return nil
}

func applyRuns(n *node, d *dec) error {
	if n.flags&flagPlain != 0 {
		return errRecord
	}
	if n.runs() == nil {
		n.ext().runs = new(extents)
	}
	n.flags |= flagObject
	var pos int64
	for range d.length(int64(len(d.p))) {
		pos += d.length(n.size() - pos)
		end := pos + d.length(n.size()-pos)
		if d.bad || end == pos {
			return errRecord
		}
		n.x.runs.add(pos, end)
		pos = end
	}
	return nil
}

func (f *FS) applyNode(d *dec) error {
	ino := d.u()
	n := f.slab.node()
	n.ino, n.flags, n.dumped = ino, d.u32()&flagsKept, f.dumpMark
	n.mode, n.nlink, n.uid, n.gid, n.val = d.u32(), d.u32(), d.u32(), d.u32(), d.u()
	for i := range nTimes {
		n.setTime(i, d.time())
	}
	if d.bad || ino == 0 || ino >= maxIno || f.nodes[ino] != nil || n.isRegular() && n.val > maxSize {
		return fmt.Errorf("inode %d is not a whole node", ino)
	}
	f.nodes[ino] = n
	f.usage.add(f.cost(n))
	f.next = max(f.next, ino+1)
	return nil
}
