package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// kinds are the calls that there are, with how often they come.
var kinds = []kind{
	{"open", 18, makeOpen, doOpen},
	{"close", 3, onFd, doClose},
	{"write", 6, onRange, doWrite},
	{"pwrite", 12, onRange, doPwrite},
	{"read", 3, onRange, doRead},
	{"pread", 8, onRange, doPread},
	{"readfile", 4, func(g *calls, c *call) { onRange(g, c); c.Fd = 0; c.P = g.path() }, doReadFile},
	{"seek", 2, onRange, doSeek},
	{"ftruncate", 4, onRange, func(s *side, c *call) (string, error) { return "", unix.Ftruncate(s.fds[c.Fd], c.Off) }},
	{"fallocate", 5, makeFallocate, func(s *side, c *call) (string, error) {
		return "", unix.Fallocate(s.fds[c.Fd], uint32(c.Flags), c.Off, c.Len)
	}},
	{"copy", 3, func(g *calls, c *call) { onRange(g, c); c.Fd2 = g.slot() }, doCopy},
	{"mapwrite", 4, onRange, doMapWrite},
	{"mapread", 2, onRange, doMapRead},
	{"fsync", 1, onFd, func(s *side, c *call) (string, error) { return "", unix.Fsync(s.fds[c.Fd]) }},
	{"fdatasync", 1, onFd, func(s *side, c *call) (string, error) { return "", unix.Fdatasync(s.fds[c.Fd]) }},
	{"fstat", 2, onFd, doFstat},
	{"fchmod", 1, func(g *calls, c *call) { onFd(g, c); c.Mode = g.mode() }, func(s *side, c *call) (string, error) {
		return "", unix.Fchmod(s.fds[c.Fd], c.Mode)
	}},
	{"linkfd", 2, func(g *calls, c *call) { onFd(g, c); c.Q = g.path() }, func(s *side, c *call) (string, error) {
		return "", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", s.fds[c.Fd]), unix.AT_FDCWD, s.path(c.Q), unix.AT_SYMLINK_FOLLOW)
	}},
	{"truncate", 3, func(g *calls, c *call) { onPath(g, c); c.Off = g.offset() }, func(s *side, c *call) (string, error) {
		return "", unix.Truncate(s.path(c.P), c.Off)
	}},
	{"mkdir", 6, makeChmod, func(s *side, c *call) (string, error) { return "", unix.Mkdir(s.path(c.P), c.Mode) }},
	{"rmdir", 4, onPath, func(s *side, c *call) (string, error) { return "", unix.Rmdir(s.path(c.P)) }},
	{"unlink", 7, onPath, func(s *side, c *call) (string, error) { return "", unix.Unlink(s.path(c.P)) }},
	{"rename", 12, makeRename, func(s *side, c *call) (string, error) {
		return "", unix.Renameat2(unix.AT_FDCWD, s.path(c.P), unix.AT_FDCWD, s.path(c.Q), uint(c.Flags))
	}},
	{"link", 5, onPaths, func(s *side, c *call) (string, error) { return "", unix.Link(s.path(c.P), s.path(c.Q)) }},
	{"symlink", 3, makeSymlink, func(s *side, c *call) (string, error) { return "", unix.Symlink(c.Q, s.path(c.P)) }},
	{"readlink", 2, onPath, doReadlink},
	{"mknod", 3, makeMknod, func(s *side, c *call) (string, error) { return "", unix.Mknod(s.path(c.P), c.Mode, int(c.Off)) }},
	{"chmod", 4, makeChmod, func(s *side, c *call) (string, error) { return "", unix.Chmod(s.path(c.P), c.Mode) }},
	{"chown", 4, makeChown, func(s *side, c *call) (string, error) { return "", unix.Lchown(s.path(c.P), int(c.Off), int(c.Len)) }},
	{"utimens", 3, makeTimes, doTimes},
	{"setxattr", 5, makeXattr, doSetXattr},
	{"setacl", 3, makeACL, doSetACL},
	{"getxattr", 2, makeXattr, doGetXattr},
	{"removexattr", 2, makeXattr, func(s *side, c *call) (string, error) { return "", unix.Lremovexattr(s.path(c.P), c.Name) }},
	{"listxattr", 2, onPath, func(s *side, c *call) (string, error) { return listXattrs(s.path(c.P)) }},
	{"stat", 3, onPath, doStat},
	{"access", 1, func(g *calls, c *call) { onPath(g, c); c.Mode = uint32(g.r.IntN(8)) }, func(s *side, c *call) (string, error) {
		return "", unix.Access(s.path(c.P), c.Mode)
	}},
	{"readdir", 4, func(g *calls, c *call) { c.P = g.path() }, doReaddir},
}

