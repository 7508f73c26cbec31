package fetcher

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/veneerfs/veneer/fetcher/fetchtest"
	"github.com/veneerfs/veneer/unionfs"
)

// twoImages are in a store, wholly read: one has "shared", "one" and a large file, the other "shared" and "two".
func twoImages(t *testing.T) (s *Store, one, two *opened) {
	t.Helper()
	reg := fetchtest.NewRegistry(t)
	shared := fetchtest.Reg("shared", noise(1, 20_000))
	f := fetchtest.EStargz().WithChunkSize(30_000)
	refOne := reg.Push(t, "one:1", &fetchtest.Image{Layers: []fetchtest.Layer{
		fetchtest.NewLayer(t, f, shared, fetchtest.Reg("one", noise(2, 20_000)), fetchtest.Reg("large", noise(4, 100_000)))}})
	refTwo := reg.Push(t, "two:1", &fetchtest.Image{Layers: []fetchtest.Layer{fetchtest.NewLayer(t, f, shared, fetchtest.Reg("two", noise(3, 20_000)))}})
	s = testStore(t)
	one, two = openImage(t, s, refOne, lazy), openImage(t, s, refTwo, lazy)
	for _, x := range []*opened{one, two} {
		if err := s.SaveImage(x.img); err != nil {
			t.Fatal(err)
		}
	}
	one.readAll(t, "shared")
	one.readAll(t, "one")
	if _, err := one.ReadAt(t.Context(), one.ino(t, "large"), make([]byte, 1), 0); err != nil { // a partial file
		t.Fatal(err)
	}
	two.readAll(t, "shared")
	two.readAll(t, "two")
	return s, one, two
}

func (s *Store) hasAll(t *testing.T, seeds ...uint64) {
	t.Helper()
	for seed := uint64(1); seed <= 3; seed++ {
		want := false
		for _, w := range seeds {
			want = want || w == seed
		}
		if got := s.hasContent(mustDigest(noise(seed, 20_000)), 20_000); got != want {
			t.Errorf("content %d: in the store %v, want %v", seed, got, want)
		}
	}
}

