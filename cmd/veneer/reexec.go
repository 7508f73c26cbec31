package main

import (
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/runtime/spawn"
)

// The parts that the binary plays when it starts itself. Their names are its argv[0], so that ps(1) shows what is what.
const (
	rolePrefix  = "veneer: "
	roleMonitor = rolePrefix + "monitor" // NAME ROOT RUNROOT ID LOGLEVEL
	roleServer  = rolePrefix + "server"  // NAME RUNDIR LOGLEVEL
)

// reexec starts our own binary in another part, in a session of its own, with files as its descriptors from 0 on.
func reexec(role string, args []string, files []*os.File) (*spawn.Process, error) {
	attr := spawn.Attr{ProcAttr: syscall.ProcAttr{Dir: "/", Sys: &syscall.SysProcAttr{Setsid: true}}}
	switch role {
	case roleMonitor: // does one thing after the other, and mostly waits
		attr.Env, attr.Slack = append(os.Environ(), "GOMAXPROCS=1"), time.Millisecond
	case roleServer: // its buffers alone would start the collector
		attr.Env = append(os.Environ(), "GOMAXPROCS=", "GOGC=200")
	}
	return spawn.Start("/proc/self/exe", append([]string{role}, args...), files, attr)
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
