package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// fileIO does random I/O on single files in every way there is, with every byte known at every moment; between the calls the
// server is killed or the mount ended in order.
func fileIO(r *rig) error {
	total := fsxCount{}
	for seed := r.seed; seed == r.seed || r.goOn(); seed++ {
		n, err := r.fsxRound(seed)
		total.add(n)
		if err != nil {
			return fmt.Errorf("seed %d: %w", seed, err)
		}
	}
	r.say("%d calls, %d kills, %d clean mounts", total.calls, total.kills, total.mounts)
	return nil
}

type fsxCount struct{ calls, kills, mounts int }

func (c *fsxCount) add(n fsxCount) {
	c.calls, c.kills, c.mounts = c.calls+n.calls, c.kills+n.kills, c.mounts+n.mounts
}

const (
	fsxMax   = 1 << 20 // the longest a file gets, bytes
	fsxLower = 300_000 // how long the lower file is
	fsxPhase = 150     // calls on a file between two mounts
	fsxKills = 8       // mounts of a state
)

// fsxRound works on a lower file and on a new one at once.
func (r *rig) fsxRound(seed uint64) (n fsxCount, err error) {
	lower, err := r.place("lower")
	if err != nil {
		return n, err
	}
	text := make([]byte, fsxLower)
	fill(text, int(seed))
	if err := os.WriteFile(filepath.Join(lower, "lower"), text, 0o644); err != nil {
		return n, err
	}
	state, err := r.place("state")
	if err != nil {
		return n, err
	}
	m, err := r.mount(lower, state)
	if err != nil {
		return n, err
	}
	files := []*fsx{
		{path: m.dir + "/lower", want: text, r: rand.New(rand.NewPCG(seed, 1))},
		{path: m.dir + "/new", r: rand.New(rand.NewPCG(seed, 2))},
	}
	for range fsxKills {
		var wg sync.WaitGroup
		for _, x := range files {
			wg.Go(func() { x.failed = x.phase() })
		}
		wg.Wait()
		if err := errors.Join(files[0].failed, files[1].failed); err != nil {
			return n, err
		}
		n.calls += len(files) * fsxPhase
		if files[0].r.IntN(3) > 0 {
			n.kills++
			err = errors.Join(m.kill(), m.again())
		} else {
			n.mounts++
			if err = m.unmount(); err == nil {
				r.mounts = append(r.mounts, m)
				err = m.start()
			}
		}
		if err != nil {
			return n, err
		}
	}
	return n, r.finish(m)
}

// fsx is a file with all that should be in it.
type fsx struct {
	path   string
	want   []byte
	r      *rand.Rand
	failed error

	rw, app, direct int      // descriptors
	block           []byte   // aligned memory for O_DIRECT
	did             []string // the last calls
}

// phase opens the file, makes calls, and leaves nothing in the kernel that was not answered for.
func (x *fsx) phase() (err error) {
	if err := x.open(); err != nil {
		return err
	}
	defer x.close()
	if x.block == nil {
		if x.block, err = unix.Mmap(-1, 0, 256<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
			return err
		}
	}
	if err := x.verify(); err != nil {
		return fmt.Errorf("%s, after a mount: %w\nthe last calls: %q", filepath.Base(x.path), err, x.did)
	}
	for range fsxPhase {
		if err := x.step(); err != nil {
			return fmt.Errorf("%s: %w\nthe last calls: %q", filepath.Base(x.path), err, x.did)
		}
	}
	// What was stored through a mapping is nobody's before it is synced.
	if err := unix.Fsync(x.rw); err != nil {
		return fmt.Errorf("fsync: %w", err)
	}
	return x.verify()
}

func (x *fsx) open() (err error) {
	for _, o := range []struct {
		fd    *int
		flags int
	}{{&x.rw, 0}, {&x.app, unix.O_APPEND}, {&x.direct, unix.O_DIRECT}} {
		if *o.fd, err = unix.Open(x.path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|o.flags, 0o644); err != nil {
			return fmt.Errorf("open %s: %w", x.path, err)
		}
	}
	return nil
}

func (x *fsx) close() { unix.Close(x.rw); unix.Close(x.app); unix.Close(x.direct) }

