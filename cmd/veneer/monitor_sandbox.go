package main

import (
	"fmt"
	"os"
	goruntime "runtime"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fs"
)

// sandbox is an OS thread that runs what it is given, one call after the other. Its namespaces are its own; they end with it.
type sandbox struct {
	calls chan func()
}

func newSandbox() *sandbox {
	b := &sandbox{calls: make(chan func())}
	go b.work()
	return b
}

func (b *sandbox) work() {
	goruntime.LockOSThread() // and never unlocked: the thread ends with this goroutine
	if unix.Gettid() == unix.Getpid() {
		// The process's first thread never ends, and the mount with it. It is held here until another one has done the work.
		defer goruntime.UnlockOSThread()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			b.work()
		}()
		<-ended
		return
	}
	for call := range b.calls {
		call()
	}
}

// begin runs f on the thread and returns where its result will be.
func (b *sandbox) begin(f func() error) <-chan error {
	done := make(chan error, 1)
	b.calls <- func() { done <- f() }
	return done
}

// do runs f on the thread and waits for it.
func (b *sandbox) do(f func() error) error { return <-b.begin(f) }

func (b *sandbox) end() { close(b.calls) }

// isolate gives the calling thread a mount namespace of its own, which hears of mounts and unmounts of the host and
// tells nobody of its own, with an empty tmpfs at dir.
func isolate(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make all mounts slaves of the host's: %w", err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=711,size=64m"); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", dir, err)
	}
	return nil
}

// mountTree makes dir and mounts a tree there that nobody answers for yet. device is its MAJ:MIN.
func mountTree(dir string) (fuse *os.File, device string, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, "", err
	}
	if fuse, err = fs.MountFD(dir, fs.MountOptions{}); err != nil {
		return nil, "", err
	}
	if device, err = fs.MountDevice(dir); err != nil {
		fuse.Close()
		return nil, "", err
	}
	return fuse, device, nil
}
