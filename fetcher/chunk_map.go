package fetcher

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

// A chunk map says which chunks of a partial file are here. All numbers are little-endian:
//
//	 0  magic "vnrmap1\n"
//	 8  uint64  number of chunks
//	16  uint64  size of the file
//	24  [16]    boot id: the boot in which every mark was made or checked
//	40  [32]    key of the partial file
//	72  zero
//	128 one byte per chunk: 1 when the chunk is here, verified; anything else when it is not
//
// A chunk's bytes are written before its mark, so a mark is true whenever its writer dies. After a power failure the mark may be on the disk
// and the bytes may not: marks of another boot count for nothing until the chunks are verified again.
const (
	mapMagic  = "vnrmap1\n"
	mapHeader = 128
	mapBoot   = 24 // where the boot id is
	markHere  = 1
)

// maxChunks bounds the chunks of one file, and so the size of its map.
const maxChunks = 1 << 24

type bootID [16]byte

// currentBoot returns the id of the running boot.
var currentBoot = sync.OnceValues(func() (bootID, error) {
	var id bootID
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id, fmt.Errorf("read boot id: %w", err)
	}
	return parseBootID(string(b))
})

// parseBootID reads a UUID as the kernel writes it.
func parseBootID(s string) (id bootID, err error) {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(s), "-", ""))
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("%q is not a boot id", s)
	}
	return bootID(b), nil
}

type mapHead struct {
	chunks int
	size   int64
	boot   bootID
	key    [32]byte
}

func (h *mapHead) encode() []byte {
	b := make([]byte, mapHeader)
	copy(b, mapMagic)
	binary.LittleEndian.PutUint64(b[8:], uint64(h.chunks))
	binary.LittleEndian.PutUint64(b[16:], uint64(h.size))
	copy(b[mapBoot:], h.boot[:])
	copy(b[40:], h.key[:])
	return b
}

// readMap reads the map of the partial file that want describes, whatever boot it is of. ok is false when r holds no such map.
func readMap(r io.ReaderAt, want *mapHead) (boot bootID, marks []byte, ok bool) {
	b := make([]byte, mapHeader+want.chunks)
	if n, _ := r.ReadAt(b, 0); n < len(b) {
		return boot, nil, false
	}
	copy(boot[:], b[mapBoot:])
	same := *want
	same.boot = boot
	if !bytes.Equal(b[:mapHeader], same.encode()) {
		return boot, nil, false
	}
	return boot, b[mapHeader:], true
}
