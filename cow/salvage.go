package cow

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// Salvage writes what a container added or changed to the directory to, which must be empty, as far as the state in dir, damaged or not,
// tells it. What is as in the image is not written. An inode to which no name leads is lost+found/#INO, also one whose name cannot
// be on a file system, or whose path would be too long. Content that cannot be read is a hole.
//
// What is below to has the container's owners, modes, devices and set-id bits; to itself, if it is made, only the caller can enter.
// The report says what was not whole. An error ends it: the state cannot be read at all (*VersionError, *TreeError), or to cannot be
// written.
func Salvage(ctx context.Context, dir string, tree *unionfs.Tree, c Contents, o Options, placeholders map[string]bool, to string) (*Report, error) {
	r := new(Report)
	out, err := openEmpty(to)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	s, err := readDamaged(dir, tree, c, o, r)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	w := &salvageWriter{ctx: ctx, s: s, r: r, root: int(out.Fd()), first: make(map[Ino]string), buf: make([]byte, 1<<20)}
	walk := &changeWalk{f: s.FS, o: ChangesOptions{Placeholders: placeholders}, met: make(map[Ino]bool), yield: w.change}
	walk.troubled = func(err error) { r.add(Problem{File: "tree", Offset: -1, Reason: err.Error()}) }
	if err := walk.prepare(); err != nil {
		return r, err
	}
	if err := unix.Mkdirat(w.root, lostFound, 0o700); err != nil {
		return r, fmt.Errorf("create %s: %w", lostFound, err)
	}
	err = walk.walk()
	if err == nil {
		err = walk.strays()
	}
	err = errors.Join(err, w.leave(1))
	_ = unix.Unlinkat(w.root, lostFound, unix.AT_REMOVEDIR) // if nothing was lost
	return r, err
}

func openEmpty(dir string) (*os.File, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("%s is not empty: it has %q in it", dir, entries[0].Name())
	}
	return os.OpenFile(dir, unix.O_DIRECTORY|unix.O_RDONLY, 0)
}

const lostFound = "lost+found"

// strays walks what has links and to which no name leads: first directories that are in no other stray one.
func (w *changeWalk) strays() error {
	var dirs, files []Ino
	inside := make(map[Ino]bool)
	for _, ino := range slices.Sorted(maps.Keys(w.f.nodes)) {
		n := w.f.nodes[ino]
		switch {
		case n.nlink == 0 || w.met[ino] || w.walked[ino] || ino == unionfs.Root:
		case !n.isDir():
			files = append(files, ino)
		default:
			dirs = append(dirs, ino)
			if d := n.dir(); d != nil {
				for i := range d.ents {
					inside[d.ents[i].ino()] = true
				}
			}
		}
	}
	slices.SortStableFunc(dirs, func(a, b Ino) int { return count(inside[a]) - count(inside[b]) })
	for _, ino := range append(dirs, files...) {
		if err := w.stray(ino); err != nil {
			return err
		}
	}
	return nil
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (w *changeWalk) stray(ino Ino) error {
	if w.met[ino] || w.walked[ino] {
		return nil // found in another stray directory
	}
	w.path = fmt.Appendf(w.path[:0], "/%s/#%d", lostFound, ino)
	now, err := w.f.bareAttr(ino)
	if err != nil {
		return w.trouble(fmt.Errorf("look at inode %d: %w", ino, err))
	}
	w.met[ino] = true
	if !isDirMode(now.Mode) {
		return w.tell(Change{Kind: Added, Attr: now})
	}
	old := Ino(0)
	if w.f.inImage(ino) {
		old = ino // what is in it as in the image is not of interest
	}
	return w.into(&now, Added, true, old)
}

// salvageWriter makes files of changes. It gets directories before what is in them, and goes down to one and comes back: the
// attributes of a directory are set when it is left.
type salvageWriter struct {
	ctx  context.Context
	s    *Snapshot
	r    *Report
	root int

	open  []openDir // the directories down to where we are
	first map[Ino]string
	buf   []byte
}

// openDir is a directory that is being filled.
type openDir struct {
	depth int    // components of its path in the container
	name  string // of its path below root
	attr  unionfs.Attr
	path  string // in the container; for messages, and so not long
}

// maxSalvagePath bounds the paths that are made: what lies deeper is put into lost+found.
const maxSalvagePath = 2000

func (w *salvageWriter) change(c Change) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if c.Path == "/" {
		return nil // to stays the caller's
	}
	depth := strings.Count(c.Path, "/")
	if err := w.leave(depth); err != nil {
		return err
	}
	if c.Kind == Deleted {
		return nil
	}
	above := "."
	if len(w.open) > 0 {
		above = w.open[len(w.open)-1].name
	}
	if strings.HasPrefix(c.Path, "/"+lostFound+"/#") && depth == 2 {
		above = lostFound
	}
	name, found := path.Join(above, path.Base(c.Path)), fmt.Sprintf("%s/#%d", lostFound, c.Attr.Ino)
	if len(name) > maxSalvagePath {
		name = found
	}
	if len(c.Path) > maxSalvagePath {
		c.Path = "…" + c.Path[len(c.Path)-100:]
	}
	err := w.make(&c, name)
	if err == unix.EEXIST && name != found { // what has the name of lost+found
		name = found
		err = w.make(&c, name)
	}
	if isFull(err) || w.ctx.Err() != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err != nil {
		w.bad(&c, "it cannot be made: %v", err)
	}
	if isDirMode(c.Attr.Mode) {
		w.open = append(w.open, openDir{depth, name, c.Attr, c.Path})
	}
	return nil
}

