package fs

import (
	"bytes"
	"os"
	"slices"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// losesGroup reports whether a change of a file's content by who asks takes S_ISGID from it though it has no group-execute: it does if he
// is not in the file's group (kernel: fs/attr.c, setattr_should_drop_sgid). Of his groups a request tells only one.
func (w *wire) losesGroup(in *fuse.InHeader) bool {
	a, err := w.b.GetAttr(inoOf(in.NodeId))
	if err != nil || a.Mode&unix.S_ISGID == 0 || a.Mode&unix.S_IXGRP != 0 {
		return false
	}
	return in.Gid != a.GID && !slices.Contains(groupsOf(in.Pid), a.GID)
}

// groupsOf returns the supplementary groups of a thread; none if it is gone or in another PID namespace.
func groupsOf(tid uint32) (groups []uint32) {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(int(tid)) + "/status")
	if err != nil {
		return nil
	}
	_, line, _ := bytes.Cut(status, []byte("\nGroups:"))
	line, _, _ = bytes.Cut(line, []byte("\n"))
	for _, f := range bytes.Fields(line) {
		if gid, err := strconv.ParseUint(string(f), 10, 32); err == nil {
			groups = append(groups, uint32(gid))
		}
	}
	return groups
}
