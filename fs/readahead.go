package fs

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// readAheadKiB makes a sequential reader ask for whole requests: the default of 128 triples the time of a cold read.
const readAheadKiB = 1024

// MountDevice returns the "MAJ:MIN" of what is mounted at dir, as the calling thread sees it. It asks only the kernel, so it is safe
// before anybody answers for the mount.
func MountDevice(dir string) (string, error) {
	var st unix.Statx_t
	// Without a mask and without a wish for what is new, FUSE sends no GETATTR (fs/fuse/dir.c, fuse_update_get_attr).
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0, &st)
	if err == nil && st.Attributes_mask&^st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		err = os.ErrNotExist
	}
	if err != nil {
		return "", fmt.Errorf("find mount %s: %w", dir, err)
	}
	return fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor), nil
}

// TuneReadAhead raises the read-ahead of the mount with that "MAJ:MIN". INIT's answer lowers it, so it comes after NewServer.
func TuneReadAhead(dev string) error {
	path := "/sys/class/bdi/" + dev + "/read_ahead_kb"
	if err := os.WriteFile(path, []byte(strconv.Itoa(readAheadKiB)), 0); err != nil {
		return fmt.Errorf("raise read-ahead: %w", err)
	}
	return nil
}
