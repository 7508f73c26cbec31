package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxAccountFile bounds what is read of a container's /etc/passwd and /etc/group.
const maxAccountFile = 8 << 20 // bytes

// account is who the process runs as.
type account struct {
	uid, gid int
	groups   []int
	home     string
}

func (a *account) spec() specs.User {
	u := specs.User{UID: uint32(a.uid), GID: uint32(a.gid)}
	for _, g := range a.groups {
		u.AdditionalGids = append(u.AdditionalGids, uint32(g))
	}
	return u
}

// lookUpUser resolves USER[:GROUP] by the account files of the container itself.
func lookUpUser(root *os.File, spec string) (*account, error) {
	var files [2]io.Reader
	for i, path := range []string{"etc/passwd", "etc/group"} {
		f, err := openInRoot(root, path)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue // then only numbers are good
		} else if err != nil {
			return nil, fmt.Errorf("read the container's /%s: %w", path, err)
		}
		defer f.Close()
		files[i] = io.LimitReader(f, maxAccountFile)
	}
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, files[0], files[1])
	if err != nil {
		return nil, err
	}
	a := &account{uid: u.Uid, gid: u.Gid, groups: u.Sgids, home: u.Home}
	if a.home == "" {
		a.home = "/"
	}
	return a, nil
}

// openInRoot opens a regular file for reading. No symbolic link leads out of root, and a device or a FIFO in its place is never
// opened: that could have effects of its own.
func openInRoot(root *os.File, path string) (*os.File, error) {
	fd, err := unix.Openat2(int(root.Fd()), path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &os.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}
