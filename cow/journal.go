package cow

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// The frame around every record of a journal and a checkpoint.
//
//	0   length of the payload  uint32, little-endian as all
//	4   CRC32C                 uint32, of the file's salt, the length, the sequence number and the payload
//	8   sequence number        uint64, one more than the record before
//	16  payload
const (
	frameHeader = 16
	maxPayload  = 1 << 20
)

// The header of a journal and of a checkpoint.
//
//	0   magic      8 bytes
//	8   version    uint32
//	12  CRC32C     uint32, of the version (from 3 on) and of what follows
//	16  tree       16 bytes: which image tree the changes are made over
//	32  generation uint64: of the journal; in a checkpoint, of the first journal that is not in it
//	40  sequence   uint64: of the last record before the journal; of the last in the checkpoint
//	48  salt       uint64: random, so that nobody can write a record into a file that is taken for one of ours
//	56  count      uint64: nodes of a checkpoint; in a journal, the boot of the machine that its records were written in,
//	               0 if that is not known
const (
	headerSize    = 64
	formatVersion = 3 // 2 has no sessions; 1 has no pack, no commits and no boots
)

var (
	journalMagic    = [8]byte{'V', 'N', 'R', 'J', 'R', 'N', 'L', '\n'}
	checkpointMagic = [8]byte{'V', 'N', 'R', 'C', 'K', 'P', 'T', '\n'}
	castagnoli      = crc32.MakeTable(crc32.Castagnoli)
)

type header struct {
	magic   [8]byte
	version uint32
	tree    [16]byte
	gen     uint64
	seq     uint64
	salt    uint64
	count   uint64
}

func (h *header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, h.magic[:])
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	copy(b[16:], h.tree[:])
	binary.LittleEndian.PutUint64(b[32:], h.gen)
	binary.LittleEndian.PutUint64(b[40:], h.seq)
	binary.LittleEndian.PutUint64(b[48:], h.salt)
	binary.LittleEndian.PutUint64(b[56:], h.count)
	binary.LittleEndian.PutUint32(b[12:], headerSum(b))
	return b
}

func headerSum(b []byte) uint32 {
	sum := uint32(0)
	if binary.LittleEndian.Uint32(b[8:]) >= 3 {
		sum = crc32.Checksum(b[8:12], castagnoli)
	}
	return crc32.Update(sum, castagnoli, b[16:headerSize])
}

