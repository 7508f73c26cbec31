package cow

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// simDisk remembers every call that changed a state directory, so that the states can be made which a power loss leaves
// after any of them: what was not synced is there, or is not, or is there in part.
type simDisk struct {
	calls []diskCall
}

func (d *simDisk) trace(c diskCall) {
	c.data = slices.Clone(c.data)
	d.calls = append(d.calls, c)
}

// simFile is a file of a disk that has no power: what is certain, and what may be there too.
type simFile struct {
	data    []byte
	pending []diskCall
}

// simName is a change of a name; it is certain when the directory was synced after it.
type simName struct {
	diskCall
	file    *simFile // of opCreate
	certain bool
}

// state makes in dir what the first n calls may have left. r decides about all that is not certain: how much of it
// there is differs from call to call.
func (d *simDisk) state(dir string, n int, r *rand.Rand) error {
	live := make(map[string]*simFile) // what each name was when it was used
	var names []simName
	for _, c := range d.calls[:n] {
		switch c.op {
		case opCreate, opMkdir:
			s := simName{diskCall: c}
			if c.op == opCreate {
				if f := live[c.name]; f != nil { // it was emptied
					f.pending = append(f.pending, diskCall{op: opTruncate})
					continue
				}
				s.file = new(simFile)
				live[c.name] = s.file
			}
			names = append(names, s)
		case opRename:
			names = append(names, simName{diskCall: c})
			live[c.to] = live[c.name]
			delete(live, c.name)
		case opRemove:
			names = append(names, simName{diskCall: c})
			delete(live, c.name)
		case opSync:
			live[c.name].settle()
		case opSyncDir:
			for i := range names {
				names[i].certain = names[i].certain || path.Dir(names[i].name) == path.Clean(c.name)
			}
		case opSyncFS:
			for _, f := range live {
				f.settle()
			}
			for i := range names {
				names[i].certain = true
			}
		default:
			live[c.name].pending = append(live[c.name].pending, c)
		}
	}
	return writeState(dir, lastingNames(names, r), r)
}

// settle makes all that was done certain.
func (f *simFile) settle() {
	for _, c := range f.pending {
		f.apply(c)
	}
	f.pending = nil
}

func (f *simFile) apply(c diskCall) {
	switch c.op {
	case opTruncate:
		f.resize(c.n)
	case opAllocate:
		if c.mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 && c.off < int64(len(f.data)) {
			clear(f.data[c.off:min(c.off+c.n, int64(len(f.data)))])
		}
	case opWrite:
		f.resize(max(int64(len(f.data)), c.off+int64(len(c.data))))
		copy(f.data[c.off:], c.data)
	}
}

func (f *simFile) resize(n int64) {
	f.data = append(f.data[:min(n, int64(len(f.data)))], make([]byte, max(0, n-int64(len(f.data))))...)
}

// lastingNames applies what is certain, and of the rest the changes before one that r chooses.
func lastingNames(names []simName, r *rand.Rand) map[string]*simFile {
	dirs := map[string]bool{".": true, "data": true}
	files := make(map[string]*simFile)
	until := r.IntN(len(names) + 1)
	if r.IntN(2) == 0 {
		until = len(names)
	}
	for i, s := range names {
		if !s.certain && i >= until {
			continue
		}
		switch s.op {
		case opMkdir:
			dirs[s.name] = true
		case opCreate:
			if dirs[path.Dir(s.name)] {
				files[s.name] = s.file
			}
		case opRename:
			if f := files[s.name]; f != nil {
				files[s.to] = f
				delete(files, s.name)
			}
		case opRemove:
			delete(files, s.name)
		}
	}
	return files
}

