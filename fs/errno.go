package fs

import (
	"context"
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// status is the errno border towards FUSE: what is, or wraps, a syscall.Errno goes through as it is; the end of a
// request's context is EINTR; all else is our own failure: EIO for the caller and one line in the log.
func (w *wire) status(err error, op string, node uint64) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != 0 {
		if errno == syscall.EIO {
			w.log.Warn("fuse request", "op", op, "ino", inoOf(node), "err", err)
		}
		return fuse.Status(errno)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fuse.EINTR
	}
	w.log.Error("fuse request", "op", op, "ino", inoOf(node), "err", err)
	return fuse.EIO
}
