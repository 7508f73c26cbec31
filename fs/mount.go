package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// What can be wrong with a mount. The error that MountFD returns says more and what to do.
var (
	ErrNoDevice     = errors.New("no FUSE device")
	ErrNotPermitted = errors.New("mounting is not permitted")
	ErrMountPoint   = errors.New("mount point cannot be used")
	ErrNotEmpty     = errors.New("mount point is not empty")
)

const fuseDevice = "/dev/fuse"

// maxRequest is the most that one READ or WRITE carries, bytes: the kernel's default limit (fs.fuse.max_pages_limit).
const maxRequest = 1 << 20

// MountOptions says how the mount shows in /proc/mounts. The zero value is right for a container's root.
type MountOptions struct {
	Source     string // first field of /proc/mounts; "veneer" when empty
	Type       string // "fuse.veneer" when empty
	ReadOnly   bool
	NoSuid     bool
	NoDev      bool
	Flags      uintptr // further flags of mount(2)
	MustBeBare bool    // refuse a mount point that has entries
}

// MountFD opens /dev/fuse and mounts it at dir in the calling thread's mount namespace. Nobody answers until a server runs
// on the returned descriptor, so whoever touches dir before that waits. The mount does not outlive the last copy of the descriptor as
// anything but ENOTCONN. Errors wrap one of the Err values above, or the errno of mount(2).
func MountFD(dir string, o MountOptions) (*os.File, error) {
	if err := checkMountPoint(dir, o.MustBeBare); err != nil {
		return nil, err
	}
	// Not os.OpenFile: it would make the descriptor non-blocking, for all who inherit it.
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, deviceError(err)
	}
	if err := unix.Mount(orElse(o.Source, "veneer"), dir, orElse(o.Type, "fuse.veneer"), o.flags(), mountData(fd)); err != nil {
		unix.Close(fd)
		return nil, mountError(dir, err)
	}
	return os.NewFile(uintptr(fd), fuseDevice), nil
}

// Unmount takes the mount at dir away; lazily, it disappears at once and ends when its last user has gone.
func Unmount(dir string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	if err := unix.Unmount(dir, flags); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

func (o MountOptions) flags() uintptr {
	flags := o.Flags
	for _, f := range []struct {
		set  bool
		flag uintptr
	}{{o.ReadOnly, unix.MS_RDONLY}, {o.NoSuid, unix.MS_NOSUID}, {o.NoDev, unix.MS_NODEV}} {
		if f.set {
			flags |= f.flag
		}
	}
	return flags
}

// mountData is what the kernel's fuse needs to know: permission checks are its own, on the attributes that we answer.
func mountData(fd int) string {
	return strings.Join([]string{
		fmt.Sprintf("fd=%d", fd),
		fmt.Sprintf("rootmode=%o", unix.S_IFDIR),
		fmt.Sprintf("user_id=%d", os.Geteuid()),
		fmt.Sprintf("group_id=%d", os.Getegid()),
		"default_permissions",
		"allow_other",
		fmt.Sprintf("max_read=%d", maxRequest),
	}, ",")
}

func checkMountPoint(dir string, mustBeBare bool) error {
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: %s does not exist: create the directory first", ErrMountPoint, dir)
	case err != nil:
		return fmt.Errorf("%w: %w", ErrMountPoint, err)
	case !st.IsDir():
		return fmt.Errorf("%w: %s is not a directory", ErrMountPoint, dir)
	case !mustBeBare:
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMountPoint, err)
	}
	defer d.Close()
	if names, _ := d.Readdirnames(1); len(names) > 0 {
		return fmt.Errorf("%w: %s has %q in it", ErrNotEmpty, dir, names[0])
	}
	return nil
}

func deviceError(err error) error {
	switch err {
	case unix.ENOENT, unix.ENODEV, unix.ENXIO:
		return fmt.Errorf("%w: open %s: %w: load the module (modprobe fuse); in a container add --device %s",
			ErrNoDevice, fuseDevice, err, fuseDevice)
	case unix.EACCES, unix.EPERM:
		return fmt.Errorf("%w: open %s: %w: run as root, or get access to the device", ErrNotPermitted, fuseDevice, err)
	}
	return fmt.Errorf("open %s: %w", fuseDevice, err)
}

func mountError(dir string, err error) error {
	switch err {
	case unix.EPERM, unix.EACCES:
		return fmt.Errorf("%w: mount %s: %w: run as root, or with CAP_SYS_ADMIN", ErrNotPermitted, dir, err)
	case unix.ENODEV:
		return fmt.Errorf("%w: mount %s: %w: the kernel has no fuse: load the module (modprobe fuse)", ErrNoDevice, dir, err)
	}
	return fmt.Errorf("mount %s: %w", dir, err)
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