// writeState writes the files with some of what is pending: nothing, all, or of every sector what r says.
func writeState(dir string, files map[string]*simFile, r *rand.Rand) error {
	how := r.IntN(4)
	for name, f := range files {
		was := simFile{data: slices.Clone(f.data)}
		for _, c := range f.pending {
			switch {
			case how == 0:
			case how == 1 || c.op != opWrite && r.IntN(2) == 0:
				was.apply(c)
			case c.op == opWrite:
				was.applySectors(c, r, how == 2)
			}
		}
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(file, was.data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// applySectors writes some of a write's sectors, or none of them in one call of two.
func (f *simFile) applySectors(c diskCall, r *rand.Rand, calls bool) {
	if calls && r.IntN(2) == 0 {
		return
	}
	const sector = 512
	for i := int64(0); i < int64(len(c.data)); {
		n := min(int64(len(c.data))-i, sector-(c.off+i)%sector)
		if calls || r.IntN(2) == 0 {
			f.apply(diskCall{op: opWrite, off: c.off + i, data: c.data[i : i+n]})
		}
		i += n
	}
}

// history is what a walker did: the model after every operation, and how many calls the disk had then.
type history struct {
	models []*model
	calls  []int
	synced []int         // by operation: up to which all was on stable storage after it
	files  []map[Ino]int // by operation: the last one before which the file's own bytes were synced
}

func (h *history) add(m *model, calls int, all bool, file Ino) {
	n := len(h.models)
	h.models, h.calls = append(h.models, m.clone()), append(h.calls, calls)
	synced, files := 0, make(map[Ino]int)
	if n > 0 {
		synced = h.synced[n-1]
		for ino, at := range h.files[n-1] {
			files[ino] = at
		}
	}
	if all || file != 0 {
		synced = n
	}
	for ino := range m.inodes {
		if all || ino == file {
			files[ino] = n
		}
	}
	h.synced, h.files = append(h.synced, synced), append(h.files, files)
}

// churn makes one operation on one of few files: they are made, grow, are cut, go, and others take their place.
func (w *walker) churn() {
	w.n++
	name := string(rune('p' + w.r.IntN(3)))
	root := w.m.inodes[unionfs.Root]
	n := root.ents[name]
	if n == nil || n.typ() != unix.S_IFREG {
		if n == nil {
			n = &mInode{mode: unix.S_IFREG | 0o600, uid: 10, gid: 20}
			a, err := w.Mknod(root.ino, name, n.mode, 0, owner)
			w.born(n, a, err)
			must(w.t, w.m.make(root, name, n, w.now()))
		}
		return
	}
	size := int64(len(n.data))
	switch w.r.IntN(5) {
	case 0:
		must(w.t, w.Unlink(root.ino, name))
		must(w.t, w.m.remove(root, name, false, w.now()))
		w.forget()
	case 1:
		s := unionfs.SetAttr{Valid: unionfs.SetSize, Size: w.r.Int64N(size + 1)}
		_, err := w.SetAttr(n.ino, s)
		must(w.t, err)
		must(w.t, w.m.setAttr(n, s, w.now()))
	default:
		p, off := w.bytes(), size+w.r.Int64N(3)*100
		if w.r.IntN(30) == 0 {
			off += packMax
		}
		_, err := w.Write(w.t.Context(), n.ino, p, off, false)
		must(w.t, err)
		must(w.t, w.m.write(n, p, off, false, w.now()))
	}
}

// wander makes random operations, syncs and checkpoints.
func (w *walker) wander(d *simDisk, steps int) *history {
	h := &history{}
	h.add(w.m, len(d.calls), true, 0)
	for range steps {
		all, file := false, Ino(0)
		switch w.r.IntN(24) {
		case 0:
			must(w.t, w.Sync())
			all = true
		case 1, 2:
			n := w.aFile()
			must(w.t, w.Fsync(n.ino, false))
			file = n.ino
			if w.nodes[file] == nil { // not ours: nothing is said about others
				file = 0
			}
		case 3:
			w.op.Lock()
			must(w.t, w.checkpoint())
			w.op.Unlock()
			w.reap()
		case 4, 5:
			w.forget()
		case 6, 7, 8, 9, 10, 11, 12, 13:
			w.churn()
		default:
			_, _ = w.step()
		}
		h.add(w.m, len(d.calls), all, file)
	}
	return h
}

// A power loss after any call of the disk: the state is that after some operation since the last that was synced, and
// what was synced is all there.
func TestPowerLossLeavesAPrefixOfTheHistory(t *testing.T) {
	seeds, states := uint64(12), 4
	if testing.Short() {
		seeds, states = 3, 1
	}
	if os.Getenv("COW_TEST_POWER") != "" {
		seeds, states = 200, 20
	}
	img := newImage(t, smallImage())
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWalkerOn(t, img, 500+seed)
			must(t, w.Close())
			d := &simDisk{}
			w.dir, w.opts.trace, w.opts.boot = t.TempDir(), d.trace, 1
			w.open()
			h := w.wander(d, 90)
			w.crash()
			r, dir := rand.New(rand.NewPCG(seed, 3)), fastDir(t)
			for n := h.calls[0]; n <= len(d.calls); n++ {
				for range states {
					w.losePower(d, h, n, r, dir)
				}
			}
		})
	}
}

