package fetcher

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// logged collects what is logged.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// lazy fetches what is read and nothing else.
var lazy = ContentsOptions{Readahead: -1, Neighbours: -1}

// bothLazy runs a test with each format that is fetched by range, files cut into chunks of 10,000 bytes.
func bothLazy(t *testing.T, test func(t *testing.T, f fetchtest.Format)) {
	for _, f := range []fetchtest.Format{fetchtest.EStargz(), fetchtest.ZstdChunked()} {
		t.Run(f.String(), func(t *testing.T) { test(t, f.WithChunkSize(10_000)) })
	}
}

func TestFlippedByteIsAnErrorAndNeverData(t *testing.T) {
	for _, f := range []fetchtest.Format{
		fetchtest.EStargz().WithChunkSize(10_000), fetchtest.ZstdChunked().WithChunkSize(10_000), fetchtest.EStargz(), fetchtest.ZstdChunked(),
	} {
		t.Run(fmt.Sprintf("%v-%d", f, f.ChunkSize), func(t *testing.T) {
			body, other := noise(5, 25_000), noise(6, 5000)
			l := fetchtest.NewLayer(t, f, fetchtest.Reg("dir/a", body), fetchtest.Reg("other", other))
			sources, blobs := sourcesOf(l)
			var log logged
			s := testStore(t)
			x := openSources(t, s, sources, ContentsOptions{Log: log.logger(), Readahead: -1, Neighbours: 1 << 20})
			// The bytes don't compress: those in the middle of the file are there as they are.
			at := bytes.Index(l.Blob, []byte(body[12_000:12_100]))
			if at < 0 {
				t.Fatal("no place to damage")
			}
			good := blobs[0].data
			blobs[0].data = bytes.Clone(good)
			blobs[0].data[at] ^= 1
			ino := x.ino(t, "dir/a")
			for range 2 {
				if n, err := x.ReadAt(t.Context(), ino, make([]byte, 100), 12_000); !errors.Is(err, syscall.EIO) {
					t.Errorf("got %d bytes, %v", n, err)
				}
			}
			for _, want := range []string{l.Descriptor.Digest.String(), "/dir/a", "offset="} {
				if !strings.Contains(log.String(), want) {
					t.Errorf("the log does not say %s: %s", want, log.String())
				}
			}
			if n := strings.Count(log.String(), "a chunk is damaged"); n != 1 {
				t.Errorf("logged %d times: %s", n, log.String())
			}
			if got := x.readAll(t, "other"); got != other {
				t.Error("the file beside it has other bytes")
			}
			if f.ChunkSize > 0 {
				if n, err := x.ReadAt(t.Context(), ino, make([]byte, 100), 9_900); err != nil || n != 100 {
					t.Errorf("the chunk before it: %d, %v", n, err)
				}
			}
			if x.Stats().ChunksDamaged == 0 {
				t.Error("not counted")
			}
			blobs[0].data = good
			if got := x.readAll(t, "dir/a"); got != body {
				t.Error("other bytes after the registry was mended")
			}
		})
	}
}

func TestRangesIgnoredFromTheStart(t *testing.T) {
	bothLazy(t, func(t *testing.T, f fetchtest.Format) {
		files := []fetchtest.File{fetchtest.Reg("a", noise(7, 30_000)), fetchtest.Reg("b", "b")}
		lower, upper := fetchtest.NewLayer(t, f, files...), fetchtest.NewLayer(t, f.WithPrioritized("c"), fetchtest.Reg("c", "c"))
		sources, blobs := sourcesOf(lower, upper)
		blobs[0].ignoresRange, blobs[1].ignoresRange = true, true
		x := openSources(t, testStore(t), sources, lazy)
		if got := x.readAll(t, "a") + x.readAll(t, "b") + x.readAll(t, "c"); got != files[0].Body+"bc" {
			t.Error("other bytes")
		}
		for _, l := range x.tree.Layers() {
			if l.Format != unionfs.FormatPlain {
				t.Errorf("format %d", l.Format)
			}
		}
		if n := x.tree.DirLen(unionfs.Root); n != 3 {
			t.Errorf("the root has %d entries: a TOC or a landmark is among them", n)
		}
		if blobs[0].whole != 1 || blobs[1].whole != 1 {
			t.Errorf("streamed %d and %d times", blobs[0].whole, blobs[1].whole)
		}
	})
}

func TestRangesIgnoredLater(t *testing.T) {
	bothLazy(t, func(t *testing.T, f fetchtest.Format) {
		body := noise(8, 30_000)
		sources, blobs := sourcesOf(fetchtest.NewLayer(t, f, fetchtest.Reg("a", body), fetchtest.Reg("b", "b")))
		x := openSources(t, testStore(t), sources, lazy)
		if _, err := x.ReadAt(t.Context(), x.ino(t, "a"), make([]byte, 10), 0); err != nil {
			t.Fatal(err)
		}
		blobs[0].ignoresRange = true
		if got := x.readAll(t, "a") + x.readAll(t, "b"); got != body+"b" {
			t.Error("other bytes")
		}
		if blobs[0].whole != 1 || x.Stats().LayersStreamed != 1 {
			t.Errorf("streamed %d times", blobs[0].whole)
		}
	})
}

