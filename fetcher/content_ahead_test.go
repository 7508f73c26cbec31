package fetcher

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestReaderInOrderFindsTheNextFilesOpen reads files as a walk of the tree does.
func TestReaderInOrderFindsTheNextFilesOpen(t *testing.T) {
	dir := t.TempDir()
	name := func(i int) string { return fmt.Sprintf("f%02d", i) }
	for i := range 60 {
		if err := os.WriteFile(filepath.Join(dir, name(i)), []byte(name(i)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	x := openDirLayer(t, testStore(t), dir, ContentsOptions{OpenFiles: 40})
	isOpen := func(i int) bool {
		x.work.Wait()
		idx, _ := x.tree.ContentIndex(x.ino(t, name(i)))
		f := x.files.get(idx)
		x.files.release(f)
		return f != nil
	}
	for _, i := range []int{30, 25, 45, 40, 59, 50} {
		x.readAll(t, name(i))
	}
	if isOpen(51) || isOpen(52) {
		t.Error("files are brought though nobody reads in order")
	}
	for i := range aheadRun + 1 {
		x.readAll(t, name(i))
	}
	if !isOpen(aheadRun+1) || !isOpen(aheadRun+aheadFiles) {
		t.Error("the next files are not brought")
	}
	if isOpen(aheadRun + aheadFiles + 1) {
		t.Error("more files are brought than said")
	}
	for i := range 60 {
		if got := x.readAll(t, name(i)); got != name(i) {
			t.Errorf("%s: got %q", name(i), got)
		}
	}
	if n := x.Stats().FilesOpened; n != 60 {
		t.Errorf("%d files were read, want 60: what is only brought does not count", n)
	}
}

func TestReadOrder(t *testing.T) {
	for _, c := range []struct {
		name     string
		read     []uint32
		from, to uint32 // of the last
	}{
		{"one after the other", []uint32{5, 6, 7, 8}, 9, 25},
		{"with gaps", []uint32{5, 7, 11, 15}, 16, 32},
		{"too wide a gap", []uint32{5, 6, 7, 12}, 0, 0},
		{"backwards", []uint32{8, 7, 6, 5}, 0, 0},
		{"the same again", []uint32{5, 5, 5, 5, 5}, 0, 0},
		{"enough is brought", []uint32{5, 6, 7, 8, 9}, 0, 0},
		{"half of it is read", []uint32{5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17}, 25, 34},
	} {
		var a readOrder
		var from, to uint32
		for _, idx := range c.read {
			if from, to = a.next(idx, 16); from != to {
				a.done()
			}
		}
		if from != c.from || to != c.to {
			t.Errorf("%s: brings %d to %d, want %d to %d", c.name, from, to, c.from, c.to)
		}
	}
	var a readOrder
	for idx := range uint32(20) {
		if from, to := a.next(idx, 16); idx > 3 && from != to {
			t.Errorf("%d to %d are to be brought while others still are", from, to)
		}
	}
}
