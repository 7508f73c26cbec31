package cow

import (
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// disk is the state directory. Every call that changes what a crash leaves goes through it and file.
// Names are relative to the directory.
type disk struct {
	dir string
	ro  bool // files are opened for reading only
	// fault is called before every call that changes the disk; what it returns is the call's error. Tests set it.
	fault func(step string) error
	// trace is told of every call that was made. Tests set it.
	trace func(c diskCall)
}

// diskCall is a call that was made.
type diskCall struct {
	op   diskOp
	name string
	to   string // of a rename
	off  int64
	n    int64  // bytes, or the size
	mode uint32 // of an allocation
	data []byte // of a write; not to be kept
}

type diskOp int

const (
	opCreate diskOp = iota
	opMkdir
	opRename
	opRemove
	opWrite
	opTruncate
	opAllocate
	opSync
	opSyncDir
	opSyncFS
)

func (d *disk) step(name string) error {
	if d.fault == nil {
		return nil
	}
	return d.fault(name)
}

func (d *disk) made(err error, c diskCall) error {
	if err == nil && d.trace != nil {
		d.trace(c)
	}
	return err
}

func (d *disk) path(name string) string { return filepath.Join(d.dir, name) }

// create makes an empty file; with unix.O_TRUNC in place of another, with unix.O_EXCL only where there is none.
func (d *disk) create(step, name string, flags int) (*file, error) {
	if err := d.step(step); err != nil {
		return nil, err
	}
	fd, err := openAgain(d.path(name), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|flags, 0o600)
	if d.made(err, diskCall{op: opCreate, name: name}) != nil {
		return nil, err
	}
	return &file{d, name, fd}, nil
}

// open opens a file that is there.
func (d *disk) open(name string) (*file, error) {
	how := unix.O_RDWR
	if d.ro {
		how = unix.O_RDONLY
	}
	fd, err := openAgain(d.path(name), how|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &file{d, name, fd}, nil
}

func openAgain(path string, flags int, mode uint32) (int, error) {
	for {
		if fd, err := unix.Open(path, flags, mode); err != unix.EINTR {
			return fd, err
		}
	}
}

// mkdir makes a directory, unless there is one.
func (d *disk) mkdir(name string) error {
	if err := d.step("make directory " + name); err != nil {
		return err
	}
	err := unix.Mkdir(d.path(name), 0o700)
	if err == unix.EEXIST {
		return nil
	}
	return d.made(err, diskCall{op: opMkdir, name: name})
}

func (d *disk) rename(from, to string) error {
	if err := d.step("rename " + from); err != nil {
		return err
	}
	return d.made(os.Rename(d.path(from), d.path(to)), diskCall{op: opRename, name: from, to: to})
}

// remove removes a file, if there is one.
func (d *disk) remove(step, name string) error {
	if err := d.step(step); err != nil {
		return err
	}
	err := unix.Unlink(d.path(name))
	if err == unix.ENOENT {
		return nil
	}
	return d.made(err, diskCall{op: opRemove, name: name})
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
	return d.made(dir.Sync(), diskCall{op: opSyncDir, name: name})
}

// syncFS puts all of the state directory on stable storage, and what else is on its file system.
func (d *disk) syncFS() error {
	if err := d.step("sync the file system"); err != nil {
		return err
	}
	dir, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return d.made(unix.Syncfs(int(dir.Fd())), diskCall{op: opSyncFS})
}

// file is an open file of the state directory. Steps name what a call is for.
type file struct {
	disk *disk
	name string
	fd   int
}

func (f *file) close() { unix.Close(f.fd) }

func (f *file) stat() (st unix.Stat_t, err error) {
	err = unix.Fstat(f.fd, &st)
	return st, err
}

// write writes all of p, or returns how much it wrote and why not all.
func (f *file) write(step string, p []byte, off int64) (n int, err error) {
	if err := f.disk.step(step); err != nil {
		return 0, err
	}
	for n < len(p) && err == nil {
		var k int
		k, err = unix.Pwrite(f.fd, p[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
			err = nil
		case err == nil && k == 0:
			err = syscall.EIO
		case err == nil:
			n += k
		}
	}
	if n > 0 && f.disk.trace != nil {
		f.disk.trace(diskCall{op: opWrite, name: f.name, off: off, n: int64(n), data: p[:n]})
	}
	return n, err
}

// read fills p; what the file does not have is zeros.
func (f *file) read(p []byte, off int64) error {
	for len(p) > 0 {
		k, err := unix.Pread(f.fd, p, off)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case k == 0:
			clear(p)
			return nil
		default:
			p, off = p[k:], off+int64(k)
		}
	}
	return nil
}

func (f *file) truncate(step string, size int64) error {
	if err := f.disk.step(step); err != nil {
		return err
	}
	err := unix.Ftruncate(f.fd, size)
	return f.disk.made(err, diskCall{op: opTruncate, name: f.name, n: size})
}

// allocate is fallocate; it never changes the file's size.
func (f *file) allocate(step string, mode uint32, off, n int64) error {
	if err := f.disk.step(step); err != nil {
		return err
	}
	err := unix.Fallocate(f.fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
	return f.disk.made(err, diskCall{op: opAllocate, name: f.name, off: off, n: n, mode: mode})
}

func (f *file) sync(step string) error {
	if err := f.disk.step(step); err != nil {
		return err
	}
	return f.disk.made(unix.Fdatasync(f.fd), diskCall{op: opSync, name: f.name})
}
