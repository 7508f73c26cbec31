package unionfs

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// allNames goes through the whole tree.
func allNames(t *Tree, inos []Ino) (names []string) {
	for dir := Root; dir <= t.MaxIno(); dir++ {
		for i := range t.DirLen(dir) {
			if _, ino, _ := t.DirAt(dir, i); slices.Contains(inos, ino) {
				names = append(names, fmt.Sprint(ino, dir, i))
			}
		}
	}
	slices.Sort(names)
	return names
}

func foundNames(t *Tree, inos []Ino) (names []string) {
	t.Names(inos, func(ino, dir Ino, i int) { names = append(names, fmt.Sprint(ino, dir, i)) })
	slices.Sort(names)
	return names
}

func TestNamesOfAnInode(t *testing.T) {
	for seed := range uint64(60) {
		r := randomLayers{rand: rand.New(rand.NewPCG(seed, 1)), tidy: true}
		tree, err := mergeEntries(t, r.image(4, 200)...)
		if err != nil {
			t.Fatal(err)
		}
		var inos []Ino
		for ino := Ino(0); ino <= tree.MaxIno()+1; ino++ {
			one := []Ino{ino}
			if got, want := foundNames(tree, one), allNames(tree, one); !slices.Equal(got, want) {
				t.Fatalf("seed %d: names of %d: %q, want %q", seed, ino, got, want)
			}
			if r.rand.IntN(3) == 0 {
				inos = append(inos, ino)
			}
		}
		if got, want := foundNames(tree, inos), allNames(tree, inos); !slices.Equal(got, want) {
			t.Fatalf("seed %d: names of %d: %q, want %q", seed, inos, got, want)
		}
	}
}

func BenchmarkNames(b *testing.B) {
	var entries []Entry
	for d := range 300 {
		entries = append(entries, Entry{Name: fmt.Sprintf("dir%03d", d), Mode: unix.S_IFDIR | 0o755})
		for i := range 300 {
			entries = append(entries, Entry{Name: fmt.Sprintf("dir%03d/fifo%03d", d, i), Mode: unix.S_IFIFO | 0o644})
		}
	}
	tree, err := mergeEntries(b, entries)
	if err != nil {
		b.Fatal(err)
	}
	dir, _ := tree.Lookup(Root, "dir123")
	ino, _ := tree.Lookup(dir, "fifo077")
	for b.Loop() {
		tree.Names([]Ino{ino}, func(Ino, Ino, int) {})
	}
}
