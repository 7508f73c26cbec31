package fetcher

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
	"github.com/veneerfs/veneer/unionfs"
)

// partlyRead returns a store in which the chunks 0 and 2 of a file "a" of four are here, closed, and the file's map.
func partlyRead(t *testing.T) (s *Store, sources []layerSource, blob *memBlob, body, chunkMap string) {
	t.Helper()
	body = noise(1, 40_000)
	sources, blobs := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz().WithChunkSize(10_000), fetchtest.Reg("a", body)))
	s = testStore(t)
	tree, err := s.tree(t.Context(), sources, silent{})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	x, err := s.newContents(sources, tree, lazy)
	if err != nil {
		t.Fatal(err)
	}
	o := &opened{Contents: x, tree: tree}
	for _, off := range []int64{0, 20_000} {
		if _, err := x.ReadAt(t.Context(), o.ino(t, "a"), make([]byte, 10), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	maps, _ := filepath.Glob(filepath.Join(s.root, "partial/??/*.map"))
	if len(maps) != 1 {
		t.Fatalf("maps: %v", maps)
	}
	return s, sources, blobs[0], body, maps[0]
}

func edit(t *testing.T, path string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, f(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestChunksSurviveTheProcess(t *testing.T) {
	s, sources, blob, body, _ := partlyRead(t)
	before := len(blob.requests())
	x := openSources(t, s, sources, lazy)
	if got := x.readAll(t, "a"); got != body {
		t.Error("other bytes")
	}
	if got := len(blob.requests()) - before; got != 2 {
		t.Errorf("%d requests for the two that were missing", got)
	}
}

// After a power failure the map may know of chunks that never came to the disk.
func TestChunksOfAnotherBootAreVerifiedAgain(t *testing.T) {
	s, sources, blob, body, chunkMap := partlyRead(t)
	edit(t, chunkMap, func(b []byte) []byte { b[24] ^= 1; return b })
	data := chunkMap[:len(chunkMap)-len(".map")] + ".data"
	edit(t, data, func(b []byte) []byte { clear(b[:10_000]); return b })
	before := len(blob.requests())
	x := openSources(t, s, sources, lazy)
	p := make([]byte, 10)
	for _, off := range []int64{0, 20_000} {
		if _, err := x.ReadAt(t.Context(), x.ino(t, "a"), p, off); err != nil || string(p) != body[off:off+10] {
			t.Errorf("at %d: %v", off, err)
		}
	}
	if got := len(blob.requests()) - before; got != 1 {
		t.Errorf("%d requests, and not one for the chunk that was lost", got)
	}
	if b, err := os.ReadFile(chunkMap); err != nil || !bytes.Equal(b[mapHeader:], []byte{1, 0, 1, 0}) {
		t.Errorf("the map: %v, %v", b, err)
	}
}

func TestDamagedMapsCountForNothing(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"empty":      func([]byte) []byte { return nil },
		"no header":  func(b []byte) []byte { clear(b[:mapHeader]); return b },
		"cut":        func(b []byte) []byte { return b[:len(b)-1] },
		"other key":  func(b []byte) []byte { b[40] ^= 1; return b },
		"other size": func(b []byte) []byte { b[16] ^= 1; return b },
		"count":      func(b []byte) []byte { b[8] = 3; return b },
		"not zero":   func(b []byte) []byte { b[127] = 1; return b },
		"marks":      func(b []byte) []byte { copy(b[mapHeader:], []byte{7, 255, 0, 2}); return b },
	} {
		t.Run(name, func(t *testing.T) {
			s, sources, blob, body, chunkMap := partlyRead(t)
			edit(t, chunkMap, damage)
			before := len(blob.requests())
			x := openSources(t, s, sources, lazy)
			if got := x.readAll(t, "a"); got != body {
				t.Error("other bytes")
			}
			if got := len(blob.requests()) - before; got < 1 {
				t.Error("a damaged map was believed")
			}
		})
	}
}

// Who brought the last chunk may die before the file is moved.
func TestWholePartialFileIsMovedByTheNext(t *testing.T) {
	s, sources, blob, body, chunkMap := partlyRead(t)
	edit(t, chunkMap, func(b []byte) []byte { return append(b[:mapHeader], 1, 1, 1, 1) })
	edit(t, chunkMap[:len(chunkMap)-len(".map")]+".data", func([]byte) []byte { return []byte(body) })
	before := len(blob.requests())
	x := openSources(t, s, sources, lazy)
	if got := x.readAll(t, "a"); got != body {
		t.Error("other bytes")
	}
	if f, err := x.Local(x.ino(t, "a")); f == nil || err != nil {
		t.Errorf("Local: %v, %v", f, err)
	} else {
		f.Close()
	}
	if n := len(blob.requests()) - before; n > 0 {
		t.Errorf("%d requests", n)
	}
	if _, err := os.Stat(chunkMap); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the map is still there: %v", err)
	}
}

// A crash between the two steps of the move leaves the file without its map.
func TestPartialFileWithoutItsMapIsFetchedAgain(t *testing.T) {
	s, sources, _, body, chunkMap := partlyRead(t)
	if err := os.Remove(chunkMap); err != nil {
		t.Fatal(err)
	}
	x := openSources(t, s, sources, lazy)
	if got := x.readAll(t, "a"); got != body {
		t.Error("other bytes")
	}
}

func TestPartialFilesOfDifferentClaimsAreDifferent(t *testing.T) {
	base := func() unionfs.Content {
		return unionfs.Content{Digest: mustDigest("file"), Size: 20, Chunks: []unionfs.Chunk{
			{Size: 10, Digest: mustDigest("one")}, {Offset: 10, Size: 10, Digest: mustDigest("two")},
		}}
	}
	keys := map[[32]byte]string{}
	for name, change := range map[string]func(*unionfs.Content){
		"none":         func(*unionfs.Content) {},
		"digest":       func(c *unionfs.Content) { c.Digest[0] ^= 1 },
		"size":         func(c *unionfs.Content) { c.Size++ },
		"chunk digest": func(c *unionfs.Content) { c.Chunks[1].Digest[0] ^= 1 },
		"chunk size":   func(c *unionfs.Content) { c.Chunks[0].Size--; c.Chunks[1].Offset--; c.Chunks[1].Size++ },
		"fewer chunks": func(c *unionfs.Content) { c.Chunks = c.Chunks[:1] },
	} {
		c := base()
		change(&c)
		key := partialKey(&c)
		if other, ok := keys[key]; ok {
			t.Errorf("%q and %q share a partial file", name, other)
		}
		keys[key] = name
	}
	// Where the chunks are in the blob does not matter: two compressed forms share what they have.
	a, b := base(), base()
	b.Chunks[0].BlobOff, b.Layer = 1000, 3
	if partialKey(&a) != partialKey(&b) {
		t.Error("two compressed forms have different partial files")
	}
}

func FuzzReadMap(f *testing.F) {
	head := mapHead{chunks: 4, size: 40_000, boot: bootID{1}, key: [32]byte{2}}
	good := append(head.encode(), 1, 0, 1, 0)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte(mapMagic))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		boot, marks, ok := readMap(bytes.NewReader(b), &head)
		if !ok {
			return
		}
		same := head
		same.boot = boot
		if again := append(same.encode(), marks...); len(marks) != 4 || !bytes.Equal(again, b[:len(again)]) {
			t.Errorf("%x was read as %x", b, again)
		}
	})
}

