package fetcher

import (
	"context"
	"fmt"
	"os"
	"sync"
)

// layerLock is the file whose byte ranges are locked while those of a layer's blob are fetched.
type layerLock struct {
	path string

	mu sync.Mutex
	f  *os.File // guarded by mu; opened when first used
}

// heldRange is a locked range, of which the front may have been released. The zero value is empty.
type heldRange struct {
	f        *os.File
	off, end int64
}

func (l *layerLock) file() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		return l.f, nil
	}
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock layer: %w", err)
	}
	l.f = f
	return f, nil
}

// acquire waits for the range, or for ctx to end. Within a process the flights see to it that ranges are not asked for twice.
func (l *layerLock) acquire(ctx context.Context, off, n int64) (*heldRange, error) {
	f, err := l.file()
	if err != nil {
		return &heldRange{}, err
	}
	switch ok, err := tryLockRange(f, off, n); {
	case err != nil:
		return &heldRange{}, fmt.Errorf("lock layer: %w", err)
	case ok:
		return &heldRange{f, off, off + n}, nil
	}
	done := make(chan error, 1)
	go func() { done <- lockRange(f, off, n) }()
	select {
	case err := <-done:
		if err != nil {
			return &heldRange{}, fmt.Errorf("lock layer: %w", err)
		}
		return &heldRange{f, off, off + n}, nil
	case <-ctx.Done():
		return &heldRange{}, ctx.Err() // the file is being closed, and the lock goes with it
	}
}

// release gives up what is left of the range.
func (h *heldRange) release() { h.releaseTo(h.end) }

// releaseTo gives up the range before off. It touches nothing that was given up before: another goroutine may hold that again.
func (h *heldRange) releaseTo(off int64) {
	if off > h.off {
		unlockRange(h.f, h.off, off-h.off)
		h.off = off
	}
}

func (l *layerLock) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		l.f.Close()
	}
}