func TestMissingContentOfAPlainLayerComesBack(t *testing.T) {
	sources, blobs := sourcesOf(fetchtest.NewLayer(t, fetchtest.Gzip(), fetchtest.Reg("a", "one"), fetchtest.Reg("b", "two")))
	s := testStore(t)
	x := openSources(t, s, sources, lazy)
	for _, body := range []string{"one", "two"} {
		if err := os.Remove(s.contentPath(mustDigest(body))); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got := x.readAll(t, "a") + x.readAll(t, "b"); got != "onetwo" {
				t.Errorf("got %q", got)
			}
		})
	}
	wg.Wait()
	if blobs[0].whole != 2 { // for the tree, and once more
		t.Errorf("streamed %d times", blobs[0].whole)
	}
}

func TestLayerWithAnotherDiffIDIsRefused(t *testing.T) {
	sources, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.Gzip(), fetchtest.Reg("a", "one")))
	sources[0].diff[0] ^= 1
	s := testStore(t)
	_, err := s.tree(t.Context(), sources, silent{})
	if e := (*LayerError)(nil); !errors.As(err, &e) || !strings.Contains(err.Error(), "diff ID") {
		t.Errorf("got %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.root, "trees/*")); len(left) > 0 {
		t.Errorf("left in trees: %v", left)
	}
}

func TestPullBringsEverything(t *testing.T) {
	for _, f := range fetchtest.Formats() {
		t.Run(f.String(), func(t *testing.T) {
			body := noise(9, 50_000)
			sources, blobs := sourcesOf(fetchtest.NewLayer(t, f.WithChunkSize(10_000), fetchtest.Reg("a", body), fetchtest.Reg("b", "b"), fetchtest.Reg("e", "")))
			s := testStore(t)
			for range 2 {
				if err := s.pull(t.Context(), sources, silent{}); err != nil {
					t.Fatal(err)
				}
			}
			if blobs[0].whole != 1 {
				t.Errorf("streamed %d times", blobs[0].whole)
			}
			before := len(blobs[0].requests())
			x := openSources(t, s, sources, lazy)
			if got := x.readAll(t, "a") + x.readAll(t, "b"); got != body+"b" {
				t.Error("other bytes")
			}
			if n := len(blobs[0].requests()) - before; n > 0 {
				t.Errorf("%d requests after a pull", n)
			}
			if st, err := os.Stat(s.contentPath(mustDigest(body))); err != nil || st.Mode() != modeDurable {
				t.Errorf("content: %v, %v", st, err)
			}
		})
	}
}

// lyingLayer returns a layer whose TOC claims another digest for the file "a" than it has. Every chunk is what it says.
func lyingLayer(t testing.TB, body, claimed string) []layerSource {
	t.Helper()
	l := fetchtest.NewLayer(t, fetchtest.EStargz().WithChunkSize(10_000), fetchtest.Reg("a", body))
	sources, _ := sourcesOf(l)
	return withTOC(t, sources, func(toc string) string {
		return strings.ReplaceAll(toc, mustDigest(body).String(), mustDigest(claimed).String())
	})
}

// withTOC replaces the TOC of an eStargz layer.
func withTOC(t testing.TB, sources []layerSource, edit func(string) string) []layerSource {
	t.Helper()
	src := &sources[0]
	b := tail{ctx: t.Context(), blob: src.blob, size: src.desc.Size, got: func(int64) {}}
	place, err := findTOC(&b, &src.desc, unionfs.FormatEStargz)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.read(place.off, place.size)
	if err != nil {
		t.Fatal(err)
	}
	r, done, err := openStargzTOC(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	var toc bytes.Buffer
	if _, err := toc.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	edited := edit(toc.String())
	if edited == toc.String() {
		t.Fatal("the TOC is what it was")
	}
	old := src.blob.(*memBlob).data
	tocBlob := stargzBlob(t, stargzTOCName, edited, false)[100:]
	tocBlob = append(tocBlob[:len(tocBlob)-stargzFooterSize], footer(int(place.off), false)...)
	blob := append(bytes.Clone(old[:place.off]), tocBlob...)
	l := fetchtest.RawLayer(src.desc.MediaType, blob)
	l.DiffID = "sha256:" + l.DiffID[7:]
	l.Descriptor.Annotations = map[string]string{annotationTOCDigest: "sha256:" + fmt.Sprintf("%x", sha256.Sum256([]byte(edited)))}
	out, _ := sourcesOf(l)
	return out
}

func TestFileWhoseDigestIsALieStaysPrivate(t *testing.T) {
	body, claimed := noise(10, 35_000), noise(11, 35_000)
	var log logged
	s := testStore(t)
	s.SetLog(log.logger())
	x := openSources(t, s, lyingLayer(t, body, claimed), lazy)
	for range 2 {
		if got := x.readAll(t, "a"); got != body {
			t.Error("other bytes than the chunks'")
		}
	}
	x.work.Wait() // readers go on before a file that is complete has been hashed
	for _, d := range []unionfs.Digest{mustDigest(body), mustDigest(claimed)} {
		if _, err := os.Stat(s.contentPath(d)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is shared: %v", d, err)
		}
	}
	if f, err := x.Local(x.ino(t, "a")); f != nil || err != nil {
		t.Errorf("Local: %v, %v", f, err)
	}
	if !strings.Contains(log.String(), "lies about the digest") {
		t.Errorf("log: %s", log.String())
	}
}

// An image that claims what another has brought gets what it claims, not what its chunks would be: names are by digest.
func TestLieCannotPoisonTheHonest(t *testing.T) {
	body, claimed := noise(10, 35_000), noise(11, 35_000)
	s := testStore(t)
	liar := openSources(t, s, lyingLayer(t, body, claimed), lazy)
	liar.readAll(t, "a")
	sources, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz().WithChunkSize(10_000), fetchtest.Reg("a", claimed)))
	honest := openSources(t, s, sources, lazy)
	if got := honest.readAll(t, "a"); got != claimed {
		t.Error("the honest image reads the liar's bytes")
	}
}

func TestSharedContentOfAnotherSizeIsAnError(t *testing.T) {
	s := testStore(t)
	body := "hello, other size"
	if err := s.putBytes(mustDigest("hello"), []byte(body)); err != nil { // as if sha256 were broken
		t.Fatal(err)
	}
	sources, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz(), fetchtest.Reg("a", "hello")))
	x := openSources(t, s, sources, lazy)
	if _, err := x.ReadAt(t.Context(), x.ino(t, "a"), make([]byte, 5), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v", err)
	}
}

// fullStore is a store on a file system with little room.
func fullStore(t *testing.T, size string) *Store {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount a small tmpfs (needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestFullDiskWhileATreeIsBuilt(t *testing.T) {
	s := fullStore(t, "1m")
	sources, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.Gzip(),
		fetchtest.Reg("small", noise(1, 500_000)), fetchtest.Reg("large", noise(2, 3_000_000))))
	_, err := s.tree(t.Context(), sources, silent{})
	if e := (*FullError)(nil); !errors.As(err, &e) || !strings.Contains(err.Error(), s.root) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if left := temporaries(t, s); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(s.root, "trees/*")); len(left) > 0 {
		t.Errorf("left in trees: %v", left)
	}
}

func TestFullDiskDoesNotFailReads(t *testing.T) {
	bothLazy(t, func(t *testing.T, f fetchtest.Format) {
		s := fullStore(t, "1m")
		var log logged
		body, single := noise(1, 35_000), noise(2, 8_000)
		sources, blobs := sourcesOf(fetchtest.NewLayer(t, f, fetchtest.Reg("a", body), fetchtest.Reg("b", single)))
		o := lazy
		o.Log = log.logger()
		x := openSources(t, s, sources, o)
		// The first chunk comes while there is room, the others when there is none.
		if _, err := x.ReadAt(t.Context(), x.ino(t, "a"), make([]byte, 10), 0); err != nil {
			t.Fatal(err)
		}
		ballast := filepath.Join(s.root, "ballast")
		if err := os.WriteFile(ballast, make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("the disk is not full: %v", err)
		}
		for range 3 {
			if got := x.readAll(t, "a") + x.readAll(t, "b"); got != body+single {
				t.Error("other bytes")
			}
		}
		if n := strings.Count(log.String(), "does not keep"); n != 1 {
			t.Errorf("logged %d times: %s", n, log.String())
		}
		// What could not be kept was in memory for the next reads.
		if n := len(blobs[0].requests()); n > 6 {
			t.Errorf("%d requests", n)
		}
		if left := temporaries(t, s); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		again := openSources(t, s, sources, o)
		if got := again.readAll(t, "a") + again.readAll(t, "b"); got != body+single {
			t.Error("other bytes when there was room again")
		}
		again.work.Wait() // readers go on before a file that is complete has been hashed and moved
		if f, err := again.Local(again.ino(t, "a")); err != nil || f == nil {
			t.Errorf("Local: %v, %v", f, err)
		} else {
			f.Close()
		}
	})
}

func TestSpilledChunksAreBounded(t *testing.T) {
	var c spillCache
	for i := range uint32(10) {
		c.put(chunkRef{i, 0}, make([]byte, maxSpill/4))
	}
	if c.bytes > maxSpill || c.recent.Len() != 4 || c.get(chunkRef{9, 0}) == nil || c.get(chunkRef{0, 0}) != nil {
		t.Errorf("%d bytes in %d chunks", c.bytes, c.recent.Len())
	}
}
