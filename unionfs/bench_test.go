package unionfs

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// benchDirs directories of benchFiles files each make the million of the benchmarks.
const (
	benchDirs  = 20_000
	benchFiles = 50
)

func benchDir(i int) string { return fmt.Sprintf("usr/lib/pack%03d/dir%d", i/100, i%100) }

// addBench adds the files, dealt out to layers, each with a chunk of its own.
func addBench(tb testing.TB, b *Builder, layers, dirs int) {
	n := 0
	for l := range layers {
		if err := b.AddLayer(Layer{Format: FormatEStargz, Digest: Digest{byte(l)}}); err != nil {
			tb.Fatal(err)
		}
		for d := range dirs {
			dir := benchDir(d)
			if err := b.Add(&Entry{Name: dir, Mode: unix.S_IFDIR | 0755}); err != nil {
				tb.Fatal(err)
			}
			for f := l; f < benchFiles; f += layers {
				n++
				digest := Digest{1, byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}
				c := Content{Digest: digest, Size: 5000, Chunks: []Chunk{{Size: 5000, Digest: digest, BlobOff: int64(n) * 2000, BlobSize: 2000}}}
				e := Entry{Name: fmt.Sprintf("%s/some_file_%d.py", dir, f), Mode: unix.S_IFREG | 0644, Size: c.Size, Content: c}
				if err := b.Add(&e); err != nil {
					tb.Fatal(err)
				}
			}
		}
	}
}

// benchPaths are the trees that were built already, by the number of their layers.
var benchPaths = map[int]string{}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, p := range benchPaths {
		os.RemoveAll(filepath.Dir(p))
	}
	os.Exit(code)
}

// benchPath returns a tree of a million files.
func benchPath(b *testing.B, layers int) string {
	b.Helper()
	if p, ok := benchPaths[layers]; ok {
		return p
	}
	dir, err := os.MkdirTemp("", "unionfs-bench")
	if err != nil {
		b.Fatal(err)
	}
	p := filepath.Join(dir, "tree")
	benchPaths[layers] = p
	builder := NewBuilder()
	addBench(b, builder, layers, benchDirs)
	if err := builder.WriteFile(p); err != nil {
		b.Fatal(err)
	}
	return p
}

func benchTree(b *testing.B, layers int) *Tree {
	b.Helper()
	tree, err := Open(benchPath(b, layers))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { tree.Close() })
	return tree
}

func eachLayers(b *testing.B, f func(b *testing.B, layers int)) {
	for _, layers := range []int{1, 128} {
		b.Run(fmt.Sprintf("layers=%d", layers), func(b *testing.B) {
			b.ReportAllocs()
			f(b, layers)
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	eachLayers(b, func(b *testing.B, layers int) {
		path := benchPath(b, layers)
		st, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			tree, err := Open(path)
			if err != nil {
				b.Fatal(err)
			}
			tree.Close()
		}
		b.ReportMetric(float64(st.Size())/(benchDirs*benchFiles), "bytes/file")
	})
}

// BenchmarkLookup looks up a path of five names, each time another one.
func BenchmarkLookup(b *testing.B) {
	eachLayers(b, func(b *testing.B, layers int) {
		tree := benchTree(b, layers)
		var paths [1 << 14][5]string
		for i := range paths {
			d := i * 7919 % benchDirs
			paths[i] = [5]string{"usr", "lib", fmt.Sprintf("pack%03d", d/100), fmt.Sprintf("dir%d", d%100), fmt.Sprintf("some_file_%d.py", i%benchFiles)}
		}
		i := 0
		for b.Loop() {
			ino := Root
			for _, name := range paths[i%len(paths)] {
				ino, _ = tree.Lookup(ino, name)
			}
			if ino == 0 {
				b.Fatal("not there")
			}
			i++
		}
	})
}

func BenchmarkAttr(b *testing.B) {
	eachLayers(b, func(b *testing.B, layers int) {
		tree := benchTree(b, layers)
		ino, max := Ino(1), tree.MaxIno()
		for b.Loop() {
			if _, ok := tree.Attr(ino); !ok {
				b.Fatal("not there")
			}
			ino = 1 + (ino+104729)%max
		}
	})
}

// BenchmarkDirAt reads a directory of 50.
func BenchmarkDirAt(b *testing.B) {
	eachLayers(b, func(b *testing.B, layers int) {
		tree := benchTree(b, layers)
		usr, _ := tree.Lookup(Root, "usr")
		lib, _ := tree.Lookup(usr, "lib")
		pack, _ := tree.Lookup(lib, "pack123")
		dir, _ := tree.Lookup(pack, "dir7")
		for b.Loop() {
			for i := range tree.DirLen(dir) {
				if _, ino, _ := tree.DirAt(dir, i); ino == 0 {
					b.Fatal("not there")
				}
			}
		}
	})
}

func BenchmarkContentChunk(b *testing.B) {
	tree := benchTree(b, 128)
	b.ReportAllocs()
	i, n := uint32(0), uint32(tree.Totals().Contents)
	for b.Loop() {
		if _, _, ok := tree.ContentChunk(i, 4999); !ok {
			b.Fatal("not there")
		}
		i = (i + 104729) % n
	}
}

func BenchmarkVerify(b *testing.B) {
	tree := benchTree(b, 128)
	for b.Loop() {
		if err := tree.Verify(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBuild merges and writes 100,000 files.
func BenchmarkBuild(b *testing.B) {
	eachLayers(b, func(b *testing.B, layers int) {
		dir := b.TempDir()
		var before, after runtime.MemStats
		held := 0.0
		for b.Loop() {
			runtime.GC()
			runtime.ReadMemStats(&before)
			builder := NewBuilder()
			addBench(b, builder, layers, benchDirs/10)
			runtime.GC()
			runtime.ReadMemStats(&after)
			held = float64(after.HeapAlloc) - float64(before.HeapAlloc)
			if err := builder.WriteFile(filepath.Join(dir, "tree")); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(held/(benchDirs/10*benchFiles), "heap-bytes/file")
	})
}

// TestHotPathsDoNotAllocate is what the benchmarks show, as a test.
func TestHotPathsDoNotAllocate(t *testing.T) {
	b := NewBuilder()
	addBench(t, b, 3, 5)
	tree, err := write(t, b)
	if err != nil {
		t.Fatal(err)
	}
	n := testing.AllocsPerRun(100, func() {
		ino := Root
		for _, name := range []string{"usr", "lib", "pack000", "dir3", "some_file_9.py"} {
			dir := ino
			if ino, _ = tree.Lookup(dir, name); ino == 0 {
				t.Fatal("not there")
			}
			tree.DirAt(dir, 0)
		}
		tree.Attr(ino)
		tree.Xattr(ino, "security.capability")
		idx, _ := tree.ContentIndex(ino)
		tree.ContentInfo(idx)
		tree.ContentChunk(idx, 0)
		tree.ChunkAt(idx, 0)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkAddDir reads a host directory of 10,000 files.
func BenchmarkAddDir(b *testing.B) {
	root := b.TempDir()
	for d := range 100 {
		dir := filepath.Join(root, fmt.Sprint(d))
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		for i := range 100 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	for b.Loop() {
		if err := NewBuilder().AddDir(root); err != nil {
			b.Fatal(err)
		}
	}
}
