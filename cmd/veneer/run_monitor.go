package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	goruntime "runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/runtime/spawn"
)

// What the command line and a monitor say to each other. The first message is a job; the end of the socket before it means that
// there will be none.
type (
	toMonitor struct {
		Job    *monitorJob    `json:"job,omitempty"`
		Signal syscall.Signal `json:"signal,omitempty"` // pass on to the process
	}
	fromMonitor struct {
		Started bool        `json:"started,omitempty"` // the process runs; with -t the pty's master comes along
		Exit    *runOutcome `json:"exit,omitempty"`    // all is over and cleaned up; the last message
	}
	// monitorJob is what container.json does not tell.
	monitorJob struct {
		Before        before
		Width, Height uint16 // of the terminal
	}
	// runOutcome is how run ends: with a status and, when it is not the process's own, a message.
	runOutcome struct {
		Code    int    `json:"code"`
		Message string `json:"message,omitempty"`
	}
)

// The descriptors that a monitor inherits.
const (
	monitorControl = 3 + iota
	monitorLock
	monitorStdin // the process's standard streams, unless they are a log or a terminal
	monitorStdout
	monitorStderr // also for warnings while the command line is there
)

// monitorClient is the command line's view of a monitor.
type monitorClient struct {
	app  *app
	c    *container
	at   *attachment
	link *link
	proc *spawn.Process
}

// newMonitor claims the container's ID and name, and starts its monitor.
func (a *app) newMonitor(c *container, at *attachment) (*monitorClient, error) {
	p := a.places()
	made, lock, err := p.claim(c.Name)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	c.ID, c.Name, c.Created = made.ID, made.Name, made.Created
	m := &monitorClient{app: a, c: c, at: at}
	if err := m.start(lock); err != nil {
		p.discard(c)
		return nil, fmt.Errorf("start the monitor: %w", err)
	}
	return m, nil
}

func (m *monitorClient) start(lock *os.File) error {
	p := m.app.places()
	near, far, err := newLink()
	if err != nil {
		return err
	}
	defer far.Close()
	log, err := os.OpenFile(p.file(m.c.ID, "veneer.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		near.Close()
		return err
	}
	defer log.Close()
	null := m.at.null
	files := []*os.File{null, null, log, far, lock}
	files = append(files, m.at.streams[:]...)
	m.proc, err = reexec(roleMonitor, []string{m.c.Name, p.Root, p.RunRoot, m.c.ID, m.app.logLevel}, files)
	if err != nil {
		near.Close()
		return err
	}
	m.link = near
	// Who wants the container gone before its process exists finds the monitor here. It ends with us if this fails.
	id, err := identify(m.proc.Pid)
	if err == nil {
		err = json.NewEncoder(lock).Encode(id)
	}
	if err != nil {
		m.abandon()
	}
	return err
}

// abandon ends a monitor that has no job yet; it removes the container.
func (m *monitorClient) abandon() {
	m.link.Close()
	m.proc.Wait()
}

// follow gives the monitor its job and stays until the container ends; with -d, until its process has started.
func (m *monitorClient) follow(job monitorJob) error {
	job.Width, job.Height = m.at.size()
	signals := make(chan os.Signal, 64)
	defer signal.Stop(signals)
	signal.Notify(signals, commonSignals...)
	goruntime.GOMAXPROCS(1) // from here on we only pass things on
	if err := m.link.send(toMonitor{Job: &job}); err != nil {
		return m.lost(err)
	}
	events := make(chan monitorEvent)
	go m.listen(events)
	for {
		select {
		case s := <-signals:
			if err := m.signal(s); err != nil {
				return err
			}
		case e := <-events:
			switch {
			case e.err != nil:
				return m.lost(e.err)
			case e.Exit != nil:
				m.at.finish()
				return e.Exit.err()
			case e.Started && m.c.Detached:
				fmt.Fprintln(m.app.stdout, m.c.ID)
				return nil
			case e.Started:
				others := time.AfterFunc(othersDelay, func() { signal.Notify(signals) })
				defer others.Stop()
				if len(e.files) > 0 {
					if err := m.at.terminal(e.files[0]); err != nil {
						return err
					}
				}
			}
		}
	}
}

// commonSignals are caught from the beginning, the others of sixty once the process has run for a moment: to catch one takes Go two
// switches of threads, and all of them take more than the rest of what the command line does.
var commonSignals = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT, unix.SIGWINCH, unix.SIGALRM, unix.SIGTSTP,
}

const othersDelay = 100 * time.Millisecond

type monitorEvent struct {
	fromMonitor
	files []*os.File
	err   error
}

func (m *monitorClient) listen(events chan<- monitorEvent) {
	for {
		var e monitorEvent
		e.files, e.err = m.link.recv(&e.fromMonitor)
		events <- e
		if e.err != nil || e.Exit != nil {
			return
		}
	}
}

// signal passes a signal on. Those that tell the command line something about itself, or that the Go runtime sends itself,
// are not for the process.
func (m *monitorClient) signal(s os.Signal) error {
	switch s {
	case unix.SIGCHLD, unix.SIGPIPE, unix.SIGURG:
		return nil
	case unix.SIGWINCH:
		m.at.resize()
		if m.c.TTY {
			return nil
		}
	case unix.SIGHUP:
		if m.c.TTY { // our terminal is gone; the process has its own, which the monitor keeps
			return &exitError{exitSignal(unix.SIGHUP), nil}
		}
	}
	if err := m.link.send(toMonitor{Signal: s.(syscall.Signal)}); err != nil {
		return nil // it is ending; listen will tell
	}
	return nil
}

// lost says what happened when the monitor ended without a last word, after its server has brought the container to its end.
func (m *monitorClient) lost(err error) error {
	if !errors.Is(err, io.EOF) && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("listen to the monitor: %w", err)
	}
	m.proc.Wait()
	p := m.app.places()
	if lock, err := p.waitLock(m.c.ID); err == nil {
		if _, err := p.settle(m.c); err != nil {
			m.app.log.Warn("settle", "err", err)
		}
		p.unlock(m.c.ID, lock)
	}
	m.at.finish()
	return fmt.Errorf("the monitor of container %s died; the container was killed, and what it wrote is kept", m.c.Short())
}

func (o *runOutcome) err() error {
	switch {
	case o.Message != "":
		return &exitError{o.Code, errors.New(o.Message)}
	case o.Code != 0:
		return &exitError{o.Code, nil}
	}
	return nil
}

func exitSignal(s syscall.Signal) int { return 128 + int(s) }
