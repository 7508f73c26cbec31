package fetcher

import (
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// What belongs to the start of a command: its reads of this long, and so many.
const (
	recordFor    = time.Minute
	recordChunks = 32 << 10
	settledRuns  = 4 // of so many runs a profile is taken for good
)

// recorder notes the first read of each chunk. Its cost is a bit looked up for every read, and a line for the first.
type recorder struct {
	x       *Contents
	image   digest.Digest
	command []string
	began   time.Time

	mu     sync.Mutex
	chunks map[uint32]bitset // chunks that were read, of contents with several; guarded by mu
	reads  []recorded        // guarded by mu
	missed bool              // something was fetched because it was read; guarded by mu
	saved  bool              // guarded by mu; nothing is noted any more
}

type recorded struct {
	ref chunkRef
	at  time.Duration
}

func newRecorder(x *Contents, image digest.Digest, command []string) *recorder {
	return &recorder{x: x, image: image, command: command, began: time.Now(), chunks: map[uint32]bitset{}}
}

// run saves what was noted when the start is over, or the Contents are closed.
func (r *recorder) run() {
	r.x.sleep(recordFor)
	r.save()
}

// read notes that n bytes from off of a content are read; isFirst when nothing of it was before.
func (r *recorder) read(idx uint32, off, n int64, isFirst bool) {
	count := r.x.tree.NumChunks(idx)
	if count == 0 || count == 1 && !isFirst {
		return
	}
	_, first, ok := r.x.tree.ContentChunk(idx, off)
	if !ok {
		return
	}
	last := first
	if count > 1 {
		_, last, _ = r.x.tree.ContentChunk(idx, off+n-1)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.saved || len(r.reads) >= recordChunks {
		return
	}
	seen := r.chunks[idx]
	if seen == nil && count > 1 {
		seen = newBitset(count)
		r.chunks[idx] = seen
	}
	for i := first; i <= last; i++ {
		if count == 1 || seen.set(uint32(i)) {
			r.reads = append(r.reads, recorded{chunkRef{idx, uint32(i)}, time.Since(r.began)})
		}
	}
}

// miss notes that a read had to wait for a fetch: the profile is not complete.
func (r *recorder) miss() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.missed = true
}

// save merges what was noted into the profile in the store.
func (r *recorder) save() {
	r.mu.Lock()
	reads, missed := r.reads, r.missed
	r.saved = true
	r.mu.Unlock()
	if len(reads) == 0 {
		return
	}
	p, err := r.x.store.Profile(r.image, r.command)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			r.x.log.Warn("a profile is begun anew", "error", err)
		}
		p = &Profile{Image: r.image, Command: r.command}
	}
	p.merge(r.lines(reads))
	if err := r.x.store.SaveProfile(p); err != nil {
		r.x.log.Warn("what the start read is not remembered", "error", err)
		return
	}
	if p.Runs >= settledRuns && !missed {
		r.x.store.settle(r.image, r.command)
	}
}

func (r *recorder) lines(reads []recorded) []ProfileRead {
	out := make([]ProfileRead, 0, len(reads))
	seen := make(map[part]bool, len(reads)) // two layers may have the same file
	for _, rec := range reads {
		c, _ := r.x.tree.ContentInfo(rec.ref.content)
		k, ok := r.x.tree.ChunkAt(rec.ref.content, int(rec.ref.chunk))
		if !ok || isZeros(&k) {
			continue
		}
		read := ProfileRead{At: rec.at.Truncate(time.Millisecond), Content: c.Digest, Offset: k.Offset}
		if !seen[read.part()] {
			seen[read.part()] = true
			out = append(out, read)
		}
	}
	return out
}
