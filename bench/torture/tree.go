package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// entry is all of a name that must be the same on both sides.
type entry struct {
	stat   string // without the size of a regular file
	target string // of a symlink
	xattrs string
	first  string // the first name of the inode, in order: so hard links are known
	data   []byte // of a regular file
	ino    uint64
}

// tree is what is below some names of a directory, by path.
type tree map[string]*entry

// look reads what belongs to a worker: its own directory, and its names in the shared ones.
func look(root, worker string) (tree, error) {
	t := make(tree)
	tops := []string{worker}
	for _, dir := range []string{"s0", "s1"} {
		all, err := filepath.Glob(root + "/" + dir + "/" + worker + "-*")
		if err != nil {
			return nil, err
		}
		for _, path := range all {
			tops = append(tops, path[len(root)+1:])
		}
	}
	firsts := make(map[uint64]string)
	for _, top := range tops {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			e, err := lookAt(path)
			if err != nil {
				return fmt.Errorf("look at %s: %w", path, err)
			}
			name := strings.TrimPrefix(path[len(root):], "/")
			if firsts[e.ino] == "" {
				firsts[e.ino] = name
			}
			e.first = firsts[e.ino]
			t[name] = e
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return t, nil
}

func lookAt(path string) (*entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, err
	}
	e := &entry{ino: st.Ino}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if e.data, err = os.ReadFile(path); err != nil {
			return nil, err
		}
		if int64(len(e.data)) != st.Size {
			return nil, fmt.Errorf("%d bytes to read, st_size %d", len(e.data), st.Size)
		}
		st.Size = 0
		if err := checkHoles(path, e.data); err != nil {
			return nil, err
		}
	case unix.S_IFLNK:
		if e.target, err = os.Readlink(path); err != nil {
			return nil, err
		}
	}
	e.stat = showStat(&st)
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		return e, nil // a whiteout: on ext4 it may have the directory's default ACL
	}
	if e.xattrs, err = listXattrs(path); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, err
	}
	return e, nil
}

// checkHoles walks over a file by SEEK_DATA and SEEK_HOLE: they must alternate, come to the end, and leave out nothing but zeros.
func checkHoles(path string, data []byte) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	size := int64(len(data))
	for pos := int64(0); pos < size; {
		start, err := unix.Seek(fd, pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			start, err = size, nil
		}
		if err != nil || start < pos || start > size {
			return fmt.Errorf("SEEK_DATA from %d of %d: %d, %v", pos, size, start, err)
		}
		if i := bytes.IndexFunc(data[pos:start], func(r rune) bool { return r != 0 }); i >= 0 {
			return fmt.Errorf("SEEK_DATA from %d of %d is %d: byte %d between is not zero", pos, size, start, pos+int64(i))
		}
		if start == size {
			return nil
		}
		if pos, err = unix.Seek(fd, start, unix.SEEK_HOLE); err != nil || pos <= start || pos > size {
			return fmt.Errorf("SEEK_HOLE from %d of %d: %d, %v", start, size, pos, err)
		}
	}
	return nil
}

// diff says where two trees differ. With loose, content may also be as it is there, in part and in length: the kernel makes
// several requests of one write.
func diff(got, want, loose tree) error {
	names := slices.Sorted(maps.Keys(got))
	for name := range want {
		if got[name] == nil {
			names = append(names, name)
		}
	}
	var all []string
	for _, name := range names {
		if d := diffEntry(got[name], want[name], loose[name]); d != "" {
			all = append(all, fmt.Sprintf("%s: %s", name, d))
		}
	}
	if len(all) > 10 {
		all = append(all[:10], fmt.Sprintf("and %d more", len(all)-10))
	}
	if all == nil {
		return nil
	}
	return errors.New(strings.Join(all, "\n"))
}

func diffEntry(got, want, loose *entry) string {
	switch {
	case got == nil:
		return "is missing"
	case want == nil:
		return "is there, and should not be: " + got.stat
	case got.stat != want.stat:
		return fmt.Sprintf("stat %s, not %s", got.stat, want.stat)
	case got.target != want.target:
		return fmt.Sprintf("leads to %q, not %q", got.target, want.target)
	case got.xattrs != want.xattrs:
		return fmt.Sprintf("xattrs %q, not %q", got.xattrs, want.xattrs)
	case got.first != want.first:
		return fmt.Sprintf("is the same as %s, not as %s", got.first, want.first)
	}
	if loose == nil {
		loose = want
	}
	if n := len(got.data); n < min(len(want.data), len(loose.data)) || n > max(len(want.data), len(loose.data)) {
		return fmt.Sprintf("%d bytes, not %d", n, len(want.data))
	}
	for i, b := range got.data {
		if !has(want.data, i, b) && !has(loose.data, i, b) {
			return fmt.Sprintf("byte %d of %d is %#x, not as it should be", i, len(got.data), b)
		}
	}
	return ""
}

func has(p []byte, i int, b byte) bool { return i < len(p) && p[i] == b }
