package fetcher

import (
	"fmt"
	"os"
	"strings"

	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// pathStep is up to how many bytes of a path are given to the kernel at once; it takes no more than 4096.
const pathStep = 2048

// openInDir opens a regular file below a host directory. No symlink is followed, wherever in the path it is: the tree was made from what
// was there, and what a symlink was put in the place of is not part of it.
func openInDir(dir *os.File, c *unionfs.Content) (*os.File, error) {
	at, path, owned := int(dir.Fd()), c.Path, false
	closeAt := func() {
		if owned {
			unix.Close(at)
		}
	}
	for len(path) > pathStep {
		cut := strings.LastIndexByte(path[:pathStep], '/')
		if cut <= 0 {
			break // one name, and too long: the kernel says so
		}
		next, err := openBeneath(at, path[:cut], unix.O_PATH|unix.O_DIRECTORY)
		closeAt()
		if err != nil {
			return nil, fmt.Errorf("open %q below %s: %w", c.Path, dir.Name(), err)
		}
		at, path, owned = next, path[cut+1:], true
	}
	// O_NONBLOCK: a FIFO that was put there must not block.
	fd, err := openBeneath(at, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	closeAt()
	if err != nil {
		return nil, fmt.Errorf("open %q below %s: %w", c.Path, dir.Name(), err)
	}
	return checkDirFile(fd, dir, c)
}

func openBeneath(dir int, path string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS}
	for {
		fd, err := unix.Openat2(dir, path, &how)
		// EAGAIN: a rename went on somewhere, and the kernel cannot tell whether it mattered.
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

func checkDirFile(fd int, dir *os.File, c *unionfs.Content) (*os.File, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != c.Size) {
		err = fmt.Errorf("it is not the file of %d bytes any more that it was when the layer was read", c.Size)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open %q below %s: %w", c.Path, dir.Name(), err)
	}
	return os.NewFile(uintptr(fd), c.Path), nil
}
