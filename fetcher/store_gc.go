package fetcher

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/veneerfs/veneer/unionfs"
)

// Removed is what was dropped.
type Removed struct {
	Files int
	Bytes int64 // on the disk
}

// gcGrace spares what is new: somebody may be bringing an image that has no name yet.
const gcGrace = time.Hour

// GC removes what no image needs that has a name in the store or is in keep, by the digest of its manifest: trees, profiles, contents and partial files; then what is beyond the store's limit. What a running Contents reads stays.
func (s *Store) GC(ctx context.Context, keep []digest.Digest) (Removed, error) {
	return s.gc(ctx, keep, gcGrace)
}

func (s *Store) gc(ctx context.Context, keep []digest.Digest, grace time.Duration) (Removed, error) {
	lock, err := lockFile(ctx, filepath.Join(s.root, "gc.lock"))
	if err != nil {
		return Removed{}, err
	}
	defer lock.unlock()
	var out Removed
	images, needed, err := s.needed(keep)
	if err != nil {
		return out, err
	}
	young := time.Now().Add(-grace)
	if err := s.removeProfiles(images, young); err != nil {
		return out, err
	}
	trees, err := s.storedTrees()
	if err != nil {
		return out, err
	}
	trees = slices.DeleteFunc(trees, func(t storedTree) bool {
		if needed[t.path] || t.inUse || t.last.After(young) {
			return false
		}
		os.Remove(t.path + firstSuffix)
		return os.Remove(t.path) == nil
	})
	named, err := s.lastUse(trees)
	if err != nil {
		return out, err
	}
	err = s.eachFile(func(f storedFile) error {
		if _, ok := named[f.key()]; ok || f.changed.After(young) {
			return ctx.Err()
		}
		out.add(s.drop(f))
		return ctx.Err()
	})
	if err != nil {
		return out, err
	}
	more, err := s.shrink(ctx, trees)
	return Removed{out.Files + more.Files, out.Bytes + more.Bytes}, err
}

func (r *Removed) add(bytes int64, ok bool) {
	if ok {
		r.Files, r.Bytes = r.Files+1, r.Bytes+bytes
	}
}

// needed returns all images that have a name, or are in keep, by the hex of their manifests, and the paths of their trees.
func (s *Store) needed(keep []digest.Digest) (images, trees map[string]bool, err error) {
	names, err := s.names()
	if err != nil {
		return nil, nil, err
	}
	for _, d := range keep {
		names = append(names, storedName{Manifest: d})
	}
	images, trees = map[string]bool{}, map[string]bool{}
	for _, n := range names {
		images[n.Manifest.Encoded()] = true
		img, err := s.load(Reference{}, n)
		if errors.Is(err, ErrNotStored) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		layers, err := layerSources(img, func(int) Blob { return nil })
		if err != nil {
			continue // it has no tree
		}
		trees[s.treePath(layers)] = true
	}
	return images, trees, nil
}

// removeProfiles removes the profiles of other images than these that were not written lately.
func (s *Store) removeProfiles(images map[string]bool, young time.Time) error {
	dir := filepath.Join(s.root, "profiles")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list profiles: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || images[e.Name()] || info.ModTime().After(young) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove profiles: %w", err)
		}
	}
	return nil
}

// key names f as lastUse does: the path without what comes after a partial file's key.
func (f *storedFile) key() string {
	if f.partial {
		return strings.TrimSuffix(filepath.Base(f.path), ".data")
	}
	return string(f.digest[:])
}

// inUseForever is later than every last use.
var inUseForever = time.Unix(1<<40, 0)

