package fs

import (
	"math"
	"sync"

	"github.com/veneerfs/veneer/unionfs"
)

// refs counts, for every inode, the lookups that the kernel has been told of and has not taken back with FORGET. It exists for
// one question: may the data of an unlinked inode go? FORGET alone does not answer it, because the kernel also gives back single lookups of
// an inode that it keeps (fs/fuse/dir.c fuse_dentry_revalidate, fs/fuse/readdir.c fuse_force_forget).
//
// A count that reaches zero is final for an unlinked inode: a name is only looked up or listed under its directory's lock, which its
// removal holds too, so every reply that carried the inode has been counted here before the last name went, and no later reply can
// carry it. An inode that still has a name may come back; for it zero means nothing, and the Backend ignores it.
//
// Inode numbers are dense, so the counts are kept in pages of 1 KiB: 4 bytes for an inode of a walked tree.
type refs struct {
	shards [refShards]refShard
}

const (
	refShards    = 16
	refPageSize  = 256
	refSaturated = math.MaxUint32 // never forgotten any more
)

type refShard struct {
	mu    sync.Mutex
	pages map[unionfs.Ino]*refPage // by ino / refPageSize
}

type refPage struct {
	live   int // counts that are not zero
	counts [refPageSize]uint32
}

func (r *refs) shard(page unionfs.Ino) *refShard { return &r.shards[page%refShards] }

// add counts one lookup. It comes before the reply is sent.
func (r *refs) add(ino unionfs.Ino) {
	no := ino / refPageSize
	s := r.shard(no)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pages[no]
	if p == nil {
		if s.pages == nil {
			s.pages = make(map[unionfs.Ino]*refPage)
		}
		p = new(refPage)
		s.pages[no] = p
	}
	c := &p.counts[ino%refPageSize]
	switch *c {
	case 0:
		p.live++
	case refSaturated:
		return
	}
	*c++
}

// drop takes n lookups back and reports whether none is left.
func (r *refs) drop(ino unionfs.Ino, n uint64) bool {
	no := ino / refPageSize
	s := r.shard(no)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pages[no]
	if p == nil {
		return false
	}
	c := &p.counts[ino%refPageSize]
	switch {
	case *c == refSaturated || *c == 0:
		return false
	case n < uint64(*c):
		*c -= uint32(n)
		return false
	}
	*c = 0
	if p.live--; p.live == 0 {
		delete(s.pages, no)
	}
	return true
}
