package fetcher

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// partial is a file of several chunks that is partly here: a sparse file and its chunk map. It is named by all that the layer claims
// of it, so a table of contents that lies about a file's digest shares nothing with others.
//
// When all chunks are here the whole file is hashed, and moved to contents if its digest is the claimed one. If not, the chunks
// are still what the layer's table of contents pins, one by one: the file stays partial, and private to whoever makes the same claim.
//
// Any number of processes have one partial open. Moving goes, under both locks: remove the map, move the file. Those that still have the old
// map mark chunks in it that nobody reads any more, and write to the moved file only the bytes that are there.
type partial struct {
	content unionfs.Content
	data    *os.File
	chunks  *os.File // the map
	name    string   // of both, without suffix
	isNew   bool     // it had no map before; immutable after open

	mu     sync.Mutex
	marks  []byte   // guarded by mu; chunks known to be here; never more than the map has
	here   int      // guarded by mu; how many of them
	lies   bool     // guarded by mu; the whole has another digest than claimed
	placed bool     // guarded by mu; moved to contents
	seq    sequence // guarded by mu
}

// partialKey names the partial file of c.
func partialKey(c *unionfs.Content) [32]byte {
	h := sha256.New()
	h.Write(c.Digest[:])
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(c.Size))
	h.Write(b[:8])
	for i := range c.Chunks {
		binary.LittleEndian.PutUint64(b[:], uint64(c.Chunks[i].Offset))
		binary.LittleEndian.PutUint64(b[8:], uint64(c.Chunks[i].Size))
		h.Write(b[:])
		h.Write(c.Chunks[i].Digest[:])
	}
	return [32]byte(h.Sum(nil))
}

// errCompleted means that the file was moved to contents meanwhile.
var errCompleted = errors.New("the file is complete")

// openPartial opens the partial file of c, and makes it when it is new. It returns errCompleted when another process has just completed
// it; the caller then looks into contents again.
func (s *Store) openPartial(c unionfs.Content) (*partial, error) {
	key := partialKey(&c)
	h := hex.EncodeToString(key[:])
	name := filepath.Join(s.root, "partial", h[:2], h)
	p := &partial{content: c, name: name}
	if err := p.openFiles(); err != nil {
		return nil, s.full(err)
	}
	if err := p.load(key); err != nil {
		p.close()
		return nil, s.full(err)
	}
	return p, nil
}

// openFiles opens a file and the map that belongs to it. Without the lock they might be of two generations: the one before was just
// moved, or discarded.
func (p *partial) openFiles() error {
	unlock, err := p.lockNames()
	if err != nil {
		return err
	}
	defer unlock()
	const flags = os.O_RDWR | os.O_CREATE
	if p.chunks, err = os.OpenFile(p.name+".map", flags, 0o600); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(p.name), 0o700); err != nil {
			return fmt.Errorf("open partial file: %w", err)
		}
		p.chunks, err = os.OpenFile(p.name+".map", flags, 0o600)
	}
	if err != nil {
		return fmt.Errorf("open partial file: %w", err)
	}
	if p.data, err = os.OpenFile(p.name+".data", flags, 0o600); err != nil {
		p.chunks.Close()
		return fmt.Errorf("open partial file: %w", err)
	}
	return nil
}

// lockNames keeps the names of partial files from being given and taken, of all that are in the same directory. It is not held for long. Who locks
// a map, too, does so before.
func (p *partial) lockNames() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Dir(p.name)+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock partial files: %w", err)
	}
	if err := flock(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock partial files: %w", err)
	}
	return func() { f.Close() }, nil
}

// hasNames reports whether the names still are p's. Either lock is held.
func (p *partial) hasNames() bool {
	return samePath(p.chunks, p.name+".map") && samePath(p.data, p.name+".data")
}

// load reads the map, or starts it, and verifies what an earlier boot has left. One process at a time does so.
func (p *partial) load(key [32]byte) error {
	if err := flock(p.chunks); err != nil {
		return fmt.Errorf("lock chunk map: %w", err)
	}
	defer unix.Flock(int(p.chunks.Fd()), unix.LOCK_UN)
	if !p.hasNames() {
		return errCompleted
	}
	boot, err := currentBoot()
	if err != nil {
		return err
	}
	head := &mapHead{chunks: len(p.content.Chunks), size: p.content.Size, boot: boot, key: key}
	was, marks, ok := readMap(p.chunks, head)
	if ok && was == boot {
		p.setMarks(marks)
		return nil
	}
	if !ok {
		p.isNew = true
		marks = make([]byte, head.chunks)
	}
	p.verifyMarks(marks)
	for i := range marks {
		if isZeros(&p.content.Chunks[i]) {
			marks[i] = markHere // the hole is the chunk
		}
	}
	p.setMarks(marks)
	return p.start(head)
}

