package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// drainLimit bounds the wait for the last output of a terminal whose container has ended. Nobody is left to write
// to it, unless the process has passed its terminal on to one outside.
const drainLimit = 10 * time.Second

// attachment joins the streams of the command line with those of a container's process.
//
//	-d            the process has /dev/null and the log
//	foreground    the process has our own descriptors; nothing is copied
//	-t            the process has a pty; once it runs we hold the master, and so does the monitor, which reads it
//	              when we are gone
type attachment struct {
	stdin, stdout *os.File
	null          *os.File
	streams       [3]*os.File // for the process, or as placeholders

	interactive bool
	master      *os.File      // the pty; nil without
	cooked      *unix.Termios // our terminal's modes before raw mode; nil if it was not changed
	copied      chan struct{} // closed when the pty's output has been copied
	restoreOnce sync.Once
}

// attach opens what c needs of our streams.
func (a *app) attach(c *container) (*attachment, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	at := &attachment{stdin: a.stdin, stdout: os.Stdout, null: null, interactive: c.Stdin && !c.Detached}
	at.streams = [3]*os.File{null, null, null}
	if c.Detached {
		return at, nil
	}
	at.streams[2] = os.Stderr
	if !c.TTY {
		at.streams[1] = os.Stdout
		if c.Stdin {
			at.streams[0] = a.stdin
		}
	}
	return at, nil
}

// checkTerminal refuses -it without a terminal, as Docker does.
func (f *runFlags) checkTerminal(stdin *os.File) error {
	if f.tty && f.interactive && !f.detach && !isTerminal(stdin) {
		return errors.New("the input device is not a TTY")
	}
	return nil
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// terminal takes over the pty's master and copies between it and our streams.
func (at *attachment) terminal(master *os.File) error {
	at.master = master
	at.resize()
	if at.interactive {
		if err := at.setRaw(); err != nil {
			return err
		}
		go func() {
			defer at.restoreOnPanic()
			io.Copy(master, at.stdin)
		}()
	}
	at.copied = make(chan struct{})
	go func() {
		defer at.restoreOnPanic()
		defer close(at.copied)
		io.Copy(at.stdout, master) // ends with EIO when the last process has closed the terminal
	}()
	return nil
}

// setRaw makes our terminal pass everything on, as cfmakeraw(3) does: the container's own terminal does what is to be done
// with lines, echo and keys. (containerd/console leaves OPOST on, which adds a second carriage return.)
func (at *attachment) setRaw() error {
	fd := int(at.stdin.Fd())
	modes, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("read the terminal's modes: %w", err)
	}
	before := *modes
	modes.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	modes.Oflag &^= unix.OPOST
	modes.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	modes.Cflag = modes.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	modes.Cc[unix.VMIN], modes.Cc[unix.VTIME] = 1, 0
	at.cooked = &before
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, modes); err != nil {
		return fmt.Errorf("set the terminal's modes: %w", err)
	}
	return nil
}

// size returns the size of our terminal, 0 without one.
func (at *attachment) size() (width, height uint16) {
	for _, f := range []*os.File{at.stdin, at.stdout} {
		if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			return ws.Col, ws.Row
		}
	}
	return 0, 0
}

// resize gives the pty the size of our terminal.
func (at *attachment) resize() {
	if w, h := at.size(); at.master != nil && w != 0 {
		withFD(at.master, func(fd int) error {
			return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: w, Row: h})
		})
	}
}

// finish waits for the last output of a container that has ended, and restores our terminal.
func (at *attachment) finish() {
	if at.copied != nil {
		at.master.SetReadDeadline(time.Now().Add(drainLimit))
		<-at.copied
	}
	at.restore()
}

// restore puts our terminal back into the mode it was in.
func (at *attachment) restore() {
	at.restoreOnce.Do(func() {
		if at.cooked != nil {
			// Not TCSETSW: it would wait behind a writer to a terminal that nobody reads (TestHangUpLeavesTheContainerRunning).
			unix.IoctlSetTermios(int(at.stdin.Fd()), unix.TCSETS, at.cooked)
		}
	})
}

func (at *attachment) restoreOnPanic() {
	if r := recover(); r != nil {
		at.restore()
		panic(r)
	}
}

// withFD calls do with f's descriptor, which stays in the mode it is in.
func withFD(f *os.File, do func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	e := c.Control(func(fd uintptr) { err = do(int(fd)) })
	return errors.Join(e, err)
}
