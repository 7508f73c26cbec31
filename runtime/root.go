package runtime

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
)

// root is the container's root directory before it becomes "/". All paths are the container's. They are resolved as the
// container will see them: symlinks and ".." stay inside (CVE-2019-19921, CVE-2021-30465, CVE-2023-27561). What a
// resolution gives is a descriptor, and it is the descriptor that is used: a name that changes in between changes nothing.
type root struct {
	path string // in the set-up child's mount namespace
	fd   int    // O_PATH
}

func openRoot(dir string) (*root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	real, err := os.Readlink(procFD(fd))
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &root{path: real, fd: fd}, nil
}

func (r *root) close() { unix.Close(r.fd) }

// procFD names an open file for a system call that takes only paths. The host's /proc is used: ours is
// not in place until the root is pivoted, and the image's cannot be trusted.
func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// open resolves p and opens what is there. The caller closes the descriptor.
func (r *root) open(p string, flags int) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	// EAGAIN: something was renamed during a "..", so the kernel could not be sure.
	for range 128 {
		fd, err := unix.Openat2(r.fd, relative(p), &how)
		switch err {
		case nil:
			return fd, nil
		case unix.EINTR, unix.EAGAIN:
			continue
		case unix.ENOSYS, unix.EPERM: // before Linux 5.6, or forbidden by a seccomp filter around us
			return r.openResolved(p, flags)
		default:
			return -1, &os.PathError{Op: "open", Path: p, Err: err}
		}
	}
	return -1, &os.PathError{Op: "open", Path: p, Err: unix.EAGAIN}
}

// openResolved resolves in user space and then walks the result without following any symlink.
func (r *root) openResolved(p string, flags int) (int, error) {
	names, err := r.resolve(p)
	if err != nil {
		return -1, err
	}
	if len(names) == 0 {
		return unix.Openat(r.fd, ".", flags|unix.O_CLOEXEC, 0)
	}
	dir, err := r.walk(names[:len(names)-1], false)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, names[len(names)-1], flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: p, Err: err}
	}
	return fd, nil
}

// resolve returns the components of p below the root with all symlinks replaced, also those that lead to what does not exist.
func (r *root) resolve(p string) ([]string, error) {
	full, err := securejoin.SecureJoin(r.path, p)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", p, err)
	}
	rel := strings.Trim(strings.TrimPrefix(full, r.path), "/")
	if rel == "" {
		return nil, nil
	}
	return strings.Split(rel, "/"), nil
}

// walk opens the directory that names lead to, without following symlinks: one that appears after resolve is an error.
func (r *root) walk(names []string, create bool) (int, error) {
	dir, err := unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for i, name := range names {
		const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		next, err := unix.Openat(dir, name, flags, 0)
		if err == unix.ENOENT && create {
			err = keepTimes(dir, func() error { return unix.Mkdirat(dir, name, 0o755) })
			if err == nil || err == unix.EEXIST {
				next, err = unix.Openat(dir, name, flags, 0)
			}
		}
		unix.Close(dir)
		if err != nil {
			return -1, &os.PathError{Op: "open directory", Path: "/" + path.Join(names[:i+1]...), Err: err}
		}
		dir = next
	}
	return dir, nil
}

// openDir opens directory p with O_PATH and makes what of it is missing.
func (r *root) openDir(p string) (int, error) {
	fd, err := r.open(p, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	names, err := r.resolve(p)
	if err != nil {
		return -1, err
	}
	return r.walk(names, true)
}

// openFile opens file p, of any type but a directory, with O_PATH and makes an empty regular one if it is missing.
func (r *root) openFile(p string) (int, error) {
	fd, err := r.open(p, unix.O_PATH)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	dir, name, err := r.parent(p)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	err = keepTimes(dir, func() error {
		made, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
		if err == nil {
			unix.Close(made)
		}
		return err
	})
	if err != nil {
		return -1, &os.PathError{Op: "create", Path: p, Err: err}
	}
	fd, err = unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: p, Err: err}
	}
	return fd, nil
}

// keepTimes makes something in directory dir and gives dir its times back: a mount point is the runtime's doing, and not to be seen as
// a change that the container made. Where times cannot be set (in a user namespace that does not map the owner), they move.
func keepTimes(dir int, makeEntry func() error) error {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return err
	}
	if err := makeEntry(); err != nil {
		return err
	}
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, procFD(dir), []unix.Timespec{st.Atim, st.Mtim}, 0)
	return nil
}

// parent resolves p and opens the directory that holds its last component, making what is missing.
func (r *root) parent(p string) (dir int, name string, err error) {
	names, err := r.resolve(p)
	if err != nil {
		return -1, "", err
	}
	if len(names) == 0 {
		return -1, "", &os.PathError{Op: "open", Path: p, Err: unix.EISDIR}
	}
	dir, err = r.walk(names[:len(names)-1], true)
	return dir, names[len(names)-1], err
}

// place returns the path in the container of what fd is open on.
func (r *root) place(fd int) (string, error) {
	full, err := os.Readlink(procFD(fd))
	if err != nil {
		return "", err
	}
	if full == r.path {
		return "/", nil
	}
	below, ok := strings.CutPrefix(full, strings.TrimSuffix(r.path, "/")+"/")
	if !ok {
		return "", fmt.Errorf("%s is outside of the root", full)
	}
	return "/" + below, nil
}

// relative makes p relative to the root; "" would be refused by the kernel.
func relative(p string) string {
	if p = strings.TrimLeft(p, "/"); p == "" {
		return "."
	}
	return p
}
