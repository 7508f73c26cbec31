package fs

import (
	"fmt"
	"os/exec"

	"golang.org/x/sys/unix"
)

func init() {
	helpers["mapstore"] = mapStore
}

func run(cmd *exec.Cmd) error {
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", cmd, err)
	}
	return nil
}

// mapStore writes text to the start of a file through a shared mapping.
func mapStore(args []string) error {
	path, text := args[0], args[1]
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	p, err := unix.Mmap(fd, 0, len(text), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(p, text)
	if err := unix.Msync(p, unix.MS_SYNC); err != nil {
		return err
	}
	return unix.Munmap(p)
}
