package runtime

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/runtime/spawn"
)

// startChild clones the set-up child. release is called when the child does not depend on the thread it was cloned from any more.
func (c *Container) startChild(p *plan, o CreateOptions, childEnd *os.File) (release func(), err error) {
	release = func() {}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return release, err
	}
	defer null.Close()
	// One thread's worth of scheduler, no collection: the child lives for milliseconds.
	attr := spawn.Attr{ProcAttr: syscall.ProcAttr{Env: []string{"GOMAXPROCS=1", "GOGC=off"}, Sys: p.sysProcAttr()}}
	files := []*os.File{null, null, null, childEnd}
	if !p.spec.Process.Terminal {
		for i, f := range []*os.File{o.Stdin, o.Stdout, o.Stderr} {
			if f != nil {
				files[i] = f
			}
		}
	}
	exe, err := openSelf(files)
	if err != nil {
		return release, fmt.Errorf("open own program: %w", err)
	}
	defer exe.Close()
	start := func() error {
		return c.cgroup.bear(p.child.Cgroups, func(v2 int) (err error) {
			attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = v2 >= 0, v2
			c.process, err = spawn.Start(procFD(int(exe.Fd())), []string{initArg}, files, attr)
			if err != nil {
				return fmt.Errorf("clone the first process: %w", err)
			}
			return nil
		})
	}
	if len(p.join) == 0 {
		err = start()
	} else {
		release, err = onJoinedThread(p.join, start)
	}
	if err != nil {
		return release, err
	}
	go c.reap()
	return release, nil
}

func (p *plan) sysProcAttr() *syscall.SysProcAttr {
	sys := &syscall.SysProcAttr{Cloneflags: p.clone}
	if p.child.NewUser {
		sys.UidMappings, sys.GidMappings = p.uids, p.gids
		sys.GidMappingsEnableSetgroups = !p.child.KeepGroups
		sys.Credential = &syscall.Credential{NoSetGroups: p.child.KeepGroups} // root of the new namespace
	}
	return sys
}

// onJoinedThread runs start on a thread of its own that is in the caller's mount namespace and in those to join.
// A thread that has changed namespaces is good for nothing else, so it ends; but not before release: the child's
// parent-death signal is that of this thread.
func onJoinedThread(join []specs.LinuxNamespace, start func() error) (release func(), err error) {
	mnt, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		return func() {}, err
	}
	defer mnt.Close()
	done := make(chan struct{})
	result := make(chan error)
	go onDisposableThread(func() {
		err := joinNamespaces(mnt, join)
		if err == nil {
			err = start()
		}
		result <- err
		<-done
	})
	return func() { close(done) }, <-result
}

// onDisposableThread runs f on a thread that ends with it. The process's first thread cannot end, and what /proc/self shows are its
// namespaces: if we are on it, it is held while another one does the work.
func onDisposableThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return // still locked, so the thread ends
	}
	defer runtime.UnlockOSThread()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		runtime.LockOSThread()
		f()
	}()
	<-finished
}

func joinNamespaces(mnt *os.File, join []specs.LinuxNamespace) error {
	// Opened first: the paths are the caller's, whatever namespace is entered next.
	files := make([]*os.File, 0, len(join))
	for _, ns := range join {
		f, err := os.Open(ns.Path)
		if err != nil {
			return fmt.Errorf("open %s namespace: %w", ns.Type, err)
		}
		defer f.Close()
		files = append(files, f)
	}
	// A mount namespace is entered only by who shares root and cwd with no other thread.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare root and working directory: %w", err)
	}
	if err := unix.Setns(int(mnt.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the caller's mount namespace: %w", err)
	}
	for i, ns := range join {
		if err := unix.Setns(int(files[i].Fd()), int(namespaceFlags[ns.Type])); err != nil {
			return fmt.Errorf("enter %s namespace %s: %w", ns.Type, ns.Path, err)
		}
	}
	return nil
}

// prepareChild does for the child what it has no privilege for in a user namespace.
func (c *Container) prepareChild(p *plan) error {
	for _, l := range p.rlimits {
		if err := unix.Prlimit(c.process.Pid, l.resource, &l.Rlimit, nil); err != nil {
			return &SetupError{"set resource limits", fmt.Errorf("limit %d to %d:%d: %w", l.resource, l.Cur, l.Max, err)}
		}
	}
	if s := p.spec.Process.OOMScoreAdj; s != nil {
		file := fmt.Sprintf("/proc/%d/oom_score_adj", c.process.Pid)
		err := os.WriteFile(file, []byte(strconv.Itoa(*s)), 0)
		if errors.Is(err, os.ErrNotExist) {
			err = unix.ESRCH // it died and was reaped
		}
		if err != nil {
			return &SetupError{"set oom_score_adj", err}
		}
	}
	return nil
}
