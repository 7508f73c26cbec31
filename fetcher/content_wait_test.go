package fetcher

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// The clock of these tests runs when everything waits, so they take no time and times are exact.

func TestReadFailsWhenItsTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sources, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz(), fetchtest.Reg("a", "hello")))
		b := &failing{Blob: sources[0].blob}
		sources[0].blob = b
		o := lazy
		o.FailAfter = 5 * time.Second
		x := openSources(t, testStore(t), sources, o)
		b.times, b.err = 1<<40, &NetworkError{Host: "registry", Reason: "connection refused"}
		ino := x.ino(t, "a")
		began := time.Now()
		n, err := x.ReadAt(t.Context(), ino, make([]byte, 5), 0)
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("failed after %v", took)
		}
		if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "within 5s") {
			t.Errorf("got %d, %v", n, err)
		}
		synctest.Wait()
		b.times = 0
		if got := x.readAll(t, "a"); got != "hello" {
			t.Errorf("got %q", got)
		}
	})
}

func TestReadOfASilentSourceFailsAndTheFetchGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sources, blobs := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz(), fetchtest.Reg("a", "hello")))
		o := lazy
		o.FailAfter = time.Second
		x := openSources(t, testStore(t), sources, o)
		release := make(chan struct{})
		blobs[0].before = func(int64, int64) { <-release }
		before := len(blobs[0].requests())
		began := time.Now()
		if _, err := x.ReadAt(t.Context(), x.ino(t, "a"), make([]byte, 5), 0); !errors.Is(err, syscall.EIO) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("failed after %v", took)
		}
		close(release)
		if got := x.readAll(t, "a"); got != "hello" {
			t.Errorf("got %q", got)
		}
		if n := len(blobs[0].requests()) - before; n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

func TestRestoreOfAPlainLayerFailsWhenItsTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sources, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.Gzip(), fetchtest.Reg("a", "hello")))
		o := lazy
		o.FailAfter = time.Second
		x := openSources(t, testStore(t), sources, o)
		x.layers[0].source.blob = &brokenStream{sources[0].blob, &NetworkError{Host: "registry", Reason: "connection refused"}}
		if err := os.Remove(x.store.contentPath(mustDigest("hello"))); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := x.ReadAt(t.Context(), x.ino(t, "a"), make([]byte, 5), 0); !errors.Is(err, syscall.EIO) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("failed after %v", took)
		}
	})
}

func TestRetryAfterIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sources, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz(), fetchtest.Reg("a", "hello")))
		b := &failing{Blob: sources[0].blob}
		sources[0].blob = b
		x := openSources(t, testStore(t), sources, lazy)
		b.times, b.err = 1, &StatusError{Host: "registry", Status: 429, RetryAfter: 2 * time.Minute}
		began := time.Now()
		if got := x.readAll(t, "a"); got != "hello" {
			t.Errorf("got %q", got)
		}
		if took := time.Since(began); took != 2*time.Minute {
			t.Errorf("asked again after %v", took)
		}
	})
}

func TestAllTryAgainWhenOneLayerCanBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sources, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz(), fetchtest.Reg("a", "one")),
			fetchtest.NewLayer(t, fetchtest.EStargz(), fetchtest.Reg("b", "two")))
		down := &downUntil{}
		for i := range sources {
			sources[i].blob = &downBlob{sources[i].blob, down}
		}
		x := openSources(t, testStore(t), sources, lazy)
		down.set(time.Now().Add(time.Hour))
		var wg sync.WaitGroup
		ended := make([]time.Time, 2)
		for i, name := range []string{"a", "b"} {
			wg.Go(func() {
				x.readAll(t, name)
				ended[i] = time.Now()
			})
		}
		wg.Wait()
		if d := ended[0].Sub(ended[1]).Abs(); d != 0 {
			t.Errorf("one was read %v after the other", d)
		}
	})
}

// downUntil is a network that comes up at a time.
type downUntil struct {
	mu sync.Mutex
	at time.Time // guarded by mu
}

func (d *downUntil) set(at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = at
}

func (d *downUntil) isDown() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Now().Before(d.at)
}

// downBlob is a Blob behind that network.
type downBlob struct {
	Blob
	*downUntil
}

func (b *downBlob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if b.isDown() {
		return nil, &NetworkError{Host: "registry", Reason: "no route"}
	}
	return b.Blob.ReadRange(ctx, off, n)
}

// brokenStream is a Blob that can't be streamed.
type brokenStream struct {
	Blob
	err error
}

func (b *brokenStream) Stream(context.Context) (io.ReadCloser, error) { return nil, b.err }

// slowBody brings some bytes each second.
type slowBody struct {
	ctx       context.Context
	perSecond int
	left      int
}

func (b *slowBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, io.EOF
	}
	select {
	case <-time.After(time.Second):
		b.left -= b.perSecond
		return b.perSecond, nil
	case <-b.ctx.Done():
		return 0, b.ctx.Err()
	}
}
func (b *slowBody) Close() error { return nil }

func TestBodyThatTricklesIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		read := func(perSecond int) (time.Duration, error) {
			ctx, cancel := context.WithCancelCause(t.Context())
			body := &stallBody{ReadCloser: &slowBody{ctx, perSecond, 10_000}, ctx: ctx, cancel: cancel, after: 30 * time.Second}
			defer body.Close()
			began := time.Now()
			_, err := io.Copy(io.Discard, body)
			return time.Since(began), err
		}
		took, err := read(1)
		if e := (*stallError)(nil); !errors.As(err, &e) || took != 30*time.Second {
			t.Errorf("a trickle: after %v: %v", took, err)
		}
		if took, err := read(100); err != nil {
			t.Errorf("a slow body was given up after %v: %v", took, err)
		}
	})
}