// doer finds what a call does by its name.
var doer = make(map[string]func(*side, *call) (string, error))

func init() {
	for _, k := range kinds {
		doer[k.name] = k.do
	}
}

func doOpen(s *side, c *call) (string, error) {
	// A FIFO must not make us wait, and is no terminal.
	fd, err := unix.Open(s.path(c.P), c.Flags|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, c.Mode)
	if errors.Is(err, unix.ENXIO) {
		err = unix.EACCES // the mount is nodev, the other side is not
	}
	if err != nil {
		return "", err
	}
	if s.fds[c.Fd] >= 0 {
		unix.Close(s.fds[c.Fd])
	}
	s.fds[c.Fd] = fd
	return "", nil
}

func doClose(s *side, c *call) (string, error) {
	fd := s.fds[c.Fd]
	s.fds[c.Fd] = -1
	return "", unix.Close(fd)
}

func doWrite(s *side, c *call) (string, error) {
	p, _ := s.buffers(c.N, c.Len)
	n, err := unix.Write(s.fds[c.Fd], p)
	return s.wrote(n, c, err)
}

func doPwrite(s *side, c *call) (string, error) {
	p, _ := s.buffers(c.N, c.Len)
	n, err := unix.Pwrite(s.fds[c.Fd], p, c.Off)
	return s.wrote(n, c, err)
}

// wrote is the answer to a write. Nothing but the server's death makes one to a file short here.
func (s *side) wrote(n int, c *call, err error) (string, error) {
	var st unix.Stat_t
	if err == nil && int64(n) < c.Len && (unix.Fstat(s.fds[c.Fd], &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFREG) {
		err = errShort
	}
	return fmt.Sprint(n), err
}

func doRead(s *side, c *call) (string, error) {
	_, p := s.buffers(c.N, c.Len)
	n, err := unix.Read(s.fds[c.Fd], p)
	return sum(p[:max(n, 0)]), err
}

func doPread(s *side, c *call) (string, error) {
	_, p := s.buffers(c.N, c.Len)
	n, err := unix.Pread(s.fds[c.Fd], p, c.Off)
	return sum(p[:max(n, 0)]), err
}

// doReadFile opens a file just to read from it.
func doReadFile(s *side, c *call) (string, error) {
	fd, err := unix.Open(s.path(c.P), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENXIO) {
			err = unix.EACCES // see doOpen
		}
		return "", err
	}
	defer unix.Close(fd)
	_, p := s.buffers(c.N, c.Len)
	n, err := unix.Pread(fd, p, c.Off)
	return sum(p[:max(n, 0)]), err
}

func doSeek(s *side, c *call) (string, error) {
	at, err := unix.Seek(s.fds[c.Fd], c.Off, unix.SEEK_SET)
	return fmt.Sprint(at), err
}

// doCopy copies a range to the same place in another file, in as many steps as the kernel wants.
func doCopy(s *side, c *call) (string, error) {
	from, to, done := c.Off, c.Off+c.Len, int64(0)
	for done < c.Len {
		n, err := unix.CopyFileRange(s.fds[c.Fd], &from, s.fds[c.Fd2], &to, int(c.Len-done), 0)
		if err != nil {
			return fmt.Sprint(done), err
		}
		if n == 0 {
			break
		}
		done += int64(n)
	}
	return fmt.Sprint(done), nil
}

// mapped runs use over the pages of a file around a call's range, as far as the file goes.
func (s *side) mapped(c *call, prot int, use func(p []byte) error) (string, error) {
	fd := s.fds[c.Fd]
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "not a file", nil
	}
	end := min(c.Off+c.Len, st.Size)
	page := c.Off &^ 4095
	if c.Off >= end {
		return "empty", nil
	}
	p, err := unix.Mmap(fd, page, int(end-page), prot, unix.MAP_SHARED)
	if err != nil {
		return "", err
	}
	defer unix.Munmap(p)
	err = use(p[c.Off-page:])
	if err == nil && prot&unix.PROT_WRITE != 0 {
		err = unix.Msync(p, unix.MS_SYNC)
	}
	if errors.Is(err, unix.EIO) {
		err = errFault // no server took the pages
	}
	return sum(p[c.Off-page:]), err
}

