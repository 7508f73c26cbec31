package cow

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/veneerfs/veneer/unionfs"
)

// copyState copies a state directory as a crash would leave it.
func copyState(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	if out, err := exec.Command("cp", "-a", "--sparse=always", from+"/.", to).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v: %s", err, out)
	}
	return to
}

func (w *walker) journalFile() string { return filepath.Join(w.dir, journalName(w.journal.gen)) }

// openState opens what a crash left, without changing it for others.
func (w *walker) openState(dir string) (*FS, error) {
	o := w.opts
	o.fault = nil
	return Open(dir, w.img.tree, w.img, o)
}

// An append that is cut short at any byte is an operation that was not made.
func TestTornAppendIsNoOperation(t *testing.T) {
	for seed := range uint64(3) {
		w := newWalker(t, 100+seed)
		for range 60 {
			before, size, gen := w.m.clone(), w.JournalSize(), w.journal.gen
			w.step()
			if w.journal.gen != gen {
				t.Fatal("a checkpoint came between")
			}
			dir := copyState(t, w.dir)
			after := w.m.clone()
			after.forget()
			before.forget()
			for cut := w.JournalSize() - 1; cut > size; cut -= 1 + (w.JournalSize()-size)/16 {
				must(t, os.Truncate(filepath.Join(dir, journalName(gen)), cut))
				w.compareState(dir, before, after, fmt.Sprintf("cut at %d of %d", cut-size, w.JournalSize()-size))
			}
			w.compareState(copyState(t, w.dir), after, nil, "whole")
		}
	}
}

// compareState opens a crashed state, compares it, and sees that it can be changed and opened again.
func (w *walker) compareState(dir string, m, loose *model, when string) {
	w.t.Helper()
	f, err := w.openState(dir)
	if err != nil {
		w.t.Fatalf("%s, %s: %v", w.last, when, err)
	}
	defer abandon(f)
	if err := m.compare(f, loose); err != nil {
		w.t.Fatalf("%s, %s: %v", w.last, when, err)
	}
}

