package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// request is the place of one reader: one request at a time, and its reply.
type request struct {
	in  []byte // mapped; the request is in[:n]
	n   int
	out []byte // mapped; the reply: a fuse.OutHeader, then what the operation returns
	// large: more than smallBuffer bytes of a buffer were used since the last trim.
	large bool
	thin  bool // of in only thinBuffer bytes are in memory for sure

	unique atomic.Uint64 // of the request that is being answered, else 0
	turn   atomic.Uint64 // what loop.turn was when it came
	wake   chan uint64   // for the parked; holds one

	// cancel is closed when the kernel does not need the answer any more. Written by the reader only, under loop.mu.
	cancel      chan struct{}
	interrupted bool // cancel is closed; guarded by loop.mu
}

const (
	inHeaderSize  = int(unsafe.Sizeof(fuse.InHeader{}))
	outHeaderSize = int(unsafe.Sizeof(fuse.OutHeader{}))
	// headerRoom is room for what comes with the bytes of the largest READ or WRITE. The kernel wants to see it (fs/fuse/dev.c).
	// With it both buffers begin at a page, also one of 64 KiB.
	headerRoom = 64 << 10
	// thinBuffer is how much of in stays while nothing is read into it, bytes: enough for all requests but large WRITEs and the like.
	thinBuffer = 8 << 10
)

// newRequest maps the buffers: a page of them takes memory only once it was used.
func newRequest() (*request, error) {
	const size = maxRequest + headerRoom
	b, err := unix.Mmap(-1, 0, 2*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map buffers: %w", err)
	}
	unix.Madvise(b, unix.MADV_NOHUGEPAGE) // else the first byte takes 2 MiB; a kernel without huge pages does not know it
	r := &request{in: b[:size:size], out: b[size:], wake: make(chan uint64, 1), cancel: make(chan struct{}), thin: true}
	return r, nil
}

// populate has all pages of in in place, before a request is read into it. The kernel copies a request when nobody else can have it any
// more: if it had to make a page then, and we were killed meanwhile, the request would end with EIO instead of waiting for who takes over
// (fs/fuse/dev.c fuse_dev_do_read).
func (r *request) populate() {
	if !r.thin {
		return
	}
	r.thin = false
	for i := 0; i < len(r.in); i += os.Getpagesize() {
		r.in[i] = 0
	}
}

// giveBack gives back memory of in that its request has not used.
func (r *request) giveBack() {
	if r.thin || r.n > thinBuffer {
		return
	}
	r.thin = true
	unix.Madvise(r.in[thinBuffer:], unix.MADV_DONTNEED) // in vain, the memory stays
}

// smallBuffer is how much of a buffer stays in memory when nothing happens, bytes.
const smallBuffer = 64 << 10

// trim gives back memory of the buffers. Its reader is parked.
func (r *request) trim() {
	r.n = 0
	r.giveBack()
	if !r.large {
		return
	}
	r.large = false
	unix.Madvise(r.out[smallBuffer:], unix.MADV_DONTNEED)
}

func (r *request) free() {
	whole := unsafe.Slice(&r.in[0], len(r.in)+len(r.out))
	unix.Munmap(whole)
	r.in, r.out = nil, nil
}

// begin takes note of a request of n bytes.
func (r *request) begin(n int) {
	r.n = n
	r.large = r.large || n > smallBuffer
	if n >= inHeaderSize {
		r.unique.Store(r.header().Unique)
	}
}

// interrupt needs loop.mu.
func (r *request) interrupt() {
	if !r.interrupted {
		close(r.cancel)
		r.interrupted = true
	}
}

func (r *request) header() *fuse.InHeader { return (*fuse.InHeader)(unsafe.Pointer(&r.in[0])) }

// errMalformed is a request that the kernel does not send.
var errMalformed = errors.New("malformed request")

// args returns the fixed part of a request, and the bytes after it. It panics with errMalformed if there is no such part.
func args[T any](r *request) (*T, []byte) {
	var t T
	size := int(unsafe.Sizeof(t))
	if r.n < size {
		panic(errMalformed)
	}
	return (*T)(unsafe.Pointer(&r.in[0])), r.in[size:r.n]
}

// names returns the first of the names in b as it lies in the request, which ends with the answer, and the bytes after it.
func cutName(b []byte) (name string, rest []byte) {
	i := bytes.IndexByte(b, 0)
	if i < 0 {
		panic(errMalformed)
	}
	return unsafe.String(unsafe.SliceData(b), i), b[i+1:]
}

// result returns the fixed part of the reply, all zeros.
func result[T any](r *request) *T {
	var t T
	clear(r.out[outHeaderSize : outHeaderSize+int(unsafe.Sizeof(t))])
	return (*T)(unsafe.Pointer(&r.out[outHeaderSize]))
}

// room returns where size bytes of the reply go. It panics with errMalformed if the kernel asks for more than a request may hold.
func (r *request) room(size uint32) []byte {
	if size > maxRequest {
		panic(errMalformed)
	}
	return r.out[outHeaderSize : outHeaderSize+int(size)]
}

// done completes a reply: size bytes of result, or an error without any.
func (r *request) done(s fuse.Status, size int) int {
	if s != fuse.OK {
		size = 0
	}
	r.large = r.large || size > smallBuffer
	h := (*fuse.OutHeader)(unsafe.Pointer(&r.out[0]))
	*h = fuse.OutHeader{Length: uint32(outHeaderSize + size), Status: -int32(s), Unique: r.header().Unique}
	return outHeaderSize + size
}

// doneWith is done for what result returned.
func doneWith[T any](r *request, s fuse.Status, out *T) int {
	return r.done(s, int(unsafe.Sizeof(*out)))
}
