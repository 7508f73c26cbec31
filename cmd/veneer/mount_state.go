package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/cow"
)

// umount(2) of a FUSE file system does not wait for its server. So whoever mounts a state directory again may find it locked by a
// server that has just been told of its mount's end, and still writes.

const (
	// stateGrace is how long the mount of a state directory may take to disappear: somebody may be unmounting it.
	stateGrace = time.Second
	// stateUnknown is how long to wait for a server that nobody knows: it was started with another --run-root, or is a container's.
	stateUnknown = 10 * time.Second
)

// openState opens what stands on a state directory, and waits while its last server comes to its end.
func openState(p places, dir string, open func() (*servedTree, error)) (*servedTree, error) {
	begun := time.Now()
	for {
		t, err := open()
		var locked *cow.LockedError
		if !errors.As(err, &locked) {
			return t, err
		}
		if err := awaitState(p, dir, begun); err != nil {
			return nil, err
		}
	}
}

// awaitState returns when the lock of a state directory is free. The error says who has it, if that is not about to end.
func awaitState(p places, dir string, begun time.Time) error {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return err
	}
	free := make(chan error, 1)
	go func() {
		defer f.Close()
		free <- flock(f, unix.LOCK_EX)
	}()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case err := <-free:
			return err
		case <-look.C:
		}
		holder, mounted := stateHolder(p, dir)
		switch waited := time.Since(begun); {
		case holder != nil && mounted && waited > stateGrace:
			return fmt.Errorf("state directory %s is in use: it is mounted at %s", dir, holder.Dir)
		case holder == nil && waited > stateUnknown:
			return fmt.Errorf("state directory %s is in use by another server", dir)
		}
	}
}

// stateHolder finds the record of the mount with that state directory, and tells whether it is there still.
func stateHolder(p places, dir string) (r *mountRecord, mounted bool) {
	records, _ := filepath.Glob(filepath.Join(p.RunRoot, "mounts", "*:*"))
	for _, path := range records {
		if r, err := readMountRecord(path); err == nil && r.State == dir && r.Server.alive() {
			// The kernel's list of devices is the same in all mount namespaces, and asking it does not touch the mount.
			_, err := os.Stat("/sys/class/bdi/" + filepath.Base(path)) // a record that was displaced has no device
			return r, err == nil
		}
	}
	return nil, false
}
