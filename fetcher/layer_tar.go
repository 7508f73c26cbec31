package fetcher

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"path"
	"strings"

	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// smallFile is up to which size a file is read whole before it is stored.
const smallFile = 1 << 20

// The prefixes of PAX records that hold extended attributes.
const (
	paxSchily     = "SCHILY.xattr."
	paxLibarchive = "LIBARCHIVE.xattr." // name URL-encoded, value base64
)

// tarReader turns a layer's tar into entries and puts its files into the store.
type tarReader struct {
	store   *Store
	tar     *tar.Reader
	buf     []byte
	count   int
	maxSize int64 // of a file
}

func newTarReader(s *Store, r io.Reader) *tarReader {
	return &tarReader{store: s, tar: tar.NewReader(r), buf: make([]byte, smallFile), maxSize: maxFileSize}
}

// each calls emit for every entry of the tar. The content of an entry is in the store then.
func (t *tarReader) each(ctx context.Context, emit func(*unionfs.Entry) error) error {
	for {
		h, err := t.tar.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil && !(errors.Is(err, tar.ErrInsecurePath) && h != nil) { // names are checked by the Builder
			return fmt.Errorf("read tar, after %d entries: %w", t.count, err)
		}
		if t.count++; t.count > maxEntries {
			return fmt.Errorf("read tar: over %d entries: more than are allowed", maxEntries)
		}
		e, err := t.entry(ctx, h)
		if err != nil {
			return fmt.Errorf("entry %q: %w", short(h.Name), err)
		}
		if e == nil {
			continue
		}
		if err := emit(e); err != nil {
			return err
		}
	}
}

// entry returns the entry of h, or nil when h is none.
func (t *tarReader) entry(ctx context.Context, h *tar.Header) (*unionfs.Entry, error) {
	e := &unionfs.Entry{Name: h.Name, Mode: uint32(h.Mode) & 0o7777}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.Mode |= unix.S_IFREG
	case tar.TypeLink:
		e.Link, e.Mode = h.Linkname, 0
		return e, nil
	case tar.TypeSymlink:
		e.Mode |= unix.S_IFLNK
		e.Symlink = h.Linkname
	case tar.TypeChar:
		e.Mode |= unix.S_IFCHR
	case tar.TypeBlock:
		e.Mode |= unix.S_IFBLK
	case tar.TypeDir:
		e.Mode |= unix.S_IFDIR
	case tar.TypeFifo:
		e.Mode |= unix.S_IFIFO
	case tar.TypeXGlobalHeader:
		return nil, nil
	default:
		return nil, fmt.Errorf("unknown type %q", h.Typeflag)
	}
	if err := setAttr(e, h); err != nil {
		return nil, err
	}
	if e.Mode&unix.S_IFMT != unix.S_IFREG || isWhiteout(e.Name) {
		return e, nil
	}
	return e, t.content(ctx, e, h.Size)
}

func setAttr(e *unionfs.Entry, h *tar.Header) error {
	uid, gid := int64(h.Uid), int64(h.Gid)
	if !fits32(uid) || !fits32(gid) {
		return fmt.Errorf("owner %d:%d overflows", uid, gid)
	}
	e.UID, e.GID = uint32(uid), uint32(gid)
	if typ := e.Mode & unix.S_IFMT; typ == unix.S_IFCHR || typ == unix.S_IFBLK {
		if !fits32(h.Devmajor) || !fits32(h.Devminor) {
			return fmt.Errorf("device number %d:%d overflows", h.Devmajor, h.Devminor)
		}
		e.Rdev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	}
	if !h.ModTime.IsZero() {
		e.Mtime = unionfs.Time{Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond())}
	}
	var err error
	e.Xattrs, err = paxXattrs(h.PAXRecords)
	return err
}

// paxXattrs returns the extended attributes among PAX records. Where both spellings give one, SCHILY's counts: it is the
// one that every tar writes.
func paxXattrs(records map[string]string) (map[string]string, error) {
	var x map[string]string
	add := func(name, value string) {
		if x == nil {
			x = make(map[string]string)
		}
		x[name] = value
	}
	for k, v := range records {
		name, ok := strings.CutPrefix(k, paxLibarchive)
		if !ok {
			continue
		}
		name, value, err := libarchiveXattr(name, v)
		if err != nil {
			return nil, err
		}
		add(name, value)
	}
	for k, v := range records {
		if name, ok := strings.CutPrefix(k, paxSchily); ok {
			add(name, v)
		}
	}
	return x, nil
}

func isWhiteout(name string) bool { return strings.HasPrefix(path.Base(name), ".wh.") }

// content puts the body of a regular file into the store.
func (t *tarReader) content(ctx context.Context, e *unionfs.Entry, size int64) error {
	if size < 0 || size > t.maxSize {
		return fmt.Errorf("size %d is not allowed", size)
	}
	e.Size, e.Content.Size = size, size
	switch {
	case size == 0:
		e.Content.Digest = emptyDigest
		return nil
	case size <= smallFile:
		b := t.buf[:size]
		if _, err := io.ReadFull(t.tar, b); err != nil {
			return fmt.Errorf("read tar: %w", noEOF(err))
		}
		e.Content.Digest = sha256.Sum256(b)
		return t.store.putBytes(e.Content.Digest, b)
	}
	var err error
	e.Content.Digest, err = t.store.put(contextReader{ctx, t.tar}, size, t.buf)
	return err
}

// contextReader ends with a context. A sparse file of a few bytes in the tar may be long.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// noEOF is for where the end comes too early.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// emptyDigest is the sha256 of nothing.
var emptyDigest = unionfs.Digest(sha256.Sum256(nil))

func fits32(n int64) bool { return n >= 0 && n <= math.MaxUint32 }

// libarchiveXattr decodes an extended attribute as libarchive writes it.
func libarchiveXattr(name, value string) (string, string, error) {
	n, err := url.PathUnescape(name)
	if err != nil {
		return "", "", fmt.Errorf("extended attribute %q is not URL-encoded", short(name))
	}
	v, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
	if err != nil {
		return "", "", fmt.Errorf("extended attribute %q is not base64", short(name))
	}
	return n, string(v), nil
}
