package fetcher

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// Store keeps what was fetched, for all images and all processes of one user:
//
//	trees/KEY                    image trees (unionfs), KEY from the layers (see treeKey)
//	contents/sha256/ab/HEX       whole files by the sha256 of their bytes
//	partial/ab/KEY.data, .map    files that are partly here, and which of their chunks are (see partial)
//	partial/layers/HEX           locked by byte ranges while those ranges of the layer's blob are fetched
//	tmp/SESSION/                 files that are being made; the session's process holds a flock on its directory
//	images/                      what has been resolved
//	profiles/                    what starts of commands read (see Profile)
//	limit                        what contents and partial files may take of the disk, bytes
//	gc.lock                      locked by who removes content
//	connections/                 locks that count the connections to each host (see connCap)
//
// Any number of processes use one store at a time, and any of them may die at any point. A file gets its place under
// contents only after its sha256 was computed over its bytes. It gets it with mode 0600, without waiting for the disk, and mode 0444
// once its bytes are known to be on the disk. Who finds a file with mode 0600 that it did not make itself hashes it again before use, because
// the power may have failed in between. So the hot path waits for no disk and the name is still never trusted.
//
// A digest works as a capability: an image whose layer claims a file by digest and size reads that file from the
// store, whichever image brought it.
type Store struct {
	root     string // absolute
	contents int    // directory descriptor of contents/sha256
	log      *slog.Logger

	mu      sync.Mutex
	session *session                    // guarded by mu; nil until something is made
	fresh   map[unionfs.Digest]struct{} // guarded by mu; placed or hashed by this process and not known to be on the disk
	timer   *time.Timer                 // guarded by mu; flushes fresh
	closed  bool                        // guarded by mu
	flushMu sync.Mutex                  // held while fresh is flushed
}

// flushDelay is how long content waits to be made durable together with what comes after it.
const flushDelay = 2 * time.Second

// FullError means that the file system of the store has no room left.
type FullError struct {
	Path string
	Err  error // ENOSPC or EDQUOT
}

func (e *FullError) Error() string {
	return fmt.Sprintf("the store %s is full: %v", e.Path, e.Err)
}

func (e *FullError) Unwrap() error { return e.Err }

// OpenStore opens the store at root, and makes it when it is new.
func OpenStore(root string) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	for _, dir := range []string{"trees", "contents/sha256", "partial/layers", "tmp", "images"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	fd, err := unix.Open(filepath.Join(root, "contents/sha256"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", root, err)
	}
	return &Store{root: root, contents: fd, log: slog.Default(), fresh: map[unionfs.Digest]struct{}{}}, nil
}

// SetLog makes the store, and what is opened from it later, log to l instead of slog's default.
func (s *Store) SetLog(l *slog.Logger) { s.log = l }

// Root returns the store's directory.
func (s *Store) Root() string { return s.root }

// Close makes what this process added durable and removes its temporary files. What was opened from the store is
// closed first.
func (s *Store) Close() error {
	err := s.flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	if s.session != nil {
		err = errors.Join(err, s.session.close())
	}
	return errors.Join(err, unix.Close(s.contents))
}

// full turns "no space" into a FullError.
func (s *Store) full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		var f *FullError
		if errors.As(err, &f) {
			return err
		}
		return &FullError{Path: s.root, Err: err}
	}
	return err
}

// session is the place of one process's temporary files. Holding a flock on dir says that the process lives.
type session struct {
	path string
	dir  *os.File
}

// temp makes a new temporary file, open for reading and writing.
func (s *Store) temp() (*os.File, error) {
	dir, err := s.sessionDir()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, randomName()), os.O_RDWR|os.O_CREATE|os.O_EXCL, modeFresh)
	if err != nil {
		return nil, s.full(fmt.Errorf("make temporary file: %w", err))
	}
	return f, nil
}

func (s *Store) sessionDir() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return "", fmt.Errorf("make temporary file: store %s is closed", s.root)
	}
	if s.session != nil {
		return s.session.path, nil
	}
	removeDeadSessions(filepath.Join(s.root, "tmp"))
	ses, err := newSession(filepath.Join(s.root, "tmp"))
	if err != nil {
		return "", s.full(err)
	}
	s.session = ses
	return ses.path, nil
}

func newSession(tmp string) (*session, error) {
	for {
		path := filepath.Join(tmp, randomName())
		if err := os.Mkdir(path, 0o700); err != nil {
			return nil, fmt.Errorf("make session: %w", err)
		}
		// Another process may take the new directory for a dead one's until the lock is ours.
		dir, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("make session: %w", err)
		}
		if unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && samePath(dir, path) {
			return &session{path: path, dir: dir}, nil
		}
		dir.Close()
	}
}

func (ses *session) close() error {
	err := os.RemoveAll(ses.path)
	return errors.Join(err, ses.dir.Close())
}

// removeDeadSessions removes the temporary files of processes that are gone. Errors don't matter: the next one tries
// again.
func removeDeadSessions(tmp string) {
	entries, _ := os.ReadDir(tmp)
	for _, e := range entries {
		path := filepath.Join(tmp, e.Name())
		dir, err := os.Open(path)
		if err != nil {
			continue
		}
		if unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(path)
		}
		dir.Close()
	}
}

func randomName() string {
	var b [12]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// ConnectionDir is where the clients of all who use the store agree on how many connections they have.
func (s *Store) ConnectionDir() string { return filepath.Join(s.root, "connections") }
