package runtime

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// The conversation of parent and set-up child. Each message is a header of 5 bytes (type, length of the body as
// little-endian uint32) and the body.
//
//	parent                child
//	  ── config ────────▶             initConfig as JSON
//	  ── cgroup ────────▶             the child is in its cgroup
//	             ◀── mounted ──       root is assembled, not yet pivoted (only when there are hooks to run now)
//	  ── hooks ─────────▶             prestart and createRuntime hooks are done
//	             ◀── console ──       the pty's master as SCM_RIGHTS (only with a terminal)
//	             ◀── ready ────       everything before exec is done
//	  ── start ─────────▶
//	             ◀── exec ─────       about to call execve
//	             ◀── (EOF) ────       execve succeeded; or the child died, if no exec came before
//
// In place of any of its messages the child may send failure and exit.
type msgType byte

const (
	msgConfig msgType = iota + 1
	msgCgroup
	msgMounted
	msgHooks
	msgConsole
	msgReady
	msgStart
	msgExec
	msgFailure
)

// maxMessage bounds the body of a message, bytes. The largest is the configuration.
const maxMessage = 64 << 20

const headerSize = 5

// failure is how the child reports an error. Errno lets the parent rebuild the chain for errors.Is.
type failure struct {
	Step  string
	Text  string
	Errno unix.Errno
	Exec  bool // execve of the user's process, or the search for it, failed
}

func newFailure(step string, err error) failure {
	f := failure{Step: step, Text: err.Error()}
	errors.As(err, &f.Errno)
	return f
}

// remoteError is an error of the child in the parent: its text and, if it had one, its errno.
type remoteError struct {
	text  string
	errno unix.Errno
}

func (e *remoteError) Error() string { return e.text }

func (e *remoteError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

func (f failure) err() error {
	remote := &remoteError{f.Text, f.Errno}
	if f.Exec {
		return &ExecError{Err: remote}
	}
	return &SetupError{Step: f.Step, Err: remote}
}

// childError makes an error of a message that is not the one that should come.
func childError(t msgType, body []byte) error {
	if t != msgFailure {
		return fmt.Errorf("hear from the first process: unexpected message %d", t)
	}
	var f failure
	if err := json.Unmarshal(body, &f); err != nil {
		return fmt.Errorf("hear from the first process: %w", err)
	}
	return f.err()
}

// conn is one end of the socket pair. Parent: a non-blocking descriptor with deadlines. Child: a blocking one.
type conn struct{ f *os.File }

// socketpair returns the parent's end, and the child's end to be passed on. Both are close-on-exec.
func socketpair() (parent conn, child *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return conn{}, nil, fmt.Errorf("make the socket pair: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return conn{}, nil, fmt.Errorf("make the socket pair: %w", err)
	}
	return conn{os.NewFile(uintptr(fds[0]), "container-sync")}, os.NewFile(uintptr(fds[1]), "container-sync-child"), nil
}

func (c conn) send(t msgType, body []byte) error {
	msg := make([]byte, headerSize, headerSize+len(body))
	msg[0] = byte(t)
	binary.LittleEndian.PutUint32(msg[1:], uint32(len(body)))
	_, err := c.f.Write(append(msg, body...))
	return err
}

func (c conn) sendJSON(t msgType, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	return c.send(t, body)
}

// sendFile sends a message without body and with a descriptor. Child's end only.
func (c conn) sendFile(t msgType, f *os.File) error {
	header := [headerSize]byte{byte(t)}
	return unix.Sendmsg(int(c.f.Fd()), header[:], unix.UnixRights(int(f.Fd())), nil, 0)
}

// receive returns the next message. io.EOF means that the peer is gone. file is nil unless one was sent.
func (c conn) receive() (t msgType, body []byte, file *os.File, err error) {
	var header [headerSize]byte
	file, err = c.receiveHeader(header[:])
	if err != nil {
		return 0, nil, nil, err
	}
	n := binary.LittleEndian.Uint32(header[1:])
	if n > maxMessage {
		return 0, nil, file, fmt.Errorf("message of %d bytes", n)
	}
	body = make([]byte, n)
	if _, err := io.ReadFull(c.f, body); err != nil {
		return 0, nil, file, fmt.Errorf("read message: %w", err)
	}
	return msgType(header[0]), body, file, nil
}

// receiveHeader fills header, and takes a descriptor that came with it.
func (c conn) receiveHeader(header []byte) (file *os.File, err error) {
	raw, err := c.f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var n, oobn int
	var recvErr error
	oob := make([]byte, unix.CmsgSpace(4))
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, _, _, recvErr = unix.Recvmsg(int(fd), header, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_WAITALL)
			if recvErr != unix.EINTR {
				return recvErr != unix.EAGAIN
			}
		}
	})
	if err == nil {
		err = recvErr
	}
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	if file, err = fileFromOOB(oob[:oobn]); err != nil {
		return nil, err
	}
	if n < len(header) {
		if _, err := io.ReadFull(c.f, header[n:]); err != nil {
			return file, fmt.Errorf("read message: %w", err)
		}
	}
	return file, nil
}

func fileFromOOB(oob []byte) (*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil || len(fds) == 0 {
			continue
		}
		// Non-blocking, so that the runtime's poller serves it: Close then ends a Read that waits.
		if err := unix.SetNonblock(fds[0], true); err != nil {
			unix.Close(fds[0])
			return nil, err
		}
		return os.NewFile(uintptr(fds[0]), "console"), nil
	}
	return nil, nil
}