func partials(t *testing.T, s *Store) int {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(s.root, "partial/??/*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(left)
}

func TestGarbageIsWhatNoImageNeeds(t *testing.T) {
	s, one, two := twoImages(t)
	if err := s.SaveProfile(&Profile{Image: one.img.Manifest, Runs: 1}); err != nil {
		t.Fatal(err)
	}
	gc := func(grace time.Duration, keep ...digest.Digest) Removed {
		t.Helper()
		r, err := s.gc(t.Context(), keep, grace)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := gc(-time.Second); r.Files != 0 {
		t.Errorf("removed %+v of images with names", r)
	}
	if err := s.RemoveImage(one.img.Ref); err != nil {
		t.Fatal(err)
	}
	if r := gc(-time.Second); r.Files != 0 {
		t.Errorf("removed %+v of an image that is in use", r)
	}
	one.used.Close() // as when its container ends
	if r := gc(gcGrace); r.Files != 0 {
		t.Errorf("removed %+v that is new", r)
	}
	if r := gc(-time.Second, one.img.Manifest); r.Files != 0 {
		t.Errorf("removed %+v of an image that a container needs", r)
	}
	if r := gc(-time.Second); r.Files != 2 || r.Bytes == 0 {
		t.Errorf("removed %+v, want a content and a partial file", r)
	}
	s.hasAll(t, 1, 3)
	if n := partials(t, s); n != 0 {
		t.Errorf("%d files in partial", n)
	}
	if all, _ := s.Profiles(one.img.Manifest); len(all) > 0 {
		t.Error("its profile is left")
	}
	if _, err := s.StoredTree(one.img); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its tree: %v", err)
	}
	if _, err := s.Image(two.img.Ref, amd64); err != nil {
		t.Errorf("the other image: %v", err)
	}
	if got := one.readAll(t, "one"); got != noise(2, 20_000) { // it was not closed after all: it fetches again
		t.Error("other bytes")
	}
}

func TestLimitTakesTheLongestUnused(t *testing.T) {
	s, one, two := twoImages(t)
	u, err := s.Usage()
	if err != nil || u.Contents != 3 || u.Partials != 1 || u.Images != 2 || u.Trees != 2 || u.FreeableBytes != 0 {
		t.Errorf("%+v, %v", u, err)
	}
	if err := s.SetLimit(1); err != nil {
		t.Fatal(err)
	}
	shrink := func() Removed {
		t.Helper()
		r, err := s.Shrink(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := shrink(); r.Files != 0 {
		t.Errorf("removed %+v that is in use", r)
	}
	one.used.Close()
	two.used.Close()
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(two.store.treePath(two.sources()), old, old); err != nil {
		t.Fatal(err)
	}
	if err := s.SetLimit(u.ContentBytes + u.PartialBytes - 1); err != nil {
		t.Fatal(err)
	}
	if r := shrink(); r.Files != 1 {
		t.Errorf("removed %+v, want one file", r)
	}
	s.hasAll(t, 1, 2) // what only the image names that was not used for an hour is gone; what both name is not
	if err := s.SetLimit(1); err != nil {
		t.Fatal(err)
	}
	shrink()
	s.hasAll(t)
	if err := s.SetLimit(0); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Limit(); n != 0 || err != nil {
		t.Errorf("limit %d, %v", n, err)
	}
	for _, c := range []struct {
		x    *opened
		name string
		seed uint64
	}{{one, "one", 2}, {two, "two", 3}, {two, "shared", 1}} {
		if got := c.x.readAll(t, c.name); got != noise(c.seed, 20_000) {
			t.Errorf("%s: other bytes", c.name)
		}
	}
}

// Whoever reads while others drop what is read notices nothing.
func TestReadersWhileTheStoreShrinks(t *testing.T) {
	s, one, _ := twoImages(t)
	one.used.Close()
	if err := s.SetLimit(1); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if _, err := s.Shrink(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	}()
	for range 30 {
		one.files.close() // as if they had not been open
		if got := one.readAll(t, "one") + one.readAll(t, "large"); got != noise(2, 20_000)+noise(4, 100_000) {
			t.Error("other bytes")
		}
	}
	stop()
	<-ended
}

func TestDamagedFilesAreDroppedAndFetchedAgain(t *testing.T) {
	s, one, two := twoImages(t)
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Verify(t.Context()); err != nil || v.Files != 5 || len(v.Damaged) != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	damage := func(path string, at int64) {
		t.Helper()
		os.Chmod(path, 0o600)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var b [1]byte
		f.ReadAt(b[:], at)
		b[0] ^= 1
		if _, err := f.WriteAt(b[:], at); err != nil {
			t.Fatal(err)
		}
		os.Chmod(path, modeDurable)
	}
	damage(s.contentPath(mustDigest(noise(2, 20_000))), 10_000)
	data, _ := filepath.Glob(filepath.Join(s.root, "partial/??/*.data"))
	damage(data[0], 100)
	one.files.close() // as one who comes later
	v, err := s.Verify(t.Context())
	if err != nil || len(v.Damaged) != 1 {
		t.Errorf("%+v, %v", v, err)
	}
	s.hasAll(t, 1, 3)
	if got := one.readAll(t, "one") + one.readAll(t, "large"); got != noise(2, 20_000)+noise(4, 100_000) {
		t.Error("other bytes")
	}
	two.tree.Close()
	damage(s.treePath(two.sources()), 5000)
	if v, err := s.Verify(t.Context()); err != nil || len(v.Damaged) != 1 {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := s.StoredTree(two.img); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the damaged tree: %v", err)
	}
}

func TestFetchBringsFilesInFewRequests(t *testing.T) {
	for _, f := range fetchtest.Formats() {
		t.Run(f.String(), func(t *testing.T) {
			var files []fetchtest.File
			for i := range 30 {
				files = append(files, fetchtest.Reg(string(rune('a'+i%26))+string(rune('a'+i/26)), noise(uint64(i), 5000)))
			}
			sources, blobs := sourcesOf(fetchtest.NewLayer(t, f, files...))
			x := openSources(t, testStore(t), sources, lazy)
			before := len(blobs[0].requests())
			var inos []unionfs.Ino
			for i := 5; i < 15; i++ {
				inos = append(inos, x.ino(t, files[i].Name))
			}
			inos = append(inos, unionfs.Root) // a directory has nothing to fetch
			if err := x.Fetch(t.Context(), inos); err != nil {
				t.Fatal(err)
			}
			if n := len(blobs[0].requests()) - before; n > 1 {
				t.Errorf("%d requests", n)
			}
			for i := 5; i < 15; i++ {
				if !x.store.hasContent(mustDigest(files[i].Body), 5000) {
					t.Errorf("%s is not here", files[i].Name)
				}
			}
		})
	}
}
