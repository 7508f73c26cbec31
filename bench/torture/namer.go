package main

import (
	"errors"
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// namer makes random calls that change names and attributes, and no content, and syncs in between.
type namer struct {
	pair
	calls  *calls
	round  []call
	synced int // calls of the round before the last sync
}

// namesOnly leaves calls only what a namer makes. On the passthrough rung that does not include sizes: one of a file that is open
// for writing is the data object's, of a later moment than the names perhaps.
func (g *calls) namesOnly() *calls {
	all := []string{"open", "close", "fsync", "fdatasync", "fchmod", "linkfd", "mkdir", "rmdir", "unlink", "rename", "link", "symlink", "mknod", "chmod",
		"chown", "utimens", "setxattr", "removexattr"}
	if g.readers {
		all = append(all, "ftruncate", "truncate")
	} else {
		g.never = unix.O_TRUNC
	}
	g.kinds = slices.DeleteFunc(slices.Clone(kinds), func(k kind) bool { return !slices.Contains(all, k.name) })
	return g
}

func (v *namer) work(_ string, synced func() bool) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer v.mount.closeAll()
	v.round, v.synced = nil, 0
	for {
		c := v.calls.next()
		v.round = append(v.round, c)
		answer, err := v.mount.do(&c)
		if errors.Is(err, errDead) || errors.Is(err, errDeadAfter) {
			return nil
		}
		if err != nil {
			return err
		}
		if (c.Op == "fsync" || c.Op == "fdatasync") && answer == "" && synced() {
			v.synced = len(v.round)
		}
	}
}

// check makes the calls on ext4, until what is there is what they have made: after the last sync, before the last call.
func (v *namer) check(string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer v.twin.closeAll()
	got, err := look(v.mount.root, v.name)
	if err != nil {
		return err
	}
	var differ error
	for i := 0; ; i++ {
		if i >= v.synced {
			want, err := look(v.twin.root, v.name)
			if err != nil {
				return err
			}
			d := diff(got, want, nil)
			if d == nil {
				return nil
			}
			if differ == nil || len(d.Error()) < len(differ.Error()) {
				differ = d
			}
		}
		if i == len(v.round) {
			return fmt.Errorf("worker %s: the tree is of no moment after the last sync, call %d of %d:\n%w", v.name, v.synced, len(v.round), differ)
		}
		if _, err := v.twin.do(&v.round[i]); err != nil {
			return err
		}
	}
}
