package fs

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/veneerfs/veneer/unionfs"
)

func TestInodeIsForgottenWithItsLastLookup(t *testing.T) {
	var r refs
	for range 3 {
		r.add(7)
	}
	r.add(8) // of the same page
	for i, n := range []uint64{1, 2} {
		if last := r.drop(7, n); last != (i == 1) {
			t.Errorf("drop %d: last is %v", n, last)
		}
	}
	if r.drop(7, 1) || r.drop(99_999, 1) {
		t.Error("an inode that is not known was forgotten")
	}
	if !r.drop(8, 1) {
		t.Error("inode 8 was not forgotten")
	}
	if r.shard(0).pages[0] != nil {
		t.Error("an empty page is kept")
	}
}

func TestManyLookupsAreNeverForgotten(t *testing.T) {
	var r refs
	r.add(7)
	r.shard(0).pages[0].counts[7] = refSaturated - 1
	r.add(7)
	r.add(7)
	if r.drop(7, refSaturated) {
		t.Error("forgotten, and nobody knows how often it was looked up")
	}
}

func TestLookupsAreCountedConcurrently(t *testing.T) {
	var r refs
	var wg sync.WaitGroup
	var last atomic.Int64
	const workers, rounds = 8, 1000
	for ino := range unionfs.Ino(10) {
		r.add(ino)
	}
	for range workers {
		wg.Go(func() {
			for i := range rounds {
				r.add(unionfs.Ino(i % 10))
				if r.drop(unionfs.Ino(i%10), 1) {
					last.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := last.Load(); n != 0 {
		t.Errorf("forgotten %d times while known", n)
	}
	for ino := range unionfs.Ino(10) {
		if !r.drop(ino, 1) {
			t.Errorf("inode %d is still known", ino)
		}
	}
}

// 4 bytes an inode, and something for the pages.
func TestLookupsOfAWalkedTreeAreSmall(t *testing.T) {
	const inodes = 100_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var r refs
	for ino := range unionfs.Ino(inodes) {
		r.add(ino)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 6*inodes {
		t.Errorf("%d bytes for %d inodes", grown, inodes)
	}
	runtime.KeepAlive(&r)
}
