package fetcher

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
)

// stallError is why a body that had gone quiet was given up.
type stallError struct{ after time.Duration }

func (e *stallError) Error() string {
	return fmt.Sprintf("less than %d bytes came in %v", minPerStall, e.after)
}
func (e *stallError) Timeout() bool   { return true }
func (e *stallError) Temporary() bool { return true }

// minPerStall is how many bytes must come while a body is waited for as long as the stall timeout. Less is a connection that is as good as
// dead: another one may be better.
const minPerStall = 1 << 10

// stallBody ends the request whose body it is when (next to) no bytes come for a while. It owns the request's context.
type stallBody struct {
	io.ReadCloser
	ctx    context.Context // the request's
	cancel context.CancelCauseFunc
	after  time.Duration

	waited time.Duration // in Read since the last minPerStall bytes; time that the reader spends elsewhere does not count
	got    int
}

func (b *stallBody) Read(p []byte) (int, error) {
	began := time.Now()
	timer := time.AfterFunc(b.after-b.waited, func() { b.cancel(&stallError{b.after}) })
	n, err := b.ReadCloser.Read(p)
	timer.Stop()
	b.waited += time.Since(began)
	if b.got += n; b.got >= minPerStall {
		b.waited, b.got = 0, 0
	}
	var stall *stallError
	if err != nil && err != io.EOF && errors.As(context.Cause(b.ctx), &stall) {
		err = stall
	}
	return n, err
}

func (b *stallBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// resumingBody reads n bytes from off and survives cut connections: what is missing is asked for again.
type resumingBody struct {
	// open returns the bytes from off to the end of what is read.
	open func(off int64) (io.ReadCloser, error)
	// retry is asked after each failure, with how many came in a row; its error ends the body.
	retry func(err error, failures int) error

	body     io.ReadCloser // nil before the first Read after a failure
	off, end int64
	failures int   // since the last progress
	good     int64 // bytes since the last failure
	err      error // sticky
}

// enoughProgress is how much a connection must bring to not count as one more failure of the same kind.
const enoughProgress = 64 << 10

func (b *resumingBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	for {
		n, err := b.readOnce(p)
		b.off += int64(n)
		b.good += int64(n)
		if n > 0 || err == nil && len(p) == 0 {
			return n, nil // an error, if any, comes again
		}
		if err == io.EOF && b.off == b.end {
			b.err = io.EOF
			return 0, io.EOF
		}
		if err == nil {
			continue
		}
		if b.err = b.recover(err); b.err != nil {
			return 0, b.err
		}
	}
}

// readOnce reads from the open body, or opens one. At the end it makes sure that no more comes.
func (b *resumingBody) readOnce(p []byte) (int, error) {
	if b.body == nil {
		body, err := b.open(b.off)
		if err != nil {
			return 0, &openError{err}
		}
		b.body = body
	}
	if left := b.end - b.off; left == 0 {
		return b.readTail()
	} else if int64(len(p)) > left {
		p = p[:left]
	}
	n, err := b.body.Read(p)
	if err == io.EOF && b.off+int64(n) < b.end {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *resumingBody) readTail() (int, error) {
	var one [1]byte
	if n, err := b.body.Read(one[:]); n > 0 {
		return 0, &openError{errors.New("the body is longer than it should be")}
	} else if err == nil {
		return 0, nil
	}
	return 0, io.EOF // whatever happened to the connection: all bytes came
}

// openError is final: opening a body has made its tries.
type openError struct{ error }

func (e *openError) Unwrap() error { return e.error }

func (b *resumingBody) recover(err error) error {
	b.closeBody()
	var final *openError
	if errors.As(err, &final) {
		return final.error
	}
	if b.good >= enoughProgress {
		b.failures = 0
	}
	b.good = 0
	b.failures++
	return b.retry(err, b.failures)
}

func (b *resumingBody) closeBody() {
	if b.body != nil {
		b.body.Close() // nothing to learn from it: the body is read to its end, or not wanted
		b.body = nil
	}
}

func (b *resumingBody) Close() error {
	b.closeBody()
	if b.err == nil {
		b.err = errors.New("read of a closed body")
	}
	return nil
}

// verifiedBody returns *DigestError in the place of io.EOF when the bytes were not those of want.
type verifiedBody struct {
	io.ReadCloser
	hash hash.Hash
	want digest.Digest
	bad  func() // called when they were not; may be nil
	err  error  // sticky
}

func newVerifiedBody(r io.ReadCloser, want digest.Digest, bad func()) *verifiedBody {
	return &verifiedBody{ReadCloser: r, hash: sha256.New(), want: want, bad: bad}
}

func (b *verifiedBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.ReadCloser.Read(p)
	b.hash.Write(p[:n])
	if err == io.EOF {
		if got := digest.NewDigest(digest.SHA256, b.hash); got != b.want {
			err = &DigestError{What: "layer " + string(b.want), Want: b.want, Got: got}
			if b.bad != nil {
				b.bad()
			}
		}
	}
	b.err = err
	return n, err
}
