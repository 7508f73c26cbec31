package fetcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/veneerfs/veneer/unionfs"
)

// Contents reads the files of an image tree: from the store where they are whole, else the chunks that are asked for, which are fetched,
// verified and kept. What it fetches, it fetches for all processes: see partial and fetch.
//
// Errors of ReadAt wrap EINTR when the context ended, else EIO, and say what was wrong. Reads of what is in the store make no
// request. A full disk does not fail a read: what was verified is served from memory.
//
// Lock order: none. mu, fileCache.mu, readOrder.mu, partial.mu and Store.mu are leaves, and none is held over the network or, but for
// partial.mu while a file is completed, over the disk.
type Contents struct {
	store  *Store
	tree   *unionfs.Tree
	layers []contentLayer
	opts   ContentsOptions
	log    *slog.Logger
	files  fileCache
	order  readOrder
	spill  spillCache
	slots  *requestSlots // of what is read
	demand demand
	back   signal // a layer could be read again
	stats  contentCounters
	opened bitset // contents that were read

	used       *os.File      // the tree's file, which says that it is used; may be nil
	aheadSlots *requestSlots // of what may be read later
	unknown    atomic.Bool   // no profile says what the start reads
	recorder   *recorder     // nil without ContentsOptions.Profile

	cameAlong bitset // contents that were brought before they were asked for; see window

	// life ends with Close. Fetches live in it and not in the context of the read that began them, because others may wait
	// for the same chunk.
	life context.Context
	end  context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	flights map[memberKey]*flight // guarded by mu
	closed  bool                  // guarded by mu; then no work begins
	told    map[chunkRef]bool     // guarded by mu; damaged chunks that were logged
	streams map[int]*stream       // guarded by mu; layers that are being streamed
	full    atomic.Bool           // the store took no chunk, and that was logged
	index   sync.Once
}

// contentLayer is a layer of the tree.
type contentLayer struct {
	unionfs.Layer
	source *layerSource // nil: FormatDir
	dir    *os.File     // FormatDir: the directory
	index  []blobRef    // the chunks by their place in the blob; set by Contents.index
	lock   layerLock
	window window

	trouble atomic.Pointer[error] // why it cannot be read now
}

// Contents returns the reader of the files of t, which is a tree of img or, with a nil img, of host directories.
func (s *Store) Contents(c *Client, img *Image, t *unionfs.Tree, o ContentsOptions) (*Contents, error) {
	var sources []layerSource
	var err error
	if img != nil {
		if sources, err = layerSources(img, func(i int) Blob { return c.Blob(img, i) }); err != nil {
			return nil, err
		}
	}
	x, err := s.newContents(sources, t, o)
	if err != nil || img == nil {
		return x, err
	}
	if x.used, err = s.use(s.treePath(sources)); err != nil {
		s.log.Debug("an image tree is not marked as used", "error", err)
	}
	if o.Profile && !s.settled(img.Manifest, o.Command) {
		x.recorder = newRecorder(x, img.Manifest, o.Command)
		x.work.Go(x.recorder.run)
		x.work.Go(func() { x.replay(s.treePath(sources), img.Manifest, o.Command) })
	}
	if o.Fill {
		x.work.Go(x.fill)
	}
	return x, nil
}

// DirContents returns the reader of the files of t, all of whose layers are host directories. It needs no store.
func DirContents(t *unionfs.Tree, o ContentsOptions) (*Contents, error) {
	return (&Store{log: slog.Default()}).newContents(nil, t, o)
}

func (s *Store) newContents(sources []layerSource, t *unionfs.Tree, o ContentsOptions) (*Contents, error) {
	o = o.withDefaults(s)
	x := &Contents{
		store: s, tree: t, opts: o, log: o.Log,
		slots:      newRequestSlots(max(1, o.Requests*5/8)),
		aheadSlots: newRequestSlots(max(1, o.Requests*3/8)),
		opened:     newBitset(int(t.Totals().Contents)),

		cameAlong: newBitset(int(t.Totals().Contents)),
		flights:   map[memberKey]*flight{},
		told:      map[chunkRef]bool{},
		streams:   map[int]*stream{},
	}
	x.files.limit = o.OpenFiles
	x.life, x.end = context.WithCancel(context.Background())
	if err := x.openLayers(sources); err != nil {
		x.Close()
		return nil, err
	}
	return x, nil
}

