package fetcher

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// The clients stand for processes: the locks of two that opened a file exclude each other wherever they are.
func TestConnectionsOfAllStayUnderTheCap(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	dir := filepath.Join(t.TempDir(), "connections")
	shared := func(o *ClientOptions) { o.Connections, o.ConnectionDir = 3, dir }
	var wg sync.WaitGroup
	for range 6 {
		c := newTestClient(t, shared)
		b := c.Blob(mustResolve(t, c, reg.Host()+"/app:1"), 0) // each keeps a connection, which others need
		for i := range int64(10) {
			wg.Go(func() {
				if err := rangeError(t, b, i, 1000); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if n := reg.MostConnections(); n > 3 {
		t.Errorf("%d connections at a time", n)
	}
}

func TestConnectionsOfOneClientStayUnderTheCap(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	b := reg.open(t, func(o *ClientOptions) { o.Connections = 2 })
	var wg sync.WaitGroup
	for i := range int64(20) {
		wg.Go(func() {
			if err := rangeError(t, b, i, 1000); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := reg.MostConnections(); n > 2 {
		t.Errorf("%d connections at a time", n)
	}
}

func testCap(t *testing.T, dir string) *connCap {
	return &connCap{dir: dir, limit: 1, idle: func() {}, done: make(chan struct{}), open: map[string]int{}}
}

func TestWaitForAConnectionEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	one, two := testCap(t, dir), testCap(t, dir)
	slot, err := one.acquire(t.Context(), "host:1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := two.acquire(ctx, "host:1")
		ended <- err
	}()
	for !one.isWaitedFor("host:1") {
	}
	other, err := two.acquire(t.Context(), "other:1")
	if err != nil {
		t.Fatal(err)
	}
	other.release()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if one.isWaitedFor("host:1") {
		t.Error("one who left is still waited for")
	}
	closed := make(chan struct{})
	two.done = closed
	close(closed)
	if _, err := two.acquire(t.Context(), "host:1"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed client got %v", err)
	}
	slot.release()
	slot.release() // a connection may be closed twice
	if again, err := one.acquire(t.Context(), "host:1"); err != nil {
		t.Error(err)
	} else {
		again.release()
	}
}

// Without its files, connections are made all the same.
func TestUncountedConnections(t *testing.T) {
	reg := newBlobTest(t, 1000)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := reg.open(t, func(o *ClientOptions) { o.ConnectionDir = filepath.Join(file, "connections") })
	if got := readRange(t, b, 0, 100); !bytes.Equal(got, reg.raw[:100]) {
		t.Error("wrong bytes")
	}
}

func TestHTTP2IsOneConnection(t *testing.T) {
	reg := fetchtest.NewTLSRegistry(t)
	img := smallImage(t)
	c := newTestClient(t, func(o *ClientOptions) { o.ConnectionDir = t.TempDir() })
	trust(c, reg.Server.Certificate())
	b := c.Blob(mustResolve(t, c, reg.Push(t, "app:1", img)), 0)
	var wg sync.WaitGroup
	for i := range int64(20) {
		wg.Go(func() {
			if err := rangeError(t, b, i, 10); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := reg.MostConnections(); n > 2 { // it was asked by plain HTTP first
		t.Errorf("%d connections", n)
	}
}
