package cow

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/veneerfs/veneer/unionfs"
)

// fuzzSeeds are the files of a state that random operations made.
func fuzzSeeds(f *testing.F, name func(*walker) string) *image {
	w := newWalker(f, 77)
	w.opts.Session = 5
	for range 60 {
		w.step()
	}
	w.remountFor(f)
	_, err := w.Request(2).Mkdir(unionfs.Root, "asked", 0o755, owner)
	must(f, err)
	w.forget()
	for range 30 {
		w.step()
	}
	w.crash()
	b, err := os.ReadFile(filepath.Join(w.dir, name(w)))
	must(f, err)
	f.Add(b)
	f.Add(b[:headerSize])
	f.Add([]byte{})
	return w.img
}

func (w *walker) remountFor(f *testing.F) {
	must(f, w.Close())
	w.open()
}

// resealed gives every frame of b the checksum and sequence number that it should have, so that the fuzzer reaches
// what is behind them.
func resealed(b []byte, first uint64) []byte {
	b = append([]byte(nil), b...)
	if len(b) < headerSize {
		return b
	}
	h := header{seq: first}
	for i := range 8 {
		h.salt |= uint64(b[48+i]) << (8 * i)
	}
	sum := saltSum(h.salt)
	for pos, seq := headerSize, first+1; pos+frameHeader < len(b); seq++ {
		n := int(b[pos]) | int(b[pos+1])<<8
		if n == 0 || pos+frameHeader+n > len(b) {
			break
		}
		seal(b[pos:pos+frameHeader+n], seq, sum)
		pos += frameHeader + n
	}
	return b
}

// What is read as a state either is refused, or is a state that can be walked, changed and read again.
func tryState(t *testing.T, img *image, name string, b []byte) {
	dir := fastDir(t)
	must(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, packName), make([]byte, 16<<10), 0o600))
	f, err := Open(dir, img.tree, img, Options{Session: 5})
	if err != nil {
		return
	}
	walkAll(f)
	_, _ = f.Mkdir(1, "new", 0o755, owner)
	_ = f.Rename(1, "new", 1, "etc", 0)
	if err := f.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	f, err = Open(dir, img.tree, img, Options{})
	if err != nil {
		t.Fatalf("open again: %v", err)
	}
	walkAll(f)
	abandon(f)
}

// fastDir is a directory in memory, where fsync costs nothing, if there is one.
func fastDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "cow")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func walkAll(f *FS) {
	for ino := range f.next {
		if ino > 1000 {
			break
		}
		a, err := f.GetAttr(ino)
		if err != nil {
			continue
		}
		_, _ = f.ListXattr(ino)
		_, _ = f.Readlink(ino)
		_, _, _ = f.segment(ino, a.Size/2)
		_ = f.ReadDir(ino, 0, func(e unionfs.Dirent) bool {
			_, _ = f.Lookup(ino, e.Name)
			return true
		})
	}
}

func FuzzJournal(f *testing.F) {
	img := fuzzSeeds(f, func(w *walker) string { return journalName(w.journal.gen) })
	f.Fuzz(func(t *testing.T, b []byte) {
		tryState(t, img, "journal.1", b)
		if len(b) >= headerSize {
			h := header{magic: journalMagic, tree: treeID(img.tree), gen: 1}
			tryState(t, img, "journal.1", resealed(append(h.encode(), b[headerSize:]...), 0))
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	img := fuzzSeeds(f, func(*walker) string { return checkpointName })
	f.Fuzz(func(t *testing.T, b []byte) {
		tryState(t, img, checkpointName, b)
		if len(b) >= headerSize {
			h := header{magic: checkpointMagic, tree: treeID(img.tree), gen: 2, count: uint64(b[56])}
			tryState(t, img, checkpointName, resealed(append(h.encode(), b[headerSize:]...), 0))
		}
	})
}
