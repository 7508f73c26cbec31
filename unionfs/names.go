package unionfs

import (
	"slices"
	"sort"

	"golang.org/x/sys/unix"
)

// Names yields all entries that name one of inos, which are sorted: the directory and the place in it, as DirAt takes it. An
// inode with one name costs a search in the directories above it. When one has several, all entries of the tree
// are looked at once, 8 bytes each.
func (t *Tree) Names(inos []Ino, yield func(ino, dir Ino, i int)) {
	at := entries{}
	var linked []Ino
	for _, ino := range inos {
		p := t.inode(ino)
		if p == nil || ino == Root {
			continue
		}
		if t.inodeOf(ino, unix.S_IFDIR) == nil && le.Uint32(p[32:]) > 1 {
			linked = append(linked, ino)
			continue
		}
		if k, ok := t.onlyEntry(ino); ok && t.owner(k, &at) {
			yield(ino, at.dir, k-at.first)
		}
	}
	if len(linked) == 0 {
		return
	}
	for k := range t.numEntries() {
		ino := t.entryIno(k)
		if _, ok := slices.BinarySearch(linked, ino); ok && t.owner(k, &at) {
			yield(ino, at.dir, k-at.first)
		}
	}
}

func (t *Tree) numEntries() int { return len(t.dirents) / direntSize }

// entryIno is the inode that place k of the dirent section names.
func (t *Tree) entryIno(k int) Ino { return Ino(le.Uint32(t.dirents[k*direntSize+4:])) }

// onlyEntry finds the place of the one entry of an inode in the dirent section. Inodes are numbered in the order of their
// first entries, so the highest number of all entries up to a place grows with the place.
func (t *Tree) onlyEntry(ino Ino) (int, bool) {
	if p := t.inodeOf(ino, unix.S_IFDIR); p != nil {
		k := int(le.Uint32(p[12:]))
		return k, k < t.numEntries() && t.entryIno(k) == ino
	}
	from := min(int(ino-Root-1), t.numEntries()) // as many have lower numbers, and an entry each
	k := from + sort.Search(t.numEntries()-from, func(i int) bool { return t.highest(from+i) >= ino })
	return k, k < t.numEntries() && t.entryIno(k) == ino
}

// highest is the highest number of the entries up to place k. It goes back to one that is no later name of a hard link.
func (t *Tree) highest(k int) (high Ino) {
	for ; k >= 0; k-- {
		ino := t.entryIno(k)
		high = max(high, ino)
		p := t.inode(ino)
		if p == nil || le.Uint32(p[20:])&unix.S_IFMT == unix.S_IFDIR || le.Uint32(p[32:]) <= 1 {
			break
		}
	}
	return high
}

// owner makes e the directory that has place k of the dirent section. It looks at e first: neighbours are asked for together.
func (t *Tree) owner(k int, e *entries) bool {
	if e.has(k) {
		return true
	}
	for *e = t.entries(Root); !e.has(k); {
		next := e.before(k)
		if next == 0 {
			return false
		}
		*e = t.entries(next) // of a higher number, see target: this ends
	}
	return true
}

func (e *entries) has(k int) bool { return k >= e.first && k < e.first+e.n }

// before returns the last of the directory's directories whose entries start at or before place k, which lies below it: a
// directory's entries come after its parent's, and all below it before those of the next.
func (e *entries) before(k int) (found Ino) {
	for lo, hi := 0, e.n; lo < hi; {
		mid := int(uint(lo+hi) >> 1)
		i := mid
		child := Ino(0)
		for ; i < hi; i++ {
			if ino, typ := e.target(i); typ == unix.S_IFDIR {
				child = ino
				break
			}
		}
		if child == 0 {
			hi = mid
			continue
		}
		if int(le.Uint32(e.t.inode(child)[8:])) <= k {
			found, lo = child, i+1
		} else {
			hi = mid
		}
	}
	return found
}
