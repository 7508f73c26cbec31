package cow

import (
	"math/rand/v2"
	"runtime"
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

// A file of 100 GiB of which a million random blocks are written, and a file that is written in random order until it is whole.
func BenchmarkExtents(b *testing.B) {
	const blocks, n = 100 << 30 / 4096, 1_000_000
	b.Run("1M random blocks", func(b *testing.B) {
		for b.Loop() {
			r := rand.New(rand.NewPCG(1, 2))
			before, start := heap(), cpuTime()
			x := new(extents)
			for range n {
				off := r.Int64N(blocks) * 4096
				x.add(off, off+4096)
			}
			b.ReportMetric(float64((cpuTime()-start).Nanoseconds())/n, "cpu-ns/insert")
			b.ReportMetric(float64(heap()-before)/float64(x.n), "B/run")
			runtime.KeepAlive(x)
		}
	})
	b.Run("until it is whole", func(b *testing.B) {
		for b.Loop() {
			x := new(extents)
			most := 0
			for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(1 << 20) {
				x.add(int64(i)*4096, int64(i)*4096+4096)
				most = max(most, x.n)
			}
			if x.n != 1 || !x.covers(4<<30) {
				b.Fatalf("%d runs are left", x.n)
			}
			b.ReportMetric(float64(most), "runs-at-most")
		}
	})
}
