package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/runtime"
)

// bringUp mounts the tree and starts the process in it, unless somebody wants the container to end before.
//
// A start takes four processes of ours, whose own start-ups it overlaps: the server opens the tree while the container's first process
// is set up, which waits in the kernel where it needs the tree. Either may fail and leaves the other waiting, so what fails first ends
// both, and is what is told.
func (m *monitor) bringUp() (runOutcome, error) {
	ctx, giveUp := context.WithCancelCause(context.Background())
	defer giveUp(nil)
	done := make(chan error, 1)
	go func() { done <- m.start(ctx, giveUp) }()
	for {
		select {
		case err := <-done:
			if cause := context.Cause(ctx); err != nil && cause != nil {
				err = cause
			}
			return startFailure(err), err
		case msg, ok := <-m.asked:
			switch {
			case !ok:
				m.asked = nil
			case endsStart(msg.Signal):
				m.stopStart(giveUp, msg.Signal)
			default:
				m.early = append(m.early, msg.Signal)
			}
		case s := <-m.signals:
			if s == unix.SIGTERM {
				m.stopStart(giveUp, unix.SIGKILL)
			}
		}
	}
}

// startEnded is the cause of a start that was given up because of a signal.
type startEnded struct{ sig syscall.Signal }

func (e *startEnded) Error() string { return fmt.Sprintf("ended by %v before it started", e.sig) }

// endsStart tells which signals say that nobody wants the container any more.
func endsStart(s syscall.Signal) bool {
	return s == unix.SIGINT || s == unix.SIGTERM || s == unix.SIGQUIT || s == unix.SIGHUP
}

// stopStart makes bringUp fail, whatever it waits for: the first process, or an answer of the server.
func (m *monitor) stopStart(giveUp context.CancelCauseFunc, sig syscall.Signal) {
	giveUp(&startEnded{sig})
	m.server.proc.Kill()
	m.fuse.close()
}

// startFailure is the outcome of a container that could not be started.
func startFailure(err error) runOutcome {
	var exec *runtime.ExecError
	var ended *startEnded
	switch {
	case err == nil:
		return runOutcome{}
	case errors.As(err, &ended):
		return runOutcome{exitSignal(ended.sig), err.Error()}
	case errors.As(err, &exec):
		return runOutcome{exec.ExitCode(), err.Error()}
	}
	return runOutcome{exitVeneer, err.Error()}
}

func (m *monitor) start(ctx context.Context, giveUp context.CancelCauseFunc) error {
	if err := m.server.open(m.serverJob()); err != nil {
		return err
	}
	device, err := m.mount()
	if err != nil {
		return err
	}
	created := make(chan error, 1)
	go func() {
		err := m.create(ctx)
		if err != nil {
			giveUp(err)
			m.fuse.close()
		}
		created <- err
	}()
	m.device = device
	if err := m.server.serve(serveJob{Device: device}, m.fuse.file); err != nil {
		giveUp(err)
		m.fuse.close()
		<-created
		return err
	}
	if err := <-created; err != nil {
		return err
	}
	if err := m.guard(); err != nil {
		return err
	}
	if err := m.proc.Start(); err != nil {
		return err
	}
	m.announce()
	return nil
}

// mount mounts the tree in the sandbox; nobody answers yet.
func (m *monitor) mount() (device string, err error) {
	err = m.box.do(func() error {
		fuse, dev, err := mountTree(m.runFile(m.id, "rootfs"))
		if err == nil {
			device, err = dev, m.fuse.set(fuse)
		}
		return err
	})
	return device, err
}

func (m *monitor) serverJob() serverJob {
	return serverJob{
		Places: m.places, Container: m.id, Remove: m.c.Remove,
		Command: m.c.Args, Image: m.c.Image, Manifest: m.c.Manifest, remote: m.c.remote, State: m.file(m.id, "delta"),
		Session: m.session, IO: m.c.IO, Storage: m.c.Storage, Latency: m.c.Latency, Stats: m.c.Stats, Before: m.job.Before,
	}
}

// create makes the container up to the point before exec.
func (m *monitor) create(ctx context.Context) error {
	spec := newSpec(m.places, m.c, m.job.Width, m.job.Height)
	m.spec = spec
	o := runtime.CreateOptions{
		ID: m.id, Bundle: m.container(m.id), Spec: spec, Root: spec.Root.Path, CgroupPath: cgroupPath(m.id), Log: m.log,
		Stdin: m.streams[0], Stdout: m.streams[1], Stderr: m.streams[2],
	}
	var err error
	if m.c.Detached {
		if m.output, err = newOutputLog(m.file(m.id, "log"), &o); err != nil {
			return err
		}
	}
	err = m.box.do(func() (err error) {
		if err := writeNetworkFiles(m.places, m.c); err != nil {
			return err
		}
		m.proc, err = runtime.Create(ctx, o)
		return err
	})
	if m.output != nil {
		m.output.begin(err == nil, m.proc)
	}
	return err
}

// guard records the process before it runs, here and with the server, which ends it should we die. Should both, then who looks next finds
// it as running, and ends it.
func (m *monitor) guard() error {
	id, err := identify(m.proc.Pid())
	if err != nil {
		return err
	}
	m.state.Process, m.state.Status, m.state.Started = id, statusRunning, time.Now().UTC()
	if err := m.guardWith(m.server); err != nil {
		return err
	}
	m.noteServer()
	return m.saveState(m.id, &m.state)
}

// guardWith has a server end the process should we die.
func (m *monitor) guardWith(s *serverClient) error {
	pidfd, err := unix.PidfdOpen(m.proc.Pid(), 0)
	if err != nil {
		return fmt.Errorf("open process %d: %w", m.proc.Pid(), err)
	}
	f := os.NewFile(uintptr(pidfd), "pidfd")
	defer f.Close()
	return s.guard(f)
}

// noteServer records who serves.
func (m *monitor) noteServer() {
	m.state.Server, _ = identify(m.server.proc.Pid) // nobody, if it is dead again
	m.state.IO = m.server.says.IO
}

// announce tells the command line that the process runs.
func (m *monitor) announce() {
	m.ran = true
	var files []*os.File
	if console := m.proc.Console(); console != nil && !m.c.Detached {
		files = append(files, console)
	}
	if err := m.cli.send(fromMonitor{Started: true}, files...); err != nil {
		m.log.Debug("the command line is gone", "err", err)
	}
}

// fuseHandle is a /dev/fuse descriptor that may be closed at any time.
type fuseHandle struct {
	mu     sync.Mutex
	file   *os.File // guarded by mu until set returns
	closed bool     // guarded by mu
}

// set keeps f, or closes it if it comes too late.
func (h *fuseHandle) set(f *os.File) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.file = f
	if h.closed {
		f.Close()
		return os.ErrClosed
	}
	return nil
}

func (h *fuseHandle) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed && h.file != nil {
		h.file.Close()
	}
	h.closed = true
}
