package cow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"

	"github.com/veneerfs/veneer/unionfs"
)

// salvager reads a state that may be damaged.
//
// Of a checkpoint it takes every record that is whole: each says all of some inodes. Of the journals it takes the records up to
// the first that is damaged, because each one builds on those before. Behind a checkpoint of which something is lost, records
// are applied as far as they find what they are about.
type salvager struct {
	*Snapshot
	r     *Report
	loose bool // something of the checkpoint is lost
	stop  bool // no later record counts
	left  int  // records that could not be applied
	// The machine went down after the records were written: those after this one count for nothing, as in recovery, because their
	// content may not be there. Else it is the highest number.
	committed uint64
}

// readDamaged reads what it can of a state. *VersionError, *TreeError: it cannot be read at all.
func readDamaged(dir string, tree *unionfs.Tree, c Contents, o Options, r *Report) (*Snapshot, error) {
	s := &salvager{Snapshot: newSnapshot(dir, tree, c, o), r: r}
	gen, err := s.readCheckpointPart()
	if err != nil {
		return nil, err
	}
	gens, err := journals(s.disk)
	if err != nil {
		return nil, err
	}
	s.committed = s.lastCommit(gens)
	for i, g := range gens {
		if g < gen {
			continue
		}
		if err := s.readJournalPart(g, i == len(gens)-1); err != nil {
			return nil, err
		}
	}
	if s.left > 0 {
		s.lost(journalName(gen), -1, "%d records are about what is lost", s.left)
	}
	r.Records, r.Inodes = s.seq, len(s.nodes)
	if s.pack, err = openPack(s.disk); err != nil {
		s.lost(packName, -1, "it cannot be opened: %v", err)
	}
	if err := s.foldBackings(); err != nil {
		s.lost("data", -1, "sizes of files that were being written: %v", err)
	}
	return s.Snapshot, nil
}

// lastCommit looks whether the machine was started anew since, and then for the last commit.
func (s *salvager) lastCommit(gens []uint64) uint64 {
	boot, rebooted, last := bootID(), false, s.seq
	if s.opts.boot != 0 {
		boot = s.opts.boot
	}
	for _, g := range gens {
		b, err := readWhole(s.disk, journalName(g))
		if err != nil {
			continue
		}
		l := journalFile{gen: g, b: b}
		if l.h, err = decodeHeader(b, l.name(), journalMagic, s.treeID); err == nil {
			l.scan()
			rebooted = l.h.count != 0 && l.h.count != boot
			last = max(last, l.commit)
		}
	}
	if !rebooted {
		return math.MaxUint64
	}
	return last
}

func (s *salvager) lost(file string, off int64, format string, a ...any) {
	s.r.add(Problem{File: file, Offset: off, Reason: fmt.Sprintf(format, a...)})
}

// header reads a header, also a damaged one: if the salt in it is right, the records after it are known by it.
func (s *salvager) header(b []byte, file string, magic [8]byte) (h header, whole bool, err error) {
	h, err = decodeHeader(b, file, magic, s.treeID)
	var damage *DamageError
	if !errors.As(err, &damage) {
		return h, err == nil, err
	}
	s.lost(file, damage.Offset, "%s", damage.Reason)
	if len(b) >= headerSize {
		h.gen, h.seq = binary.LittleEndian.Uint64(b[32:]), binary.LittleEndian.Uint64(b[40:])
		h.salt = binary.LittleEndian.Uint64(b[48:])
	}
	return h, false, nil
}

