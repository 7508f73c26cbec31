package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

func TestReadersOfOneChunkMakeOneRequest(t *testing.T) {
	bothLazy(t, func(t *testing.T, f fetchtest.Format) {
		body := noise(1, 25_000)
		sources, blobs := sourcesOf(fetchtest.NewLayer(t, f, fetchtest.Reg("a", body), fetchtest.Reg("small", "single\n")))
		x := openSources(t, testStore(t), sources, lazy)
		arrived, release := make(chan struct{}, 10), make(chan struct{})
		blobs[0].before = func(int64, int64) {
			arrived <- struct{}{}
			<-release
		}
		before := len(blobs[0].requests())
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				p := make([]byte, 100)
				if n, err := x.ReadAt(t.Context(), x.ino(t, "a"), p, 12_000); err != nil || string(p[:n]) != body[12_000:12_100] {
					t.Errorf("got %d bytes, %v", n, err)
				}
			})
			wg.Go(func() {
				if got := x.readAll(t, "small"); got != "single\n" {
					t.Errorf("got %q", got)
				}
			})
		}
		<-arrived
		<-arrived
		close(release)
		wg.Wait()
		if got := len(blobs[0].requests()) - before; got != 2 {
			t.Errorf("%d requests for two chunks", got)
		}
	})
}

func TestCancelledReaderLeavesTheFetchToOthers(t *testing.T) {
	sources, blobs := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz(), fetchtest.Reg("a", "hello")))
	x := openSources(t, testStore(t), sources, lazy)
	arrived, release := make(chan struct{}), make(chan struct{})
	blobs[0].before = func(int64, int64) {
		close(arrived)
		<-release
	}
	before := len(blobs[0].requests())
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error)
	go func() {
		_, err := x.ReadAt(ctx, x.ino(t, "a"), make([]byte, 5), 0)
		first <- err
	}()
	<-arrived
	cancel()
	if err := <-first; !errors.Is(err, syscall.EINTR) {
		t.Errorf("the cancelled reader got %v", err)
	}
	close(release)
	if got := x.readAll(t, "a"); got != "hello" {
		t.Errorf("got %q", got)
	}
	if got := len(blobs[0].requests()) - before; got != 1 {
		t.Errorf("%d requests", got)
	}
}

func TestAdjacentChunksMakeOneRequest(t *testing.T) {
	bothLazy(t, func(t *testing.T, f fetchtest.Format) {
		body := noise(2, 95_000)
		sources, blobs := sourcesOf(fetchtest.NewLayer(t, f, fetchtest.Reg("a", body)))
		x := openSources(t, testStore(t), sources, lazy)
		read := func(off, n int) {
			t.Helper()
			p := make([]byte, n)
			if got, err := x.ReadAt(t.Context(), x.ino(t, "a"), p, int64(off)); err != nil || string(p[:got]) != body[off:off+n] {
				t.Fatalf("read %d at %d: %d, %v", n, off, got, err)
			}
		}
		before := len(blobs[0].requests())
		read(30_000, 10_000)
		read(5_000, 80_000) // chunks 0 to 8, of which 3 is here
		if got := len(blobs[0].requests()) - before; got != 3 {
			t.Errorf("%d requests", got)
		}
	})
}

func TestReadingOnBringsMoreAndMore(t *testing.T) {
	body := noise(3, 400_000)
	l := fetchtest.NewLayer(t, fetchtest.EStargz().WithChunkSize(10_000), fetchtest.Reg("a", body), fetchtest.Reg("b", noise(4, 50_000)))
	sources, blobs := sourcesOf(l)
	x := openSources(t, testStore(t), sources, ContentsOptions{Readahead: 100_000, Neighbours: -1})
	before := len(blobs[0].requests())
	if got := x.readAll(t, "a"); got != body {
		t.Fatal("other bytes")
	}
	if got := len(blobs[0].requests()) - before; got > 4 {
		t.Errorf("%d requests for a file read from one end to the other", got)
	}
	if got := x.Stats().FetchedBytes; got > 405_000 {
		t.Errorf("fetched %d bytes", got)
	}
}

func TestRandomReadsBringNothingMore(t *testing.T) {
	body := noise(3, 400_000)
	sources, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz().WithChunkSize(10_000), fetchtest.Reg("a", body)))
	x := openSources(t, testStore(t), sources, ContentsOptions{})
	for _, off := range []int64{200_000, 100_000, 350_000} {
		if _, err := x.ReadAt(t.Context(), x.ino(t, "a"), make([]byte, 10), off); err != nil {
			t.Fatal(err)
		}
	}
	if got := x.Stats(); got.ChunksVerified != 3 || got.FetchedBytes > 32_000 {
		t.Errorf("%+v", got)
	}
}

func TestSmallNeighboursComeAlong(t *testing.T) {
	var files []fetchtest.File
	for i := range 20 {
		files = append(files, fetchtest.Reg(fmt.Sprintf("f%02d", i), noise(uint64(i), 1000)))
	}
	for _, f := range []fetchtest.Format{fetchtest.EStargz(), fetchtest.EStargz().WithMinChunkSize(5000), fetchtest.ZstdChunked()} {
		sources, blobs := sourcesOf(fetchtest.NewLayer(t, f, files...))
		x := openSources(t, testStore(t), sources, ContentsOptions{})
		before := len(blobs[0].requests())
		for _, file := range files {
			if got := x.readAll(t, file.Name); got != file.Body {
				t.Errorf("%s: other bytes", file.Name)
			}
		}
		if got := len(blobs[0].requests()) - before; got != 1 {
			t.Errorf("%v: %d requests", f, got)
		}
	}
}

