package fetcher

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/veneerfs/veneer/fetcher/fetchtest"
	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// memBlob is a Blob in memory.
type memBlob struct {
	data         []byte
	ignoresRange bool
	before       func(off, n int64) // called before a range is answered, when not nil

	mu     sync.Mutex
	ranges [][2]int64 // guarded by mu; offset and length of each
	whole  int        // guarded by mu; how often it was streamed
}

func (b *memBlob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	b.mu.Lock()
	b.ranges = append(b.ranges, [2]int64{off, n})
	b.mu.Unlock()
	if b.before != nil {
		b.before(off, n)
	}
	if b.ignoresRange {
		return nil, ErrRangeIgnored
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(b.data[off : off+n])), nil
}

func (b *memBlob) Stream(context.Context) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.whole++
	return io.NopCloser(bytes.NewReader(b.data)), nil
}

func (b *memBlob) requests() [][2]int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ranges
}

// sourcesOf makes what the store sees of layers.
func sourcesOf(layers ...fetchtest.Layer) ([]layerSource, []*memBlob) {
	var out []layerSource
	var blobs []*memBlob
	for i, l := range layers {
		b := &memBlob{data: l.Blob}
		diff, err := parseDigest(string(l.DiffID))
		if err != nil {
			panic(err)
		}
		out = append(out, layerSource{index: i, desc: l.Descriptor, diff: diff, blob: b})
		blobs = append(blobs, b)
	}
	return out, blobs
}

// openSources is openImage for layers without a registry.
func openSources(t testing.TB, s *Store, sources []layerSource, o ContentsOptions) *opened {
	t.Helper()
	tree, err := s.tree(t.Context(), sources, silent{})
	if err != nil {
		t.Fatal(err)
	}
	x, err := s.newContents(sources, tree, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		tree.Close()
	})
	return &opened{Contents: x, tree: tree}
}

func mustDigest(s string) unionfs.Digest { return sha256.Sum256([]byte(s)) }

