package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	goruntime "runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/runtime"
)

// monitor brings one container up, stays while it runs, and clears up after it.
//
//	command line ──starts──▶ monitor ──starts──▶ server
//	                            │ sandbox: one OS thread in its own mount namespace
//	                            └──clones──▶ the container's process
//
// Who dies:
//
//	command line   the container goes on; a terminal's output is read and dropped
//	process        the monitor unmounts, waits for the server, records the end
//	server         the monitor kills the process: exit 125
//	monitor        the server kills the process and records the end (server_orphan.go)
//	both           who next takes the container's lock settles it (state.go)
type monitor struct {
	places
	id      string
	c       *container
	job     monitorJob
	log     *slog.Logger
	cli     *link
	lock    *os.File
	streams [3]*os.File // of the command line, or /dev/null

	box    *sandbox
	server *serverClient
	fuse   *os.File // with the server dead, requests wait until it is closed
	proc   *runtime.Container
	output *outputLog // with -d
	state  state

	signals chan os.Signal
}

func monitorMain(args []string) int {
	// The main thread never ends: what is on it must not be the sandbox, whose end ends the mount.
	goruntime.LockOSThread()
	if len(args) != 5 {
		fmt.Fprintln(os.Stderr, "veneer: monitor: not for use by hand")
		return exitVeneer
	}
	unix.Umask(0o022)
	m := &monitor{
		places: places{args[1], args[2]}, id: args[3],
		lock:    inherited(monitorLock, "lock"),
		streams: [3]*os.File{inherited(monitorStdin, "stdin"), inherited(monitorStdout, "stdout"), inherited(monitorStderr, "stderr")},
		signals: make(chan os.Signal, 16),
		state:   state{Status: statusCreated},
	}
	m.log = newLog(args[4], "monitor", m.streams[2])
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE)
	signal.Notify(m.signals, unix.SIGTERM, unix.SIGUSR1)
	var err error
	if m.cli, err = openLink(monitorControl); err != nil {
		m.log.Error("start", "err", err)
		return exitVeneer
	}
	return m.main(args[0], args[4])
}

// main returns the exit status of the monitor, which only tells whether it did its own work.
func (m *monitor) main(name, level string) int {
	m.box = newSandbox()
	var err error
	if m.server, err = newServer([]string{name, m.run(m.id), level}, m.lock, os.Stderr, m.streams[2]); err != nil {
		m.discard(&container{ID: m.id, Name: name})
		return m.report(runOutcome{exitVeneer, fmt.Sprintf("start the file server: %v", err)})
	}
	isolated := m.box.begin(isolate)
	if !m.awaitJob() {
		m.discard(&container{ID: m.id, Name: name})
		return 0
	}
	if m.c, err = m.load(m.id); err == nil {
		err = <-isolated
	}
	if err != nil {
		m.clearUp()
		return m.report(runOutcome{exitVeneer, err.Error()})
	}
	return m.report(m.live())
}

// awaitJob is false if the command line ended before it had one.
func (m *monitor) awaitJob() bool {
	jobs := make(chan *monitorJob, 1)
	go func() {
		var msg toMonitor
		if _, err := m.cli.recv(&msg); err != nil {
			msg.Job = nil
		}
		jobs <- msg.Job
	}()
	for {
		select {
		case job := <-jobs:
			if job != nil {
				m.job = *job
			}
			return job != nil
		case s := <-m.signals:
			if s == unix.SIGTERM {
				return false
			}
		}
	}
}

// live runs the container from its mount to its end, and leaves nothing of it but what is kept.
func (m *monitor) live() runOutcome {
	out, err := m.bringUp()
	if err == nil {
		out = m.attend()
	} else {
		out = startFailure(err)
	}
	if err := m.clearUp(); err != nil && out.Message == "" {
		out = runOutcome{exitVeneer, err.Error()}
	}
	m.record(out)
	return out
}

// bringUp mounts the tree and starts the process in it.
func (m *monitor) bringUp() (out runOutcome, err error) {
	if err := m.mount(); err != nil {
		return out, err
	}
	if err := m.create(); err != nil {
		return out, err
	}
	if err := m.proc.Start(); err != nil {
		return out, err
	}
	m.state.Status, m.state.Started = statusRunning, time.Now().UTC()
	if err := m.saveState(m.id, &m.state); err != nil {
		return out, err
	}
	var files []*os.File
	if console := m.proc.Console(); console != nil && !m.c.Detached {
		files = append(files, console)
	}
	if err := m.cli.send(fromMonitor{Started: true}, files...); err != nil {
		m.log.Debug("the command line is gone", "err", err)
	}
	return out, nil
}

// mount mounts the tree in the sandbox and has the server answer for it.
func (m *monitor) mount() error {
	if err := m.server.open(m.serverJob()); err != nil {
		return err
	}
	var device string
	err := m.box.do(func() (err error) {
		m.fuse, device, err = mountTree(m.runFile(m.id, "rootfs"))
		return err
	})
	if err != nil {
		return err
	}
	return m.server.serve(device, m.fuse)
}

