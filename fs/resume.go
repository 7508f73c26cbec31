package fs

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// Taking over
//
// The kernel's side of a mount outlives its server as long as somebody has the descriptor. Requests wait then: those that nobody has read,
// and those that the dead server has read and not answered. A new server asks for these again:
//
//	INIT          was answered: what it agreed on is a Session, which goes from server to server
//	NOTIFY_RESEND puts them in front of the others, marked in their number (dev.c fuse_resend)
//	dead before   the operation          it is done now
//	dead after    and it can be repeated READ, WRITE at its offset, GETATTR and so on: it is done again
//	              and it cannot          Changes: the Backend knows that it was done. Its answer is what is there now, for the kernel
//	                                     holds the directory's lock until it has it
//
// A kernel before 6.9 cannot send again. Then what was read and not answered is EIO: the numbers of requests count up, so all before
// the first that we read are answered, whether somebody waits for them or not.
//
// Handles we have none, node IDs are inode numbers, positions in directories and locks do not depend on us. Only how often the kernel knows an
// inode is lost. It is asked instead, when it forgets one that has no name.
//
// The passthrough rung cannot be taken over: its openTable is lost.

// Session is what has to be known of a mount to go on with it.
type Session struct {
	Flags uint64 `json:"flags"` // what INIT agreed on
}

// Resends reports whether the kernel can send requests again. If not, what was in flight fails when the next request comes.
func (s *Session) Resends() bool { return s.Flags&fuse.CAP_HAS_RESEND != 0 }

// ErrNoResume says that a mount cannot be taken over. Its requests wait until the descriptor is closed.
var ErrNoResume = errors.New("the mount cannot be taken over")

// resent marks the number of a request that was read before, by another server.
const resent = 1 << 63

// resumeConn takes over a connection, and has the kernel send again what was not answered.
func resumeConn(file *os.File, w *wire, o Options) (*conn, error) {
	c := &conn{file: file, fd: int(file.Fd()), flags: o.Resume.Flags}
	switch {
	case o.IO == IOPassthrough:
		return nil, fmt.Errorf("%w: how its files are open is lost", ErrNoResume)
	case w.resumable == nil:
		return nil, fmt.Errorf("%w: nobody knows which requests were executed", ErrNoResume)
	}
	w.known = func(node uint64) bool { return c.InodeNotify(node, -1, 0) != fuse.ENOENT }
	if !o.Resume.Resends() {
		return c, nil
	}
	m := fuse.OutHeader{Length: uint32(outHeaderSize), Status: -fuse.NOTIFY_RESEND} // Unique 0: no reply
	if _, err := unix.Write(c.fd, unsafe.Slice((*byte)(unsafe.Pointer(&m)), outHeaderSize)); err != nil {
		return nil, fmt.Errorf("ask for what was not answered: %w", err)
	}
	return c, nil
}

// failBefore answers EIO to all requests before one that the kernel has queued. Its own number it gives FORGET only when that is read.
func (c *conn) failBefore(h *fuse.InHeader) bool {
	switch h.Opcode {
	case codeForget, codeBatchForget, codeInterrupt:
		return false
	}
	const step = 2 // between two numbers; odd ones are of INTERRUPT (dev.c FUSE_REQ_ID_STEP)
	go func(before uint64) {
		for unique := before; unique > step; {
			unique -= step
			m := fuse.OutHeader{Length: uint32(outHeaderSize), Status: -int32(syscall.EIO), Unique: unique}
			// ENOENT: nobody waits for it.
			if s := c.notify(unsafe.Slice((*byte)(unsafe.Pointer(&m)), outHeaderSize)); s != fuse.OK && s != fuse.ENOENT {
				return // the mount is gone
			}
		}
	}(h.Unique)
	return true
}

// changes returns the Backend for a request that must not be executed twice.
func (w *wire) changes(h *fuse.InHeader) Changes {
	switch unique := h.Unique &^ resent; {
	case w.resumable == nil:
		return w.b
	case unique != h.Unique && w.resumable.Executed(unique):
		return executed{w.b}
	default:
		return w.resumable.Request(unique)
	}
}

// orphaned reports whether an inode has no name.
func (w *wire) orphaned(ino unionfs.Ino) bool {
	a, err := w.b.GetAttr(ino)
	return err == nil && a.Nlink == 0
}

// executed answers for operations that were done before.
type executed struct{ b Backend }

func (e executed) Mknod(dir unionfs.Ino, name string, _ uint32, _ uint64, _ unionfs.Owner) (unionfs.Attr, error) {
	return e.b.Lookup(dir, name)
}

func (e executed) Mkdir(dir unionfs.Ino, name string, _ uint32, _ unionfs.Owner) (unionfs.Attr, error) {
	return e.b.Lookup(dir, name)
}

func (e executed) Symlink(dir unionfs.Ino, name, _ string, _ unionfs.Owner) (unionfs.Attr, error) {
	return e.b.Lookup(dir, name)
}

func (e executed) Link(_, dir unionfs.Ino, name string) (unionfs.Attr, error) {
	return e.b.Lookup(dir, name)
}

func (e executed) Unlink(unionfs.Ino, string) error { return nil }

func (e executed) Rmdir(unionfs.Ino, string) error { return nil }

func (e executed) Rename(unionfs.Ino, string, unionfs.Ino, string, uint32) error { return nil }

func (e executed) SetXattr(unionfs.Ino, string, []byte, uint32) error { return nil }

func (e executed) RemoveXattr(unionfs.Ino, string) error { return nil }