func (w *walker) losePower(d *simDisk, h *history, n int, r *rand.Rand, states string) {
	w.t.Helper()
	dir, err := os.MkdirTemp(states, "state")
	must(w.t, err)
	defer os.RemoveAll(dir)
	must(w.t, d.state(dir, n, r))
	o := w.opts
	o.trace, o.boot = nil, 2
	f, err := Open(dir, w.img.tree, w.img, o)
	if err != nil {
		w.t.Fatalf("power loss after call %d (%+v): %v", n, d.calls[n-1].name, err)
	}
	defer abandon(f)
	// The operation during which it happened.
	now := 0
	for now < len(h.calls)-1 && h.calls[now] < n {
		now++
	}
	done := now // the last one that was answered
	if h.calls[now] > n {
		done--
	}
	var why error
	for i := now; i >= h.synced[done]; i-- {
		m := h.models[i].clone()
		m.forget()
		if err := m.compareMeta(f); err != nil {
			why = err
			continue
		}
		if err := h.compareData(f, m, i, now, done); err != nil {
			w.t.Fatalf("power loss after call %d, state of operation %d: %v", n, i, err)
		}
		return
	}
	w.t.Fatalf("power loss after call %d of operation %d: it is no state since operation %d: %v", n, now, h.synced[done], why)
}

// compareMeta is compare without the content of files.
func (m *model) compareMeta(f *FS) error {
	for ino, n := range m.inodes {
		if err := n.compare(f); err != nil {
			return fmt.Errorf("inode %d: %w", ino, err)
		}
	}
	for ino := range f.nodes {
		if m.inodes[ino] == nil {
			return fmt.Errorf("inode %d should not be there", ino)
		}
	}
	return nil
}

// compareData wants of every file the bytes that it had after operation i. A byte that was overwritten in place may be
// as it was at any time since the file was synced.
func (h *history) compareData(f *FS, m *model, i, now, done int) error {
	for ino, n := range m.inodes {
		if n.typ() != unix.S_IFREG {
			continue
		}
		got := make([]byte, len(n.data))
		if k, err := f.Read(context.Background(), ino, got, 0); err != nil || k != len(got) {
			return fmt.Errorf("inode %d: read %d: %v", ino, k, err)
		}
		if bytes.Equal(got, n.data) {
			continue
		}
		for at := range got {
			if got[at] != n.data[at] && !h.was(ino, at, got[at], i, h.files[done][ino], now) {
				return fmt.Errorf("inode %d: byte %d of %d is %#x, not %#x", ino, at, len(got), got[at], n.data[at])
			}
		}
	}
	return nil
}

// was reports whether a byte was b in an operation around i, as far as the file had the byte all the time between.
func (h *history) was(ino Ino, at int, b byte, i, from, to int) bool {
	for _, step := range [...]int{-1, 1} {
		for j := i; j >= from && j <= to; j += step {
			n := h.models[j].inodes[ino]
			if n == nil || at >= len(n.data) {
				break
			}
			if n.data[at] == b {
				return true
			}
		}
	}
	return false
}