func FuzzBootID(f *testing.F) {
	f.Add("71c55d3b-39a1-4eb5-a1d7-ad4a2b1b6c75\n")
	f.Add("71c55d3b39a14eb5a1d7ad4a2b1b6c7")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := parseBootID(s); err == nil && id == (bootID{}) && len(s) < 32 {
			t.Errorf("%q is %v", s, id)
		}
	})
}

// Two have a file open when it becomes whole, and complete it one after the other; meanwhile a third has begun the file anew, as one does
// that looked for it just before. Its empty file must not get the content's name.
func TestFileCompletedTwiceIsMovedOnce(t *testing.T) {
	body := noise(1, 25_000)
	sources, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz().WithChunkSize(10_000), fetchtest.Reg("a", body)))
	s := testStore(t)
	x := openSources(t, s, sources, lazy)
	idx, _ := x.tree.ContentIndex(x.ino(t, "a"))
	c, _ := x.contentOf(idx)
	open := func() *partial {
		p, err := s.openPartial(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.close)
		return p
	}
	first, second := open(), open()
	for i, k := range c.Chunks {
		for _, p := range []*partial{first, second} {
			if _, err := p.write(i, []byte(body[k.Offset:k.Offset+k.Size])); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.complete(first); err != nil {
		t.Fatal(err)
	}
	third := open()
	if err := s.complete(second); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(s.contentPath(c.Digest)); err != nil || string(got) != body {
		t.Errorf("the content is %d other bytes, %v", len(got), err)
	}
	if !second.isPlaced() || third.whole() {
		t.Error("what the second and the third think of themselves")
	}
}
