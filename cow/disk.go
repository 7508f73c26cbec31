package cow

import (
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// disk is the state directory, seen through the few calls that change what a crash leaves.
// Names are relative to the directory.
type disk struct {
	dir string
	// fault is called before every call that changes the disk; what it returns is the call's error. Tests set it.
	fault func(step string) error
}

func (d *disk) step(name string) error {
	if d.fault == nil {
		return nil
	}
	return d.fault(name)
}

func (d *disk) path(name string) string { return filepath.Join(d.dir, name) }

func (d *disk) open(name string, flags int) (*os.File, error) {
	return os.OpenFile(d.path(name), flags|unix.O_CLOEXEC, 0)
}

// create makes an empty file, in place of another.
func (d *disk) create(name string) (*os.File, error) {
	if err := d.step("create " + name); err != nil {
		return nil, err
	}
	return os.OpenFile(d.path(name), unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
}

func (d *disk) rename(from, to string) error {
	if err := d.step("rename " + from); err != nil {
		return err
	}
	return os.Rename(d.path(from), d.path(to))
}

func (d *disk) remove(name string) error {
	if err := d.step("remove " + name); err != nil {
		return err
	}
	return os.Remove(d.path(name))
}

func (d *disk) write(step string, file *os.File, p []byte, off int64) error {
	if err := d.step(step); err != nil {
		return err
	}
	_, err := file.WriteAt(p, off)
	return errno(err)
}

func (d *disk) truncate(step string, file *os.File, size int64) error {
	if err := d.step(step); err != nil {
		return err
	}
	return file.Truncate(size)
}

// reserve gives a file blocks without making it longer.
func (d *disk) reserve(step string, file *os.File, off, n int64) error {
	if err := d.step(step); err != nil {
		return err
	}
	return unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (d *disk) sync(step string, file *os.File) error {
	if err := d.step(step); err != nil {
		return err
	}
	return unix.Fdatasync(int(file.Fd()))
}

// syncDir puts the names in the state directory, or in one below it, on stable storage.
func (d *disk) syncDir(name string) error {
	if err := d.step("sync directory " + name); err != nil {
		return err
	}
	dir, err := os.Open(d.path(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// errno takes the path and the verb off a system call's error.
func errno(err error) error {
	for e := err; e != nil; {
		if n, ok := e.(syscall.Errno); ok {
			return n
		}
		u, ok := e.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		e = u.Unwrap()
	}
	return err
}
