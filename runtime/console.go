package runtime

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// openConsole allocates the terminal from the container's devpts, puts its slave on /dev/console and sends the master to the parent.
//
// /dev/pts/ptmx is resolved inside the root and checked: the image might have a file of its own there; and the slave is
// opened through the master, not by name (CVE-2025-52565).
func (c *child) openConsole() error {
	fd, err := c.root.open("/dev/pts/ptmx", unix.O_PATH)
	if err != nil {
		return fmt.Errorf("a terminal needs a devpts at /dev/pts: %w", err)
	}
	defer unix.Close(fd)
	if err := checkPtmx(fd); err != nil {
		return err
	}
	master, err := os.OpenFile(procFD(fd), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer master.Close()
	slave, err := openSlave(master)
	if err != nil {
		return err
	}
	c.terminal = slave
	if size := c.spec().Process.ConsoleSize; size != nil {
		if err := setWinsize(master, uint16(size.Height), uint16(size.Width)); err != nil {
			return err
		}
	}
	if err := c.bindConsole(slave); err != nil {
		return fmt.Errorf("bind /dev/console: %w", err)
	}
	return c.conn.sendFile(msgConsole, master)
}

func checkPtmx(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(5, 2) || fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return errors.New("/dev/pts/ptmx is not of a devpts")
	}
	return nil
}

func openSlave(master *os.File) (*os.File, error) {
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock the terminal: %w", err)
	}
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, fmt.Errorf("open the terminal's slave: %w", errno)
	}
	return os.NewFile(r, "terminal"), nil
}

func (c *child) bindConsole(slave *os.File) error {
	fd, err := c.root.openFile("/dev/console")
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Mount(procFD(int(slave.Fd())), procFD(fd), "", unix.MS_BIND, "")
}

// attachConsole makes the terminal the session's and the process's standard streams.
func (c *child) attachConsole() error {
	fd := int(c.terminal.Fd())
	if err := unix.IoctlSetInt(fd, unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("set controlling terminal: %w", err)
	}
	for i := range 3 {
		if err := unix.Dup3(fd, i, 0); err != nil {
			return fmt.Errorf("duplicate the terminal: %w", err)
		}
	}
	return nil
}

func setWinsize(terminal *os.File, rows, cols uint16) error {
	raw, err := terminal.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	err = raw.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	if err == nil {
		err = ioctlErr
	}
	if err != nil {
		return fmt.Errorf("set terminal size: %w", err)
	}
	return nil
}
