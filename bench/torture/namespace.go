package main

import (
	"errors"
	"fmt"
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
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGINT, unix.SIGTERM)
	err := c.Start()
	if err == nil {
		go func() {
			for s := range asked {
				c.Process.Signal(s) // it cleans up
			}
		}()
		err = c.Wait()
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "torture:", err)
		return 1, true
	}
	return c.ProcessState.ExitCode(), true
}
