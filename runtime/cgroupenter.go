package runtime

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// A container's first process is born in its cgroup. To move a process that exists, the kernel waits for an RCU grace period, 5 to
// 10 ms (cgroup_attach_lock in kernel/cgroup/cgroup.c), which is most of what `runc run` takes. With v2, clone3(2) is told the cgroup.
// With v1, the thread that clones is there itself meanwhile: a thread that moves itself, and no other, by writing 0 to "tasks", waits for
// nobody (cgroup_procs_write_start).

// bear runs clone so that the process it makes is in the cgroup, which it is told for v2 (-1: there is none). Where that cannot be
// done, join does it later.
func (c *cgroup) bear(hierarchies []cgroupMountpoint, clone func(v2 int) error) error {
	if c == nil {
		return clone(-1)
	}
	// What the Go runtime has to clone meanwhile, it clones from another thread than a locked one.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	leave, err := c.enter(hierarchies)
	if err != nil {
		return clone(-1)
	}
	v2 := -1
	if dir, ok := c.manager.GetPaths()[""]; ok {
		if v2, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
			defer unix.Close(v2)
		}
	}
	if err == nil {
		err = clone(v2)
		c.joined = err == nil
	}
	if err != nil {
		err = clone(-1) // before Linux 5.7, or forbidden by a seccomp filter around us; or it fails for a reason of its own
	}
	return errors.Join(err, leave())
}

// enter puts the calling thread into the container's cgroup of every v1 hierarchy and returns the way back.
func (c *cgroup) enter(hierarchies []cgroupMountpoint) (leave func() error, err error) {
	moves, err := c.moves(hierarchies)
	if err != nil {
		return nil, err
	}
	leave = func() error { return moves.back(len(moves)) }
	for i, m := range moves {
		if err := moveSelf(m.there); err != nil {
			return nil, errors.Join(err, moves.back(i))
		}
	}
	return leave, nil
}

// move is the "tasks" of one hierarchy, open for writing: of the container's cgroup and of the thread's own. (Of an os.File, the runtime's poller
// would be told, twenty times in a start.)
type move struct{ there, home int }

type moves []move

// back undoes the first n and closes all.
func (ms moves) back(n int) error {
	var errs []error
	for i, m := range ms {
		if i < n {
			if err := moveSelf(m.home); err != nil {
				errs = append(errs, fmt.Errorf("leave the container's cgroup: %w", err))
			}
		}
		unix.Close(m.there)
		unix.Close(m.home)
	}
	return errors.Join(errs...)
}

// moves opens what is needed for the moves there and back, so that nothing but the writes can fail once the first is made.
func (c *cgroup) moves(hierarchies []cgroupMountpoint) (ms moves, err error) {
	own, err := cgroups.ParseCgroupFile("/proc/thread-self/cgroup")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			ms.back(0)
		}
	}()
	dirs := maps.Clone(c.manager.GetPaths())
	delete(dirs, "")
	for _, h := range hierarchies {
		ours := false
		maps.DeleteFunc(dirs, func(name, dir string) bool {
			in := slices.Contains(h.Controllers, name)
			ours = ours || in
			return in
		})
		if !ours {
			continue
		}
		home, ok := strings.CutPrefix(own[h.Controllers[0]], strings.TrimSuffix(h.root, "/"))
		if !ok {
			return ms, fmt.Errorf("our cgroup %s is not below %s", own[h.Controllers[0]], h.Mountpoint)
		}
		m, err := openMove(h.Path, filepath.Join(h.Mountpoint, home))
		if err != nil {
			return ms, err
		}
		ms = append(ms, m)
	}
	if len(dirs) > 0 {
		return ms, fmt.Errorf("no mount is known for %v", slices.Collect(maps.Keys(dirs)))
	}
	return ms, nil
}

func openMove(there, home string) (m move, err error) {
	if m.home, err = openTasks(home); err != nil {
		return m, err
	}
	if m.there, err = openTasks(there); err != nil {
		unix.Close(m.home)
	}
	return m, err
}

func openTasks(dir string) (int, error) {
	fd, err := unix.Open(dir+"/tasks", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: dir + "/tasks", Err: err}
	}
	return fd, nil
}

func moveSelf(tasks int) error {
	_, err := unix.Write(tasks, []byte("0"))
	return os.NewSyscallError("write", err)
}