func TestContentIsDurableAfterFlush(t *testing.T) {
	s := testStore(t)
	d := mustDigest("some bytes")
	if err := s.putBytes(d, []byte("some bytes")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []os.FileMode{modeFresh, modeDurable} {
		if st, err := os.Stat(s.contentPath(d)); err != nil || st.Mode() != want {
			t.Fatalf("mode %v, %v; want %v", st.Mode(), err, want)
		}
		if !s.hasContent(d, 10) {
			t.Error("the store does not have what it was given")
		}
		if err := s.flush(); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.fresh); n > 0 {
		t.Errorf("%d contents still wait", n)
	}
}

func TestManyContentsAreDurableAfterFlush(t *testing.T) {
	s := testStore(t)
	var all []unionfs.Digest
	for i := range fewFiles + 10 {
		b := strings.Repeat("x", i)
		all = append(all, mustDigest(b))
		if err := s.putBytes(all[i], []byte(b)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if st, err := os.Stat(s.contentPath(d)); err != nil || st.Mode() != modeDurable {
			t.Fatalf("content %s: %v, %v", d, st, err)
		}
	}
}

// What a process left behind without having made it durable may be anything after a power failure.
func TestContentOfADeadProcessIsHashedAgain(t *testing.T) {
	root := t.TempDir()
	first, err := OpenStore(root)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	good, bad := mustDigest("good"), mustDigest("bad!")
	if err := errors.Join(first.putBytes(good, []byte("good")), first.putBytes(bad, []byte("bad!"))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(first.contentPath(bad), []byte("\x00\x00\x00\x00"), 0); err != nil {
		t.Fatal(err)
	}

	second, err := OpenStore(root)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if second.hasContent(good, 4) || second.hasContent(bad, 4) {
		t.Error("content was trusted unseen")
	}
	f, err := second.openContent(good, 4)
	if err != nil {
		t.Fatalf("good content: %v", err)
	}
	f.Close()
	if !second.hasContent(good, 4) {
		t.Error("content that was hashed is not trusted")
	}
	if _, err := second.openContent(bad, 4); !errors.Is(err, errAbsent) {
		t.Errorf("damaged content: %v", err)
	}
	if _, err := os.Stat(second.contentPath(bad)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("damaged content is still there: %v", err)
	}
}

func TestContentOfAnotherSizeIsRefused(t *testing.T) {
	s := testStore(t)
	d := mustDigest("four")
	if err := s.putBytes(d, []byte("four")); err != nil {
		t.Fatal(err)
	}
	_, err := s.openContent(d, 5)
	if e := (*SizeError)(nil); !errors.As(err, &e) || e.Want != 5 || e.Got != 4 {
		t.Errorf("got %v", err)
	}
}

func TestZerosBecomeHoles(t *testing.T) {
	s := testStore(t)
	body := append(make([]byte, 8<<20), 'x')
	for name, put := range map[string]func() (unionfs.Digest, error){
		"bytes": func() (unionfs.Digest, error) { d := sha256.Sum256(body); return d, s.putBytes(d, body) },
		"stream": func() (unionfs.Digest, error) {
			return s.put(bytes.NewReader(body), int64(len(body)), make([]byte, 100_001))
		},
	} {
		d, err := put()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := os.ReadFile(s.contentPath(d))
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("%s: other bytes, %v", name, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(s.contentPath(d), &st); err != nil || st.Blocks*512 > 64<<10 {
			t.Errorf("%s: %d bytes on the disk, %v", name, st.Blocks*512, err)
		}
		os.Remove(s.contentPath(d))
	}
}

func TestShortBodyIsNotStored(t *testing.T) {
	s := testStore(t)
	if _, err := s.put(strings.NewReader("short"), 6, make([]byte, 10)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
	if left := temporaries(t, s); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// temporaries lists the files below tmp.
func temporaries(t testing.TB, s *Store) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(s.root, "tmp/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	return left
}

func TestTemporaryFilesOfTheDeadAreRemoved(t *testing.T) {
	root := t.TempDir()
	alive, err := OpenStore(root)
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	kept, err := alive.temp()
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	dead := filepath.Join(root, "tmp/dead")
	if err := errors.Join(os.Mkdir(dead, 0o700), os.WriteFile(filepath.Join(dead, "file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}

	next, err := OpenStore(root)
	if err != nil {
		t.Fatal(err)
	}
	f, err := next.temp()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead session's directory: %v", err)
	}
	if _, err := os.Stat(kept.Name()); err != nil {
		t.Errorf("the living session's file: %v", err)
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if left := temporaries(t, next); len(left) != 1 || left[0] != kept.Name() {
		t.Errorf("left behind after Close: %v", left)
	}
}

func TestTreeKeyKnowsTheCompressedForm(t *testing.T) {
	s := testStore(t)
	files := []fetchtest.File{fetchtest.Reg("a", "same")}
	a, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz(), files...))
	b, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz(), files...))
	if s.treePath(a) != s.treePath(b) {
		t.Error("the same layers have two trees")
	}
	b[0].desc.Digest = digest.FromString("other compression")
	if s.treePath(a) == s.treePath(b) {
		t.Error("two blobs have one tree")
	}
}

func TestTreeIsBuiltOnceByManyAtOnce(t *testing.T) {
	root := t.TempDir()
	sources, blobs := sourcesOf(fetchtest.NewLayer(t, fetchtest.Gzip(), fetchtest.Reg("a", "x")))
	var wg sync.WaitGroup
	for range 8 {
		s, err := OpenStore(root)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		wg.Go(func() {
			tree, err := s.tree(t.Context(), sources, silent{})
			if err != nil {
				t.Error(err)
				return
			}
			tree.Close()
		})
	}
	wg.Wait()
	if blobs[0].whole != 1 {
		t.Errorf("the layer was streamed %d times", blobs[0].whole)
	}
	if left, _ := filepath.Glob(filepath.Join(root, "trees/*")); len(left) != 1 {
		t.Errorf("left in trees: %v", left)
	}
}

func TestWaitForALockEndsWithTheContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	held, err := lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lockFile(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	held.unlock()
	again, err := lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	again.unlock()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lock's file is still there: %v", err)
	}
}
