package runtime

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultDevices are those that every container has (config-linux.md, Default Devices).
var defaultDevices = []specs.LinuxDevice{
	charDevice("/dev/null", 1, 3),
	charDevice("/dev/zero", 1, 5),
	charDevice("/dev/full", 1, 7),
	charDevice("/dev/random", 1, 8),
	charDevice("/dev/urandom", 1, 9),
	charDevice("/dev/tty", 5, 0),
}

func charDevice(p string, major, minor int64) specs.LinuxDevice {
	mode := os.FileMode(0o666)
	return specs.LinuxDevice{Path: p, Type: "c", Major: major, Minor: minor, FileMode: &mode}
}

// devSymlinks are the links that programs expect in /dev (runtime-linux.md, Dev symbolic links).
var devSymlinks = [][2]string{
	{"/proc/self/fd", "/dev/fd"},
	{"/proc/self/fd/0", "/dev/stdin"},
	{"/proc/self/fd/1", "/dev/stdout"},
	{"/proc/self/fd/2", "/dev/stderr"},
}

// makeDevices fills /dev, unless the configuration binds one of the host's there.
func (c *child) makeDevices() error {
	spec := c.spec()
	for _, m := range spec.Mounts {
		if o, err := parseMountOptions(m); err == nil && path.Clean(m.Destination) == "/dev" && o.bind() {
			return nil
		}
	}
	devices := slices.Clone(spec.Linux.Devices)
	for _, d := range defaultDevices {
		if !slices.ContainsFunc(devices, func(o specs.LinuxDevice) bool { return path.Clean(o.Path) == d.Path }) {
			devices = append(devices, d)
		}
	}
	for _, d := range devices {
		if err := c.makeDevice(d); err != nil {
			return fmt.Errorf("make device %s: %w", d.Path, err)
		}
	}
	return c.makeDevSymlinks()
}

func (c *child) makeDevSymlinks() error {
	links := append(slices.Clone(devSymlinks), [2]string{"pts/ptmx", "/dev/ptmx"})
	if _, err := os.Stat("/proc/kcore"); err == nil {
		links = append(links, [2]string{"/proc/kcore", "/dev/core"})
	}
	for _, l := range links {
		if err := c.symlink(l[0], l[1]); err != nil {
			return err
		}
	}
	return nil
}

// symlink makes a link where nothing is yet; an image may have its own.
func (c *child) symlink(target, name string) error {
	dir, err := c.root.openDir(path.Dir(name))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	err = unix.Symlinkat(target, dir, path.Base(name))
	if err == nil || err == unix.EEXIST || err == unix.EROFS {
		return nil
	}
	return &os.PathError{Op: "symlink", Path: name, Err: err}
}

func (c *child) makeDevice(d specs.LinuxDevice) error {
	mode, err := deviceMode(d)
	if err != nil {
		return err
	}
	dir, err := c.root.openDir(path.Dir(path.Clean("/" + d.Path)))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	name := path.Base(d.Path)
	if c.config.NewUser {
		return c.bindDevice(dir, name, d)
	}
	err = unix.Mknodat(dir, name, mode, int(unix.Mkdev(uint32(d.Major), uint32(d.Minor))))
	switch {
	case err == unix.EPERM:
		return c.bindDevice(dir, name, d)
	case err == unix.EEXIST:
		return checkDevice(dir, name, mode, d)
	case err != nil:
		return err
	}
	// The umask took bits from the mode, and a set-group-id directory may have given the group.
	return setOwnerAndMode(dir, name, mode&0o7777, d)
}

func deviceMode(d specs.LinuxDevice) (uint32, error) {
	perm := uint32(0o666)
	if d.FileMode != nil {
		perm = uint32(d.FileMode.Perm())
	}
	switch d.Type {
	case "c", "u":
		return perm | unix.S_IFCHR, nil
	case "b":
		return perm | unix.S_IFBLK, nil
	case "p":
		return perm | unix.S_IFIFO, nil
	}
	return 0, fmt.Errorf("type %q", d.Type)
}

func setOwnerAndMode(dir int, name string, perm uint32, d specs.LinuxDevice) error {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var uid, gid int
	if d.UID != nil {
		uid = int(*d.UID)
	}
	if d.GID != nil {
		gid = int(*d.GID)
	}
	if err := unix.Chmod(procFD(fd), perm); err != nil {
		return err
	}
	return unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH)
}

// checkDevice accepts what the image has at the place only if it is that device (config-linux.md, Devices).
func checkDevice(dir int, name string, mode uint32, d specs.LinuxDevice) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	rdev := unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	if st.Mode&unix.S_IFMT != mode&unix.S_IFMT || d.Type != "p" && st.Rdev != rdev {
		return errors.New("there is another file")
	}
	return nil
}

// bindDevice binds the host's device of the same path: in a user namespace mknod is not permitted.
func (c *child) bindDevice(dir int, name string, d specs.LinuxDevice) error {
	host, err := unix.Open(d.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: d.Path + " of the host", Err: err}
	}
	defer unix.Close(host)
	var st unix.Stat_t
	if err := unix.Fstat(host, &st); err != nil {
		return err
	}
	if st.Rdev != unix.Mkdev(uint32(d.Major), uint32(d.Minor)) {
		return fmt.Errorf("%s of the host is another device", d.Path)
	}
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o000)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Mount(procFD(host), procFD(fd), "", unix.MS_BIND, "")
}
