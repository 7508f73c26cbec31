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
	go func() {
		goruntime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		for call := range b.calls {
			call()
		}
	}()
	return b
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
// tells nobody of its own.
func isolate() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make all mounts slaves of the host's: %w", err)
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
