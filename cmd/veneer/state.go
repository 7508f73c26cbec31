package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/veneerfs/veneer/runtime"
)

// What a container may be doing.
const (
	statusCreated = "created" // its process has not started: not yet, or it never could (ExitCode, Error)
	statusRunning = "running"
	statusExited  = "exited"
)

// cgroupPath is where the container's cgroup is in each hierarchy. It has no parent of ours, which would have to be made and
// removed with the first and the last container: ten hierarchies of version 1 take 3 ms for that.
func cgroupPath(id string) string { return "/veneer-" + id }

// exitKilled is the status of a process that SIGKILL ended.
const exitKilled = 128 + 9

// state is what became of a container.
//
//	created ──process runs──▶ running ──process ends──▶ exited
//
// Only who holds the container's lock changes it. A state that says running while nobody holds the lock is what a death of
// both monitor and server left: whoever takes the lock then calls places.settle.
type state struct {
	Status   string    `json:"status"`
	Process  process   `json:"process,omitzero"`    // PID 1 of the container, from before it runs
	Server   process   `json:"server,omitzero"`     // the last one
	IO       string    `json:"io,omitempty"`        // the rung of the mount
	TakeOver int       `json:"takeOvers,omitempty"` // how many servers went on in the place of one that died
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	ExitCode int       `json:"exitCode"`
	Error    string    `json:"error,omitempty"`
}

func (p places) saveState(id string, s *state) error { return writeJSON(p.file(id, "state.json"), s) }

// loadState reads what became of a container; one without a file has just been created.
func (p places) loadState(id string) (*state, error) {
	s := new(state)
	err := readJSON(p.file(id, "state.json"), s)
	if errors.Is(err, fs.ErrNotExist) {
		return &state{Status: statusCreated}, nil
	}
	return s, err
}

// look finds out what a container does now, and settles it if nobody looked after its end.
func (p places) look(c *container) (*state, error) {
	s, err := p.loadState(c.ID)
	if err != nil {
		return nil, err
	}
	if s.Status == statusExited {
		return s, nil
	}
	if _, err := os.Stat(p.run(c.ID)); s.Status == statusCreated && errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	lock, err := p.tryLock(c.ID)
	if lock == nil {
		return s, err
	}
	defer p.unlock(c.ID, lock)
	if s, err = p.settle(c); err == nil && c.Remove {
		return nil, errors.Join(p.discard(c), &errNoContainer{c.ID})
	}
	return s, err
}

// settle brings a container to its end whose monitor and server are both dead: what still runs of it is killed, its cgroup
// removed and its end recorded. What it wrote is kept. The caller holds the lock and removes the run directory.
func (p places) settle(c *container) (*state, error) {
	s, err := p.endAll(c)
	if err != nil || s.Status != statusRunning {
		return s, err
	}
	s.exited(exitKilled, "")
	return s, p.saveState(c.ID, s)
}

// endAll is settle without the record, for which a full disk may have no room.
func (p places) endAll(c *container) (*state, error) {
	s, err := p.loadState(c.ID)
	if err != nil {
		return nil, err
	}
	s.Process.end()
	if err := runtime.DestroyCgroup(cgroupPath(c.ID)); err != nil {
		return nil, fmt.Errorf("clean up after container %s: %w", c.Short(), err)
	}
	return s, nil
}

// exited records the end.
func (s *state) exited(code int, message string) {
	s.Status, s.ExitCode, s.Error, s.Finished = statusExited, code, message, time.Now().UTC()
	s.Process, s.Server = process{}, process{}
}