// span is a random range; up to says how far it may go.
func (x *fsx) span(upTo int) (off, end int) {
	if upTo == 0 {
		return 0, 0
	}
	off = x.r.IntN(upTo)
	if x.r.IntN(3) == 0 {
		off &^= 4095
	}
	n := 1 + x.r.IntN(pickOf(x.r, 16, 5000, 100_000))
	return off, min(off+n, upTo)
}

func (x *fsx) text(n int) []byte {
	p := make([]byte, n)
	fill(p, int(x.r.Int32()))
	return p
}

// set is what the file should be after a write.
func (x *fsx) set(p []byte, off int) {
	x.grow(off + len(p))
	copy(x.want[off:], p)
}

func (x *fsx) grow(size int) {
	if size > len(x.want) {
		x.want = append(x.want, make([]byte, size-len(x.want))...)
	}
}

func (x *fsx) note(what string, off, end int) {
	x.did = append(x.did, fmt.Sprintf("%s %d-%d of %d", what, off, end, len(x.want)))
	if len(x.did) > 12 {
		x.did = x.did[1:]
	}
}

func (x *fsx) step() error {
	kinds := []func(*fsx) error{
		(*fsx).write, (*fsx).write, (*fsx).append, (*fsx).directWrite, (*fsx).mapWrite, (*fsx).mapWrite, (*fsx).truncate, (*fsx).allocate,
		(*fsx).allocate, (*fsx).copyRange, (*fsx).read, (*fsx).read, (*fsx).directRead, (*fsx).mapRead, (*fsx).reopen, (*fsx).verify,
	}
	return kinds[x.r.IntN(len(kinds))](x)
}

func (x *fsx) write() error {
	off, end := x.span(fsxMax)
	x.note("write", off, end)
	p := x.text(end - off)
	if n, err := unix.Pwrite(x.rw, p, int64(off)); err != nil || n != len(p) {
		return fmt.Errorf("write of %d at %d: %d, %w", len(p), off, n, err)
	}
	x.set(p, off)
	return nil
}

func (x *fsx) append() error {
	p := x.text(1 + x.r.IntN(9000))
	if len(x.want)+len(p) > fsxMax {
		return nil
	}
	x.note("append", len(x.want), len(x.want)+len(p))
	if n, err := unix.Write(x.app, p); err != nil || n != len(p) {
		return fmt.Errorf("append of %d: %d, %w", len(p), n, err)
	}
	x.set(p, len(x.want))
	return nil
}

func (x *fsx) directWrite() error {
	off, n := x.r.IntN(fsxMax/4096-64)*4096, (1+x.r.IntN(16))*4096
	x.note("direct write", off, off+n)
	p := x.block[:n]
	fill(p, int(x.r.Int32()))
	if k, err := unix.Pwrite(x.direct, p, int64(off)); err != nil || k != n {
		return fmt.Errorf("direct write of %d at %d: %d, %w", n, off, k, err)
	}
	x.set(p, off)
	return nil
}

// mapping maps the pages of a range of the file; part is the range in it.
func (x *fsx) mapping(off, end, prot int, use func(pages, part []byte) error) error {
	page := off &^ 4095
	p, err := unix.Mmap(x.rw, int64(page), end-page, prot, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap %d to %d: %w", off, end, err)
	}
	defer unix.Munmap(p)
	return use(p, p[off-page:])
}

func (x *fsx) mapWrite() error {
	off, end := x.span(len(x.want))
	if off == end {
		return nil
	}
	x.note("mapped write", off, end)
	text := x.text(end - off)
	x.set(text, off)
	return x.mapping(off, end, unix.PROT_READ|unix.PROT_WRITE, func(pages, part []byte) error {
		copy(part, text)
		if x.r.IntN(2) == 0 {
			return nil
		}
		return unix.Msync(pages, unix.MS_SYNC)
	})
}

func (x *fsx) mapRead() error {
	off, end := x.span(len(x.want))
	if off == end {
		return nil
	}
	x.note("mapped read", off, end)
	return x.mapping(off, end, unix.PROT_READ, func(_, part []byte) error { return x.compare(part, off) })
}

