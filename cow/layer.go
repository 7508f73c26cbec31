package cow

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// LeftOut is something that a tar cannot hold.
type LeftOut struct {
	Path   string
	Reason string
}

// RewrittenError says that files were written while they were read: what the tar has of them may be neither the old content nor
// the new one.
type RewrittenError struct{ Paths []string }

func (e *RewrittenError) Error() string {
	return fmt.Sprintf("%d files changed while they were read: %s", len(e.Paths), strings.Join(e.Paths[:min(5, len(e.Paths))], ", "))
}

// WriteLayer writes what differs from the image as the tar of an OCI layer: the same bytes for the same changes. Image
// content is read, and so fetched, for each file of which anything has changed, because a layer cannot say less of a file.
//
// What is gone is an explicit whiteout, also in a directory that took another's place: every tool applies those alike, an
// opaque mark not. A file with several names is a hard link to the first of them in the layer. Holes are zeros: sparse
// entries are not for layers (OCI image-spec, layer.md).
func (s *Snapshot) WriteLayer(ctx context.Context, out io.Writer, placeholders map[string]bool) ([]LeftOut, error) {
	w := newTarWriter(ctx, s, out)
	w.layer = true
	err := s.Changes(ChangesOptions{Placeholders: placeholders}, w.change)
	return w.finish(err)
}

// WriteTree writes the whole tree as a tar. All content of the image is read.
func (s *Snapshot) WriteTree(ctx context.Context, out io.Writer) ([]LeftOut, error) {
	w := newTarWriter(ctx, s, out)
	walk := changeWalk{f: s.FS, yield: w.change, walked: make(map[Ino]bool)}
	root, err := s.bareAttr(unionfs.Root)
	if err == nil {
		err = walk.into(&root, Added, true, 0)
	}
	return w.finish(err)
}

// tarWriter turns changes into entries.
type tarWriter struct {
	ctx   context.Context
	s     *Snapshot
	tw    *tar.Writer
	layer bool // names that begin like a whiteout cannot be there

	first   map[Ino]string // the first name of a file with several
	own     []Ino          // files whose content is, at least in part, of ours
	ownPath []string       // their names
	missing map[Ino]string // what is wrong with the content of some
	leftOut []LeftOut
	buf     []byte
}

func newTarWriter(ctx context.Context, s *Snapshot, out io.Writer) *tarWriter {
	return &tarWriter{ctx: ctx, s: s, tw: tar.NewWriter(out), first: make(map[Ino]string), missing: make(map[Ino]string), buf: make([]byte, 1<<20)}
}

// finish ends the tar, and looks whether what is in it was stable while it was read.
func (w *tarWriter) finish(err error) ([]LeftOut, error) {
	if err == nil {
		err = w.tw.Close()
	}
	if err != nil {
		return w.leftOut, err
	}
	changed, err := w.s.Rewritten(w.own)
	if err != nil {
		return w.leftOut, err
	}
	e := new(RewrittenError)
	for _, ino := range changed {
		delete(w.missing, ino)
		e.Paths = append(e.Paths, w.ownPath[slices.Index(w.own, ino)])
	}
	for ino, reason := range w.missing {
		return w.leftOut, fmt.Errorf("read %s: %s", w.ownPath[slices.Index(w.own, ino)], reason)
	}
	if len(e.Paths) > 0 {
		err = e
	}
	return w.leftOut, err
}

const whiteoutPrefix = ".wh."

func (w *tarWriter) change(c Change) error {
	name := strings.TrimPrefix(c.Path, "/")
	base := name[strings.LastIndexByte(name, '/')+1:]
	switch {
	case w.layer && strings.Contains(c.Path, "/"+whiteoutPrefix):
		if strings.HasPrefix(base, whiteoutPrefix) && c.Kind != Deleted {
			w.leave(c.Path, "in a layer its name would remove another file")
		}
		return nil
	case c.Kind == Deleted:
		return w.write(&tar.Header{Typeflag: tar.TypeReg, Name: name[:len(name)-len(base)] + whiteoutPrefix + base, Mode: 0o600}, c.Path)
	case c.Attr.Mode&unix.S_IFMT == unix.S_IFSOCK:
		w.leave(c.Path, "a tar has no sockets")
		return nil
	}
	if first, ok := w.first[c.Attr.Ino]; ok {
		h := w.header(&c.Attr, name)
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		return w.write(h, c.Path)
	}
	return w.file(&c, name)
}

func (w *tarWriter) leave(path, reason string) {
	w.leftOut = append(w.leftOut, LeftOut{path, reason})
}

// file writes the first entry of an inode.
func (w *tarWriter) file(c *Change, name string) error {
	h := w.header(&c.Attr, name)
	switch c.Attr.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		if name == "" {
			h.Name = "./"
		}
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, c.Attr.Size
	case unix.S_IFLNK:
		target, err := w.s.Readlink(c.Attr.Ino)
		if err != nil {
			return fmt.Errorf("read symlink %s: %w", c.Path, err)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if c.Attr.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(c.Attr.Rdev)), int64(unix.Minor(c.Attr.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	}
	if err := w.xattrs(h, c); err != nil {
		return err
	}
	if c.Attr.Nlink > 1 && !isDirMode(c.Attr.Mode) {
		w.first[c.Attr.Ino] = name
	}
	if err := w.write(h, c.Path); err != nil || h.Size == 0 {
		return err
	}
	return w.content(c)
}

func (w *tarWriter) header(a *unionfs.Attr, name string) *tar.Header {
	return &tar.Header{
		Format: tar.FormatPAX, Name: name, Mode: int64(a.Mode & 0o7777), Uid: int(a.UID), Gid: int(a.GID),
		ModTime: time.Unix(a.Mtime.Sec, int64(a.Mtime.Nsec)), PAXRecords: make(map[string]string),
	}
}

func (w *tarWriter) xattrs(h *tar.Header, c *Change) error {
	names, err := w.s.ListXattr(c.Attr.Ino)
	if err != nil {
		return fmt.Errorf("list extended attributes of %s: %w", c.Path, err)
	}
	for _, name := range names {
		v, ok := w.s.xattr(c.Attr.Ino, name)
		switch {
		case !ok:
		case strings.ContainsRune(name, '='):
			w.leave(c.Path, fmt.Sprintf("a tar cannot have the name of its extended attribute %q", name))
		default:
			h.PAXRecords["SCHILY.xattr."+name] = string(v)
		}
	}
	return nil
}

func (w *tarWriter) write(h *tar.Header, path string) error {
	if err := w.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("write entry of %s: %w", path, err)
	}
	return nil
}

// content writes a file's bytes, as many as its header says.
func (w *tarWriter) content(c *Change) error {
	if n := w.s.nodes[c.Attr.Ino]; n != nil && (n.flags&flagPlain != 0 || n.runs() != nil) {
		w.own, w.ownPath = append(w.own, n.ino), append(w.ownPath, c.Path)
		if missing := w.s.missing(n); missing != "" {
			w.missing[n.ino] = missing
		}
	}
	for off := int64(0); off < c.Attr.Size; {
		p := w.buf[:min(int64(len(w.buf)), c.Attr.Size-off)]
		n, err := w.s.Read(w.ctx, c.Attr.Ino, p, off)
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("read %s at %d: %w", c.Path, off, err)
		}
		if _, err := w.tw.Write(p[:n]); err != nil {
			return fmt.Errorf("write content of %s: %w", c.Path, err)
		}
		off += int64(n)
	}
	return nil
}