func (x *Contents) openLayers(sources []layerSource) error {
	layers := x.tree.Layers()
	x.layers = make([]contentLayer, len(layers))
	for i := range layers {
		l := &x.layers[i]
		l.Layer = layers[i]
		l.lock.path = x.store.layerLockPath(l.Digest)
		switch {
		case l.Format == unionfs.FormatDir:
			if i < len(x.opts.Dirs) {
				l.dir = x.opts.Dirs[i]
				continue
			}
			dir, err := os.Open(l.Path)
			if err != nil {
				return fmt.Errorf("open layer %d: %w", i, err)
			}
			l.dir = dir
		case i >= len(sources) || string(sources[i].desc.Digest) != l.Digest.String():
			return fmt.Errorf("open layer %d: the tree is not of this image", i)
		default:
			l.source = &sources[i]
		}
	}
	return nil
}

// Close ends what is being fetched and waits for it. No other method may be called after it. It waits for no disk: Store.Close
// does.
func (x *Contents) Close() error {
	x.mu.Lock()
	x.closed = true
	x.mu.Unlock()
	x.end()
	x.work.Wait()
	x.files.close()
	if x.used != nil {
		x.used.Close()
	}
	if x.stats.fetchedBytes.Load() > 0 {
		x.keepLimit()
	}
	for i := range x.layers {
		if l := &x.layers[i]; l.dir != nil {
			l.dir.Close()
		}
		x.layers[i].lock.close()
	}
	return nil
}

// shrinkTime bounds how long the end of a Contents may take for others.
const shrinkTime = 10 * time.Second

// keepLimit lets the store keep to its limit.
func (x *Contents) keepLimit() {
	ctx, cancel := context.WithTimeout(context.Background(), shrinkTime)
	defer cancel()
	if _, err := x.store.Shrink(ctx); err != nil {
		x.log.Warn("the store does not keep to its limit", "error", err)
	}
}

// ReadAt fills p with the bytes of ino from off. It returns less, and a nil error, at the end of the file, and may return less
// elsewhere.
func (x *Contents) ReadAt(ctx context.Context, ino unionfs.Ino, p []byte, off int64) (int, error) {
	idx, ok := x.tree.ContentIndex(ino)
	if !ok || off < 0 {
		return 0, fmt.Errorf("read inode %d at %d: %w", ino, off, syscall.EINVAL)
	}
	c, ok := x.tree.ContentInfo(idx)
	if !ok {
		return 0, fmt.Errorf("read inode %d: the image tree is damaged: %w", ino, syscall.EIO)
	}
	if off >= c.Size || len(p) == 0 {
		return 0, nil
	}
	isFirst := x.opened.set(idx)
	if isFirst {
		x.firstRead(idx)
	}
	if x.recorder != nil {
		x.recorder.read(idx, off, min(int64(len(p)), c.Size-off), isFirst)
	}
	if off == 0 {
		x.readAhead(idx)
	}
	p = p[:min(int64(len(p)), c.Size-off)]
	n, err := x.read(ctx, idx, &c, p, off)
	if err == nil {
		x.stats.bytesRead.Add(int64(n))
		if isFirst && off == 0 && x.unknown.Load() {
			x.bringLibraries(ino, p[:n])
		}
		return n, nil
	}
	return 0, fmt.Errorf("read content %s of layer %s at %d: %w", c.Digest, x.layers[c.Layer].Digest, off, err)
}

// maxTries is how often a read looks again after a fetch. More than once it must only when the store loses what was just
// put there.
const maxTries = 4

func (x *Contents) read(ctx context.Context, idx uint32, c *unionfs.Content, p []byte, off int64) (int, error) {
	var err error
	var w *waiter
	for range maxTries {
		var f *contentFile
		if f, err = x.open(idx, c); err != nil {
			return 0, asEIO(err)
		}
		if f != nil && f.whole != nil {
			n, err := f.whole.ReadAt(p, off)
			x.files.release(f)
			if n < len(p) {
				return 0, asEIO(fmt.Errorf("the local file is damaged: %w", noEOF(err)))
			}
			return n, nil
		}
		if w == nil {
			w = x.newWaiter(ctx, c.Layer)
			defer w.stop()
		}
		var n int
		if x.tree.NumChunks(idx) > 0 {
			n, err = x.readChunks(w, idx, f, p, off)
		} else {
			err = x.restore(w, c)
		}
		x.files.release(f)
		if n > 0 {
			return n, nil
		}
		if err != nil && !errors.Is(err, errAgain) {
			return 0, err
		}
		x.files.drop(idx) // it may be whole now, and the open file is the partial one
	}
	return 0, asEIO(errors.Join(err, errors.New("the store does not keep it")))
}

