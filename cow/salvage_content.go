package cow

import (
	"os"

	"golang.org/x/sys/unix"
)

// content copies what of a file is no hole, and leaves holes where it cannot be read.
func (w *salvageWriter) content(c *Change, file *os.File) error {
	if n := w.s.nodes[c.Attr.Ino]; n != nil {
		if missing := w.s.missing(n); missing != "" {
			w.bad(c, "%s", missing)
		}
	}
	if err := file.Truncate(c.Attr.Size); err != nil {
		w.bad(c, "it cannot have its %d bytes: %v", c.Attr.Size, err)
	}
	unread := int64(0)
	var why error
	for pos := int64(0); ; {
		data, err := w.s.Lseek(c.Attr.Ino, pos, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		end := data
		if err == nil {
			end, err = w.s.Lseek(c.Attr.Ino, data, unix.SEEK_HOLE)
		}
		if err == nil && end <= data {
			err = unix.EIO
		}
		if err != nil {
			return err
		}
		for pos = data; pos < end; {
			p := w.buf[:min(int64(len(w.buf)), end-pos)]
			n, err := w.s.Read(w.ctx, c.Attr.Ino, p, pos)
			if n == 0 && w.ctx.Err() != nil {
				return w.ctx.Err()
			}
			if n == 0 {
				skip := w.unreadable(c.Attr.Ino, pos, end)
				pos, unread, why = pos+skip, unread+skip, err
				continue
			}
			if _, err := file.WriteAt(p[:n], pos); err != nil {
				return err
			}
			pos += int64(n)
			w.r.Written += int64(n)
		}
	}
	if unread > 0 {
		w.bad(c, "%d bytes of it cannot be read: %v", unread, why)
	}
	return nil
}

// unreadable is how much to pass over when pos cannot be read: all that claims to be of the image and is after its end, else
// not more than was asked for, because what follows may be well.
func (w *salvageWriter) unreadable(ino Ino, pos, end int64) int64 {
	where, length, err := w.s.segment(ino, pos)
	if err != nil || length <= 0 {
		return end - pos
	}
	length = min(length, end-pos)
	if a, ok := w.s.tree.Attr(ino); where == inImage && (!ok || pos >= a.Size) {
		return length
	}
	return min(length, int64(len(w.buf)))
}
