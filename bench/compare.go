package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxDiffs is how many differences are named.
const maxDiffs = 20

// compare names what differs between two trees: for people, after tar has said that something does.
func compare(a, b string) (diffs []string) {
	left, right := index(a), index(b)
	names := make([]string, 0, len(left))
	for name := range left {
		names = append(names, name)
	}
	for name := range right {
		if _, ok := left[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		l, inLeft := left[name]
		r, inRight := right[name]
		switch {
		case !inLeft:
			diffs = append(diffs, name+" is only in "+b)
		case !inRight:
			diffs = append(diffs, name+" is only in "+a)
		case l != r:
			diffs = append(diffs, fmt.Sprintf("%s: %s / %s", name, l, r))
		case strings.HasPrefix(l, "-") && !sameContent(filepath.Join(a, name), filepath.Join(b, name)):
			diffs = append(diffs, name+": content")
		}
		if len(diffs) == maxDiffs {
			return append(diffs, "...")
		}
	}
	return diffs
}

// index describes every file below dir but its bytes.
func index(dir string) map[string]string {
	found := make(map[string]string)
	first := make(map[uint64]string) // inode → first name
	filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, path)
		if slices.Contains(formatFiles, name) {
			return nil
		}
		if err != nil {
			found[name] = err.Error()
			return nil
		}
		found[name] = describe(path, name, first)
		return nil
	})
	return found
}

func describe(path, name string, first map[uint64]string) string {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err.Error()
	}
	kind := map[uint32]string{unix.S_IFREG: "-", unix.S_IFDIR: "d", unix.S_IFLNK: "l", unix.S_IFCHR: "c", unix.S_IFBLK: "b",
		unix.S_IFIFO: "p", unix.S_IFSOCK: "s"}[st.Mode&unix.S_IFMT]
	d := fmt.Sprintf("%s mode %o owner %d:%d mtime %d.%09d", kind, st.Mode&0o7777, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
	switch kind {
	case "-":
		d += fmt.Sprintf(" size %d nlink %d", st.Size, st.Nlink)
	case "c", "b":
		d += fmt.Sprintf(" device %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case "l":
		target, _ := os.Readlink(path)
		d += " to " + target
	}
	if kind != "d" && st.Nlink > 1 {
		if first[st.Ino] == "" {
			first[st.Ino] = name
		}
		d += " linked to " + first[st.Ino]
	}
	return d + xattrs(path)
}

func xattrs(path string) string {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil || n == 0 {
		return ""
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	var d string
	for _, name := range names {
		v := make([]byte, 64<<10)
		k, err := unix.Lgetxattr(path, name, v)
		d += fmt.Sprintf(" %s=%q %v", name, v[:max(k, 0)], err)
	}
	return d
}

func sameContent(a, b string) bool {
	l, errL := os.ReadFile(a)
	r, errR := os.ReadFile(b)
	return errL == nil && errR == nil && bytes.Equal(l, r)
}