func TestRecoveredStateGoesOn(t *testing.T) {
	w := newWalker(t, 7)
	for range 100 {
		w.step()
	}
	w.m.forget()
	must(t, os.Truncate(w.journalFile(), w.JournalSize())) // no change: the file ends where the journal does
	file, err := os.OpenFile(w.journalFile(), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = file.WriteString("half a record")
	must(t, err)
	must(t, file.Close())
	w.reopen()
	w.check("with a torn tail")
	for range 100 {
		w.step()
	}
	w.m.forget()
	w.reopen()
	w.check("after more")
}

// Damage that is not a torn tail is refused, and says where it is.
func TestDamageIsRefused(t *testing.T) {
	w := newWalker(t, 8)
	for range 40 {
		w.step()
	}
	must(t, w.Close())
	w.open()
	var sizes []int64
	for range 40 {
		w.step()
		sizes = append(sizes, w.JournalSize())
	}
	w.crash()
	name := w.journalFile()
	whole, err := os.ReadFile(name)
	must(t, err)
	last := int64(0)
	for _, s := range sizes {
		if s < int64(len(whole)) {
			last = s
		}
	}
	for pos := range last {
		bad := append([]byte(nil), whole...)
		bad[pos] ^= 0x40
		must(t, os.WriteFile(name, bad, 0o600))
		f, err := w.openState(w.dir)
		if err == nil {
			f.Close()
			t.Fatalf("byte %d of the journal: no error", pos)
		}
		var damage *DamageError
		var version *VersionError
		if !errors.As(err, &damage) && !errors.As(err, &version) {
			t.Fatalf("byte %d of the journal: %v", pos, err)
		}
		if damage != nil && (damage.Offset > pos || damage.File != filepath.Base(name)) {
			t.Fatalf("byte %d of the journal: %v", pos, err)
		}
	}
	must(t, os.WriteFile(name, whole, 0o600))
	w.refuseCheckpoint()
}

func (w *walker) refuseCheckpoint() {
	name := filepath.Join(w.dir, checkpointName)
	whole, err := os.ReadFile(name)
	must(w.t, err)
	try := func(what string, b []byte) {
		must(w.t, os.WriteFile(name, b, 0o600))
		if f, err := w.openState(w.dir); err == nil {
			f.Close()
			w.t.Fatalf("checkpoint, %s: no error", what)
		}
	}
	for pos := range whole {
		bad := append([]byte(nil), whole...)
		bad[pos] ^= 1
		try(fmt.Sprintf("byte %d", pos), bad)
		try(fmt.Sprintf("cut at %d", pos), whole[:pos])
	}
	try("a byte more", append(append([]byte(nil), whole...), 0))
	must(w.t, os.WriteFile(name, whole, 0o600))
	w.open()
}

func TestNewerAndForeignStateIsRefused(t *testing.T) {
	x := newFixture(t, smallImage())
	x.create(unionfs.Root, "f", "x")
	must(t, x.Close())

	other := newImage(t, append(smallImage(), reg("one/more", 0o644, 3)))
	_, err := Open(x.dir, other.tree, other, x.opts)
	var foreign *TreeError
	if !errors.As(err, &foreign) {
		t.Errorf("another tree: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(x.dir, checkpointName))
	must(t, err)
	b[8] = formatVersion + 1
	must(t, os.WriteFile(filepath.Join(x.dir, checkpointName), b, 0o600))
	_, err = Open(x.dir, x.img.tree, x.img, x.opts)
	var version *VersionError
	if !errors.As(err, &version) || version.Version != formatVersion+1 {
		t.Errorf("newer version: %v", err)
	}
}

// faults fails a file system's disk calls.
type faults struct {
	n     int // calls so far
	at    int // the call that fails, from 1
	times int // how many fail
	err   error
	hit   string
}

func (f *faults) step(name string) error {
	f.n++
	if f.at == 0 || f.n < f.at || f.n >= f.at+f.times {
		return nil
	}
	if f.hit == "" {
		f.hit = name
	}
	return f.err
}

// script makes the same operations every time, with checkpoints, until one fails that the model says should not.
// It returns the model before that operation, or nil if all went well.
func (w *walker) script(steps int) (before *model, err error) {
	for i := range steps {
		before := w.m.clone()
		switch {
		case i%12 == 11:
			w.op.Lock()
			err := w.checkpoint()
			w.op.Unlock()
			if err != nil {
				return before, err
			}
		case i%17 == 16:
			for ino, n := range before.inodes {
				if n.nlink == 0 {
					w.Forget(ino)
					delete(w.m.inodes, ino)
				}
			}
		case i%9 == 8:
			if err := w.Fsync(w.aFile().ino, false); err != nil {
				return before, err
			}
		default:
			got, should := w.step()
			if got != nil && !errors.Is(got, errOf(should)) {
				return before, got
			}
		}
	}
	return nil, nil
}

func errOf(err error) error {
	if err == nil {
		return errors.New("nothing")
	}
	return err
}

// The server dies before any of its disk calls: the new one finds all that was answered, and perhaps the operation
// that was under way.
func TestCrashAtEveryDiskCall(t *testing.T) {
	stride := 1
	if testing.Short() {
		stride = 7
	}
	img := newImage(t, smallImage())
	for at := 1; ; at += stride {
		w := newWalkerOn(t, img, 42)
		f := &faults{at: at, times: 1 << 30, err: syscall.EIO}
		w.Close()
		w.opts.fault = f.step
		w.openFaulty(f)
		before, _ := w.script(80)
		if f.hit == "" {
			break
		}
		if before == nil {
			before = w.m
		}
		w.crash()
		w.compareEither(before, f.hit)
	}
}

// openFaulty opens with the faults not counting yet.
func (w *walker) openFaulty(f *faults) {
	at := f.at
	f.at = 0
	w.open()
	f.n, f.at = 0, at
}

// compareEither wants the state to be the model before the operation that failed, or the one after it.
func (w *walker) compareEither(before *model, step string) {
	w.t.Helper()
	f, err := w.openState(w.dir)
	if err != nil {
		w.t.Fatalf("%s, died before %q: %v", w.last, step, err)
	}
	defer abandon(f)
	if u := recount(f); u != f.Usage() {
		w.t.Fatalf("%s, died before %q: usage is %+v, not %+v", w.last, step, f.Usage(), u)
	}
	before.forget()
	after := w.m.clone()
	after.forget()
	if err := before.compare(f, after); err != nil {
		if err2 := after.compare(f, nil); err2 != nil {
			w.t.Fatalf("%s, died before %q: neither as before: %v\nnor as after: %v", w.last, step, err, err2)
		}
	}
}

// A disk call fails once: the operation says so and has not happened, and everything goes on.
func TestFailedDiskCallChangesNothing(t *testing.T) {
	stride := 1
	if testing.Short() {
		stride = 7
	}
	img := newImage(t, smallImage())
	for at := 1; ; at += stride {
		w := newWalkerOn(t, img, 43)
		f := &faults{at: at, times: 1, err: syscall.ENOSPC}
		w.Close()
		w.opts.fault = f.step
		w.openFaulty(f)
		before, err := w.script(80)
		if f.hit == "" {
			break
		}
		if before != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("%s: %q failed, and the operation said %v", w.last, f.hit, err)
			}
			after := w.m
			w.m = before
			if err := before.compare(w.FS, after); err != nil {
				t.Fatalf("%s, failed %q: %v", w.last, f.hit, err)
			}
			w.loosen(after)
		}
		for range 30 {
			got, should := w.step()
			if should == nil && got != nil {
				t.Fatalf("%s, after %q failed: %v", w.last, f.hit, got)
			}
		}
		w.m.forget()
		w.reopen()
		w.check("after a crash, failed " + f.hit)
		w.crash()
	}
}

// loosen takes the content of files as it is: an overwrite that failed may have been made in part.
func (w *walker) loosen(after *model) {
	for ino, n := range w.m.inodes {
		if a := after.inodes[ino]; a != nil && len(n.data) > 0 {
			p := make([]byte, len(n.data))
			_, err := w.Read(w.t.Context(), ino, p, 0)
			must(w.t, err)
			n.data = p
		}
	}
}