// start writes a new map with p's marks.
func (p *partial) start(head *mapHead) error {
	if err := p.data.Truncate(p.content.Size); err != nil {
		return fmt.Errorf("make partial file: %w", err)
	}
	// While it is rewritten it must not be taken for whole: no magic, no map.
	if err := p.chunks.Truncate(0); err != nil {
		return fmt.Errorf("write chunk map: %w", err)
	}
	if _, err := p.chunks.WriteAt(p.marks, mapHeader); err != nil {
		return fmt.Errorf("write chunk map: %w", err)
	}
	if _, err := p.chunks.WriteAt(head.encode(), 0); err != nil {
		return fmt.Errorf("write chunk map: %w", err)
	}
	return nil
}

// verifyMarks takes back the marks of chunks that are not what they should be.
func (p *partial) verifyMarks(marks []byte) {
	for i, m := range marks {
		if m != markHere {
			continue
		}
		c := &p.content.Chunks[i]
		if isZeros(c) {
			continue
		}
		b := make([]byte, c.Size)
		if _, err := p.data.ReadAt(b, c.Offset); err != nil || sha256.Sum256(b) != c.Digest {
			marks[i] = 0
		}
	}
}

func (p *partial) setMarks(marks []byte) {
	p.marks, p.here = marks, 0
	for _, m := range marks {
		if m == markHere {
			p.here++
		}
	}
}

// has reports whether chunk i is here.
func (p *partial) has(i int) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.marks[i] == markHere {
		return true, nil
	}
	// Another process may have brought it. All marks are looked at, to learn whether the file is whole.
	marks := make([]byte, len(p.marks))
	if _, err := p.chunks.ReadAt(marks, mapHeader); err != nil {
		return false, fmt.Errorf("read chunk map: %w", err)
	}
	p.setMarks(marks)
	return marks[i] == markHere, nil
}

// write adds chunk i, whose bytes were verified. whole is true when it was the last one.
func (p *partial) write(i int, b []byte) (whole bool, err error) {
	if _, err := p.data.WriteAt(b, p.content.Chunks[i].Offset); err != nil {
		return false, fmt.Errorf("write chunk: %w", err)
	}
	if _, err := p.chunks.WriteAt([]byte{markHere}, mapHeader+int64(i)); err != nil {
		return false, fmt.Errorf("mark chunk: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.marks[i] != markHere {
		p.marks[i] = markHere
		p.here++
	}
	return p.here == len(p.marks), nil
}

// complete hashes p, of which every chunk is here, and moves it to contents. It does nothing when that was done before.
func (s *Store) complete(p *partial) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.placed || p.lies {
		return nil
	}
	d, err := hashFile(p.data)
	if err != nil {
		return fmt.Errorf("hash %s: %w", p.content.Digest, err)
	}
	if d != p.content.Digest {
		p.lies = true
		s.log.Warn("a layer lies about the digest of a file: it is not shared", "claimed", p.content.Digest.String(), "is", d.String())
		return nil
	}
	if err := s.move(p, d); err != nil {
		return fmt.Errorf("complete content: %w", err)
	}
	p.placed = true
	return nil
}

// move gives p's file its place. Whoever comes second finds the names gone, or taken by one who has begun the file anew: those are not p's.
func (s *Store) move(p *partial, d unionfs.Digest) error {
	if err := flock(p.chunks); err != nil {
		return fmt.Errorf("lock chunk map: %w", err)
	}
	defer unix.Flock(int(p.chunks.Fd()), unix.LOCK_UN)
	unlock, err := p.lockNames()
	if err != nil {
		return err
	}
	defer unlock()
	if !p.hasNames() {
		return nil
	}
	// In this order: a map without its file would claim chunks that are not there.
	if err := os.Remove(p.name + ".map"); err != nil {
		return err
	}
	return s.place(p.data, d)
}

// whole reports whether every chunk is here and the file may be moved to contents.
func (p *partial) whole() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.here == len(p.marks) && !p.lies
}

// isPlaced reports whether p was moved to contents.
func (p *partial) isPlaced() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.placed
}

// discard removes and closes a partial file that nobody needs.
func (p *partial) discard() {
	if unlock, err := p.lockNames(); err == nil {
		if p.hasNames() {
			os.Remove(p.name + ".map")
			os.Remove(p.name + ".data")
		}
		unlock()
	}
	p.close()
}

func (p *partial) close() {
	p.data.Close()
	p.chunks.Close()
}
