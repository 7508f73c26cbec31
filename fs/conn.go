package fs

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// conn is a FUSE connection after INIT, for all but requests and replies.
type conn struct {
	file  *os.File
	fd    int    // file's, blocking
	flags uint64 // what INIT agreed on

	mu     sync.RWMutex // keeps fd open while it is used by others than the loop
	closed bool         // guarded by mu
}

// newConn answers INIT by go-fuse's rules for these options.
func newConn(file *os.File, w *wire, o *fuse.MountOptions) (*conn, error) {
	c := &conn{file: file, fd: int(file.Fd())} // Fd makes it blocking
	r, err := newRequest()
	if err != nil {
		return nil, err
	}
	defer r.free()
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(c.fd, r.in) })
	if err != nil {
		return nil, fmt.Errorf("read INIT: %w", err)
	}
	if r.begin(n); n < inHeaderSize || r.header().Opcode != codeInit {
		return nil, fmt.Errorf("the first request is not INIT but opcode %d", r.header().Opcode)
	}
	p := fuse.NewProtocolServer(w, o)
	n, status := p.HandleRequest([][]byte{r.in[:n]}, [][]byte{r.out})
	if status != fuse.OK {
		return nil, fmt.Errorf("answer INIT: %w", syscall.Errno(status))
	}
	if h := (*fuse.OutHeader)(unsafe.Pointer(&r.out[0])); h.Status != 0 {
		return nil, fmt.Errorf("answer INIT: %w", syscall.Errno(-h.Status))
	}
	c.flags = (*fuse.InitOut)(unsafe.Pointer(&r.out[outHeaderSize])).Flags64()
	if _, err := unix.Write(c.fd, r.out[:n]); err != nil {
		return nil, fmt.Errorf("answer INIT: %w", err)
	}
	return c, nil
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}

func (c *conn) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if err := c.file.Close(); err != nil {
		return fmt.Errorf("close %s: %w", fuseDevice, err)
	}
	return nil
}

// dead reports whether the connection has been aborted or unmounted (fs/fuse/dev.c fuse_dev_poll), or closed.
func (c *conn) dead() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return true
	}
	p := []unix.PollFd{{Fd: int32(c.fd)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&unix.POLLERR != 0
}

// The ioctls of /dev/fuse (linux/fuse.h).
const (
	iocBackingOpen  = 0x4010e501
	iocBackingClose = 0x4004e502
)

// RegisterBackingFd has the kernel keep a file for FOPEN_PASSTHROUGH, until UnregisterBackingFd.
func (c *conn) RegisterBackingFd(m *fuse.BackingMap) (int32, syscall.Errno) {
	id, errno := c.ioctl(iocBackingOpen, unsafe.Pointer(m))
	return int32(id), errno
}

// UnregisterBackingFd lets go of what RegisterBackingFd registered. Opens that use it go on.
func (c *conn) UnregisterBackingFd(id int32) syscall.Errno {
	_, errno := c.ioctl(iocBackingClose, unsafe.Pointer(&id))
	return errno
}

func (c *conn) ioctl(op uintptr, arg unsafe.Pointer) (uintptr, syscall.Errno) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return 0, syscall.EBADF
	}
	v, _, errno := syscall.Syscall(unix.SYS_IOCTL, uintptr(c.fd), op, uintptr(arg))
	return v, errno
}

// InodeNotify has the kernel forget what it keeps of a node: with off -1 its attributes only, else also the bytes of
// [off,off+length), or all from off on when length is 0 or less.
func (c *conn) InodeNotify(node uint64, off, length int64) fuse.Status {
	var m struct {
		head fuse.OutHeader
		body fuse.NotifyInvalInodeOut
	}
	m.head = fuse.OutHeader{Length: uint32(unsafe.Sizeof(m)), Status: -fuse.NOTIFY_INVAL_INODE} // Unique 0: no reply
	m.body = fuse.NotifyInvalInodeOut{Ino: node, Off: off, Length: length}
	return c.notify(unsafe.Slice((*byte)(unsafe.Pointer(&m)), unsafe.Sizeof(m)))
}

func (c *conn) notify(p []byte) fuse.Status {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return fuse.Status(syscall.EBADF)
	}
	_, err := unix.Write(c.fd, p)
	return fuse.ToStatus(err)
}