// A member is decompressed and verified as a whole anyway: what is in it is kept.
func TestFilesOfOneMemberComeTogether(t *testing.T) {
	var files []fetchtest.File
	for i := range 10 {
		files = append(files, fetchtest.Reg(fmt.Sprintf("f%02d", i), noise(uint64(i), 1000)))
	}
	sources, blobs := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz().WithMinChunkSize(100_000), files...))
	x := openSources(t, testStore(t), sources, lazy)
	before := len(blobs[0].requests())
	for _, i := range []int{7, 0, 9, 3} {
		if got := x.readAll(t, files[i].Name); got != files[i].Body {
			t.Errorf("%s: other bytes", files[i].Name)
		}
	}
	if got := len(blobs[0].requests()) - before; got != 1 {
		t.Errorf("%d requests", got)
	}
}

func TestFewOpenFilesAreEnough(t *testing.T) {
	var files []fetchtest.File
	for i := range 50 {
		files = append(files, fetchtest.Reg(fmt.Sprint(i), noise(uint64(i), 15_000)))
	}
	sources, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz().WithChunkSize(10_000), files...))
	x := openSources(t, testStore(t), sources, ContentsOptions{OpenFiles: 2})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, f := range files {
				if got := x.readAll(t, f.Name); got != f.Body {
					t.Errorf("%s: other bytes", f.Name)
				}
			}
		})
	}
	wg.Wait()
	x.files.mu.Lock()
	if n := len(x.files.files); n > 2 {
		t.Errorf("%d files are open", n)
	}
	x.files.mu.Unlock()
	if got := x.Stats().FilesOpened; got != 50 {
		t.Errorf("%d files opened", got)
	}
}

func TestCloseEndsWhatIsFetched(t *testing.T) {
	sources, blobs := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz(), fetchtest.Reg("a", "hello")))
	s := testStore(t)
	tree, err := s.tree(t.Context(), sources, silent{})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	x, err := s.newContents(sources, tree, lazy)
	if err != nil {
		t.Fatal(err)
	}
	arrived := make(chan struct{})
	blobs[0].before = func(int64, int64) {
		close(arrived)
		<-x.life.Done()
	}
	o := &opened{Contents: x, tree: tree}
	ino := o.ino(t, "a")
	got := make(chan error)
	go func() {
		_, err := x.ReadAt(context.Background(), ino, make([]byte, 5), 0)
		got <- err
	}()
	<-arrived
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	if err := <-got; !errors.Is(err, syscall.EIO) {
		t.Errorf("the reader got %v", err)
	}
}

// failing is a Blob that fails for some time.
type failing struct {
	Blob
	times int // guarded by the test: one read at a time
	err   error
}

func (b *failing) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if b.times > 0 {
		b.times--
		return nil, b.err
	}
	return b.Blob.ReadRange(ctx, off, n)
}

func TestReadsWaitForASourceThatIsDown(t *testing.T) {
	sources, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz(), fetchtest.Reg("a", "hello")))
	b := &failing{Blob: sources[0].blob}
	sources[0].blob = b
	var log logged
	o := lazy
	o.Backoff, o.Log = 1, log.logger()
	x := openSources(t, testStore(t), sources, o)
	b.times, b.err = 5, &NetworkError{Host: "registry", Reason: "connection refused"}
	if got := x.readAll(t, "a"); got != "hello" {
		t.Errorf("got %q", got)
	}
	if n := strings.Count(log.String(), "reads wait"); n != 1 {
		t.Errorf("logged %d times: %s", n, log.String())
	}
}

func TestWhatWillNotChangeFailsAtOnce(t *testing.T) {
	sources, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz(), fetchtest.Reg("a", "hello")))
	b := &failing{Blob: sources[0].blob}
	sources[0].blob = b
	x := openSources(t, testStore(t), sources, lazy)
	b.times, b.err = 1, &AuthError{Registry: "registry", Status: 403}
	if n, err := x.ReadAt(t.Context(), x.ino(t, "a"), make([]byte, 5), 0); !errors.Is(err, syscall.EIO) || b.times != 0 {
		t.Errorf("got %d, %v", n, err)
	}
}

// A body that ends too early is asked for again, from the member that was cut.
func TestCutBodyIsContinued(t *testing.T) {
	body := noise(1, 50_000)
	sources, blobs := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz().WithChunkSize(10_000), fetchtest.Reg("a", body)))
	o := lazy
	o.Backoff = 1
	sources[0].blob = &cutting{Blob: sources[0].blob, after: 25_000}
	x := openSources(t, testStore(t), sources, o)
	before := len(blobs[0].requests())
	p := make([]byte, 50_000)
	if n, err := x.ReadAt(t.Context(), x.ino(t, "a"), p, 0); err != nil || string(p[:n]) != body[:n] {
		t.Errorf("got %d, %v", n, err)
	}
	if got := len(blobs[0].requests()) - before; got != 3 {
		t.Errorf("%d requests", got)
	}
	if got := x.Stats().ChunksDamaged; got != 0 {
		t.Errorf("%d chunks are called damaged", got)
	}
}

// cutting is a Blob whose bodies end after some bytes.
type cutting struct {
	Blob
	after int64
}

func (b *cutting) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r, err := b.Blob.ReadRange(ctx, off, n)
	if err != nil || n <= b.after {
		return r, err
	}
	return io.NopCloser(io.MultiReader(io.LimitReader(r, b.after), iotest.ErrReader(io.ErrUnexpectedEOF))), nil
}