// errAgain means that a chunk is here now, or was a moment ago.
var errAgain = errors.New("look again")

// ioError is a reason for EIO. EIO comes first, so that no errno of the network or the disk is taken for the read's.
type ioError struct{ err error }

func (e *ioError) Error() string   { return e.err.Error() }
func (e *ioError) Unwrap() []error { return []error{syscall.EIO, e.err} }

func asEIO(err error) error { return &ioError{err} }

// Local returns the file that holds all of ino's bytes, open for reading, or nil while it is not complete here. The caller
// closes it.
func (x *Contents) Local(ino unionfs.Ino) (*os.File, error) {
	idx, ok := x.tree.ContentIndex(ino)
	if !ok {
		return nil, fmt.Errorf("open content of inode %d: %w", ino, syscall.EINVAL)
	}
	c, ok := x.tree.ContentInfo(idx)
	if !ok {
		return nil, fmt.Errorf("open content of inode %d: the image tree is damaged: %w", ino, syscall.EIO)
	}
	f, err := x.openWhole(&c)
	switch {
	case errors.Is(err, errAbsent):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("open content of inode %d: %w", ino, asEIO(err))
	}
	isFirst := x.opened.set(idx)
	if isFirst {
		x.firstRead(idx)
	}
	if x.recorder != nil && c.Size > 0 {
		x.recorder.read(idx, 0, c.Size, isFirst)
	}
	return f, nil
}

// openWhole opens a content that is complete here; errAbsent if it is not.
func (x *Contents) openWhole(c *unionfs.Content) (*os.File, error) {
	if l := &x.layers[c.Layer]; l.Format == unionfs.FormatDir {
		return openInDir(l.dir, c)
	}
	return x.store.openContent(c.Digest, c.Size)
}

// open returns the cached file of a content, which the caller releases: the whole content, or the partial file of one that has several chunks.
// nil when there is neither.
func (x *Contents) open(idx uint32, c *unionfs.Content) (*contentFile, error) {
	if f := x.files.get(idx); f != nil {
		return f, nil
	}
	whole, err := x.openWhole(c)
	if err == nil {
		return x.files.add(&contentFile{idx: idx, whole: whole}), nil
	}
	if !errors.Is(err, errAbsent) || !x.hasPartial(idx) {
		return nil, ignoring(err, errAbsent)
	}
	full, _ := x.contentOf(idx)
	part, err := x.store.openPartial(full)
	if errors.Is(err, errCompleted) {
		whole, err := x.openWhole(c)
		if err != nil {
			return nil, ignoring(err, errAbsent)
		}
		return x.files.add(&contentFile{idx: idx, whole: whole}), nil
	}
	if err != nil {
		// Without its partial file a content is still read: from memory.
		x.tellFull(err)
		return nil, nil
	}
	if part.isNew {
		// It may have been completed after we looked for it, and before we made a partial file of it once more.
		if whole, err := x.openWhole(c); err == nil {
			part.discard()
			return x.files.add(&contentFile{idx: idx, whole: whole}), nil
		}
	}
	if part.whole() { // who brought the last chunk died before it was moved
		if err := x.store.complete(part); err != nil {
			x.tellFull(err)
		}
	}
	return x.files.add(&contentFile{idx: idx, part: part}), nil
}

func ignoring(err, target error) error {
	if errors.Is(err, target) {
		return nil
	}
	return err
}

// hasPartial reports whether a content is kept in a partial file until it is complete: not one that is a single chunk.
func (x *Contents) hasPartial(idx uint32) bool {
	switch n := x.tree.NumChunks(idx); n {
	case 0:
		return false
	case 1:
		c, _ := x.tree.ChunkAt(idx, 0)
		return isZeros(&c)
	}
	return true
}

// contentOf returns a content with its chunks.
func (x *Contents) contentOf(idx uint32) (unionfs.Content, bool) {
	c, ok := x.tree.ContentInfo(idx)
	c.Chunks = make([]unionfs.Chunk, x.tree.NumChunks(idx))
	for i := range c.Chunks {
		if c.Chunks[i], ok = x.tree.ChunkAt(idx, i); !ok {
			break
		}
	}
	return c, ok
}
