package unionfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// AddDir adds a host directory, whole, as the next layer (or as the one that AddLayer has just started with
// FormatDir). Whiteouts and opaque directories are told as overlayfs tells them: by character devices 0:0, or
// files with its whiteout attribute in a directory that says it has some, and by the opaque attribute; its own attributes
// don't show. A directory that overlayfs would redirect and a file whose data is in another layer are refused.
//
// The walk goes by directory handles and follows no symlink, so the depth of the directory does not matter. It enters
// other file systems that are mounted below path. What can't be read is an *EntryError; nothing is left out.
// The directory must not change any more.
func (b *Builder) AddDir(path string) error {
	// The layer itself may be given as a symlink; below it none is followed.
	root, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil && b.err == nil {
		return b.entryError(".", fmt.Errorf("open directory: %w", err))
	}
	defer root.Close()
	return b.AddDirAt(root, path, nil)
}

// AddDirAt is AddDir of a directory that is open: path is only its name. What skip wants left out of the directory itself, not of
// those below it, is left out; skip may be nil.
func (b *Builder) AddDirAt(root *os.File, path string, skip func(name string) bool) error {
	if b.err != nil {
		return b.err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("add directory: %w", err)
	}
	if n := len(b.layers); n > 0 && b.layers[n-1].Format == FormatDir && b.root.dir.touched != b.gen {
		b.layers[n-1].Path = abs
	} else if err := b.AddLayer(Layer{Format: FormatDir, Path: abs}); err != nil {
		return err
	}
	w := dirWalk{b: b, skip: skip, seen: make(map[fileID]*inode), buf: make([]byte, 1<<16)}
	defer w.close()
	if err := w.walk(root); err != nil {
		return b.entryError(w.entry(), err)
	}
	return nil
}

// dirWalk reads a host directory into the current layer.
type dirWalk struct {
	b     *Builder
	skip  func(name string) bool // nil but for the top directory
	stack []openDir
	name  string            // of the entry at hand, in the top of the stack
	seen  map[fileID]*inode // files with more than one link
	buf   []byte

	noListxattrat bool // the kernel has none
}

// fileID is the identity of a file on the host.
type fileID struct{ dev, ino uint64 }

// openDir is a directory on the way down.
type openDir struct {
	fd        int // -1 while it is too far up; found again by ".."
	id        fileID
	node      *inode
	path      string   // below the layer
	subdirs   []string // to visit yet
	whiteouts bool     // has files with overlayfs's whiteout attribute
}

// maxOpenDirs bounds the descriptors in use, whatever the depth.
const maxOpenDirs = 64

const openDirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

func (w *dirWalk) top() *openDir { return &w.stack[len(w.stack)-1] }

// entry names the entry at hand.
func (w *dirWalk) entry() string {
	if len(w.stack) == 0 {
		return "."
	}
	if w.name == "" {
		return w.top().path
	}
	return joinPath(w.top().path, w.name)
}

func (w *dirWalk) close() {
	for _, d := range w.stack {
		if d.fd >= 0 {
			unix.Close(d.fd)
		}
	}
}

func (w *dirWalk) walk(root *os.File) error {
	fd, err := unix.Openat(int(root.Fd()), ".", openDirFlags, 0)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	if err := w.enter(fd); err != nil {
		return err
	}
	w.skip = nil
	for len(w.stack) > 0 {
		d := w.top()
		if len(d.subdirs) == 0 {
			if err := w.leave(); err != nil {
				return err
			}
			continue
		}
		w.name, d.subdirs = d.subdirs[0], d.subdirs[1:]
		fd, err := unix.Openat(d.fd, w.name, openDirFlags, 0)
		if err != nil {
			return fmt.Errorf("open directory: %w", err)
		}
		if err := w.enter(fd); err != nil {
			return err
		}
	}
	return nil
}

