package cow

import (
	"math/rand/v2"
	"testing"
)

func TestExtentsMatchABitmap(t *testing.T) {
	const size = 12_000
	r := rand.New(rand.NewPCG(1, 2))
	most := 0
	for range 10 {
		var x extents
		var bits [size]bool
		for i := range 6000 {
			off := r.Int64N(size)
			switch {
			case r.IntN(3000) == 0:
				x.cut(off)
				clear(bits[off:])
			default:
				end := min(size, off+r.Int64N(3))
				if r.IntN(300) == 0 {
					end = min(size, off+r.Int64N(4000))
				}
				x.add(off, end)
				for i := off; i < end; i++ {
					bits[i] = true
				}
			}
			most = max(most, len(x.leaves))
			if i%20 == 0 || i < 500 {
				checkExtents(t, &x, bits[:])
			}
		}
	}
	if most < 5 {
		t.Errorf("never more than %d leaves", most)
	}
}

// checkExtents wants the runs that the bits have: in order, apart from each other, in leaves that are not too long.
func checkExtents(t *testing.T, x *extents, bits []bool) {
	t.Helper()
	n, last := 0, int64(-1)
	for _, leaf := range x.leaves {
		if len(leaf) == 0 || len(leaf) > leafMax {
			t.Fatalf("leaf of %d runs", len(leaf))
		}
		for _, r := range leaf {
			if r.off <= last || r.end <= r.off {
				t.Fatalf("run [%d,%d) after one that ends at %d", r.off, r.end, last)
			}
			last = r.end
			n++
		}
	}
	if n != x.n {
		t.Fatalf("%d runs are counted as %d", n, x.n)
	}
	for pos := 0; pos < len(bits); {
		inside, end := x.at(int64(pos))
		for ; pos < len(bits) && int64(pos) < end; pos++ {
			if bits[pos] != inside {
				t.Fatalf("byte %d: inside is %v", pos, inside)
			}
		}
	}
	whole := 0
	for whole < len(bits) && bits[whole] {
		whole++
	}
	if !x.covers(int64(whole)) || x.covers(int64(whole)+1) {
		t.Fatalf("covers is wrong at %d", whole)
	}
}

func TestManyRunsStayInShortLeaves(t *testing.T) {
	var x extents
	const n = 100_000
	for _, i := range rand.New(rand.NewPCG(3, 4)).Perm(n) {
		x.add(int64(i)*8192, int64(i)*8192+4096)
	}
	if x.n != n || len(x.leaves) > 3*n/leafMax {
		t.Errorf("%d runs in %d leaves", x.n, len(x.leaves))
	}
	x.add(0, n*8192)
	if x.n != 1 || len(x.leaves) != 1 {
		t.Errorf("%d runs in %d leaves are left", x.n, len(x.leaves))
	}
}
