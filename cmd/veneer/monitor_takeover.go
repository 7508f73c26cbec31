package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// heirs finds servers that go on in the place of dead ones.
//
//	server serves ──dies──▶ the next one opens the writable layer, gets /dev/fuse and what INIT agreed on ──▶ serves
//	                           │ meanwhile requests wait in the kernel
//	                           └──it cannot, or the last ones died at once, one after the other──▶ nobody
//
// Without a monitor nobody has /dev/fuse: the servers of mounts have no heirs. The passthrough rung has none either (fs/resume.go).
type heirs struct {
	*monitor
	died  <-chan struct{}      // closed when the server of now is dead; nil while the next one is looked for
	next  <-chan *serverClient // who goes on, or nil when nobody does; nil while none is looked for
	since time.Time            // when the server of now began
	early int                  // how many died early, one after the other
}

// A request that kills its server kills the next one too. earlyDeaths deaths, each within earlyDeath of the server's beginning, are enough.
const (
	earlyDeath  = 100 * time.Millisecond
	earlyDeaths = 10
)

// look begins to look for a server: the one of now is dead.
func (h *heirs) look() {
	h.died = nil
	if time.Since(h.since) > earlyDeath {
		h.early = 0
	}
	h.early++
	next := make(chan *serverClient, 1)
	h.next = next
	if h.session == 0 || h.early > earlyDeaths {
		next <- nil
		return
	}
	h.log.Warn("the file server died: another one goes on in its place")
	says := h.server.says
	go func() { next <- h.begin(says) }()
}

// begin starts a server on the mount as it is, or returns nil.
func (h *heirs) begin(before readySays) *serverClient {
	s, err := newServer(h.args, h.lock, os.Stderr, h.streams[2])
	if err != nil {
		h.log.Error("start a file server", "err", err)
		return nil
	}
	job := h.serverJob()
	job.Command = nil // what is read from here on is not the start, which a profile is about
	err = s.open(job)
	if err == nil {
		err = s.serve(serveJob{Device: h.device, Resume: &before.Session}, h.fuse.file)
	}
	if err == nil {
		h.guardWith(s) // in vain if the process has ended, or s has; either is noticed
		if !before.Session.Resends() {
			go h.ask()
		}
		return s
	}
	s.proc.Kill()
	<-s.ended
	if err == errServerDied {
		s.says = before
		return s // as if it had died later
	}
	h.log.Error("no file server can go on", "err", err)
	return nil
}

// ask makes a request, which ends the wait of those that were in flight (fs/resume.go). It returns when it is answered, or the mount has ended.
func (h *heirs) ask() {
	unix.Statfs(fmt.Sprintf("/proc/%d/root", h.proc.Pid()), new(unix.Statfs_t))
}

// take has s go on, and returns false if there is none.
func (h *heirs) take(s *serverClient) bool {
	h.next = nil
	if s == nil {
		return false
	}
	h.server.link.Close()
	h.server, h.died, h.since = s, s.died, time.Now()
	h.state.TakeOver++
	h.noteServer()
	if err := h.saveState(h.id, &h.state); err != nil {
		h.log.Warn("record the take-over", "err", err)
	}
	return true
}

// settle ends the search, for the process has ended.
func (h *heirs) settle() {
	if h.next != nil {
		h.take(<-h.next)
	}
}
