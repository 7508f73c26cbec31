package unionfs

import (
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// entries is a directory's part of the dirent section.
type entries struct {
	t        *Tree
	dir      Ino
	first, n int
}

// entries returns the entries of a directory; none when dir is no directory.
func (t *Tree) entries(dir Ino) entries {
	p := t.inodeOf(dir, unix.S_IFDIR)
	if p == nil {
		return entries{}
	}
	first, n, all := uint64(le.Uint32(p[8:])), uint64(le.Uint32(p[40:])), uint64(len(t.dirents)/direntSize)
	if first > all || n > all-first {
		return entries{}
	}
	return entries{t: t, dir: dir, first: int(first), n: int(n)}
}

// name returns the name of entry i, which aliases the mapping; empty when it is damaged.
func (e entries) name(i int) string {
	off := uint64(le.Uint32(e.t.dirents[(e.first+i)*direntSize:]))
	if off >= uint64(len(e.t.names)) {
		return ""
	}
	n, p := int(e.t.names[off]), e.t.names[off+1:]
	if n > len(p) {
		return ""
	}
	return unsafe.String(unsafe.SliceData(p), n)
}

// target returns the inode of entry i and its type, or 0. A directory is found only through the one entry that it
// knows itself by, so that no walk of a damaged tree meets one twice.
func (e entries) target(i int) (Ino, uint32) {
	ino := Ino(le.Uint32(e.t.dirents[(e.first+i)*direntSize+4:]))
	p := e.t.inode(ino)
	if p == nil {
		return 0, 0
	}
	typ := le.Uint32(p[20:]) & unix.S_IFMT
	if typ == unix.S_IFDIR &&
		(ino <= e.dir || Ino(le.Uint32(p[44:])) != e.dir || le.Uint32(p[12:]) != uint32(e.first+i)) {
		return 0, 0
	}
	return ino, typ
}

// Lookup finds a name in a directory by binary search. It does not allocate.
func (t *Tree) Lookup(dir Ino, name string) (Ino, bool) {
	e := t.entries(dir)
	for lo, hi := 0, e.n; lo < hi; {
		mid := int(uint(lo+hi) >> 1)
		switch strings.Compare(e.name(mid), name) {
		case 0:
			ino, _ := e.target(mid)
			return ino, ino != 0
		case -1:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, false
}

// DirLen returns the number of entries of a directory, without "." and "..".
func (t *Tree) DirLen(dir Ino) int { return t.entries(dir).n }

// DirAt returns an entry of a directory; entries are sorted by the bytes of their names. typ is the S_IFMT bits of
// what it names. The inode number is 0 when there is no such entry, or a damaged one, which a caller skips.
// DirAt does not allocate: name is part of the mapping and valid until Close; clone what has to live longer.
func (t *Tree) DirAt(dir Ino, i int) (name string, ino Ino, typ uint32) {
	e := t.entries(dir)
	if i < 0 || i >= e.n {
		return "", 0, 0
	}
	if name = e.name(i); name == "" {
		return "", 0, 0
	}
	if ino, typ = e.target(i); ino == 0 {
		return "", 0, 0
	}
	return name, ino, typ
}

// Parent returns the parent of a directory; the root's is the root. It is 0 for what is no directory.
func (t *Tree) Parent(dir Ino) Ino {
	p := t.inodeOf(dir, unix.S_IFDIR)
	if p == nil {
		return 0
	}
	if dir == Root {
		return Root
	}
	if parent := Ino(le.Uint32(p[44:])); parent < dir && t.inodeOf(parent, unix.S_IFDIR) != nil {
		return parent
	}
	return 0
}