// decodeHeader checks the header of file, which should belong to tree.
func decodeHeader(b []byte, file string, magic [8]byte, tree [16]byte) (header, error) {
	var h header
	if len(b) < headerSize {
		return h, &DamageError{file, int64(len(b)), "the header is cut off"}
	}
	if !bytes.Equal(b[:8], magic[:]) {
		return h, &DamageError{file, 0, "this is another kind of file"}
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v > formatVersion {
		return h, &VersionError{file, v, formatVersion}
	}
	if binary.LittleEndian.Uint32(b[8:]) == 0 || binary.LittleEndian.Uint32(b[12:]) != headerSum(b) {
		return h, &DamageError{file, 12, "the header is damaged"}
	}
	h.magic, h.version = magic, binary.LittleEndian.Uint32(b[8:])
	copy(h.tree[:], b[16:])
	h.gen = binary.LittleEndian.Uint64(b[32:])
	h.seq = binary.LittleEndian.Uint64(b[40:])
	h.salt = binary.LittleEndian.Uint64(b[48:])
	h.count = binary.LittleEndian.Uint64(b[56:])
	if h.tree != tree {
		return h, &TreeError{file}
	}
	return h, nil
}

// saltSum starts a frame's checksum.
func saltSum(salt uint64) uint32 {
	return crc32.Checksum(binary.LittleEndian.AppendUint64(nil, salt), castagnoli)
}

// seal fills in the header of a frame whose payload is in place.
func seal(frame []byte, seq uint64, sum uint32) {
	binary.LittleEndian.PutUint32(frame, uint32(len(frame)-frameHeader))
	binary.LittleEndian.PutUint64(frame[8:], seq)
	binary.LittleEndian.PutUint32(frame[4:], frameSum(frame, sum))
}

func frameSum(frame []byte, sum uint32) uint32 {
	return crc32.Update(crc32.Update(sum, castagnoli, frame[:4]), castagnoli, frame[8:])
}

// cutFrame returns the frame at the start of b, or nil if there is none that is whole and right.
func cutFrame(b []byte, sum uint32) (seq uint64, payload []byte) {
	if len(b) < frameHeader {
		return 0, nil
	}
	n := binary.LittleEndian.Uint32(b)
	if n == 0 || n > maxPayload || int64(n) > int64(len(b)-frameHeader) {
		return 0, nil
	}
	b = b[:frameHeader+n]
	if binary.LittleEndian.Uint32(b[4:]) != frameSum(b, sum) {
		return 0, nil
	}
	return binary.LittleEndian.Uint64(b[8:]), b[frameHeader:]
}

// journal is the file that records are appended to. append is called under op; the rest takes care of itself.
type journal struct {
	disk *disk
	name string // in the state directory
	file *file
	gen  uint64
	sum  uint32 // of the salt

	mu     sync.Mutex // guards what follows
	off    int64      // where the next record goes
	room   int64      // up to here the disk has blocks for it
	seq    uint64     // of the last record
	synced int64      // what is known to be on stable storage
	named  bool       // the file's name is on stable storage
	failed error      // an fdatasync failed: what was appended before may be lost
	syncMu sync.Mutex // held over fdatasync, so that those who wait share the next one
}

func journalName(gen uint64) string { return fmt.Sprintf("journal.%d", gen) }

// createJournal makes the journal of a generation. Its header is written aside: a crash leaves all of it or none.
func createJournal(d *disk, tree [16]byte, boot, gen, seq uint64) (*journal, error) {
	h := header{magic: journalMagic, tree: tree, gen: gen, seq: seq, salt: rand.Uint64(), count: boot}
	const tmp = "journal.tmp"
	file, err := d.create("create journal", tmp, unix.O_TRUNC)
	if err != nil {
		return nil, err
	}
	name := journalName(gen)
	_, err = file.write("write journal header", h.encode(), 0)
	if err == nil {
		err = d.rename(tmp, name)
	}
	if err != nil {
		file.close()
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	file.name = name
	j := &journal{disk: d, name: name, file: file, gen: gen, sum: saltSum(h.salt), off: headerSize, seq: seq}
	if err := j.reserve(0, false); err != nil {
		file.close()
		return nil, errors.Join(fmt.Errorf("create %s: %w", name, err), d.remove("remove journal", name))
	}
	return j, nil
}

// Blocks are reserved reserveChunk bytes at a time. The last reserveLast of them are for operations that free
// something: so a file can still be removed when the disk is full.
const (
	reserveChunk = 256 << 10
	reserveLast  = 64 << 10
)

// reserve sees to it that the next n bytes have blocks. It needs mu, or a journal that nobody knows yet.
func (j *journal) reserve(n int64, frees bool) error {
	if j.off+n+reserveLast <= j.room {
		return nil
	}
	// Only what is not reserved yet: tmpfs gives all of the range back when it cannot give all of it.
	from := max(j.off, j.room)
	err := j.file.allocate("reserve journal", 0, from, n+reserveChunk)
	if err == nil {
		j.room = from + n + reserveChunk
		return nil
	}
	if errors.Is(err, unix.EOPNOTSUPP) || frees && j.off+n <= j.room {
		return nil
	}
	return err
}

// append writes one frame; frees says that the operation makes room on the disk. After an error the journal is as
// before, and the next append may succeed.
func (j *journal) append(frame []byte, frees bool) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.reserve(int64(len(frame)), frees); err != nil {
		return fmt.Errorf("append to journal: %w", err)
	}
	seal(frame, j.seq+1, j.sum)
	if _, err := j.file.write("append to journal", frame, j.off); err != nil {
		// Should this fail too: what is left there is no whole record, so it is a torn tail until it is overwritten.
		_ = j.file.truncate("cut journal", j.off)
		j.room = j.off // the blocks after it went too
		return fmt.Errorf("append to journal: %w", err)
	}
	j.off += int64(len(frame))
	j.seq++
	return nil
}

// last is the sequence number of the last record.
func (j *journal) last() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.seq
}

