// Package spawn starts processes, waits for them and sends them signals.
//
// It is what os.StartProcess gives, but for what that costs: package os makes and reaps a process of its own before the first
// one, to find out what the kernel can do with pidfds. Every container's start would pay for three.
package spawn

import (
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a child of this process.
type Process struct {
	Pid int

	mu     sync.RWMutex
	reaped bool // Pid may be another process's by now; guarded by mu
}

// Attr says how to start a process.
type Attr struct {
	syscall.ProcAttr
	// Slack is how late the kernel may wake it from a sleep (PR_SET_TIMERSLACK); 0 is the kernel's default. A Go process that is not idle
	// sleeps for 20 µs at a time, only to look after itself (sysmon in runtime/proc.go): what mostly waits is better off with less of that.
	Slack time.Duration
}

// Start starts program with files as its descriptors from 0 on. They stay the caller's.
func Start(program string, argv []string, files []*os.File, attr Attr) (*Process, error) {
	for _, f := range files {
		attr.Files = append(attr.Files, f.Fd())
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer setTimerSlack(setTimerSlack(max(attr.Slack, kernelSlack)))
	pid, _, err := syscall.StartProcess(program, argv, &attr.ProcAttr)
	runtime.KeepAlive(files)
	if err != nil {
		return nil, &os.PathError{Op: "fork/exec", Path: program, Err: err}
	}
	return &Process{Pid: pid}, nil
}

// Wait waits for the process to end. One caller does that, once.
func (p *Process) Wait() (syscall.WaitStatus, error) {
	// It ends as a zombie, whose number nobody else gets, until the lock says that nobody is about to signal it.
	err := ignoringEINTR(func() error { return unix.Waitid(unix.P_PID, p.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) })
	if err != nil {
		return 0, os.NewSyscallError("waitid", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var status syscall.WaitStatus
	err = ignoringEINTR(func() error {
		_, err := syscall.Wait4(p.Pid, &status, 0, nil)
		return err
	})
	p.reaped = err == nil
	return status, os.NewSyscallError("wait4", err)
}

// Signal sends sig. The error is os.ErrProcessDone when the process has been waited for.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.reaped {
		return os.ErrProcessDone
	}
	return os.NewSyscallError("kill", syscall.Kill(p.Pid, sig))
}

// Kill sends SIGKILL.
func (p *Process) Kill() error { return p.Signal(syscall.SIGKILL) }

// kernelSlack is what processes have that nobody gave another.
const kernelSlack = 50 * time.Microsecond

// setTimerSlack sets the calling thread's, which its children inherit, and returns what it was.
func setTimerSlack(d time.Duration) (was time.Duration) {
	n, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return 0
	}
	unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(d), 0, 0, 0)
	return time.Duration(n)
}

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}
