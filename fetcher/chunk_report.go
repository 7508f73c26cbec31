package fetcher

import (
	"container/list"
	"errors"
	"fmt"
	"sync"

	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// damaged records that chunks of a member are not what they should be.
func (x *Contents) damaged(fl *flight, refs []blobRef, err error) {
	for _, r := range refs {
		fl.bad[r.chunkRef] = fmt.Errorf("a chunk is damaged: %w", err)
		x.stats.chunksDamaged.Add(1)
	}
}

// tellDamaged logs each damaged chunk of a member once.
func (x *Contents) tellDamaged(layer int, fl *flight) {
	for ref, err := range fl.bad {
		x.mu.Lock()
		told := x.told[ref]
		x.told[ref] = true
		x.mu.Unlock()
		if told {
			continue
		}
		k, _ := x.tree.ChunkAt(ref.content, int(ref.chunk))
		x.log.Error("a chunk is damaged: reads of it fail", "layer", x.layers[layer].Digest.String(), "blob_offset", fl.off,
			"file", x.pathOf(ref.content), "offset", k.Offset, "error", errors.Unwrap(err))
	}
}

// distrust says that a layer's source sent damaged bytes. It reports whether asking again makes sense, because they came from a mirror.
func (x *Contents) distrust(layer int) bool {
	b, ok := x.layers[layer].source.blob.(interface{ Distrust() bool })
	return ok && b.Distrust()
}

// pathOf returns one of the paths of a content, or "". It looks through the whole tree, for messages only.
func (x *Contents) pathOf(idx uint32) string {
	type dir struct {
		ino  unionfs.Ino
		path string
	}
	for todo := []dir{{unionfs.Root, ""}}; len(todo) > 0; {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for i := range x.tree.DirLen(d.ino) {
			name, ino, typ := x.tree.DirAt(d.ino, i)
			switch typ {
			case unix.S_IFDIR:
				todo = append(todo, dir{ino, d.path + "/" + name})
			case unix.S_IFREG:
				if got, ok := x.tree.ContentIndex(ino); ok && got == idx {
					return d.path + "/" + name
				}
			}
		}
	}
	return ""
}

// tellFull logs that the store did not take something, once until it takes something again.
func (x *Contents) tellFull(err error) {
	if !x.full.Swap(true) {
		x.log.Warn("the store does not keep what is fetched; reads go on from memory", "error", err)
	}
}

// maxSpill is how many bytes of chunks are kept in memory when the store takes none.
const maxSpill = 32 << 20

// spillCache keeps the last chunks that the store did not take. The zero value is ready.
type spillCache struct {
	mu     sync.Mutex
	chunks map[chunkRef]*list.Element // guarded by mu; of spilled
	recent list.List                  // guarded by mu
	bytes  int                        // guarded by mu
}

type spilled struct {
	ref chunkRef
	b   []byte
}

func (c *spillCache) get(r chunkRef) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.chunks[r]
	if e == nil {
		return nil
	}
	c.recent.MoveToFront(e)
	return e.Value.(spilled).b
}

func (c *spillCache) put(r chunkRef, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.chunks[r] != nil {
		return
	}
	if c.chunks == nil {
		c.chunks = map[chunkRef]*list.Element{}
	}
	c.chunks[r] = c.recent.PushFront(spilled{r, b})
	for c.bytes += len(b); c.bytes > maxSpill && c.recent.Len() > 1; {
		last := c.recent.Remove(c.recent.Back()).(spilled)
		delete(c.chunks, last.ref)
		c.bytes -= len(last.b)
	}
}