// A file that was synced, and then lost or got bytes without a sync, has after a power loss one of its contents whole.
func TestPowerLossLeavesOneOfTheContents(t *testing.T) {
	small, large := string(bytes.Repeat([]byte("small"), 600)), string(bytes.Repeat([]byte("large"), 20_000))
	more := string(bytes.Repeat([]byte("MORE!"), 400))
	cut := func(x *fixture, ino Ino, size int64) {
		_, err := x.SetAttr(ino, unionfs.SetAttr{Valid: unionfs.SetSize, Size: size})
		must(x.t, err)
	}
	remove := func(x *fixture, name string) {
		ino := x.ino(name)
		must(x.t, x.Unlink(unionfs.Root, name))
		x.Forget(ino)
	}
	for name, c := range map[string]struct {
		was, is string // is "-": the file may be gone
		do      func(x *fixture, ino Ino)
	}{
		"cut and grown, small":       {small, small[:1000] + more[:500], func(x *fixture, ino Ino) { cut(x, ino, 1000); x.write(ino, more[:500], 1000) }},
		"cut and grown, large":       {large, large[:1000] + more, func(x *fixture, ino Ino) { cut(x, ino, 1000); x.write(ino, more, 1000) }},
		"emptied and written, small": {small, more, func(x *fixture, ino Ino) { cut(x, ino, 0); x.write(ino, more, 0) }},
		"emptied and written, large": {large, large + more, func(x *fixture, ino Ino) { cut(x, ino, 0); x.write(ino, large+more, 0) }},
		"outgrows the pack":          {small, small + large, func(x *fixture, ino Ino) { x.write(ino, large, int64(len(small))) }},
		"appended, small":            {small, small + more, func(x *fixture, ino Ino) { x.write(ino, more, int64(len(small))) }},
		"removed, small, and others made": {small, "-", func(x *fixture, _ Ino) {
			remove(x, "f")
			for i := range 3 {
				x.create(unionfs.Root, fmt.Sprint(i), more)
			}
		}},
		"removed, large": {large, "-", func(x *fixture, _ Ino) { remove(x, "f") }},
		"replaced by a synced one": {small, more + more, func(x *fixture, ino Ino) {
			tmp := x.create(unionfs.Root, "new", more+more)
			must(x.t, x.Fsync(tmp, false))
			must(x.t, x.Rename(unionfs.Root, "new", unionfs.Root, "f", 0))
			x.Forget(ino)
			x.create(unionfs.Root, "other", more)
		}},
		"replaced by one that was not synced": {large, more, func(x *fixture, ino Ino) {
			x.create(unionfs.Root, "new", more)
			must(x.t, x.Rename(unionfs.Root, "new", unionfs.Root, "f", 0))
			x.Forget(ino)
			must(x.t, x.Sync())
		}},
	} {
		t.Run(name, func(t *testing.T) {
			x := newFixture(t, smallImage())
			must(t, x.Close())
			d := &simDisk{}
			x.dir, x.opts.trace, x.opts.boot = t.TempDir(), d.trace, 1
			x.open()
			ino := x.create(unionfs.Root, "f", c.was)
			must(t, x.Sync())
			from := len(d.calls)
			c.do(x, ino)
			// And what the disk may do with it before the next commit.
			x.create(unionfs.Root, "last", more)
			x.crash()
			versions := []string{c.was, c.is, c.was[:min(1000, len(c.was))], ""} // and what it was when it was cut
			r, dir := rand.New(rand.NewPCG(1, 4)), fastDir(t)
			for n := from; n <= len(d.calls); n++ {
				for range 16 {
					x.wantOneOf(d, n, r, dir, versions)
				}
			}
		})
	}
}

func (x *fixture) wantOneOf(d *simDisk, n int, r *rand.Rand, states string, versions []string) {
	x.t.Helper()
	dir, err := os.MkdirTemp(states, "state")
	must(x.t, err)
	defer os.RemoveAll(dir)
	must(x.t, d.state(dir, n, r))
	o := x.opts
	o.trace, o.boot = nil, 2
	f, err := Open(dir, x.img.tree, x.img, o)
	must(x.t, err)
	defer abandon(f)
	a, err := f.Lookup(unionfs.Root, "f")
	if err != nil {
		if !slices.Contains(versions, "-") {
			x.t.Fatalf("power loss after call %d: %v", n, err)
		}
		return
	}
	got := make([]byte, a.Size)
	_, err = f.Read(x.t.Context(), a.Ino, got, 0)
	must(x.t, err)
	if !slices.Contains(versions, string(got)) {
		x.t.Fatalf("power loss after call %d: %d bytes that the file never had", n, len(got))
	}
}
