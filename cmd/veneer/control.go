package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// maxMessage bounds one message. What may be longer (a container's environment) travels in files.
const maxMessage = 64 << 10 // bytes

// A link is one end of the socket between two of our processes: the command line and the monitor, the monitor and the
// server, mount and the server. It carries one JSON value a message, with descriptors. Its end tells each side that
// the other is dead: nothing else holds an end, and every descriptor is closed on exec.
type link struct {
	conn *net.UnixConn
}

// newLink makes both ends. far is for the child's ExtraFiles; the caller closes it once the child runs.
func newLink() (near *link, far *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a control socket: %w", err)
	}
	far = os.NewFile(uintptr(fds[1]), "control")
	near, err = openLink(fds[0])
	if err != nil {
		far.Close()
		return nil, nil, err
	}
	return near, far, nil
}

// openLink takes over descriptor fd, an end that was inherited.
func openLink(fd int) (*link, error) {
	f := os.NewFile(uintptr(fd), "control")
	defer f.Close() // FileConn has its own duplicate
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("open the control socket: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("open the control socket: descriptor %d is not a unix socket", fd)
	}
	return &link{u}, nil
}

func (l *link) Close() error { return l.conn.Close() }

// send sends m with files, which stay the caller's. Concurrent sends do not mix.
func (l *link) send(m any, files ...*os.File) error {
	p, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(p) > maxMessage {
		return fmt.Errorf("send a control message of %d bytes: the limit is %d", len(p), maxMessage)
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			if err := withFD(f, func(fd int) error { fds[i] = fd; return nil }); err != nil {
				return err
			}
		}
		oob = unix.UnixRights(fds...)
	}
	_, _, err = l.conn.WriteMsgUnix(p, oob, nil)
	return err
}

// recv receives the next message into m, and the descriptors that came with it. The error is io.EOF when the other
// side is gone. Only one goroutine may receive.
func (l *link) recv(m any) ([]*os.File, error) {
	p, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(8*4))
	n, oobn, flags, _, err := l.conn.ReadMsgUnix(p, oob)
	if errors.Is(err, unix.ECONNRESET) {
		// It ended with a message of ours unread. The kernel says so once, ahead of what it had sent before.
		n, oobn, flags, _, err = l.conn.ReadMsgUnix(p, oob)
	}
	if err != nil {
		return nil, err
	}
	files, err := rights(oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("receive a control message: longer than %d bytes", maxMessage)
	}
	if err == nil {
		err = json.Unmarshal(p[:n], m)
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

// rights takes the descriptors out of a message's ancillary data.
func rights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // other ancillary data
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
