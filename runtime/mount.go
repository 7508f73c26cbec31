package runtime

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mountAll makes the configured mounts in their order.
func (c *child) mountAll() error {
	for _, m := range c.spec().Mounts {
		if err := c.mount(m); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.Type, m.Destination, err)
		}
	}
	return nil
}

func (c *child) mount(m specs.Mount) error {
	o, err := parseMountOptions(m)
	if err != nil {
		return err
	}
	if m.Destination = path.Clean("/" + m.Destination); m.Destination == "/" && !o.remount() {
		return errors.New("the root cannot be mounted over")
	}
	switch {
	case o.remount():
		err = c.remount(m, o)
	case o.bind():
		err = c.bindMount(m, o)
	case m.Type == "cgroup" || m.Type == "cgroup2":
		err = c.cgroupMount(m, o)
	case m.Type == "proc":
		err = c.plainMount(m, o)
	case m.Type == "sysfs":
		err = c.sysfsMount(m, o)
	case m.Type == "tmpfs":
		err = c.tmpfsMount(m, o)
	default:
		err = c.plainMount(m, o)
	}
	if err != nil {
		return err
	}
	return c.finishMount(m.Destination, o)
}

// finishMount gives the new mount what mount(2) does not take while it mounts.
func (c *child) finishMount(dest string, o mountOptions) error {
	if o.recSet|o.recClear == 0 && len(o.propagation) == 0 {
		return nil
	}
	fd, err := c.root.open(dest, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if o.recSet|o.recClear != 0 {
		attr := unix.MountAttr{Attr_set: o.recSet, Attr_clr: o.recClear}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			return fmt.Errorf("mount_setattr: %w", err)
		}
	}
	for _, p := range o.propagation {
		if err := unix.Mount("", procFD(fd), "", p, ""); err != nil {
			return fmt.Errorf("set propagation: %w", err)
		}
	}
	return nil
}