// enter adds the directory fd, which is w.name in the top of the stack or the root, pushes it, and adds all in it
// but directories. It owns fd.
func (w *dirWalk) enter(fd int) (err error) {
	owned := true
	defer func() {
		if owned {
			unix.Close(fd)
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	x, err := w.xattrs(fd, "")
	if err != nil {
		return err
	}
	d := openDir{fd: fd, id: fileID{uint64(st.Dev), st.Ino}, node: w.b.root, whiteouts: x.opaque == "x"}
	if len(w.stack) > 0 {
		up := w.top()
		d.path = joinPath(up.path, w.name)
		if len(d.path) > maxPath {
			return fmt.Errorf("the path has more than %d bytes", maxPath)
		}
		if d.node, err = w.b.makeDir(up.node, w.name); err != nil {
			return err
		}
	}
	set, err := w.b.xattrs.add(&w.b.limits, x.shown)
	if err != nil {
		return err
	}
	e := entryOf(&st)
	w.b.setDir(d.node, &e, set)
	if x.opaque == "y" {
		w.b.hideIn(d.node)
	}
	owned = false
	w.push(d)
	return w.read()
}

// push makes d the top of the stack, and closes what is too far up.
func (w *dirWalk) push(d openDir) {
	w.stack, w.name = append(w.stack, d), ""
	if i := len(w.stack) - 1 - maxOpenDirs; i >= 0 {
		unix.Close(w.stack[i].fd)
		w.stack[i].fd = -1
	}
}

// leave pops the top of the stack, and opens its parent again if need be.
func (w *dirWalk) leave() error {
	d := *w.top()
	if len(w.stack) > 1 && w.stack[len(w.stack)-2].fd < 0 {
		up := &w.stack[len(w.stack)-2]
		fd, err := unix.Openat(d.fd, "..", openDirFlags, 0)
		if err != nil {
			return fmt.Errorf("open parent directory: %w", err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || (fileID{uint64(st.Dev), st.Ino}) != up.id {
			unix.Close(fd)
			return errors.Join(errors.New("the directory was moved while it was read"), err)
		}
		up.fd = fd
	}
	unix.Close(d.fd)
	w.stack, w.name = w.stack[:len(w.stack)-1], ""
	return nil
}

// read adds what is in the top of the stack, and notes the directories in it.
func (w *dirWalk) read() error {
	names, err := w.list()
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if w.skip != nil && w.skip(name) {
			continue
		}
		w.name = name
		var st unix.Stat_t
		if err := unix.Fstatat(w.top().fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("stat: %w", err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			w.top().subdirs = append(w.top().subdirs, name)
		} else if err := w.addFile(&st); err != nil {
			return err
		}
	}
	w.name = ""
	return nil
}

// list returns the names in the top of the stack.
func (w *dirWalk) list() (names []string, err error) {
	for {
		n, err := unix.Getdents(w.top().fd, w.buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read directory: %w", err)
		}
		if n == 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(w.buf[:n], -1, names)
	}
}

// addFile adds the entry at hand, which is no directory.
func (w *dirWalk) addFile(st *unix.Stat_t) error {
	d := w.top()
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		w.b.hide(d.node, w.name)
		return nil
	}
	id := fileID{uint64(st.Dev), st.Ino}
	if n, ok := w.seen[id]; ok {
		w.b.put(d.node, w.name, n)
		return nil
	}
	x, err := w.xattrs(d.fd, w.name)
	if err != nil {
		return err
	}
	if d.whiteouts && x.whiteout && st.Size == 0 && st.Mode&unix.S_IFMT == unix.S_IFREG {
		w.b.hide(d.node, w.name)
		return nil
	}
	n, err := w.newFile(st, x.shown)
	if err != nil {
		return err
	}
	if st.Nlink > 1 {
		w.seen[id] = n
	}
	w.b.put(d.node, w.name, n)
	return nil
}

// newFile makes the inode of the entry at hand.
func (w *dirWalk) newFile(st *unix.Stat_t, xattrs map[string]string) (*inode, error) {
	e := entryOf(st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size = st.Size
		e.Content = Content{Size: st.Size, Path: joinPath(w.top().path, w.name)}
	case unix.S_IFLNK:
		n, err := unix.Readlinkat(w.top().fd, w.name, w.buf)
		if err != nil {
			return nil, fmt.Errorf("read symlink: %w", err)
		}
		e.Symlink = string(w.buf[:n])
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Rdev = st.Rdev
	}
	if err := w.b.limits.checkEntry(&e); err != nil {
		return nil, err
	}
	set, err := w.b.xattrs.add(&w.b.limits, xattrs)
	if err != nil {
		return nil, err
	}
	return w.b.newFile(&e, set)
}

// entryOf returns the attributes that all types of files have.
func entryOf(st *unix.Stat_t) Entry {
	return Entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}}
}
