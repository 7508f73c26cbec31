package cow

import (
	"fmt"
	"slices"
	"strconv"
)

// Problem is something in a state directory that is not as it should be.
type Problem struct {
	File   string // in the state directory; "" when it is about an inode
	Offset int64  // bytes from the start of File; -1 when it is about all of it
	Ino    Ino    // 0 when it is about no inode
	Path   string // a name of the inode; "" when it has none
	Reason string
	// Harmless: a crash may leave it, and nothing that was answered is lost.
	Harmless bool
}

func (p Problem) String() string {
	switch {
	case p.File != "" && p.Offset >= 0:
		return fmt.Sprintf("%s at byte %d: %s", p.File, p.Offset, p.Reason)
	case p.File != "":
		return p.File + ": " + p.Reason
	case p.Path != "":
		return fmt.Sprintf("inode %d, %s: %s", p.Ino, shown(p.Path), p.Reason)
	}
	return fmt.Sprintf("inode %d: %s", p.Ino, p.Reason)
}

// shown is a path as a line of text.
func shown(path string) string {
	if quoted := strconv.Quote(path); quoted[1:len(quoted)-1] != path {
		return quoted
	}
	return path
}

// Report is what a check found.
type Report struct {
	Problems []Problem
	More     int    // problems that are not named, for they are too many
	Records  uint64 // of the history
	Inodes   int    // that differ from the image
	Objects  int    // data objects
	Bytes    int64  // in them, and of files in the pack

	Files, Dirs int   // that Salvage made
	Written     int64 // bytes of their content
}

// maxProblems bounds a report.
const maxProblems = 1000

func (r *Report) add(p Problem) {
	if len(r.Problems) == maxProblems {
		r.More++
		return
	}
	r.Problems = append(r.Problems, p)
}

// Damaged reports whether anything but harmless problems was found.
func (r *Report) Damaged() bool {
	return r.More > 0 || slices.ContainsFunc(r.Problems, func(p Problem) bool { return !p.Harmless })
}
