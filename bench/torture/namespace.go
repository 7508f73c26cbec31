package main

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// apart is in the environment of a process that has a mount namespace of its own.
const apart = "TORTURE_APART"

// goApart runs this program again in a mount namespace of its own, and returns its exit status; ok is false in that one. There nobody else
// gets a copy of our mounts, which would keep them alive, and a lie about the machine is told to nobody else.
func goApart() (status int, ok bool) {
	if os.Getenv(apart) != "" || os.Geteuid() != 0 {
		return 0, false
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), apart+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	signal.Ignore(unix.SIGINT) // the terminal sends it to both, and the other one cleans up
	err := c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), true
	}
	if err != nil {
		os.Stderr.WriteString("torture: " + err.Error() + "\n")
		return 1, true
	}
	return 0, true
}
