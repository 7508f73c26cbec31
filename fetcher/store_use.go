package fetcher

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// A Contents holds a shared flock on its tree's file, and its start is the file's time. So a tree tells who needs the content that it names: one that
// is locked is in use, and of the others the last used is the last to lose it.

// use marks a tree as in use until the file is closed.
func (s *Store) use(tree string) (*os.File, error) {
	f, err := os.Open(tree)
	if err != nil {
		return nil, fmt.Errorf("mark image tree as used: %w", err)
	}
	// Who looks whether it is used has it locked for a moment.
	if err := ignoringEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_SH) }); err != nil {
		f.Close()
		return nil, fmt.Errorf("mark image tree as used: %w", err)
	}
	now := time.Now()
	os.Chtimes(tree, now, now) // it only orders what goes first
	return f, nil
}

// storedTree is a tree in the store.
type storedTree struct {
	path  string
	last  time.Time // when it was used last
	inUse bool
}

func (s *Store) storedTrees() ([]storedTree, error) {
	entries, err := os.ReadDir(filepath.Join(s.root, "trees"))
	if err != nil {
		return nil, fmt.Errorf("list image trees: %w", err)
	}
	var out []storedTree
	for _, e := range entries {
		if len(e.Name()) != 2*32 {
			continue // .first, .lock
		}
		t := storedTree{path: filepath.Join(s.root, "trees", e.Name())}
		f, err := os.Open(t.path)
		if err != nil {
			continue // removed since
		}
		if st, err := f.Stat(); err == nil {
			t.last = st.ModTime()
		}
		t.inUse = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
		f.Close()
		out = append(out, t)
	}
	return out, nil
}

// storedFile is a file of the store that holds content.
type storedFile struct {
	path    string
	digest  unionfs.Digest // of a whole content
	partial bool
	bytes   int64     // on the disk
	changed time.Time // when its bytes or its name changed last
}

// eachFile calls f for all content, whole and partial.
func (s *Store) eachFile(f func(storedFile) error) error {
	err := s.eachBelow("contents/sha256", func(path string, st *unix.Stat_t) error {
		raw, err := hex.DecodeString(filepath.Base(path))
		if err != nil || len(raw) != len(unionfs.Digest{}) {
			return nil // not ours
		}
		return f(storedFile{path: path, digest: unionfs.Digest(raw), bytes: st.Blocks * 512, changed: time.Unix(st.Ctim.Unix())})
	})
	if err != nil {
		return err
	}
	return s.eachBelow("partial", func(path string, st *unix.Stat_t) error {
		if !strings.HasSuffix(path, ".data") {
			return nil
		}
		return f(storedFile{path: path, partial: true, bytes: st.Blocks * 512, changed: time.Unix(st.Ctim.Unix())})
	})
}

// eachBelow calls f for the files of the directories in dir.
func (s *Store) eachBelow(dir string, f func(path string, st *unix.Stat_t) error) error {
	shards, err := os.ReadDir(filepath.Join(s.root, dir))
	if err != nil {
		return fmt.Errorf("list store: %w", err)
	}
	for _, shard := range shards {
		if !shard.IsDir() {
			continue
		}
		files, err := os.ReadDir(filepath.Join(s.root, dir, shard.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("list store: %w", err)
		}
		for _, file := range files {
			path := filepath.Join(s.root, dir, shard.Name(), file.Name())
			var st unix.Stat_t
			if unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
				continue // removed since
			}
			if err := f(path, &st); err != nil {
				return err
			}
		}
	}
	return nil
}

// Usage is what the store takes of the disk.
type Usage struct {
	Images                  int
	Trees, Contents         int // files
	Partials                int
	TreeBytes, ContentBytes int64
	PartialBytes            int64
	FreeableBytes           int64 // of contents and partial files that no image in use names
}

// Usage adds up what there is.
func (s *Store) Usage() (Usage, error) {
	var u Usage
	names, err := s.names()
	if err != nil {
		return u, err
	}
	u.Images = len(names)
	trees, err := s.storedTrees()
	if err != nil {
		return u, err
	}
	for _, t := range trees {
		u.Trees++
		if st, err := os.Stat(t.path); err == nil {
			u.TreeBytes += st.Size()
		}
	}
	order, err := s.evictionOrder(trees, nil)
	if err != nil {
		return u, err
	}
	for _, f := range order {
		u.FreeableBytes += f.bytes
	}
	err = s.eachFile(func(f storedFile) error {
		if f.partial {
			u.Partials, u.PartialBytes = u.Partials+1, u.PartialBytes+f.bytes
		} else {
			u.Contents, u.ContentBytes = u.Contents+1, u.ContentBytes+f.bytes
		}
		return nil
	})
	return u, err
}