func (w *salvageWriter) bad(c *Change, format string, a ...any) {
	w.r.add(Problem{Ino: c.Attr.Ino, Path: c.Path, Reason: fmt.Sprintf(format, a...)})
}

// isFull says whether an error will be that of everything else.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EROFS)
}

// leave ends the directories that do not lead to a path of that depth.
func (w *salvageWriter) leave(depth int) error {
	for len(w.open) > 0 && w.open[len(w.open)-1].depth >= depth {
		d := w.open[len(w.open)-1]
		w.open = w.open[:len(w.open)-1]
		c := Change{Path: d.path, Attr: d.attr}
		if err := w.in(d.name, func(dir int, base string) error { return w.dress(&c, dir, base) }); err != nil {
			w.bad(&c, "its attributes cannot be set: %v", err)
		}
	}
	return nil
}

// in calls fn with the directory that holds name, reached without following any symlink, and the last component.
func (w *salvageWriter) in(name string, fn func(dir int, base string) error) error {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	dir, err := unix.Openat2(w.root, path.Dir(name), &how)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return fn(dir, path.Base(name))
}

// make makes one file. Of a directory only the name: others have to be made in it first.
func (w *salvageWriter) make(c *Change, name string) error {
	return w.in(name, func(dir int, base string) error {
		if isDirMode(c.Attr.Mode) {
			err := unix.Mkdirat(dir, base, 0o700)
			if err == unix.EEXIST && name == lostFound {
				return nil
			}
			if err == nil {
				w.r.Dirs++
			}
			return err
		}
		if first, ok := w.first[c.Attr.Ino]; ok {
			return unix.Linkat(w.root, first, dir, base, 0)
		}
		if err := w.node(c, dir, base); err != nil {
			return err
		}
		w.r.Files++
		if c.Attr.Nlink > 1 {
			w.first[c.Attr.Ino] = name
		}
		return w.dress(c, dir, base)
	})
}

// node makes what is no directory.
func (w *salvageWriter) node(c *Change, dir int, base string) error {
	switch typ := c.Attr.Mode & unix.S_IFMT; typ {
	case unix.S_IFREG:
		fd, err := unix.Openat(dir, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		file := os.NewFile(uintptr(fd), base)
		defer file.Close()
		return w.content(c, file)
	case unix.S_IFLNK:
		target, err := w.s.Readlink(c.Attr.Ino)
		if err != nil {
			return err
		}
		return unix.Symlinkat(target, dir, base)
	default:
		return unix.Mknodat(dir, base, typ|0o600, int(c.Attr.Rdev))
	}
}

// dress gives a file its owner, mode, xattrs and times. What the host does not take is no more than told.
func (w *salvageWriter) dress(c *Change, dir int, base string) error {
	a := &c.Attr
	link := a.Mode&unix.S_IFMT == unix.S_IFLNK
	errs := []error{unix.Fchownat(dir, base, int(a.UID), int(a.GID), unix.AT_SYMLINK_NOFOLLOW)}
	if !link {
		errs = append(errs, fchmodat(dir, base, a.Mode&0o7777))
	}
	errs = append(errs, w.xattrs(a.Ino, dir, base))
	times := []unix.Timespec{{Sec: a.Atime.Sec, Nsec: int64(a.Atime.Nsec)}, {Sec: a.Mtime.Sec, Nsec: int64(a.Mtime.Nsec)}}
	return errors.Join(append(errs, unix.UtimesNanoAt(dir, base, times, unix.AT_SYMLINK_NOFOLLOW))...)
}

// fchmodat changes the mode of what is no symlink, which the caller has made.
func fchmodat(dir int, base string, mode uint32) error {
	fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode)
}

func (w *salvageWriter) xattrs(ino Ino, dir int, base string) error {
	names, err := w.s.ListXattr(ino)
	if err != nil {
		return err
	}
	file := fmt.Sprintf("/proc/self/fd/%d/%s", dir, base) // the last component is not followed
	var errs []error
	for _, name := range names {
		v, _ := w.s.xattr(ino, name)
		if err := unix.Lsetxattr(file, name, v, 0); err != nil {
			errs = append(errs, fmt.Errorf("extended attribute %q: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
