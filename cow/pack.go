package cow

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The pack holds the content of small files, so that making one makes no file on the host. It is one sparse file of
// the state directory; a file's bytes are in a slot of it, as far from the slot's start as from the file's.
//
//	0        4K       8K                16K                                32K
//	├────────┼────────┼─────────────────┼──────────────────────────────────┼┄
//	│ unused │ 3000 ░ │    7 KiB      ░ │        10 KiB         ░░░░░░░░░░ │
//	└────────┴────────┴─────────────────┴──────────────────────────────────┴┄
//	a slot has 4, 8, 16, 32 or 64 KiB; ░ after the file's size there may be anything, and nobody reads it
//
// Only the node of its file says that a slot is in use: nothing on the disk says which are free. A slot lives so:
//
//	        alloc         tagSlot in the journal        the record that takes it from the file
//	free ──────────▶ ours ─────────────────────▶ used ────────────────────────────────────────▶ waiting ──┐
//	 ▲                 └── the operation failed: free                                                      │
//	 └───────────────── that record is on stable storage, and nobody reads the slot any more ──────────────┘
//
// So after a power loss that takes the record away again the file has its bytes. A file moves to another slot when it
// outgrows its own, and to a data object when it outgrows them all, gets a hole, or is opened by the kernel: first the
// bytes are copied, then comes the record, then the old slot waits.
//
//	crash:  before the record the file is where it was, and the new slot is free.
type pack struct {
	disk *disk
	// gate is held for reading by readers, from finding the slot to having read it: who had it for writing knows that
	// nobody reads a slot that was waiting then.
	gate sync.RWMutex

	syncMu sync.Mutex // held over fdatasync
	named  bool       // the file's name is on stable storage; guarded by syncMu
	synced uint64     // what written was before the last fdatasync; guarded by syncMu

	written atomic.Uint64 // writes begun

	mu      sync.Mutex // guards what follows
	file    *file      // nil until the first slot is needed
	end     uint32     // units from here on belong to no slot
	free    [packClasses][]slot
	bare    [packClasses][]slot // free ones without blocks
	waiting []waitingUnits      // in the order of seq
	waits   int64               // bytes of waiting
	kept    int64               // bytes of free
}

const (
	packName    = "pack"
	packUnit    = 4096
	packClasses = 5
	packMax     = packUnit << (packClasses - 1) // the largest file of a pack
	packUnits   = 1 << 29                       // what a slot can name: 2 TiB
	packKeep    = 8 << 20                       // bytes of blocks that are kept for the next slots
)

// errPackFull: slots have no names left.
var errPackFull = errors.New("the pack is full")

// slot names a piece of the pack: its first unit and its class. 0 is none.
type slot uint32

func makeSlot(unit uint32, class int) slot { return slot(unit<<3 | uint32(class)) }
func (s slot) unit() uint32                { return uint32(s >> 3) }
func (s slot) class() int                  { return int(s & 7) }
func (s slot) units() uint32               { return 1 << s.class() }
func (s slot) off() int64                  { return int64(s.unit()) * packUnit }
func (s slot) size() int64                 { return packUnit << s.class() }

// slotFor has the class that a file of size bytes needs, and no place.
func slotFor(size int64) slot {
	class := 0
	for packUnit<<class < size {
		class++
	}
	return makeSlot(0, class)
}

// waitingUnits are units that were given back by the record seq.
type waitingUnits struct {
	seq      uint64
	first, n uint32
}

// openPack opens the pack, if there is one. recover tells it which of its slots are used.
func openPack(d *disk) (*pack, error) {
	p := &pack{disk: d, end: 1}
	file, err := d.open(packName)
	if err == unix.ENOENT {
		return p, nil
	}
	p.file = file
	return p, err
}

// unitSet is the units that slots take.
type unitSet []uint64

// take adds a slot; false if part of it was there.
func (u *unitSet) take(s slot) bool {
	free := true
	for i := s.unit(); i < s.unit()+s.units(); i++ {
		free = free && !bitmap(*u).has(uint64(i))
		for uint32(len(*u)) <= i/64 {
			*u = append(*u, 0)
		}
		(*u)[i/64] |= 1 << (i % 64)
	}
	return free
}

// recover frees what is not used. What was freed between the records committed and seq is not known, so if they
// differ all of it waits for the next commit.
func (p *pack) recover(used unitSet, seq, committed uint64) error {
	if p.file == nil {
		return nil
	}
	for i := uint32(1); i < uint32(len(used)*64); i++ {
		if bitmap(used).has(uint64(i)) {
			p.end = i + 1
		}
	}
	for i, start := uint32(1), uint32(0); i <= p.end; i++ {
		switch free := i < p.end && !bitmap(used).has(uint64(i)); {
		case free && start == 0:
			start = i
		case !free && start != 0:
			p.wait(start, i-start, seq)
			start = 0
		}
	}
	st, err := p.file.stat()
	if err != nil {
		return fmt.Errorf("open pack: %w", err)
	}
	top := uint32(min((st.Size+packUnit-1)/packUnit, packUnits))
	switch {
	case top <= p.end:
	case committed < seq:
		p.wait(p.end, top-p.end, seq)
		p.end = top
	default:
		if err := p.file.truncate("cut pack", int64(p.end)*packUnit); err != nil {
			return fmt.Errorf("cut pack: %w", err)
		}
	}
	p.reap(committed)
	return nil
}

// suspect says that nobody knows whether the pack is on stable storage.
func (p *pack) suspect() {
	if p.file != nil {
		p.written.Add(1)
	}
}

func (p *pack) close() {
	if p != nil && p.file != nil {
		p.file.close()
	}
}