func doMapWrite(s *side, c *call) (string, error) {
	text, _ := s.buffers(c.N, c.Len)
	if _, err := unix.Fgetxattr(s.fds[c.Fd], "security.capability", nil); err == nil {
		return "capabilities", nil // which FUSE does not let us tell from a write's: they go
	}
	return s.mapped(c, unix.PROT_READ|unix.PROT_WRITE, func(p []byte) error { copy(p, text); return nil })
}

func doMapRead(s *side, c *call) (string, error) {
	return s.mapped(c, unix.PROT_READ, func([]byte) error { return nil })
}

func doFstat(s *side, c *call) (string, error) {
	var st unix.Stat_t
	err := unix.Fstat(s.fds[c.Fd], &st)
	return showStat(&st), err
}

func doStat(s *side, c *call) (string, error) {
	var st unix.Stat_t
	err := unix.Lstat(s.path(c.P), &st)
	return showStat(&st), err
}

func doReadlink(s *side, c *call) (string, error) {
	p := make([]byte, 4096)
	n, err := unix.Readlink(s.path(c.P), p)
	return string(p[:max(n, 0)]), err
}

// doTimes sets atime, mtime, both, or both to now.
func doTimes(s *side, c *call) (string, error) {
	ts := []unix.Timespec{{Sec: c.Off, Nsec: c.Len}, {Sec: c.Off + 1, Nsec: c.Len}}
	if c.Flags == 3 {
		ts[0].Nsec, ts[1].Nsec = unix.UTIME_NOW, unix.UTIME_NOW
	} else if c.Flags < 2 {
		ts[c.Flags].Nsec = unix.UTIME_OMIT
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, s.path(c.P), ts, unix.AT_SYMLINK_NOFOLLOW); err != nil || c.Flags == 3 || c.Flags == 1 {
		return "", err
	}
	var st unix.Stat_t
	err := unix.Lstat(s.path(c.P), &st)
	return fmt.Sprint(st.Mtim), err
}

func doSetXattr(s *side, c *call) (string, error) {
	p, _ := s.buffers(c.N, c.Len)
	if c.Name == "security.capability" {
		p = make([]byte, 20) // struct vfs_cap_data, permitted: something
		p[3], p[4], p[5] = 2, byte(c.N), byte(c.N>>8)
	}
	return "", unix.Lsetxattr(s.path(c.P), c.Name, p, c.Flags)
}

// doSetACL sets an ACL in the form of include/uapi/linux/posix_acl_xattr.h.
func doSetACL(s *side, c *call) (string, error) {
	p := binary.LittleEndian.AppendUint32(nil, 2)
	for i, e := range []struct{ tag, id uint32 }{{1, ^uint32(0)}, {2, somebody}, {4, ^uint32(0)}, {8, 1002}, {16, ^uint32(0)}, {32, ^uint32(0)}} {
		p = binary.LittleEndian.AppendUint16(p, uint16(e.tag))
		p = binary.LittleEndian.AppendUint16(p, uint16(c.Mode>>(3*i)&7))
		p = binary.LittleEndian.AppendUint32(p, e.id)
	}
	return "", unix.Setxattr(s.path(c.P), c.Name, p, 0)
}

func doGetXattr(s *side, c *call) (string, error) {
	_, p := s.buffers(c.N, c.Len)
	n, err := unix.Lgetxattr(s.path(c.P), c.Name, p)
	if c.Len == 0 {
		return fmt.Sprint(n), err
	}
	return sum(p[:max(n, 0)]), err
}

// listXattrs shows names and values.
func listXattrs(path string) (string, error) {
	p := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, p)
	if err != nil {
		return "", err
	}
	names := strings.FieldsFunc(string(p[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	for i, name := range names {
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, v)
		if err != nil {
			return "", err
		}
		names[i] = name + "=" + sum(v[:n])
	}
	return strings.Join(names, " "), nil
}

func doReaddir(s *side, c *call) (string, error) {
	names, err := list(s.path(c.P))
	return strings.Join(names, " "), err
}
