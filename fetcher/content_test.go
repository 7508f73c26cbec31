package fetcher

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
	"github.com/veneerfs/veneer/unionfs"
)

// opened is an image in a test: its tree, and a reader of it over a fresh or given store.
type opened struct {
	*Contents
	tree   *unionfs.Tree
	client *Client
	img    *Image
}

func testStore(t testing.TB) *Store {
	t.Helper()
	s, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func openImage(t testing.TB, s *Store, ref string, o ContentsOptions) *opened {
	t.Helper()
	c := NewClient(ClientOptions{})
	t.Cleanup(c.Close)
	return openImageBy(t, c, s, ref, o)
}

func openImageBy(t testing.TB, c *Client, s *Store, ref string, o ContentsOptions) *opened {
	t.Helper()
	r, err := ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := c.Resolve(t.Context(), r, Platform{})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := s.Tree(t.Context(), c, img, nil)
	if err != nil {
		t.Fatal(err)
	}
	x, err := s.Contents(c, img, tree, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		tree.Close()
	})
	return &opened{x, tree, c, img}
}

func (o *opened) ino(t testing.TB, path string) unionfs.Ino {
	t.Helper()
	ino := unionfs.Root
	for part := range strings.SplitSeq(path, "/") {
		var ok bool
		if ino, ok = o.tree.Lookup(ino, part); !ok {
			t.Fatalf("no %s in the tree", path)
		}
	}
	return ino
}

// readAll reads a file as the kernel does.
func (o *opened) readAll(t testing.TB, path string) string {
	t.Helper()
	s, err := o.tryReadAll(t.Context(), o.ino(t, path))
	if err != nil {
		t.Fatalf("read %s: %v", path, err)
	}
	return s
}

func (o *opened) tryReadAll(ctx context.Context, ino unionfs.Ino) (string, error) {
	var b strings.Builder
	p := make([]byte, 100_000)
	for {
		n, err := o.ReadAt(ctx, ino, p, int64(b.Len()))
		b.Write(p[:n])
		if err != nil || n == 0 {
			return b.String(), err
		}
	}
}

// noise is text that does not compress well.
func noise(seed uint64, n int) string {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return string(b)
}

func TestReadsEveryFormat(t *testing.T) {
	big := noise(1, 3<<20)
	for _, f := range []fetchtest.Format{
		fetchtest.Plain(), fetchtest.Gzip(), fetchtest.Zstd(), fetchtest.EStargz(), fetchtest.ZstdChunked(),
		fetchtest.EStargz().WithChunkSize(100_000), fetchtest.ZstdChunked().WithChunkSize(100_000),
		fetchtest.EStargz().WithMinChunkSize(200_000),
	} {
		t.Run(fmt.Sprintf("%v-%d-%d", f, f.ChunkSize, f.MinChunkSize), func(t *testing.T) {
			reg := fetchtest.NewRegistry(t)
			img := &fetchtest.Image{Layers: []fetchtest.Layer{
				fetchtest.NewLayer(t, f, fetchtest.Reg("old", "below\n"), fetchtest.Reg("small", "hello\n"), fetchtest.Reg("empty", "")),
				fetchtest.NewLayer(t, f, fetchtest.Dir("d"), fetchtest.Reg("d/big", big), fetchtest.Link("d/too", "d/big"),
					fetchtest.Reg("old", "above\n"), fetchtest.Reg("d/zeros", strings.Repeat("\x00", 300_000)+"x")),
			}}
			ref := reg.Push(t, "app:1", img)
			s := testStore(t)
			x := openImage(t, s, ref, ContentsOptions{})
			for path, want := range map[string]string{
				"old": "above\n", "small": "hello\n", "empty": "", "d/big": big, "d/too": big,
				"d/zeros": strings.Repeat("\x00", 300_000) + "x",
			} {
				if got := x.readAll(t, path); got != want {
					t.Errorf("%s: got %d bytes, want %d, or other ones", path, len(got), len(want))
				}
			}
			x.work.Wait() // readers go on before a file that is complete has been hashed and moved
			file, err := x.Local(x.ino(t, "d/big"))
			if err != nil || file == nil {
				t.Fatalf("Local: %v, %v", file, err)
			}
			file.Close()
			t.Logf("%+v", x.Stats())

			reg.ForgetRequests()
			again := openImage(t, s, ref, ContentsOptions{})
			if got := again.readAll(t, "d/big"); got != big {
				t.Error("second reader got other bytes")
			}
			if n := len(reg.LayerRequests(img)); n > 0 {
				t.Errorf("a warm store made %d requests for layers", n)
			}
		})
	}
}
