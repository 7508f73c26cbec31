package fileops

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// sizes of the input.
type sizes struct {
	packs      int   // directories of 20 directories of 10 files, below a; as many below b, own and gone together
	own        int   // of them, below own, and below gone
	big        int64 // bytes of the file that is read
	copyUp     int64 // bytes of each file that is changed in place
	written    int64 // bytes of the file that is written
	ops        int   // of rows that count operations
	small      int   // files that are read again
	image      int   // files of the image whose server is weighed
	bigImage   int   // files of the image with many layers
	manyLayers int   // of the latter
}

// sizesOf scales everything, but keeps every part.
func sizesOf(scale float64) sizes {
	n := func(full, least int) int { return max(least, int(float64(full)*scale)) }
	return sizes{
		packs: n(50, 3), own: n(8, 1), ops: n(5000, 20), small: n(15000, 20),
		big: int64(n(1<<30, 4<<20)), copyUp: int64(n(256<<20, 1<<20)), written: int64(n(512<<20, 2<<20)),
		image: n(100_000, 500), bigImage: n(1_000_000, 2_000), manyLayers: n(128, 4),
	}
}

const (
	lowerLayers   = 10
	dirsInPack    = 20
	filesInDir    = 10
	filesInPack   = dirsInPack * filesInDir
	maxSmall      = 256 << 10 // bytes of the largest small file
	smallReadSize = 32 << 10  // bytes of the largest file that counts as small when they are read again
)

// input is what all systems show, as layers, bottom first, and as the plain directory that they come to.
//
//	tree/a/PACK/DIR/FILE    half of the small files
//	tree/b/PACK/DIR/FILE    the other half, but for
//	tree/own/PACK/DIR/FILE  those whose owner is changed, and
//	tree/gone/PACK/DIR/FILE those that are removed
//	big                     a file to be read
//	touched, written        files to be changed in place
//
// Most files of a directory are in one layer and two of ten in another, so every directory is a merged one.
type input struct {
	sizes
	layers  []string
	plain   string           // the host's directory with the same files; rows leave it as they found it
	gone    map[string]int64 // sizes of the files below gone
	files   []string         // all small files, in no order that a disk would know
	entries int              // of the tree
	bytes   int64            // of the small files
}

func buildInput(dir string, s sizes) (*input, error) {
	in := &input{sizes: s, plain: filepath.Join(dir, "n"), gone: map[string]int64{}}
	for i := range lowerLayers {
		in.layers = append(in.layers, filepath.Join(dir, fmt.Sprint(i)))
	}
	w := &inputWriter{in: in, rng: rand.New(rand.NewPCG(1, 2)), noise: make([]byte, 1<<20)}
	for i := range w.noise {
		w.noise[i] = byte(w.rng.Uint32())
	}
	for _, g := range []struct {
		name  string
		packs int
	}{{"a", s.packs}, {"b", s.packs - 2*s.own}, {"own", s.own}, {"gone", s.own}} {
		for p := range g.packs {
			w.pack(fmt.Sprintf("tree/%s/p%02d", g.name, p))
		}
	}
	w.file("big", s.big, 0)
	w.file("touched", s.copyUp, 1)
	w.file("written", s.copyUp, 2)
	w.rng.Shuffle(len(in.files), func(i, j int) { in.files[i], in.files[j] = in.files[j], in.files[i] })
	return in, w.err
}

// inputWriter writes every file twice: into its layer and into the plain directory.
type inputWriter struct {
	in    *input
	rng   *rand.Rand
	noise []byte
	dirs  int
	err   error // the first
}

func (w *inputWriter) pack(path string) {
	w.in.entries++
	for d := range dirsInPack {
		w.dirs++
		w.in.entries += 1 + filesInDir
		for f := range filesInDir {
			layer := w.dirs % lowerLayers
			if f%5 == 4 {
				layer = (layer + 3) % lowerLayers
			}
			name := fmt.Sprintf("%s/d%02d/file-%d", path, d, f)
			size := w.smallSize()
			w.in.files = append(w.in.files, name)
			w.in.bytes += size
			if strings.HasPrefix(name, "tree/gone/") {
				w.in.gone[name] = size
			}
			w.file(name, size, layer)
		}
	}
}

// smallSize is as in an image: half of the files are below 4 KiB, one in ten has more than 32 KiB; 19 KiB on average.
func (w *inputWriter) smallSize() int64 {
	switch n := w.rng.IntN(100); {
	case n < 50:
		return 1 + w.rng.Int64N(4<<10)
	case n < 90:
		return 4<<10 + w.rng.Int64N(28<<10)
	default:
		return 32<<10 + w.rng.Int64N(maxSmall-32<<10-80<<10)
	}
}

func (w *inputWriter) file(name string, size int64, layer int) {
	for _, root := range []string{w.in.layers[layer], w.in.plain} {
		if w.err != nil {
			return
		}
		w.err = w.write(filepath.Join(root, name), size)
	}
}

func (w *inputWriter) write(path string, size int64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	for size > 0 && err == nil {
		from := w.rng.IntN(len(w.noise) / 2)
		p := w.noise[from:]
		p = p[:min(int64(len(p)), size)]
		_, err = f.Write(p)
		size -= int64(len(p))
	}
	return err
}
