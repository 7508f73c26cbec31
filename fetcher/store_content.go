package fetcher

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// The two modes of a file under contents. Any other counts as modeFresh.
const (
	modeFresh   = 0o600 // whole, but perhaps not on the disk yet
	modeDurable = 0o444
)

// errAbsent means that the store has no such content.
var errAbsent = errors.New("the store does not have it")

// contentName returns the path of a content below contents/sha256.
func contentName(d unionfs.Digest) string {
	h := hex.EncodeToString(d[:])
	return h[:2] + "/" + h
}

func (s *Store) contentPath(d unionfs.Digest) string {
	return filepath.Join(s.root, "contents/sha256", contentName(d))
}

// openContent opens the content d for reading. It returns errAbsent when the store does not have it, and *SizeError when it has
// another size than size.
func (s *Store) openContent(d unionfs.Digest, size int64) (*os.File, error) {
	name := contentName(d)
	fd, err := unix.Openat(s.contents, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, errAbsent
	}
	if err != nil {
		return nil, fmt.Errorf("open content %s: %w", d, err)
	}
	f := os.NewFile(uintptr(fd), s.contentPath(d))
	if err := s.trust(f, d, size); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// trust checks that f, found under the name of d, is d.
func (s *Store) trust(f *os.File, d unionfs.Digest, size int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("look at content %s: %w", d, err)
	}
	if st.Mode&0o777 != modeDurable && !s.isFresh(d) {
		got, err := hashFile(f)
		if err != nil {
			return fmt.Errorf("hash content %s: %w", d, err)
		}
		if got != d {
			s.log.Warn("a file in the store was damaged and is dropped", "content", d.String())
			os.Remove(f.Name())
			return errAbsent
		}
		s.addFresh(d)
	}
	if st.Size != size {
		return &SizeError{Digest: d, Want: size, Got: st.Size}
	}
	return nil
}

// SizeError means that a layer claims another size for a content than it has.
type SizeError struct {
	Digest    unionfs.Digest
	Want, Got int64
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("content %s has %d bytes, and not the %d that the layer claims", e.Digest, e.Got, e.Want)
}

// hasContent reports whether the store has d, of the size size, in a state that can be trusted without reading it.
func (s *Store) hasContent(d unionfs.Digest, size int64) bool {
	var st unix.Stat_t
	if err := unix.Fstatat(s.contents, contentName(d), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != size {
		return false
	}
	return st.Mode&0o777 == modeDurable || s.isFresh(d)
}

// putBytes adds the content b, whose digest d was computed by the caller.
func (s *Store) putBytes(d unionfs.Digest, b []byte) error {
	if s.hasContent(d, int64(len(b))) {
		return nil
	}
	f, err := s.temp()
	if err != nil {
		return err
	}
	defer f.Close()
	w := holeWriter{f: f}
	_, err = w.Write(b)
	if err == nil {
		err = w.finish()
	}
	if err == nil {
		err = s.place(f, d)
	}
	if err != nil {
		os.Remove(f.Name())
		return s.full(fmt.Errorf("store content %s: %w", d, err))
	}
	return nil
}

// put adds the size bytes of r, and returns their digest.
func (s *Store) put(r io.Reader, size int64, buf []byte) (unionfs.Digest, error) {
	f, err := s.temp()
	if err != nil {
		return unionfs.Digest{}, err
	}
	defer f.Close()
	d, err := fill(f, r, size, buf)
	if err == nil && !s.hasContent(d, size) {
		if err = s.place(f, d); err == nil {
			return d, nil
		}
	}
	os.Remove(f.Name())
	if err != nil {
		return unionfs.Digest{}, s.full(fmt.Errorf("store content: %w", err))
	}
	return d, nil
}

// fill writes size bytes of r to f and returns their digest.
func fill(f *os.File, r io.Reader, size int64, buf []byte) (unionfs.Digest, error) {
	h := sha256.New()
	w := holeWriter{f: f}
	n, err := io.CopyBuffer(io.MultiWriter(h, &w), io.LimitReader(r, size), buf)
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = w.finish()
	}
	return digestOf(h), err
}

