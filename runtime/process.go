package runtime

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loopbackUp brings up lo, as a new network namespace has it down.
func (c *child) loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == unix.EAFNOSUPPORT {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(ifr)))
	if e != 0 {
		return e
	}
	return nil
}

func (c *child) setPersonality() error {
	ps := c.spec().Linux.Personality
	if ps == nil {
		return nil
	}
	domain, err := personality(ps)
	if err != nil {
		return err
	}
	if _, _, e := unix.RawSyscall(unix.SYS_PERSONALITY, domain, 0, 0); e != 0 {
		return e
	}
	return nil
}

// openLSM opens the attribute that says under which label the next execve of this thread runs.
func (c *child) openLSM() error {
	f, err := os.OpenFile("/proc/thread-self/attr/"+c.config.LSMFile, os.O_WRONLY, 0)
	if os.IsNotExist(err) { // before Linux 5.1 there was one file for whatever module
		f, err = os.OpenFile("/proc/thread-self/attr/exec", os.O_WRONLY, 0)
	}
	c.lsm = f
	return err
}

func (c *child) applyLSM() error {
	defer c.lsm.Close()
	if _, err := c.lsm.WriteString(c.config.LSM); err != nil {
		return fmt.Errorf("%q: %w", c.config.LSM, err)
	}
	return nil
}