// alloc takes a slot for a file of size bytes, which are at most packMax. Its content is not defined.
func (p *pack) alloc(size int64) (slot, error) {
	class := slotFor(size).class()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		file, err := p.disk.create("create pack", packName, unix.O_TRUNC)
		if err != nil {
			return 0, fmt.Errorf("create pack: %w", err)
		}
		p.file = file
	}
	if s := p.reuse(class); s != 0 {
		return s, nil
	}
	units := uint32(1) << class
	if p.end+units > packUnits {
		return 0, errPackFull
	}
	p.end += units
	return makeSlot(p.end-units, class), nil
}

// reuse finds a free slot, or splits a larger one. It needs mu.
func (p *pack) reuse(class int) slot {
	for k := class; k < packClasses; k++ {
		if s := pop(&p.free[k]); s != 0 {
			p.kept -= s.size()
			return p.split(s, class, true)
		}
	}
	for k := class; k < packClasses; k++ {
		if s := pop(&p.bare[k]); s != 0 {
			return p.split(s, class, false)
		}
	}
	return 0
}

func pop(list *[]slot) slot {
	n := len(*list)
	if n == 0 {
		return 0
	}
	s := (*list)[n-1]
	*list = (*list)[:n-1]
	return s
}

// split cuts a slot of class off s and puts the rest back. It needs mu.
func (p *pack) split(s slot, class int, blocks bool) slot {
	p.put(s.unit()+1<<class, s.units()-1<<class, blocks)
	return makeSlot(s.unit(), class)
}

// put makes free slots of units. It needs mu.
func (p *pack) put(first, n uint32, blocks bool) {
	for n > 0 {
		class := packClasses - 1
		for 1<<class > n {
			class--
		}
		s := makeSlot(first, class)
		if blocks {
			p.free[class] = append(p.free[class], s)
			p.kept += s.size()
		} else {
			p.bare[class] = append(p.bare[class], s)
		}
		first, n = first+s.units(), n-s.units()
	}
}

// unalloc takes back a slot that alloc gave and no record names.
func (p *pack) unalloc(s slot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.put(s.unit(), s.units(), true)
}

// give takes a slot back that the record seq took from its file.
func (p *pack) give(s slot, seq uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wait(s.unit(), s.units(), seq)
}

// wait needs mu.
func (p *pack) wait(first, n uint32, seq uint64) {
	p.waits += int64(n) * packUnit
	if last := len(p.waiting) - 1; last >= 0 && p.waiting[last].seq == seq && p.waiting[last].first+p.waiting[last].n == first {
		p.waiting[last].n += n
		return
	}
	p.waiting = append(p.waiting, waitingUnits{seq, first, n})
}

// waitingBytes says how much more is free after the next commit.
func (p *pack) waitingBytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waits
}

// reap makes free what was given back up to the record seq, which is on stable storage.
func (p *pack) reap(seq uint64) {
	p.mu.Lock()
	n := 0
	for n < len(p.waiting) && p.waiting[n].seq <= seq {
		n++
	}
	ready := slices.Clone(p.waiting[:n])
	p.waiting = slices.Delete(p.waiting, 0, n)
	p.mu.Unlock()
	if n == 0 {
		return
	}
	p.gate.Lock() // waits for those who read there
	p.mu.Lock()
	for _, w := range ready {
		p.waits -= int64(w.n) * packUnit
		p.put(w.first, w.n, true)
	}
	surplus := p.surplus()
	p.mu.Unlock()
	p.gate.Unlock()
	p.punch(surplus)
}

// surplus takes the free slots whose blocks are not worth keeping. It needs mu.
func (p *pack) surplus() []slot {
	var all []slot
	for class := packClasses - 1; class >= 0 && p.kept > packKeep; class-- {
		list := &p.free[class]
		for p.kept > packKeep && len(*list) > 0 {
			s := pop(list)
			p.kept -= s.size()
			all = append(all, s)
		}
	}
	slices.Sort(all)
	return all
}

// punch gives the blocks of sorted slots, which nobody has, back to the host.
func (p *pack) punch(all []slot) {
	for len(all) > 0 {
		first, end := all[0].unit(), all[0].unit()+all[0].units()
		n := 1
		for ; n < len(all) && all[n].unit() == end; n++ {
			end += all[n].units()
		}
		// A file system that cannot do it keeps the blocks for later slots.
		_ = p.file.allocate("punch pack", unix.FALLOC_FL_PUNCH_HOLE, int64(first)*packUnit, int64(end-first)*packUnit)
		p.mu.Lock()
		p.put(first, end-first, false)
		p.mu.Unlock()
		all = all[n:]
	}
}

// write writes b at off of a slot.
func (p *pack) write(s slot, b []byte, off int64) (int, error) {
	p.written.Add(1)
	return p.file.write("write pack", b, s.off()+off)
}

// read fills b from off of a slot. A reader without the data lock of the slot's file needs gate.
func (p *pack) read(s slot, b []byte, off int64) error {
	if off+int64(len(b)) > s.size() {
		return fmt.Errorf("read slot at %d: it ends at %d: %w", off+int64(len(b)), s.size(), unix.EIO)
	}
	if p.file == nil { // of a snapshot; else recovery sees it
		return fmt.Errorf("read slot: the pack is missing: %w", unix.EIO)
	}
	return p.file.read(b, s.off()+off)
}

// sync puts everything that was written on stable storage.
func (p *pack) sync() error {
	p.syncMu.Lock()
	defer p.syncMu.Unlock()
	written := p.written.Load()
	if written == p.synced {
		return nil
	}
	if err := p.file.sync("sync pack"); err != nil {
		return fmt.Errorf("sync pack: %w", err)
	}
	if !p.named {
		if err := p.disk.syncDir("."); err != nil {
			return err
		}
	}
	p.synced, p.named = written, true
	return nil
}
