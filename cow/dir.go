package cow

import (
	"hash/maphash"
	"sort"
)

// dirDelta is what differs between a directory and the image's, or all of a directory that is not of the image.
//
// An entry of the image's directory is either as it is there, or hidden: its bit is set, and what ents says of
// the name is what holds (nothing: the name is gone). So a whiteout costs one bit, and an entry that takes a
// hidden one's name takes its place in ReadDir too.
type dirDelta struct {
	ents   []ent    // by seq; a removed one has no name until the next compaction
	index  []uint32 // hash table of places in ents plus one, for more than smallDir of them
	hidden bitmap   // by index in the image's directory; nil: none is hidden
	next   uint64   // seq of the next entry
	live   int      // entries that the directory shows
	gone   int      // removed ones in ents
	cost   int64    // bytes that ents count (quota.go)
}

// ent is an entry of a directory.
type ent struct {
	name string
	seq  uint64 // never used again in this directory
	ref  uint64 // ino<<5 | type<<1 | "in place of an image entry"
}

const smallDir = 8

var hashSeed = maphash.MakeSeed()

func makeRef(ino Ino, typ uint32, inPlace bool) uint64 {
	r := ino<<5 | uint64(typ>>12)<<1
	if inPlace {
		r |= 1
	}
	return r
}

func (e *ent) ino() Ino      { return e.ref >> 5 }
func (e *ent) typ() uint32   { return uint32(e.ref>>1&15) << 12 }
func (e *ent) inPlace() bool { return e.ref&1 != 0 }

// find returns the place of name in ents, or -1.
func (d *dirDelta) find(name string) int {
	if d.index == nil {
		for i := range d.ents {
			if d.ents[i].name == name {
				return i
			}
		}
		return -1
	}
	mask := uint64(len(d.index) - 1)
	for h := maphash.String(hashSeed, name); ; h++ {
		i := d.index[h&mask]
		if i == 0 {
			return -1
		}
		if d.ents[i-1].name == name {
			return int(i - 1)
		}
	}
}

// put sets what name refers to. hides tells whether the image's directory has the name.
func (d *dirDelta) put(name string, ino Ino, typ uint32, hides bool) {
	if i := d.find(name); i >= 0 {
		d.ents[i].ref = makeRef(ino, typ, hides)
		return
	}
	d.insert(ent{name: name, seq: d.next, ref: makeRef(ino, typ, hides)})
	d.next++
}

// insert appends an entry whose name is not there and whose seq is the largest.
func (d *dirDelta) insert(e ent) {
	d.cost += costEntry + int64(len(e.name))
	d.ents = append(d.ents, e)
	if d.index == nil && len(d.ents) <= smallDir {
		return
	}
	if len(d.ents)*4 > len(d.index)*3 {
		d.compact()
		return
	}
	d.enter(len(d.ents) - 1)
}

func (d *dirDelta) enter(i int) {
	mask := uint64(len(d.index) - 1)
	for h := maphash.String(hashSeed, d.ents[i].name); ; h++ {
		if d.index[h&mask] == 0 {
			d.index[h&mask] = uint32(i + 1)
			return
		}
	}
}

// drop removes the entry at place i of ents.
func (d *dirDelta) drop(i int) {
	d.cost -= costEntry + int64(len(d.ents[i].name))
	d.ents[i] = ent{seq: d.ents[i].seq}
	d.gone++
	if d.gone > smallDir && d.gone*2 > len(d.ents) {
		d.compact()
	}
}

// compact forgets removed entries and builds the index anew, with room for as many again.
func (d *dirDelta) compact() {
	if d.gone > 0 {
		keep := d.ents[:0]
		for _, e := range d.ents {
			if e.name != "" {
				keep = append(keep, e)
			}
		}
		clear(d.ents[len(keep):])
		d.ents, d.gone = keep, 0
		if cap(keep) > 4*len(keep)+smallDir {
			d.ents = append([]ent(nil), keep...)
		}
	}
	d.index = nil
	if len(d.ents) <= smallDir {
		return
	}
	size := 16
	for size < 2*len(d.ents) {
		size *= 2
	}
	d.index = make([]uint32, size)
	for i := range d.ents {
		d.enter(i)
	}
}

// after returns the place of the first entry whose seq is at least seq.
func (d *dirDelta) after(seq uint64) int {
	return sort.Search(len(d.ents), func(i int) bool { return d.ents[i].seq >= seq })
}

// imageIndex finds name in the image's directory.
func (f *FS) imageIndex(dir Ino, name string) (int, bool) {
	if !f.inImage(dir) {
		return 0, false
	}
	n := f.tree.DirLen(dir)
	i := sort.Search(n, func(i int) bool {
		s, _, _ := f.tree.DirAt(dir, i)
		return s >= name
	})
	if i == n {
		return 0, false
	}
	s, _, _ := f.tree.DirAt(dir, i)
	return i, s == name
}

// lookup finds name in a directory as it is now. It needs st or op; the directory exists.
func (f *FS) lookup(dir Ino, name string) (Ino, bool) {
	n := f.nodes[dir]
	if n == nil {
		return f.tree.Lookup(dir, name)
	}
	d := n.dir()
	if d != nil {
		if i := d.find(name); i >= 0 {
			return d.ents[i].ino(), true
		}
	}
	if !f.inImage(dir) {
		return 0, false
	}
	ino, ok := f.tree.Lookup(dir, name)
	if ok && d != nil && d.hidden != nil {
		if i, found := f.imageIndex(dir, name); found && d.hidden.has(uint64(i)) {
			return 0, false
		}
	}
	return ino, ok
}

// dirLen counts the entries of a directory. It needs st or op.
func (f *FS) dirLen(dir Ino) int {
	if n := f.nodes[dir]; n != nil {
		if d := n.dir(); d != nil {
			return d.live
		}
	}
	if f.inImage(dir) {
		return f.tree.DirLen(dir)
	}
	return 0
}

// changeDir returns the delta of a directory for a change. It needs st and op.
func (f *FS) changeDir(n *node) *dirDelta {
	x := n.ext()
	if x.dir == nil {
		x.dir = &dirDelta{}
		if f.inImage(n.ino) {
			x.dir.live = f.tree.DirLen(n.ino)
		}
	}
	return x.dir
}

// link sets an entry. It needs st and op.
func (f *FS) link(n *node, name string, ino Ino, typ uint32) {
	d := f.changeDir(n)
	if _, ok := f.lookup(n.ino, name); !ok {
		d.live++
	}
	i, hides := f.imageIndex(n.ino, name)
	if hides {
		d.hidden.set(uint64(i), uint64(f.tree.DirLen(n.ino)))
	}
	d.put(name, ino, typ, hides)
}

// unlink removes an entry. It needs st and op.
func (f *FS) unlink(n *node, name string) {
	d := f.changeDir(n)
	if _, ok := f.lookup(n.ino, name); !ok {
		return
	}
	d.live--
	if i := d.find(name); i >= 0 {
		d.drop(i)
	}
	if i, ok := f.imageIndex(n.ino, name); ok {
		d.hidden.set(uint64(i), uint64(f.tree.DirLen(n.ino)))
	}
}
