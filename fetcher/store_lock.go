package fetcher

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// fileLock is an exclusive lock among processes, and among goroutines, that a file's name stands for. The kernel releases it when
// its holder dies.
type fileLock struct{ f *os.File }

// lockFile waits for the lock named path, or for ctx to end.
func lockFile(ctx context.Context, path string) (*fileLock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		if err := waitLocked(ctx, f, func() error { return flock(f) }); err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		// The holder before may have removed the file while we waited: then another file has the name now.
		if samePath(f, path) {
			return &fileLock{f}, nil
		}
		f.Close()
	}
}

// unlock releases the lock and removes its file.
func (l *fileLock) unlock() {
	os.Remove(l.f.Name())
	l.f.Close()
}

// waitLocked calls wait, which blocks until it has a lock on f. When ctx ends first, f is closed as soon as wait is through.
// On an error f is, or will be, closed.
func waitLocked(ctx context.Context, f *os.File, wait func() error) error {
	done := make(chan error, 1)
	go func() { done <- wait() }()
	select {
	case err := <-done:
		if err != nil {
			f.Close()
		}
		return err
	case <-ctx.Done():
		go func() {
			<-done
			f.Close()
		}()
		return ctx.Err()
	}
}

func flock(f *os.File) error {
	return ignoringEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX) })
}

// lockRange waits for the exclusive lock of n bytes of f from off. The lock belongs to the open file description:
// two that opened the file exclude each other, also within a process; one does not exclude itself.
func lockRange(f *os.File, off, n int64) error {
	return rangeLock(f, unix.F_OFD_SETLKW, unix.F_WRLCK, off, n)
}

// tryLockRange is lockRange without waiting; false when another holds a part of the range.
func tryLockRange(f *os.File, off, n int64) (bool, error) {
	err := rangeLock(f, unix.F_OFD_SETLK, unix.F_WRLCK, off, n)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	return err == nil, err
}

func unlockRange(f *os.File, off, n int64) error {
	return rangeLock(f, unix.F_OFD_SETLK, unix.F_UNLCK, off, n)
}

func rangeLock(f *os.File, cmd int, typ int16, off, n int64) error {
	lk := unix.Flock_t{Type: typ, Whence: 0, Start: off, Len: n}
	return ignoringEINTR(func() error { return unix.FcntlFlock(f.Fd(), cmd, &lk) })
}

func ignoringEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// samePath reports whether path names the file that f is.
func samePath(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}
