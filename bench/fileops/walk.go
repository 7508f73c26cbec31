package fileops

import (
	"bytes"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// walk calls visit for everything below root, a directory before what is in it, with the descriptor of the directory that has it.
func walk(root string, visit func(dir int, name string, typ uint8) error) error {
	return walkAt(unix.AT_FDCWD, root, visit, nil)
}

// walkAt is walk with a second function, which is called for a directory after what is in it. Either may be nil.
func walkAt(at int, root string, visit, after func(dir int, name string, typ uint8) error) error {
	fd, err := unix.Openat(at, root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", root, err)
	}
	defer unix.Close(fd)
	entries, err := list(fd)
	if err != nil {
		return fmt.Errorf("list %s: %w", root, err)
	}
	for _, e := range entries {
		if visit != nil {
			if err := visit(fd, e.name, e.typ); err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
		}
		if e.typ == unix.DT_DIR {
			if err := walkAt(fd, e.name, visit, after); err != nil {
				return err
			}
		}
		if after != nil {
			if err := after(fd, e.name, e.typ); err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
		}
	}
	return nil
}

// removeTree is `rm -rf`.
func removeTree(root string) error {
	remove := func(dir int, name string, typ uint8) error {
		if typ == unix.DT_DIR {
			return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
		}
		return unix.Unlinkat(dir, name, 0)
	}
	if err := walkAt(unix.AT_FDCWD, root, nil, remove); err != nil {
		return err
	}
	return unix.Rmdir(root)
}

type entry struct {
	name string
	typ  uint8
}

// list reads a directory with calls of 32 KiB, as the C library does.
func list(fd int) (entries []entry, err error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if n <= 0 {
			return entries, err
		}
		for p := buf[:n]; len(p) > 0; {
			d := (*unix.Dirent)(unsafe.Pointer(&p[0]))
			name := p[unsafe.Offsetof(d.Name):d.Reclen]
			name = name[:bytes.IndexByte(name, 0)]
			if s := string(name); s != "." && s != ".." {
				entries = append(entries, entry{s, d.Type})
			}
			p = p[d.Reclen:]
		}
	}
}
