package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// process names a process so that another one with the same PID is never taken for it.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
	Boot  string `json:"boot"`  // which boot
}

// identify names a running process.
func identify(pid int) (process, error) {
	start, err := startTime(pid)
	if err != nil {
		return process{}, err
	}
	return process{PID: pid, Start: start, Boot: bootID()}, nil
}

// open returns a pidfd of the process, or nil when it is gone.
func (p process) open() *os.File {
	if p.PID <= 0 || p.Boot != bootID() {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return nil
	}
	// Only now: while the pidfd is open, what it names and what /proc shows can differ only if it is dead.
	if start, err := startTime(p.PID); err != nil || start != p.Start {
		unix.Close(fd)
		return nil
	}
	return os.NewFile(uintptr(fd), "pidfd")
}

// alive says whether the process is there still.
func (p process) alive() bool {
	f := p.open()
	if f == nil {
		return false
	}
	f.Close()
	return true
}

// signal sends sig if the process is still there.
func (p process) signal(sig unix.Signal) {
	if f := p.open(); f != nil {
		unix.PidfdSendSignal(int(f.Fd()), sig, nil, 0)
		f.Close()
	}
}

// end kills the process and waits until it is gone.
func (p process) end() {
	if f := p.open(); f != nil {
		endPidfd(f)
		f.Close()
	}
}

// endPidfd kills a process and waits until it is gone. It need not be a child of ours.
func endPidfd(pidfd *os.File) {
	unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0)
	fds := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != unix.EINTR {
			return
		}
	}
}

// startTime reads field 22 of /proc/PID/stat. The name before it may hold blanks and parentheses.
func startTime(pid int) (uint64, error) {
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	rest := strings.Fields(string(p[bytes.LastIndexByte(p, ')')+1:])) // from field 3 on
	if len(rest) < 20 {
		return 0, fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(rest))
	}
	if rest[0] == "Z" || rest[0] == "X" {
		return 0, fmt.Errorf("process %d has ended", pid) // and its parent did not look yet
	}
	return strconv.ParseUint(rest[19], 10, 64)
}

var bootID = sync.OnceValue(func() string {
	p, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(p))
})