// durable is up to where the journal is known to be on stable storage.
func (j *journal) durable() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.synced
}

func (j *journal) size() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.off
}

// sync puts everything that was appended before the call on stable storage.
func (j *journal) sync() error {
	j.mu.Lock()
	want := j.off
	j.mu.Unlock()
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	j.mu.Lock()
	done, failed, upTo, named := j.synced >= want, j.failed, j.off, j.named
	j.mu.Unlock()
	if failed != nil || done {
		return failed
	}
	err := j.file.sync("sync journal")
	if err == nil && !named {
		err = j.disk.syncDir(".")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		// The kernel reports a lost page once: from here on this journal cannot be trusted, only the next checkpoint.
		j.failed = fmt.Errorf("sync journal: %w", err)
		return j.failed
	}
	j.synced, j.named = upTo, true
	return nil
}

// retire closes a journal that is synced and that another one continues.
func (j *journal) retire() {
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.synced = j.off // those who wait for syncMu have nothing to do
	j.file.close()
}

// recovered forgets a failure whose records a checkpoint has.
func (j *journal) recovered() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.failed = nil
}

// readFrames calls fn for every record of a file's bytes after the header, and returns where the last one ends.
// What follows there is a torn tail, when tornTail allows one: bytes that a single interrupted append can leave.
func readFrames(b []byte, file string, h *header, tornTail bool, fn func(seq uint64, payload []byte) error) (int64, error) {
	sum := saltSum(h.salt)
	pos, want := headerSize, h.seq+1
	for pos < len(b) {
		seq, payload := cutFrame(b[pos:], sum)
		if payload == nil {
			if !tornTail {
				return 0, &DamageError{file, int64(pos), "a record is cut off or its checksum is wrong"}
			}
			return int64(pos), checkTail(b, pos, file, sum, want)
		}
		if seq != want {
			return 0, &DamageError{file, int64(pos), fmt.Sprintf("record %d is where %d should be", seq, want)}
		}
		if err := fn(seq, payload); err != nil {
			return 0, &DamageError{file, int64(pos), err.Error()}
		}
		pos += frameHeader + len(payload)
		want++
	}
	return int64(pos), nil
}

// checkTail tells a torn tail from damage: after an append that was interrupted there is no other record, and not
// more than one record's bytes, except zeros, which a power loss leaves where a file grew.
func checkTail(b []byte, pos int, file string, sum uint32, want uint64) error {
	for i := pos + 1; i+frameHeader < len(b); i++ {
		if seq := binary.LittleEndian.Uint64(b[i+8:]); seq < want || seq > want+uint64(len(b)) {
			continue
		}
		if _, payload := cutFrame(b[i:], sum); payload != nil {
			return &DamageError{file, int64(pos), fmt.Sprintf("a record's checksum is wrong, and good records follow at byte %d", i)}
		}
	}
	if tail := bytes.TrimRight(b[pos:], "\x00"); len(tail) > frameHeader+maxPayload {
		return &DamageError{file, int64(pos), "no record, and more than an interrupted append leaves"}
	}
	return nil
}

// readWhole maps nothing and trusts nothing: it reads a file of the state directory into memory.
func readWhole(d *disk, name string) ([]byte, error) { return os.ReadFile(d.path(name)) }
