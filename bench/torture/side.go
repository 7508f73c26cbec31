package main

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// side is one of the two directories that a sequence is made on.
type side struct {
	root string
	fds  [slots]int // -1: nothing is open there
	bufs [2][]byte
}

func newSide(root string) *side {
	s := &side{root: root}
	for i := range s.fds {
		s.fds[i] = -1
	}
	return s
}

// closeAll closes what calls have opened.
func (s *side) closeAll() {
	for i, fd := range s.fds {
		if fd >= 0 {
			unix.Close(fd)
			s.fds[i] = -1
		}
	}
}

func (s *side) path(p string) string { return s.root + "/" + p }

// What do says when the server is not there any more. With errDeadAfter it had answered.
var (
	errDead      = errors.New("the server is dead")
	errDeadAfter = errors.New("the server is dead, and has answered")
)

// do makes a call and returns all that is to be the same on both sides: the errno or what was answered, and whose times changed.
// The caller has its thread for itself. Other errors than those above say that this side cannot go on.
func (s *side) do(c *call) (answer string, err error) {
	before, dead := s.watch(c)
	if dead {
		return "", errDead
	}
	answer, err = s.call(c)
	if isDead(err) {
		return "", errDead
	}
	if err != nil {
		var no unix.Errno
		if !errors.As(err, &no) {
			return "", fmt.Errorf("%s: %w", c, err)
		}
		answer = unix.ErrnoName(no)
	}
	if err != nil && c.Op == "rename" && c.Flags&unix.RENAME_WHITEOUT != 0 {
		return answer, nil // ext4 makes the whiteout, and takes it back
	}
	after, dead := s.watch(c)
	if dead {
		return answer, errDeadAfter
	}
	return answer + changes(before, after), nil
}

func isDead(err error) bool {
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) ||
		errors.Is(err, unix.EIO) || errors.Is(err, errFault) || errors.Is(err, errShort)
}

// What else becomes of a call whose server dies.
var (
	errFault = errors.New("a page of a mapping could not be had or kept")
	errShort = errors.New("not all was written")
)

func (s *side) call(c *call) (answer string, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			if e, ok := p.(interface{ Addr() uintptr }); !ok || e.Addr() == 0 {
				panic(p)
			}
			err = errFault
		}
	}()
	if c.As != 0 {
		if err := become(c.As); err != nil {
			return "", err
		}
		defer become(0)
	}
	return doer[c.Op](s, c)
}

// become gives this thread the rights of a user on file systems.
func become(id int) error {
	if _, err := unix.SetfsgidRetGid(id); err != nil {
		return err
	}
	if _, err := unix.SetfsuidRetUid(id); err != nil {
		return err
	}
	return nil
}

// times are those of an inode that a change of content or attributes sets.
type times struct {
	ino          uint64 // 0: there is none
	mtime, ctime unix.Timespec
}

// watch looks at everything that a call may give new times: what its paths name, the directories of them, its files.
func (s *side) watch(c *call) (all [6]times, dead bool) {
	see := func(i int, stat func(*unix.Stat_t) error) {
		var st unix.Stat_t
		if err := stat(&st); err != nil {
			dead = dead || isDead(err)
		} else if st.Mode&unix.S_IFMT != unix.S_IFIFO { // whose reads and writes set no times on FUSE (S_NOCMTIME)
			all[i] = times{st.Ino, st.Mtim, st.Ctim}
		}
	}
	for i, p := range []string{c.P, c.Q} {
		if p == "" || c.Op == "symlink" && i == 1 {
			continue
		}
		see(2*i, func(st *unix.Stat_t) error { return unix.Lstat(s.path(p), st) })
		if dir, ok := parent(p); ok {
			see(2*i+1, func(st *unix.Stat_t) error { return unix.Lstat(s.path(dir), st) })
		}
	}
	for i, n := range []int{c.Fd, c.Fd2} {
		if fd := s.fds[n]; fd >= 0 && c.Op != "open" && (i == 0 || n != c.Fd) {
			see(4+i, func(st *unix.Stat_t) error { return unix.Fstat(fd, st) })
		}
	}
	return all, dead
}

// parent is the directory of a path, if it is the worker's own.
func parent(p string) (string, bool) {
	i := strings.LastIndexByte(strings.TrimRight(p, "/"), '/')
	if i < 0 || strings.HasPrefix(p, "s0/") || strings.HasPrefix(p, "s1/") {
		return "", false
	}
	return p[:i], true
}

// changes tells which inodes that were seen before have other times now, whatever they are called by now.
func changes(before, after [6]times) string {
	var b strings.Builder
	for i, was := range before {
		at := slices.IndexFunc(after[:], func(is times) bool { return is.ino == was.ino })
		if was.ino == 0 || at < 0 {
			continue
		}
		if was.mtime != after[at].mtime {
			fmt.Fprintf(&b, " m%d", i)
		}
		if was.ctime != after[at].ctime {
			fmt.Fprintf(&b, " c%d", i)
		}
	}
	return b.String()
}

// buffers returns two equally long pieces of memory, the first filled with what call n writes.
func (s *side) buffers(n int, length int64) (text, room []byte) {
	for i := range s.bufs {
		if int64(len(s.bufs[i])) < length {
			s.bufs[i] = make([]byte, length)
		}
	}
	text = s.bufs[0][:length]
	fill(text, n)
	return text, s.bufs[1][:length]
}

// fill makes bytes that differ from call to call and from place to place.
func fill(p []byte, n int) {
	x := uint32(n)*2654435761 + 1
	for i := range p {
		if i%61 == 0 {
			x = x*1664525 + 1013904223
		}
		p[i] = byte(x>>24) + byte(i)
	}
}

func sum(p []byte) string { return fmt.Sprintf("%d:%08x", len(p), crc32.ChecksumIEEE(p)) }

func showStat(st *unix.Stat_t) string {
	size := st.Size
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		size = 0 // a matter of the file system
	}
	rdev := uint64(0)
	if t := st.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		rdev = st.Rdev
	}
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && rdev == 0 {
		st.Uid, st.Gid = 0, 0 // a whiteout belongs to root, on ext4 to who renames
	}
	return fmt.Sprintf("%o %d %d:%d %d %x", st.Mode, st.Nlink, st.Uid, st.Gid, size, rdev)
}

// list returns the names of a directory with their types, sorted.
func list(dir string) ([]string, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	entries, err := f.ReadDir(-1)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = fmt.Sprintf("%q%v", e.Name(), e.Type())
	}
	slices.Sort(names)
	return names, err
}
