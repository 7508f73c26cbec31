package cow

import (
	"slices"
	"sort"
)

// run is a piece [off,end) of a file that lives in the data object, at the same offset.
type run struct{ off, end int64 }

// extents is a sorted set of runs that neither overlap nor touch. It is kept in leaves of bounded length, so that
// one more run in a file of millions of them moves a few KiB of memory. The zero value is empty.
type extents struct {
	leaves [][]run // none is empty
	n      int     // runs in all leaves
	blocks int64   // sum of the blocks that each run touches
}

// leafMax bounds the runs of a leaf: 4 KiB of memory.
const leafMax = 256

// find returns the place of the first run that ends after pos: leaf len(leaves) when there is none.
func (x *extents) find(pos int64) (leaf, i int) {
	leaf = sort.Search(len(x.leaves), func(l int) bool {
		rs := x.leaves[l]
		return rs[len(rs)-1].end > pos
	})
	if leaf == len(x.leaves) {
		return leaf, 0
	}
	rs := x.leaves[leaf]
	return leaf, sort.Search(len(rs), func(i int) bool { return rs[i].end > pos })
}

// at tells whether pos is inside a run, and where that run, or the gap that pos is in, ends. A gap after the last
// run ends at maxSize.
func (x *extents) at(pos int64) (inside bool, end int64) {
	leaf, i := x.find(pos)
	if leaf == len(x.leaves) {
		return false, maxSize
	}
	r := x.leaves[leaf][i]
	if r.off <= pos {
		return true, r.end
	}
	return false, r.off
}

// add makes [off,end) part of the set.
func (x *extents) add(off, end int64) {
	if off >= end {
		return
	}
	// The first run that ends at or after off either touches the new one or follows it.
	leaf, i := x.find(off - 1)
	if leaf == len(x.leaves) {
		x.appendRun(run{off, end})
		return
	}
	r := &x.leaves[leaf][i]
	if r.off > end {
		x.insert(leaf, i, run{off, end})
		return
	}
	x.blocks -= blocksBetween(r.off, r.end)
	r.off = min(r.off, off)
	if end > r.end {
		r.end = end
		x.swallow(leaf, i)
	}
	x.blocks += blocksBetween(r.off, r.end)
}

// swallow merges the runs after the one at (leaf, i) into it as far as it reaches.
func (x *extents) swallow(leaf, i int) {
	r := &x.leaves[leaf][i]
	for {
		nl, ni := leaf, i+1
		if ni == len(x.leaves[nl]) {
			nl, ni = nl+1, 0
		}
		if nl == len(x.leaves) {
			return
		}
		rs := x.leaves[nl]
		j := ni
		for j < len(rs) && rs[j].off <= r.end {
			x.blocks -= blocksBetween(rs[j].off, rs[j].end)
			r.end = max(r.end, rs[j].end)
			j++
		}
		if j == ni {
			return
		}
		x.n -= j - ni
		all := j == len(rs)
		if ni == 0 && all {
			x.leaves = append(x.leaves[:nl], x.leaves[nl+1:]...)
		} else {
			x.leaves[nl] = append(rs[:ni], rs[j:]...)
		}
		if !all {
			return
		}
	}
}

func (x *extents) appendRun(r run) {
	x.n++
	x.blocks += blocksBetween(r.off, r.end)
	last := len(x.leaves) - 1
	if last < 0 || len(x.leaves[last]) >= leafMax {
		x.leaves = append(x.leaves, []run{r})
		return
	}
	x.leaves[last] = append(x.leaves[last], r)
}

func (x *extents) insert(leaf, i int, r run) {
	x.n++
	x.blocks += blocksBetween(r.off, r.end)
	rs := roomier(x.leaves[leaf])
	rs = append(rs, run{})
	copy(rs[i+1:], rs[i:])
	rs[i] = r
	if len(rs) <= leafMax {
		x.leaves[leaf] = rs
		return
	}
	half := len(rs) / 2
	lower, upper := slices.Clone(rs[:half]), slices.Clone(rs[half:])
	x.leaves[leaf] = lower
	x.leaves = append(x.leaves, nil)
	copy(x.leaves[leaf+2:], x.leaves[leaf+1:])
	x.leaves[leaf+1] = upper
}

// roomier returns a leaf with room for one more run: for few more, so that what a file of many runs takes is its runs.
func roomier(rs []run) []run {
	if len(rs) < cap(rs) {
		return rs
	}
	return append(make([]run, 0, len(rs)+len(rs)/16+1), rs...)
}

// cut removes everything from size on.
func (x *extents) cut(size int64) {
	leaf, i := x.find(size)
	if leaf == len(x.leaves) {
		return
	}
	rs := x.leaves[leaf]
	if r := &rs[i]; r.off < size {
		x.blocks -= blocksBetween(r.off, r.end) - blocksBetween(r.off, size)
		r.end = size
		i++
	}
	x.forget(rs[i:])
	for _, l := range x.leaves[leaf+1:] {
		x.forget(l)
	}
	x.leaves[leaf] = rs[:i]
	if i > 0 {
		leaf++
	}
	clear(x.leaves[leaf:])
	x.leaves = x.leaves[:leaf]
}

// forget takes runs that go out of the counts.
func (x *extents) forget(rs []run) {
	x.n -= len(rs)
	for _, r := range rs {
		x.blocks -= blocksBetween(r.off, r.end)
	}
}

// covers tells whether the set is all of [0,size).
func (x *extents) covers(size int64) bool {
	if size == 0 {
		return true
	}
	inside, end := x.at(0)
	return inside && end >= size
}

// end is where the last run ends.
func (x *extents) end() int64 {
	if len(x.leaves) == 0 {
		return 0
	}
	last := x.leaves[len(x.leaves)-1]
	return last[len(last)-1].end
}