// place gives f, a temporary file or a partial one whose bytes have the digest d, its name under contents. f's old name is
// gone then. The name may have been there: two processes can be equally fast.
func (s *Store) place(f *os.File, d unionfs.Digest) error {
	// Before the name is there, so that nobody in this process hashes it again.
	s.addFresh(d)
	name := contentName(d)
	err := unix.Renameat(unix.AT_FDCWD, f.Name(), s.contents, name)
	if errors.Is(err, unix.ENOENT) {
		if err := unix.Mkdirat(s.contents, name[:2], 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		err = unix.Renameat(unix.AT_FDCWD, f.Name(), s.contents, name)
	}
	return err
}

// isFresh reports whether this process made, or hashed, d.
func (s *Store) isFresh(d unionfs.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.fresh[d]
	return ok
}

func (s *Store) addFresh(d unionfs.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fresh[d] = struct{}{}
	if s.timer == nil && !s.closed {
		s.timer = time.AfterFunc(flushDelay, func() {
			if err := s.flush(); err != nil {
				s.log.Warn("cannot make the store durable", "error", err)
			}
		})
	}
}

// fewFiles is up to how many files are synced one by one. Beyond, one syncfs is cheaper, although it writes what others
// have changed on the file system as well.
const fewFiles = 256

// flush makes what is fresh durable.
func (s *Store) flush() error {
	s.flushMu.Lock()
	defer s.flushMu.Unlock()
	s.mu.Lock()
	batch := make([]unionfs.Digest, 0, len(s.fresh))
	for d := range s.fresh {
		batch = append(batch, d)
	}
	s.timer = nil
	closed := s.closed
	s.mu.Unlock()
	if len(batch) == 0 || closed {
		return nil
	}
	if err := s.syncContents(batch); err != nil {
		return fmt.Errorf("sync store: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range batch {
		delete(s.fresh, d)
	}
	return nil
}

func (s *Store) syncContents(batch []unionfs.Digest) error {
	if len(batch) > fewFiles {
		return s.syncMany(batch)
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, d := range batch {
		fd, err := unix.Openat(s.contents, contentName(d), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue // announced and not placed yet, or dropped
		}
		if err != nil {
			return err
		}
		files = append(files, os.NewFile(uintptr(fd), ""))
		// All start before the first is waited for, so that one journal commit serves them all.
		unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	for _, f := range files {
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return err
		}
		if err := f.Chmod(modeDurable); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) syncMany(batch []unionfs.Digest) error {
	dir, err := os.Open(filepath.Join(s.root, "contents/sha256"))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return err
	}
	for _, d := range batch {
		err := unix.Fchmodat(s.contents, contentName(d), modeDurable, 0)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// holeWriter writes to f, which is new, from its start and leaves out what is zero: where whole blocks are, holes stay.
type holeWriter struct {
	f   *os.File
	off int64
}

const holeBlock = 4096

var zeroBlock [holeBlock]byte

func (w *holeWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, zero := zeroRun(p[done:], w.off)
		if !zero {
			if _, err := w.f.WriteAt(p[done:done+n], w.off); err != nil {
				return done, err
			}
		}
		done += n
		w.off += int64(n)
	}
	return done, nil
}

// finish gives the file its size when it ends in a hole.
func (w *holeWriter) finish() error { return w.f.Truncate(w.off) }

// zeroRun returns the length of the longest start of p, which belongs at off, whose blocks are all zero, or all not. The first and the last
// may be parts of blocks.
func zeroRun(p []byte, off int64) (n int, zero bool) {
	first := true
	for n < len(p) {
		block := min(len(p)-n, holeBlock-int((off+int64(n))%holeBlock))
		z := bytes.Equal(p[n:n+block], zeroBlock[:block])
		if !first && z != zero {
			break
		}
		first, zero = false, z
		n += block
	}
	return n, zero
}

func hashFile(f *os.File) (unionfs.Digest, error) {
	h := sha256.New()
	_, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<62))
	return digestOf(h), err
}

func digestOf(h hash.Hash) unionfs.Digest {
	var d unionfs.Digest
	h.Sum(d[:0])
	return d
}
