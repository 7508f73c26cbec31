package main

import (
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The parts that the binary plays when it starts itself. Their names are its argv[0], so that ps(1) shows what is what.
const (
	rolePrefix  = "veneer: "
	roleMonitor = rolePrefix + "monitor" // NAME ROOT RUNROOT ID LOGLEVEL
	roleServer  = rolePrefix + "server"  // NAME RUNDIR LOGLEVEL
)

// reexec starts our own binary in another part, in a session of its own, with files as its descriptors from 0 on.
func reexec(role string, args []string, files []*os.File) (*os.Process, error) {
	return os.StartProcess("/proc/self/exe", append([]string{role}, args...), &os.ProcAttr{
		Dir:   "/",
		Env:   os.Environ(),
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

// playRole runs the part that argv[0] names and does not return; on the command line it does.
func playRole(argv []string) {
	if len(argv) == 0 || !strings.HasPrefix(argv[0], rolePrefix) {
		return
	}
	switch argv[0] {
	case roleMonitor:
		setComm("veneer-monitor")
		os.Exit(monitorMain(argv[1:]))
	case roleServer:
		setComm("veneer-server")
		os.Exit(serverMain(argv[1:]))
	}
}

// setComm names the calling thread, and those that it makes, for top(1) and the like; else they would all be "exe".
func setComm(name string) {
	p, err := unix.BytePtrFromString(name)
	if err == nil {
		unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(p)), 0, 0, 0)
	}
}
