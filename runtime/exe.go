package runtime

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// aboveFiles is how far above the files that the child is given the descriptor of our own program is put: what is between is the room in
// which package syscall moves them about.
const aboveFiles = 16

// openSelf returns a descriptor of this program that a process which executes it cannot use to write to the file. It is out of the way of
// files, which the child is given.
//
// CVE-2019-5736: in the container, /proc/PID/exe of a process that runs this program (an image may name /proc/self/exe as its
// command) leads to the host's file, which root in the container could reopen for writing. So the child runs from a
// read-only mount of the file that is in nobody's mount namespace, or, where that is not permitted, from a sealed copy in memory.
func openSelf(files []*os.File) (*os.File, error) {
	lowest := aboveFiles
	for _, f := range files {
		lowest = max(lowest, int(f.Fd())+aboveFiles)
	}
	if f, err := readOnlySelf(lowest); err == nil {
		return f, nil
	}
	return copySelf(lowest)
}

func readOnlySelf(lowest int) (*os.File, error) {
	// By name, since /proc/self/exe leads to a mount of the namespace that we were started in, and open_tree takes
	// only those of the thread's own.
	name, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(fd)
	var own, opened unix.Stat_t
	if err := errors.Join(unix.Stat("/proc/self/exe", &own), unix.Fstat(fd, &opened)); err != nil {
		return nil, err
	}
	if own.Dev != opened.Dev || own.Ino != opened.Ino {
		return nil, fmt.Errorf("%s is not this program any more", name) // it was upgraded
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, fmt.Errorf("mount_setattr: %w", err)
	}
	return moveAbove(fd, lowest)
}

func copySelf(lowest int) (*os.File, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer self.Close()
	fd, err := unix.MemfdCreate("veneer", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	mem := os.NewFile(uintptr(fd), "veneer")
	defer mem.Close()
	if _, err := io.Copy(mem, self); err != nil {
		return nil, fmt.Errorf("copy own program: %w", err)
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(mem.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("seal own program: %w", err)
	}
	return moveAbove(int(mem.Fd()), lowest)
}

func moveAbove(fd, lowest int) (*os.File, error) {
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, lowest)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return os.NewFile(uintptr(high), "veneer"), nil
}
