package main

import (
	"path/filepath"
)

// mount(8) and umount(8) run /sbin/mount.TYPE and /sbin/umount.TYPE: symlinks to veneer, which tells them apart by its name.

// mountHelper returns the command that argv0 is a helper's name for, or "".
func mountHelper(argv0 string) string {
	switch filepath.Base(argv0) {
	case "mount.fuse.veneer", "mount.veneer":
		return "overlay"
	case "umount.fuse.veneer", "umount.veneer":
		return "umount"
	}
	return ""
}

// helperStatus turns our exit status into what mount(8) documents.
func helperStatus(code int) int {
	switch code {
	case exitVeneer:
		return 1 // incorrect invocation
	case exitFailed:
		return 32 // mount failure
	}
	return code
}