// openMountpoint opens, or makes, the directory to mount on.
//
// proc and sysfs are mounted where the configuration says, not where a symlink of the image leads: what follows (masked and
// read-only paths, labels) relies on the place (CVE-2019-16884, CVE-2019-19921). And nothing else is mounted over or into
// proc through a symlink.
func (c *child) openMountpoint(m specs.Mount) (int, error) {
	fd, err := c.root.openDir(m.Destination)
	if err != nil {
		return -1, err
	}
	if err := c.checkMountpoint(fd, m); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (c *child) checkMountpoint(fd int, m specs.Mount) error {
	place, err := c.root.place(fd)
	if err != nil {
		return err
	}
	if m.Type == "proc" || m.Type == "sysfs" {
		if place != m.Destination {
			return fmt.Errorf("%s is a symlink to %s in the image: %w", m.Destination, place, unix.ELOOP)
		}
		return nil
	}
	if place == "/" {
		return fmt.Errorf("%s leads to the root: %w", m.Destination, unix.ELOOP)
	}
	return checkBelowProc(place, m)
}

// overProc are the files of /proc that may be mounted over: those for which programs such as lxcfs give a container's view.
var overProc = []string{
	"/proc/cpuinfo", "/proc/diskstats", "/proc/loadavg", "/proc/meminfo", "/proc/net/dev", "/proc/slabinfo", "/proc/stat",
	"/proc/swaps", "/proc/uptime", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled",
}

func checkBelowProc(place string, m specs.Mount) error {
	if place != "/proc" && !strings.HasPrefix(place, "/proc/") || slices.Contains(overProc, place) {
		return nil
	}
	var fs unix.Statfs_t
	if place == "/proc" && unix.Statfs(m.Source, &fs) == nil && fs.Type == unix.PROC_SUPER_MAGIC {
		return nil
	}
	return fmt.Errorf("%s is in /proc: %w", place, unix.EPERM)
}

// plainMount mounts a new file system.
func (c *child) plainMount(m specs.Mount, o mountOptions) error {
	fd, err := c.openMountpoint(m)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Mount(m.Source, procFD(fd), m.Type, o.flags, o.data)
}

// sysfsMount mounts sysfs, which the kernel allows only to who owns the network namespace; else the host's is bound, read-only.
func (c *child) sysfsMount(m specs.Mount, o mountOptions) error {
	err := c.plainMount(m, o)
	if err != unix.EPERM {
		return err
	}
	m.Source, o.data = "/sys", ""
	o.flags |= unix.MS_BIND | unix.MS_REC | unix.MS_RDONLY
	return c.bindMount(m, o)
}

// tmpfsMount mounts a tmpfs. "ro" comes last of all, in makeReadOnly: later mounts and devices still need directories in it.
func (c *child) tmpfsMount(m specs.Mount, o mountOptions) error {
	covered, err := c.coveredMode(m.Destination)
	if err != nil {
		return err
	}
	fd, err := c.openMountpoint(m)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if o.ro() {
		c.lateReadOnly = append(c.lateReadOnly, m.Destination)
	}
	return unix.Mount(m.Source, procFD(fd), "tmpfs", o.flags&^unix.MS_RDONLY, tmpfsData(o.data, covered))
}

// coveredMode is the "mode=" option of the directory that a tmpfs will cover, which it takes over as with Docker and runc; ""
// if there is none yet.
func (c *child) coveredMode(dest string) (string, error) {
	fd, err := c.root.open(dest, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	return fmt.Sprintf("mode=%o", st.Mode&0o7777), nil
}

func tmpfsData(data, mode string) string {
	for opt := range strings.SplitSeq(data, ",") {
		if strings.HasPrefix(opt, "mode=") {
			return data
		}
	}
	return strings.Trim(data+","+mode, ",")
}

// bindMount binds a file or a directory of the host.
func (c *child) bindMount(m specs.Mount, o mountOptions) error {
	source := m.Source
	if !filepath.IsAbs(source) {
		source = filepath.Join(c.config.Bundle, source)
	}
	var st unix.Stat_t
	if err := unix.Stat(source, &st); err != nil {
		return &os.PathError{Op: "stat", Path: source, Err: err}
	}
	fd, err := c.openBindTarget(m, st.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Mount(source, procFD(fd), "", unix.MS_BIND|o.flags&unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	if o.flags&^(unix.MS_BIND|unix.MS_REC) == 0 && o.cleared == 0 {
		return nil
	}
	return c.remount(m, o)
}

func (c *child) openBindTarget(m specs.Mount, dir bool) (int, error) {
	if dir {
		return c.openMountpoint(m)
	}
	fd, err := c.root.openFile(m.Destination)
	if err != nil {
		return -1, err
	}
	if err := c.checkMountpoint(fd, m); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// remount changes the flags of the mount at the destination.
func (c *child) remount(m specs.Mount, o mountOptions) error {
	fd, err := c.root.open(m.Destination, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return remountFD(fd, o.flags|unix.MS_REMOUNT, o.cleared, o.data)
}

// remountFD remounts with flags. A bind mount keeps the flags of its source that the options do not clear: they
// are the protection that someone gave it, and in a user namespace the kernel insists on them. The access time
// flags are kept by the kernel when none is named.
func remountFD(fd int, flags, cleared uintptr, data string) error {
	flags &^= unix.MS_REC // of a remount, it would be ignored
	if flags&unix.MS_BIND != 0 {
		keep, err := keptFlags(fd)
		if err != nil {
			return err
		}
		flags |= keep &^ cleared
	}
	if err := unix.Mount("", procFD(fd), "", flags, data); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	return nil
}

// keptFlags are the flags of the mount that fd is on, without those of access times.
func keptFlags(fd int) (uintptr, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return 0, err
	}
	const same = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC // as ST_…
	flags := uintptr(fs.Flags) & same
	const stNoSymFollow = 0x2000 // include/linux/statfs.h
	if fs.Flags&stNoSymFollow != 0 {
		flags |= unix.MS_NOSYMFOLLOW
	}
	return flags, nil
}

// makeReadOnly remounts what had to be writable during set-up, and the root if so configured.
func (c *child) makeReadOnly() error {
	late := c.lateReadOnly
	if r := c.spec().Root; r != nil && r.Readonly {
		late = append(late, "/")
	}
	for _, dest := range late {
		if err := c.remountReadOnly(dest); err != nil {
			return fmt.Errorf("make %s read-only: %w", dest, err)
		}
	}
	return nil
}

// remountReadOnly makes the one mount at dest read-only and leaves its other flags as they are.
func (c *child) remountReadOnly(dest string) error {
	fd, err := c.root.open(dest, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return remountFD(fd, unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, 0, "")
}

// maskPaths hides what the kernel does not hide: a file behind /dev/null, a directory behind an empty tmpfs.
// The host's /dev/null is used and checked: the image's could be a symlink (CVE-2025-31133).
func (c *child) maskPaths() error {
	null, err := openHostNull()
	if err != nil {
		return err
	}
	defer unix.Close(null)
	for _, p := range c.spec().Linux.MaskedPaths {
		if err := c.maskPath(p, null); err != nil {
			return fmt.Errorf("mask %s: %w", p, err)
		}
	}
	return nil
}

func (c *child) maskPath(p string, null int) error {
	fd, err := c.root.open(p, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.Mount("tmpfs", procFD(fd), "tmpfs", unix.MS_RDONLY, "nr_blocks=1,nr_inodes=1")
	}
	return unix.Mount(procFD(null), procFD(fd), "", unix.MS_BIND, "")
}

func openHostNull() (int, error) {
	fd, err := unix.Open("/dev/null", unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		unix.Close(fd)
		return -1, errors.New("/dev/null of the host is not the null device")
	}
	return fd, nil
}

// readOnlyPaths binds each path onto itself, read-only.
func (c *child) readOnlyPaths() error {
	for _, p := range c.spec().Linux.ReadonlyPaths {
		if err := c.readOnlyPath(p); err != nil {
			return fmt.Errorf("make %s read-only: %w", p, err)
		}
	}
	return nil
}

func (c *child) readOnlyPath(p string) error {
	fd, err := c.root.open(p, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Mount(procFD(fd), procFD(fd), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return c.remountReadOnly(p)
}