// create makes the container up to the point before exec, and tells the server whom to kill should we die.
func (m *monitor) create() error {
	var root *os.File
	err := m.box.do(func() (err error) {
		root, err = os.OpenFile(m.runFile(m.id, "rootfs"), unix.O_PATH|unix.O_DIRECTORY, 0)
		return err
	})
	if err != nil {
		return err
	}
	spec, err := newSpec(m.places, m.c, root, m.job.Width, m.job.Height)
	root.Close()
	if err != nil {
		return err
	}
	if err := writeJSON(m.file(m.id, "config.json"), spec); err != nil {
		return err
	}
	o := runtime.CreateOptions{
		ID: m.id, Bundle: m.container(m.id), Spec: spec, Root: spec.Root.Path, CgroupPath: cgroupPath(m.id), Log: m.log,
		Stdin: m.streams[0], Stdout: m.streams[1], Stderr: m.streams[2],
	}
	if m.c.Detached {
		if m.output, err = newOutputLog(m.file(m.id, "log"), &o); err != nil {
			return err
		}
	}
	err = m.box.do(func() (err error) {
		m.proc, err = runtime.Create(context.Background(), o)
		return err
	})
	if m.output != nil {
		m.output.begin(err == nil, m.proc)
	}
	if err != nil {
		return err
	}
	return m.guard()
}

// guard records the process before it runs, here and with the server.
func (m *monitor) guard() error {
	id, err := identify(m.proc.Pid())
	if err != nil {
		return err
	}
	m.state.Process = id
	pidfd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil {
		return fmt.Errorf("open process %d: %w", id.PID, err)
	}
	f := os.NewFile(uintptr(pidfd), "pidfd")
	defer f.Close()
	if err := m.server.guard(f); err != nil {
		return err
	}
	return m.saveState(m.id, &m.state)
}

// attend stays until the process, or the server under it, has ended.
func (m *monitor) attend() runOutcome {
	exited := make(chan runOutcome, 1)
	go func() {
		st, err := m.proc.Wait()
		if err != nil {
			exited <- runOutcome{exitVeneer, err.Error()}
			return
		}
		exited <- runOutcome{Code: st.ExitCode()}
	}()
	gone := make(chan struct{})
	go m.listen(gone)
	for {
		select {
		case out := <-exited:
			select {
			case <-m.server.died:
				return serverDied
			default:
				return out
			}
		case <-m.server.died:
			m.proc.Kill()
			m.fuse.Close() // who waits in the kernel for an answer of the dead server wakes up, to die
			<-exited
			return serverDied
		case <-gone:
			gone = nil
			if m.proc.Console() != nil && !m.c.Detached {
				go drain(m.proc.Console())
			}
		case s := <-m.signals:
			if s == unix.SIGUSR1 {
				m.server.proc.Signal(unix.SIGUSR1)
			} else {
				m.proc.Kill()
			}
		}
	}
}

var serverDied = runOutcome{exitVeneer, "the file server died; what the container wrote is kept"}

// listen passes the command line's signals on until it is gone.
func (m *monitor) listen(gone chan<- struct{}) {
	defer close(gone)
	for {
		var msg toMonitor
		if _, err := m.cli.recv(&msg); err != nil {
			return
		}
		if msg.Signal != 0 {
			if err := m.proc.Signal(msg.Signal); err != nil {
				m.log.Debug("signal", "err", err)
			}
		}
	}
}

func (m *monitor) serverJob() serverJob {
	return serverJob{
		Places: m.places, Container: m.id, Remove: m.c.Remove,
		Image: m.c.Image, Manifest: m.c.Manifest, PlainHTTP: m.c.PlainHTTP, State: m.file(m.id, "delta"),
		IO: m.c.IO, Stats: m.c.Stats, Before: m.job.Before,
	}
}

// clearUp ends all that was begun: process, cgroup, output, mount, server.
func (m *monitor) clearUp() error {
	var errs []error
	if m.proc != nil {
		m.proc.Kill()
		m.proc.Wait()
		if m.output != nil {
			m.output.finish()
		}
		errs = append(errs, m.proc.Delete())
	}
	// The namespace ends with its thread, and the mount with it; taking it away first also ends it if something of the
	// container should still hold the namespace.
	m.box.do(func() error { return unix.Unmount(m.runFile(m.id, "rootfs"), unix.MNT_DETACH) })
	m.box.end()
	if m.fuse != nil {
		m.fuse.Close()
	}
	errs = append(errs, m.server.wait(m.signals))
	return errors.Join(errs...)
}

// record writes down how it ended. The state of a container whose process never ran stays created, as Docker has it.
func (m *monitor) record(out runOutcome) {
	code := out.Code
	if out == serverDied {
		code = exitKilled
	}
	ran := m.state.Status == statusRunning
	m.state.exited(code, out.Message)
	if !ran {
		m.state.Status, m.state.Finished = statusCreated, time.Time{}
	}
	if m.c.Remove {
		if err := m.discard(m.c); err != nil {
			m.log.Error("remove the container", "err", err)
		}
		return
	}
	if err := m.saveState(m.id, &m.state); err != nil {
		m.log.Error("record the end", "err", err)
	}
	m.unlock(m.id, m.lock)
}

// report tells the command line the end.
func (m *monitor) report(out runOutcome) int {
	m.log.Debug("end", "code", out.Code, "message", out.Message)
	if err := m.cli.send(fromMonitor{Exit: &out}); err != nil {
		m.log.Debug("the command line is gone", "err", err)
	}
	return 0
}

// startFailure is the outcome of a container that could not be started.
func startFailure(err error) runOutcome {
	var exec *runtime.ExecError
	if errors.As(err, &exec) {
		return runOutcome{exec.ExitCode(), err.Error()}
	}
	return runOutcome{exitVeneer, err.Error()}
}

func inherited(fd int, name string) *os.File {
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}
