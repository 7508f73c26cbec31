package cow

import (
	"math"
	"sync"

	"github.com/veneerfs/veneer/unionfs"
)

// ReadDir yields the entries of dir whose position is after the given one; "." and ".." come first.
//
//	position        entry
//	1               "."
//	2               ".."
//	3+i             the name that the image's directory has at i, wherever it leads now
//	3+DirLen+seq    the other names, in the order in which they were made
//
// A position stays an entry's while others come and go. What came after the last reader began, at 0 to 2, is left out. yield may call other methods; it returns false to stop.
func (f *FS) ReadDir(dir Ino, after uint64, yield func(unionfs.Dirent) bool) error {
	var batch [32]unionfs.Dirent
	limit := f.scans.end(dir)
	for {
		f.st.RLock()
		if after <= 2 {
			limit = f.dirEnd(dir)
			f.scans.begin(dir, limit)
		}
		n, err := f.readDir(dir, after, batch[:])
		f.st.RUnlock()
		if err != nil {
			return err
		}
		for i := range batch[:n] {
			if batch[i].Next >= limit || !yield(batch[i]) {
				return nil
			}
		}
		if n < len(batch) {
			return nil
		}
		after = batch[n-1].Next
	}
}

// dirEnd is after the places of what dir has now. It needs st.
func (f *FS) dirEnd(dir Ino) uint64 {
	end := uint64(3)
	if f.inImage(dir) {
		end += uint64(f.tree.DirLen(dir))
	}
	if n := f.nodes[dir]; n != nil && n.dir() != nil {
		end += n.dir().next
	}
	return end
}

// scans knows where directories ended when they were last read from the beginning. What is renamed or made after that comes later, so a
// reader who renames what he reads would never come to an end. Only the last ones are known, for it is no harm if one is not: its
// readers see what came new. The zero value is ready.
type scans struct {
	mu   sync.Mutex // innermost
	ends map[Ino]uint64
	last [256]Ino
	at   int // in last: the oldest
}

func (s *scans) begin(dir Ino, end uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ends == nil {
		s.ends = make(map[Ino]uint64)
	}
	if _, ok := s.ends[dir]; !ok {
		delete(s.ends, s.last[s.at])
		s.last[s.at] = dir
		s.at = (s.at + 1) % len(s.last)
	}
	s.ends[dir] = end
}

func (s *scans) end(dir Ino) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if end, ok := s.ends[dir]; ok {
		return end
	}
	return math.MaxUint64
}

// readDir fills batch and returns how much it filled. It needs st.
func (f *FS) readDir(dir Ino, after uint64, batch []unionfs.Dirent) (n int, err error) {
	m, err := f.dirMeta(dir)
	if err != nil {
		return 0, err
	}
	if m.nlink == 0 {
		return 0, nil
	}
	if after < 1 {
		batch[n] = unionfs.Dirent{Name: ".", Ino: dir, Type: m.mode &^ 0o7777, Next: 1}
		n++
	}
	if after < 2 {
		batch[n] = unionfs.Dirent{Name: "..", Ino: m.val, Type: m.mode &^ 0o7777, Next: 2}
		n++
	}
	var d *dirDelta
	if nd := f.nodes[dir]; nd != nil {
		d = nd.dir()
	}
	base := uint64(0)
	if f.inImage(dir) {
		base = uint64(f.tree.DirLen(dir))
	}
	for i := max(after, 2) - 2; i < base && n < len(batch); i++ {
		if e, ok := f.baseEntry(dir, d, i); ok {
			e.Next = 3 + i
			batch[n] = e
			n++
		}
	}
	if d == nil {
		return n, nil
	}
	from := uint64(0)
	if after >= 3+base {
		from = after - base - 2
	}
	for i := d.after(from); i < len(d.ents) && n < len(batch); i++ {
		if e := &d.ents[i]; e.name != "" && !e.inPlace() {
			batch[n] = unionfs.Dirent{Name: e.name, Ino: e.ino(), Type: e.typ(), Next: 3 + base + e.seq}
			n++
		}
	}
	return n, nil
}

// baseEntry is what the name at index i of the image's directory is now.
func (f *FS) baseEntry(dir Ino, d *dirDelta, i uint64) (unionfs.Dirent, bool) {
	name, ino, typ := f.tree.DirAt(dir, int(i))
	if d != nil && d.hidden.has(i) {
		at := d.find(name)
		if at < 0 {
			return unionfs.Dirent{}, false
		}
		ino, typ = d.ents[at].ino(), d.ents[at].typ()
	}
	return unionfs.Dirent{Name: name, Ino: ino, Type: typ}, ino != 0
}
