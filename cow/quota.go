package cow

import (
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// Usage is what a container has added to its image.
//
// Bytes counts, whatever the host's file system is and does:
//
//	a file in the pack             its slot
//	a file with a data object      its bytes in 4 KiB blocks; of one over the image, the blocks that are ours
//	a file with holes              what the host said that its data object takes, when it was last changed
//	a new inode                    256
//	an entry of a directory        64 and its name, if it is not as in the image
//	an extended attribute          64, its name and its value, if it is not the image's
//	a symbolic link                its target
//
// A file without a name counts until it is forgotten. Inodes counts the new ones.
type Usage struct {
	Bytes, Inodes int64
}

const (
	costBlock = 4096
	costInode = 256
	costEntry = 64
	costXattr = 64
)

// usage counts, and keeps operations within the quota: what one may add is reserved first, and counted when it is so.
// So what is counted never exceeds the quota, but by what removing and renaming takes, which always works.
type usage struct {
	bytes, inodes atomic.Int64 // changed under op

	mu       sync.Mutex // guards what follows, innermost
	limit    Usage      // 0: none; immutable
	reserved Usage
}

// Usage returns what is used. It costs nothing.
func (f *FS) Usage() Usage { return Usage{f.usage.bytes.Load(), f.usage.inodes.Load()} }

// reserve sets u aside, until release; false if the quota does not have it.
func (q *usage) reserve(u Usage) bool {
	if u == (Usage{}) {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if left := q.left(); u.Bytes > 0 && left.Bytes < u.Bytes || u.Inodes > 0 && left.Inodes < u.Inodes {
		return false
	}
	q.reserved.Bytes += u.Bytes
	q.reserved.Inodes += u.Inodes
	return true
}

func (q *usage) release(u Usage) {
	if u == (Usage{}) {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reserved.Bytes -= u.Bytes
	q.reserved.Inodes -= u.Inodes
}

// left is what may still be reserved. It needs mu.
func (q *usage) left() Usage {
	left := Usage{1 << 62, 1 << 62}
	if q.limit.Bytes > 0 {
		left.Bytes = q.limit.Bytes - q.bytes.Load() - q.reserved.Bytes
	}
	if q.limit.Inodes > 0 {
		left.Inodes = q.limit.Inodes - q.inodes.Load() - q.reserved.Inodes
	}
	return left
}

func (q *usage) free() Usage {
	q.mu.Lock()
	defer q.mu.Unlock()
	left := q.left()
	return Usage{max(0, left.Bytes), max(0, left.Inodes)}
}

// add counts. It needs op, or a delta that nobody has yet.
func (q *usage) add(u Usage) {
	q.bytes.Add(u.Bytes)
	q.inodes.Add(u.Inodes)
}

// need reserves what an operation adds, until its end.
func (t *tx) need(u Usage) error {
	if !t.f.usage.reserve(u) {
		return syscall.ENOSPC
	}
	t.reserved.Bytes += u.Bytes
	t.reserved.Inodes += u.Inodes
	return nil
}

// costOfXattr is what an attribute counts; nil is none.
func costOfXattr(name string, value []byte) int64 {
	if value == nil {
		return 0
	}
	return costXattr + int64(len(name)+len(value))
}

// cost is what a node counts.
func (f *FS) cost(n *node) (u Usage) {
	if !f.inImage(n.ino) {
		u = Usage{costInode, 1}
	}
	if n.isRegular() {
		u.Bytes += n.blocks() * costBlock
	}
	if n.x != nil {
		u.Bytes += n.x.cost
		if n.x.dir != nil {
			u.Bytes += n.x.dir.cost
		}
	}
	return u
}

// blocks counts the blocks of ours that a regular file has.
func (n *node) blocks() int64 {
	switch {
	case n.slot != 0:
		return n.slot.size() / costBlock
	case n.flags&flagSparse != 0:
		return int64(n.measured)
	case n.runs() != nil:
		return n.runs().blocks
	case n.flags&flagPlain != 0:
		return blocksBetween(0, n.size())
	}
	return 0
}

func blocksBetween(off, end int64) int64 {
	if off >= end {
		return 0
	}
	return (end-1)/costBlock - off/costBlock + 1
}

// setSparse says that a file has holes from here on. What it has besides them is measured next.
func (n *node) setSparse() {
	if n.flags&flagSparse == 0 {
		n.measured = uint32(min(n.blocks(), 1<<32-1))
		n.flags |= flagSparse
	}
}

// measure asks the host what a file with holes takes. It needs the data lock, and is called when the object has changed.
func (f *FS) measure(ino Ino) {
	f.st.RLock()
	n := f.nodes[ino]
	sparse := n != nil && n.flags&flagSparse != 0 && n.slot == 0
	f.st.RUnlock()
	if !sparse {
		return
	}
	blocks, err := f.hostBlocks(ino)
	if err != nil {
		return // it stays what it was
	}
	f.op.Lock()
	defer f.op.Unlock()
	f.st.Lock()
	defer f.st.Unlock()
	if f.nodes[ino] == n {
		f.measuredAs(n, blocks)
	}
}

func (f *FS) hostBlocks(ino Ino) (int64, error) {
	o, err := f.objs.get(ino, false)
	if err != nil || o == nil {
		return 0, err
	}
	defer f.objs.put(o)
	st, err := o.stat()
	return (st.Blocks*512 + costBlock - 1) / costBlock, err
}

// measureBacking is measure for a file that the kernel wrote. It needs op.
func (f *FS) measureBacking(ino Ino, b *backing) {
	var st unix.Stat_t
	if unix.Fstat(int(b.file.Fd()), &st) != nil {
		return
	}
	f.st.Lock()
	defer f.st.Unlock()
	if n := f.nodes[ino]; n != nil && n.flags&flagSparse != 0 {
		f.measuredAs(n, (st.Blocks*512+costBlock-1)/costBlock)
	}
}

// measuredAs needs st and op.
func (f *FS) measuredAs(n *node, blocks int64) {
	was := f.cost(n)
	n.measured = uint32(min(blocks, 1<<32-1))
	f.usage.add(Usage{Bytes: f.cost(n).Bytes - was.Bytes})
}

// measureAll is measure for all files, at recovery.
func (f *FS) measureAll() error {
	for _, n := range f.nodes {
		if n.flags&flagSparse == 0 || n.slot != 0 {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(f.disk.path(objectName(n.ino)), &st); err != nil && err != unix.ENOENT {
			return err
		}
		f.measuredAs(n, (st.Blocks*512+costBlock-1)/costBlock)
	}
	return nil
}

// reserveWrite reserves what writing [off,end) of a file may add, or the beginning of it that the quota has.
func (f *FS) reserveWrite(ino Ino, c *content, off, end int64) (Usage, int64, error) {
	for {
		u := Usage{Bytes: f.needOfWrite(ino, c, off, end) * costBlock}
		if f.usage.reserve(u) {
			return u, end, nil
		}
		less := (off + f.usage.free().Bytes) / costBlock * costBlock
		if less <= off || less >= end {
			return Usage{}, 0, syscall.ENOSPC
		}
		end = less
	}
}

// needOfWrite is how many blocks writing [off,end) may add.
func (f *FS) needOfWrite(ino Ino, c *content, off, end int64) int64 {
	switch {
	case f.packs(ino, c, off, end):
		if c.slot != 0 && end <= c.slot.size() {
			return 0 // if it moves, then into one of the same size
		}
		need := slotFor(max(end, c.size)).size()
		if c.slot != 0 {
			need -= c.slot.size()
		}
		return need / costBlock
	case c.slot != 0: // it moves to an object
		return max(0, blocksBetween(0, c.size)+blocksBetween(max(off, c.size), end)-c.slot.size()/costBlock)
	case c.sparse:
		return f.holesOf(ino, off, end)
	case c.ours:
		return 0
	case c.plain && off <= c.size:
		return blocksBetween(0, end) - blocksBetween(0, c.size)
	}
	return blocksBetween(off, end)
}

// needOfAllocation is what allocating [off,end) may add. It needs the data lock.
func (f *FS) needOfAllocation(ino Ino, off, end int64) (Usage, error) {
	c, err := f.contentOf(ino, off, end)
	if err != nil {
		return Usage{}, err
	}
	need := blocksBetween(off, end)
	switch {
	case c.slot != 0:
		need += blocksBetween(0, c.size) - c.slot.size()/costBlock
	case c.object:
		need = f.holesOf(ino, off, end)
	}
	return Usage{Bytes: max(0, need) * costBlock}, nil
}

// holesOf counts the blocks of [off,end) that a data object does not have.
func (f *FS) holesOf(ino Ino, off, end int64) int64 {
	off = off / costBlock * costBlock
	need := blocksBetween(off, end)
	o, err := f.objs.get(ino, false)
	if err != nil || o == nil {
		return need
	}
	defer f.objs.put(o)
	for off < end {
		data, err := unix.Seek(o.fd, off, unix.SEEK_DATA)
		if err != nil || data >= end {
			break
		}
		hole, err := unix.Seek(o.fd, data, unix.SEEK_HOLE)
		if err != nil {
			break
		}
		hole = min(hole, end)
		need -= blocksBetween(data, hole)
		off = hole
	}
	return max(0, need)
}

// quotaStat shows the quota as a file system's size.
func (f *FS) quotaStat(st unionfs.StatFS) unionfs.StatFS {
	free := f.usage.free()
	if limit := f.usage.limit.Bytes; limit > 0 {
		size := int64(st.BlockSize)
		st.Blocks = uint64(limit / size)
		st.BlocksFree = min(st.BlocksFree, uint64(free.Bytes/size))
		st.BlocksAvail = min(st.BlocksAvail, uint64(free.Bytes/size))
	}
	if limit := f.usage.limit.Inodes; limit > 0 {
		st.Files = uint64(limit)
		st.FilesFree = uint64(free.Inodes)
	}
	return st
}
