package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fs"
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
//	server         the monitor starts another one, which goes on (monitor_takeover.go); where that cannot be, it kills the
//	               process: exit 125
//	monitor        the server kills the process and records the end (server.settle)
//	both           who next takes the container's lock settles it (state.go)
type monitor struct {
	places
	id      string
	c       *container
	job     monitorJob
	log     *slog.Logger
	cli     *link
	asked   chan toMonitor // what the command line says; closed when it is gone
	lock    *os.File       // held until the process ends
	streams [3]*os.File    // of the command line, or /dev/null

	box    *sandbox
	server *serverClient
	args   []string // of the server
	device string   // MAJ:MIN of the mount
	// session of the writable layer; 0 if no server takes over from another one.
	session uint64
	proc    *runtime.Container
	output  *outputLog  // with -d
	spec    *specs.Spec // of the process; nil once it is written down
	state   state
	ran     bool // the process, as opposed to what was to become it

	// fuse is the mount's /dev/fuse. With the server dead, requests wait until it is closed.
	fuse  fuseHandle
	early []syscall.Signal // came before the process ran

	signals chan os.Signal
}

func monitorMain(args []string) int {
	if len(args) != 5 {
		fmt.Fprintln(os.Stderr, "veneer: monitor: not for use by hand")
		return exitVeneer
	}
	unix.Umask(0o022)
	m := &monitor{
		places: places{args[1], args[2]}, id: args[3],
		lock:    inherited(monitorLock, "lock"),
		streams: [3]*os.File{inherited(monitorStdin, "stdin"), inherited(monitorStdout, "stdout"), inherited(monitorStderr, "stderr")},
		asked:   make(chan toMonitor),
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
	var err error
	m.args = []string{name, m.run(m.id), level}
	if m.server, err = newServer(m.args, m.lock, os.Stderr, m.streams[2]); err != nil {
		m.discard(&container{ID: m.id, Name: name})
		return m.report(runOutcome{exitVeneer, fmt.Sprintf("start the file server: %v", err)})
	}
	m.box = newSandbox()
	isolated := m.box.begin(func() error { return isolate(m.run(m.id)) })
	go m.listen()
	if !m.awaitJob() {
		m.discard(&container{ID: m.id, Name: name})
		return 0
	}
	if m.c, err = m.load(m.id); err == nil {
		err = <-isolated
	}
	if err != nil {
		m.clearUp()
		<-m.server.ended
		return m.report(runOutcome{exitVeneer, err.Error()})
	}
	if m.c.IO != fs.IOPassthrough {
		m.session = rand.Uint64() | 1
	}
	return m.report(m.live())
}

// listen hears the command line until it is gone.
func (m *monitor) listen() {
	defer close(m.asked)
	for {
		var msg toMonitor
		if _, err := m.cli.recv(&msg); err != nil {
			return
		}
		m.asked <- msg
	}
}

// awaitJob is false if the command line ended before it had one.
func (m *monitor) awaitJob() bool {
	for {
		select {
		case msg := <-m.asked:
			if msg.Job != nil {
				m.job = *msg.Job
			}
			return msg.Job != nil
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
	}
	switch err := m.clearUp(); {
	case err == nil || out.Message != "":
	case errors.Is(err, errServerDied): // the process had all its answers
		m.log.Warn("the file server died at the end; what the container wrote is kept")
	default:
		out = runOutcome{exitVeneer, err.Error()}
	}
	m.record(out)
	<-m.server.ended
	return out
}

// attend stays until the process has ended, or the server under it and no other one can go on.
func (m *monitor) attend() runOutcome {
	for _, sig := range m.early {
		m.pass(sig)
	}
	settled := time.After(specDelay)
	exited := make(chan runOutcome, 1)
	go func() {
		st, err := m.proc.Wait()
		if err != nil {
			exited <- runOutcome{exitVeneer, err.Error()}
			return
		}
		exited <- runOutcome{Code: st.ExitCode()}
	}()
	heirs := &heirs{monitor: m, died: m.server.died}
	for {
		select {
		case out := <-exited:
			heirs.settle()
			return out
		case <-heirs.died:
			heirs.look()
		case s := <-heirs.next:
			if heirs.take(s) {
				continue
			}
			m.proc.Kill()
			m.fuse.close() // who waits in the kernel for an answer of the dead server wakes up, to die
			<-exited
			return serverDied
		case <-settled:
			m.keepSpec()
		case msg, ok := <-m.asked:
			if ok {
				m.pass(msg.Signal)
				continue
			}
			m.asked = nil
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

// specDelay is when config.json is written: nobody waits for it, and encoding it takes a tenth of the monitor's part in a start.
const specDelay = 100 * time.Millisecond

// keepSpec writes down what the process was started with.
func (m *monitor) keepSpec() {
	if m.spec == nil {
		return
	}
	if err := writeJSON(m.file(m.id, "config.json"), m.spec); err != nil {
		m.log.Error("keep the configuration", "err", err)
	}
	m.spec = nil
}

var serverDied = runOutcome{exitVeneer, "the file server died; what the container wrote is kept"}

func (m *monitor) pass(sig syscall.Signal) {
	if sig == 0 {
		return
	}
	if err := m.proc.Signal(sig); err != nil {
		m.log.Debug("signal", "err", err)
	}
}

// clearUp ends all that was begun: process, cgroup, output, mount, server.
func (m *monitor) clearUp() error {
	if m.proc != nil {
		m.proc.Kill()
		m.proc.Wait()
		if m.output != nil {
			m.output.finish()
		}
	}
	deleted := make(chan error, 1)
	go func() { // the kernel takes its time with cgroups
		if m.proc == nil {
			deleted <- nil
			return
		}
		deleted <- m.proc.Delete()
	}()
	// The namespace ends with its thread, and the mount with it; taking it away first also ends it if something of the
	// container should still hold the namespace.
	m.box.do(func() error { return unix.Unmount(m.runFile(m.id, "rootfs"), unix.MNT_DETACH) })
	m.box.end()
	m.fuse.close()
	err := m.server.wait(m.signals)
	return errors.Join(err, <-deleted)
}

// record writes down how it ended. The state of a container whose process never ran is created, as Docker has it.
func (m *monitor) record(out runOutcome) {
	if m.c.Remove {
		if err := m.discard(m.c); err != nil {
			m.log.Error("remove the container", "err", err)
		}
		return
	}
	m.keepSpec()
	code := out.Code
	if out == serverDied {
		code = exitKilled
	}
	m.state.exited(code, out.Message)
	if !m.ran {
		m.state.Status, m.state.Finished = statusCreated, time.Time{}
	}
	if err := m.saveState(m.id, &m.state); err != nil {
		m.log.Error("record the end", "err", err)
	}
	if err := m.removeRun(m.id); err != nil {
		m.log.Error("clean up", "err", err)
	}
}

// report tells the command line the end.
func (m *monitor) report(out runOutcome) int {
	m.log.Debug("end", "code", out.Code, "message", out.Message)
	if err := m.cli.send(fromMonitor{Exit: &out}); err != nil {
		m.log.Debug("the command line is gone", "err", err)
	}
	return 0
}

func inherited(fd int, name string) *os.File {
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}