// readCheckpointPart returns the generation of the first journal after the checkpoint; 0 if that is lost.
func (s *salvager) readCheckpointPart() (gen uint64, err error) {
	b, err := readWhole(s.disk, checkpointName)
	if errors.Is(err, fs.ErrNotExist) {
		if gens, err := journals(s.disk); err != nil || len(gens) == 0 || gens[0] == 1 {
			return 1, err
		}
		s.loose = true
		s.lost(checkpointName, -1, "it is missing")
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	h, whole, err := s.header(b, checkpointName, checkpointMagic)
	if err != nil {
		return 0, err
	}
	s.loose = !whole
	if whole {
		s.seq, gen = h.seq, h.gen
	}
	ended := false
	scan := newFrameScan(b, h.salt)
	for want := uint64(1); ; {
		end := scan.pos
		at, seq, payload := scan.next(want)
		if at > end {
			s.loose = true
			s.lost(checkpointName, int64(end), "%d bytes are damaged, and what they say of inodes is lost", at-end)
		}
		if payload == nil {
			break
		}
		want = seq + 1
		if payload[0] == tagEnd {
			d := dec{p: payload[1:]}
			s.next = max(s.next, d.u())
			ended = true
		} else if err := s.apply(payload); err != nil {
			s.loose = true
			s.lost(checkpointName, int64(at), "%v", err)
		}
	}
	if h.version == 1 { // which has no pack
		s.allInObjects()
	}
	if !ended && !s.loose {
		s.loose = true
		s.lost(checkpointName, int64(len(b)), "it is cut off")
	}
	return gen, nil
}

// readJournalPart applies the records of a journal.
func (s *salvager) readJournalPart(gen uint64, last bool) error {
	name := journalName(gen)
	if s.stop {
		s.lost(name, -1, "it comes after what is lost, and is left out")
		return nil
	}
	b, err := readWhole(s.disk, name)
	if err != nil {
		return err
	}
	if last && allZero(b[:min(len(b), headerSize)]) {
		return nil // a power loss before the first fsync
	}
	h, whole, err := s.header(b, name, journalMagic)
	if err != nil {
		return err
	}
	if whole && h.seq > s.seq && !s.loose {
		s.stop = true
		s.lost(name, 40, "records %d to %d are missing; it is left out", s.seq+1, h.seq)
		return nil
	}
	if !whole {
		h.seq = s.seq
	}
	return s.replayPart(b, name, &h, last)
}

// replayPart applies records up to the first damaged one.
func (s *salvager) replayPart(b []byte, name string, h *header, last bool) error {
	scan := newFrameScan(b, h.salt)
	for want := h.seq + 1; scan.pos < len(b); want++ {
		end := scan.pos
		at, seq, payload := scan.next(want)
		if at != end || payload == nil || seq != want {
			s.judgeTail(b, name, end, want, last, &scan, payload != nil)
			return nil
		}
		if seq > s.committed {
			s.judgeTail(b, name, end, want, last, &scan, true)
			return nil
		}
		if seq <= s.seq && !s.loose {
			continue
		}
		s.seq = seq
		if err := s.apply(payload); err != nil && s.loose {
			s.left++
		} else if err != nil {
			s.stop = true
			s.lost(name, int64(at), "%v; it and what follows is left out", err)
			return nil
		}
	}
	return nil
}

// judgeTail says what the bytes from end on are: a torn tail, or damage, after which records are lost.
func (s *salvager) judgeTail(b []byte, name string, end int, want uint64, last bool, scan *frameScan, more bool) {
	if s.seq >= s.committed {
		s.stop = true
		s.r.add(Problem{File: name, Offset: int64(end), Reason: fmt.Sprintf("%d bytes were not on stable storage when the machine went down, and do not count", len(b)-end), Harmless: true})
		return
	}
	if !more && last && checkTail(b, end, name, scan.sum, want) == nil {
		s.r.add(Problem{File: name, Offset: int64(end), Reason: fmt.Sprintf("%d bytes are no record: an operation that was never answered", len(b)-end), Harmless: true})
		return
	}
	s.stop = true
	n := 0
	for ; more; n++ {
		_, seq, payload := scan.next(want)
		want, more = max(want, seq), payload != nil
	}
	s.lost(name, int64(end), "a record is damaged; it and %d whole ones after it are left out", n)
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// frameScan finds the whole frames of a file.
type frameScan struct {
	b      []byte
	sum    uint32
	pos    int   // where the last one ended
	budget int64 // bytes of checksums that may still be made in vain
}

func newFrameScan(b []byte, salt uint64) frameScan {
	return frameScan{b: b, sum: saltSum(salt), pos: min(len(b), headerSize), budget: 64<<20 + 16*int64(len(b))}
}

// next returns the next whole frame, whose number is at least want; len(b) and nil when there is none.
func (f *frameScan) next(want uint64) (at int, seq uint64, payload []byte) {
	for i := f.pos; i+frameHeader < len(f.b); i++ {
		seq, n := binary.LittleEndian.Uint64(f.b[i+8:]), binary.LittleEndian.Uint32(f.b[i:])
		if seq < want || seq > want+uint64(len(f.b)) || n == 0 || n > maxPayload || int(n) > len(f.b)-i-frameHeader {
			continue
		}
		if seq, payload = cutFrame(f.b[i:], f.sum); payload != nil {
			f.pos = i + frameHeader + len(payload)
			return i, seq, payload
		}
		if f.budget -= int64(n); f.budget < 0 {
			break
		}
	}
	f.pos = len(f.b)
	return len(f.b), 0, nil
}