// lastUse returns when each content that a tree names was used last, by the keys of the files that may hold it.
func (s *Store) lastUse(trees []storedTree) (map[string]time.Time, error) {
	out := map[string]time.Time{}
	for _, t := range trees {
		last := t.last
		if t.inUse {
			last = inUseForever
		}
		if err := eachContent(t.path, func(c *unionfs.Content) {
			keys := []string{string(c.Digest[:])}
			if len(c.Chunks) > 1 {
				key := partialKey(c)
				keys = append(keys, hex.EncodeToString(key[:]))
			}
			for _, k := range keys {
				if out[k].Before(last) {
					out[k] = last
				}
			}
		}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// eachContent calls f for all contents of a tree; none when it is gone, or damaged: then nobody can use it either.
func eachContent(path string, f func(*unionfs.Content)) error {
	t, err := unionfs.Open(path)
	var format *unionfs.FormatError
	if errors.Is(err, fs.ErrNotExist) || errors.As(err, &format) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open image tree: %w", err)
	}
	defer t.Close()
	x := &Contents{tree: t}
	for idx := range uint32(t.Totals().Contents) {
		if c, ok := x.contentOf(idx); ok || len(c.Chunks) == 0 {
			f(&c)
		}
	}
	return nil
}

// drop removes a file of content. Who has it open reads on; who opens it next finds nothing and fetches it.
func (s *Store) drop(f storedFile) (int64, bool) {
	if f.partial {
		p := &partial{name: strings.TrimSuffix(f.path, ".data")}
		unlock, err := p.lockNames()
		if err != nil {
			return 0, false
		}
		defer unlock()
		os.Remove(p.name + ".map") // first: a map without its file would claim what is not there
	}
	return f.bytes, os.Remove(f.path) == nil
}

// evictionOrder returns the files that no tree in use names, the longest unused first. named may be nil.
func (s *Store) evictionOrder(trees []storedTree, named map[string]time.Time) ([]storedFile, error) {
	var err error
	if named == nil {
		if named, err = s.lastUse(trees); err != nil {
			return nil, err
		}
	}
	var out []storedFile
	last := map[string]time.Time{}
	err = s.eachFile(func(f storedFile) error {
		at := named[f.key()]
		if at.Equal(inUseForever) {
			return nil
		}
		last[f.path] = at
		out = append(out, f)
		return nil
	})
	slices.SortStableFunc(out, func(a, b storedFile) int {
		return cmp.Or(last[a.path].Compare(last[b.path]), a.changed.Compare(b.changed))
	})
	return out, err
}

// The store's limit is in ROOT/limit: a number of bytes.

// SetLimit bounds what contents and partial files take of the disk; 0: no bound.
func (s *Store) SetLimit(bytes int64) error {
	path := filepath.Join(s.root, "limit")
	if bytes == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set limit: %w", err)
		}
		return nil
	}
	if err := os.WriteFile(path, fmt.Append(nil, bytes, "\n"), 0o600); err != nil {
		return fmt.Errorf("set limit: %w", err)
	}
	return nil
}

// Limit returns the bound; 0 without one.
func (s *Store) Limit() (int64, error) {
	raw, err := readFileLimit(filepath.Join(s.root, "limit"), 64)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read limit: %w", err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("read limit: %q is no number of bytes above zero", printable(string(raw)))
	}
	return n, nil
}

// Shrink keeps to the limit: what was not used for the longest time goes first, and what a running Contents reads stays. It does nothing when
// another does it.
func (s *Store) Shrink(ctx context.Context) (Removed, error) {
	if limit, err := s.Limit(); limit == 0 || err != nil {
		return Removed{}, err
	}
	lock, err := lockFile(ctx, filepath.Join(s.root, "gc.lock"))
	if err != nil {
		return Removed{}, err
	}
	defer lock.unlock()
	trees, err := s.storedTrees()
	if err != nil {
		return Removed{}, err
	}
	return s.shrink(ctx, trees)
}

// shrink is Shrink; the lock is held.
func (s *Store) shrink(ctx context.Context, trees []storedTree) (Removed, error) {
	var out Removed
	limit, err := s.Limit()
	if limit == 0 || err != nil {
		return out, err
	}
	var total int64
	if err := s.eachFile(func(f storedFile) error { total += f.bytes; return nil }); err != nil {
		return out, err
	}
	if total <= limit {
		return out, nil
	}
	order, err := s.evictionOrder(trees, nil)
	if err != nil {
		return out, err
	}
	for _, f := range order {
		if total-out.Bytes <= limit || ctx.Err() != nil {
			break
		}
		out.add(s.drop(f))
	}
	return out, errors.Join(ctx.Err(), s.unsettle())
}