func (x *fsx) truncate() error {
	size := pickOf(x.r, 0, x.r.IntN(fsxMax), x.r.IntN(fsxMax), x.r.IntN(len(x.want)+1))
	x.note("truncate", len(x.want), size)
	if err := unix.Ftruncate(x.rw, int64(size)); err != nil {
		return fmt.Errorf("truncate to %d: %w", size, err)
	}
	if size < len(x.want) {
		x.want = x.want[:size:size]
	}
	x.grow(size)
	return nil
}

func (x *fsx) allocate() error {
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	mode := pickOf(x.r, 0, keep, punch|keep, punch|keep, zero, zero|keep)
	off, end := x.span(fsxMax)
	x.note(fmt.Sprintf("fallocate %#x", mode), off, end)
	if err := unix.Fallocate(x.rw, uint32(mode), int64(off), int64(end-off)); err != nil {
		return fmt.Errorf("fallocate %#x of %d at %d: %w", mode, end-off, off, err)
	}
	if mode&keep == 0 {
		x.grow(end)
	}
	if mode&(punch|zero) != 0 && off < len(x.want) {
		clear(x.want[off:min(end, len(x.want))])
	}
	return nil
}

// copyRange copies within the file.
func (x *fsx) copyRange() error {
	off, end := x.span(len(x.want))
	to := x.r.IntN(fsxMax - (end - off))
	if to < end && off < to+end-off || off == end {
		return nil // they overlap: not allowed
	}
	x.note(fmt.Sprintf("copy to %d of", to), off, end)
	p := bytes.Clone(x.want[off:end])
	for from, into := int64(off), int64(to); from < int64(end); {
		n, err := unix.CopyFileRange(x.rw, &from, x.rw, &into, end-int(from), 0)
		if err != nil || n == 0 {
			return fmt.Errorf("copy of %d from %d to %d: %d, %w", end-off, off, to, n, err)
		}
	}
	x.set(p, to)
	return nil
}

func (x *fsx) read() error {
	off, end := x.span(fsxMax)
	x.note("read", off, end)
	p := make([]byte, end-off)
	n, err := unix.Pread(x.rw, p, int64(off))
	if err != nil {
		return fmt.Errorf("read at %d: %w", off, err)
	}
	if n != max(0, min(end, len(x.want))-off) {
		return fmt.Errorf("read of %d at %d: %d bytes, the file has %d", end-off, off, n, len(x.want))
	}
	return x.compare(p[:n], off)
}

func (x *fsx) directRead() error {
	off := x.r.IntN(fsxMax/4096-64) * 4096
	n := (1 + x.r.IntN(16)) * 4096
	x.note("direct read", off, off+n)
	k, err := unix.Pread(x.direct, x.block[:n], int64(off))
	if err != nil {
		return fmt.Errorf("direct read at %d: %w", off, err)
	}
	if k != max(0, min(off+n, len(x.want))-off) {
		return fmt.Errorf("direct read of %d at %d: %d bytes, the file has %d", n, off, k, len(x.want))
	}
	return x.compare(x.block[:k], off)
}

func (x *fsx) reopen() error {
	x.note("reopen", 0, 0)
	if x.r.IntN(3) == 0 {
		if err := unix.Fdatasync(x.rw); err != nil {
			return fmt.Errorf("fdatasync: %w", err)
		}
	}
	x.close()
	return x.open()
}

// compare holds what was read at off against what should be there.
func (x *fsx) compare(got []byte, off int) error {
	for i, b := range got {
		if b != x.want[off+i] {
			return fmt.Errorf("byte %d is %#x, not %#x", off+i, b, x.want[off+i])
		}
	}
	return nil
}

// verify reads all of the file, and walks over its holes.
func (x *fsx) verify() error {
	x.note("verify", 0, len(x.want))
	got, err := os.ReadFile(x.path)
	if err != nil {
		return err
	}
	if len(got) != len(x.want) {
		return fmt.Errorf("%d bytes, not %d", len(got), len(x.want))
	}
	if err := x.compare(got, 0); err != nil {
		return err
	}
	return checkHoles(x.path, x.want)
}
