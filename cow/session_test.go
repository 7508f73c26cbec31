package cow

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

func newSession(t testing.TB, id uint64) *fixture {
	t.Helper()
	x := newFixture(t, smallImage())
	must(t, x.Close())
	x.opts.Session = id
	x.open()
	return x
}

// askAll makes every operation that cannot be done twice, as requests 2, 4, 6 and so on, and returns the last.
func (x *fixture) askAll() (last uint64) {
	x.t.Helper()
	do := func(op func(r Request) error) {
		x.t.Helper()
		last += 2
		must(x.t, op(x.Request(last)))
	}
	root := Ino(unionfs.Root)
	do(func(r Request) error { _, err := r.Mknod(root, "file", unix.S_IFREG|0o644, 0, owner); return err })
	do(func(r Request) error { _, err := r.Mkdir(root, "dir", 0o755, owner); return err })
	do(func(r Request) error { _, err := r.Symlink(root, "symlink", "file", owner); return err })
	do(func(r Request) error { _, err := r.Link(x.ino("file"), root, "link"); return err })
	do(func(r Request) error { return r.Unlink(root, "file") })
	do(func(r Request) error { return r.Rmdir(root, "dir") })
	do(func(r Request) error { return r.Rename(root, "link", root, "symlink", 0) })
	do(func(r Request) error { return r.SetXattr(x.ino("etc"), "user.a", []byte("b"), unix.XATTR_CREATE) })
	do(func(r Request) error { return r.RemoveXattr(x.ino("etc"), "user.a") })
	return last
}

func (x *fixture) checkExecuted(when string, last uint64, want bool) {
	x.t.Helper()
	for u := uint64(2); u <= last; u += 2 {
		if x.Executed(u) != want {
			x.t.Errorf("%s: request %d executed: %v", when, u, !want)
		}
	}
}

func TestExecutedRequestsOutliveTheServer(t *testing.T) {
	x := newSession(t, 7)
	last := x.askAll()
	want(t, "a request that fails", x.Request(last+2).Unlink(unionfs.Root, "file"), syscall.ENOENT)
	for _, when := range []string{"after a kill", "after two"} {
		x.reopen()
		x.checkExecuted(when, last, true)
		if x.Executed(last + 2) {
			t.Errorf("%s: a request that failed counts as executed", when)
		}
	}
	x.op.Lock()
	err := x.checkpoint()
	x.op.Unlock()
	must(t, err)
	must(t, x.Request(last+4).Unlink(unionfs.Root, "symlink"))
	x.reopen()
	x.checkExecuted("after a checkpoint and a kill", last, true)
	if !x.Executed(last + 4) {
		t.Error("the request after the checkpoint is not known")
	}
}

// Requests of another mount have the same numbers.
func TestRequestsOfAnotherSessionDoNotCount(t *testing.T) {
	x := newSession(t, 7)
	last := x.askAll()
	x.opts.Session = 8
	x.reopen()
	x.checkExecuted("in a new session without a record", last, false)
	x.reopen()
	x.checkExecuted("in the same, after a kill", last, false)
	must(t, x.Request(last).Unlink(unionfs.Root, "symlink"))
	x.reopen()
	x.checkExecuted("after the first record", last-2, false)
	if !x.Executed(last) {
		t.Error("a request of the new session is not known")
	}
	x.opts.Session = 0
	x.reopen()
	x.checkExecuted("without a session", last, false)
}

func TestOnlyTheLastRequestsAreKept(t *testing.T) {
	var e executed
	for u := range uint64(rememberedRequests + 10) {
		e.add(u)
	}
	all := e.all()
	if len(all) != rememberedRequests || all[0] != 10 || all[len(all)-1] != rememberedRequests+9 {
		t.Errorf("%d, from %d to %d", len(all), all[0], all[len(all)-1])
	}
}

// openOrphans makes a file in the pack, one with a data object, one of the image, and an O_TMPFILE, all without a name.
func (x *fixture) openOrphans() map[Ino]string {
	x.t.Helper()
	orphans := map[Ino]string{}
	for name, content := range map[string]string{"small": "in the pack", "large": strings.Repeat("in an object ", 20_000)} {
		orphans[x.create(unionfs.Root, name, content)] = content
		must(x.t, x.Unlink(unionfs.Root, name))
	}
	passwd := x.ino("etc/passwd")
	orphans[passwd] = imageText(passwd, 1234)
	must(x.t, x.Unlink(x.ino("etc"), "passwd"))
	tmp, err := x.Tmpfile(unionfs.Root, 0o600, owner)
	must(x.t, err)
	x.write(tmp.Ino, "no name yet", 0)
	orphans[tmp.Ino] = "no name yet"
	return orphans
}

func TestOrphansLiveOnInTheirSession(t *testing.T) {
	x := newSession(t, 7)
	orphans := x.openOrphans()
	var tmp Ino
	for _, checkpoint := range []bool{false, true} {
		if checkpoint {
			x.op.Lock()
			err := x.checkpoint()
			x.op.Unlock()
			must(t, err)
		}
		x.reopen()
		for ino, content := range orphans {
			if got := x.read(ino); got != content {
				t.Errorf("inode %d has %d bytes, and should have %d", ino, len(got), len(content))
			}
			tmp = max(tmp, ino)
		}
		if u := recount(x.FS); u != x.Usage() {
			t.Errorf("usage is %+v, not %+v", x.Usage(), u)
		}
	}
	if _, err := x.Link(tmp, unionfs.Root, "named"); err != nil {
		t.Errorf("an O_TMPFILE cannot be linked any more: %v", err)
	}
	x.opts.Session = 8
	x.reopen()
	for ino := range orphans {
		if _, err := x.GetAttr(ino); (err == nil) != (ino == tmp) {
			t.Errorf("inode %d in a new session: %v", ino, err)
		}
	}
}

// What an orphan had is used again after its FORGET: a server that comes then must not take it for the orphan's.
func TestForgottenOrphanDoesNotComeBack(t *testing.T) {
	x := newSession(t, 7)
	orphans := x.openOrphans()
	var before Ino
	for ino := range orphans {
		x.Forget(ino)
		before = max(before, ino)
	}
	must(t, x.Sync())
	again := x.create(unionfs.Root, "again", "in that slot")
	x.reopen()
	if got := x.read(again); got != "in that slot" {
		t.Errorf("read %q", got)
	}
	for ino := range orphans {
		want(t, fmt.Sprint("inode ", ino), errOnly(x.GetAttr(ino)), syscall.ESTALE)
	}
	if u := recount(x.FS); u != x.Usage() {
		t.Errorf("usage is %+v, not %+v", x.Usage(), u)
	}
	// Those of a session before, which are ended when a new one begins.
	must(t, x.Unlink(unionfs.Root, "again"))
	x.opts.Session = 8
	x.reopen()
	must(t, x.Sync())
	other := x.create(unionfs.Root, "other", "in that slot too")
	x.reopen()
	if got := x.read(other); got != "in that slot too" {
		t.Errorf("read %q", got)
	}
	want(t, "the orphan of the session before", errOnly(x.GetAttr(again)), syscall.ESTALE)
}

func errOnly(_ unionfs.Attr, err error) error { return err }

// The server dies before any of its disk calls, and another one goes on in its place: the kernel finds what it has open.
func TestTakeOverAtEveryDiskCall(t *testing.T) {
	stride := 1
	if testing.Short() {
		stride = 7
	}
	img := newImage(t, smallImage())
	for at := 1; ; at += stride {
		w := newWalkerOn(t, img, 44)
		f := &faults{at: at, times: 1 << 30, err: syscall.EIO}
		w.Close()
		w.opts.fault, w.opts.Session = f.step, 9
		w.openFaulty(f)
		before, _ := w.script(80)
		if f.hit == "" {
			break
		}
		if before == nil {
			before = w.m
		}
		w.crash()
		g, err := w.openState(w.dir)
		if err != nil {
			t.Fatalf("%s, died before %q: %v", w.last, f.hit, err)
		}
		if u := recount(g); u != g.Usage() {
			t.Fatalf("%s, died before %q: usage is %+v, not %+v", w.last, f.hit, g.Usage(), u)
		}
		for ino, n := range g.nodes {
			if n.nlink == 0 && before.inodes[ino] == nil && w.m.inodes[ino] == nil {
				g.Forget(ino) // it was forgotten after the last record
			}
		}
		if err := before.compare(g, w.m); err != nil {
			if err2 := w.m.compare(g, nil); err2 != nil {
				t.Fatalf("%s, died before %q: neither as before: %v\nnor as after: %v", w.last, f.hit, err, err2)
			}
		}
		abandon(g)
	}
}

// A state of the format before sessions is read and becomes one of this format.
func TestStateOfVersion2IsRead(t *testing.T) {
	x := newFixture(t, smallImage())
	x.create(unionfs.Root, "old", "in the checkpoint")
	must(t, x.Close())
	x.open()
	x.create(unionfs.Root, "new", "in the journal")
	x.crash()
	for _, name := range []string{checkpointName, journalName(x.journal.gen)} {
		path := filepath.Join(x.dir, name)
		b, err := os.ReadFile(path)
		must(t, err)
		binary.LittleEndian.PutUint32(b[8:], 2)
		binary.LittleEndian.PutUint32(b[12:], headerSum(b))
		must(t, os.WriteFile(path, b, 0o600))
	}
	x.opts.Session = 7
	x.open()
	last := x.askAll()
	x.reopen()
	x.checkExecuted("after a kill", last, true)
	for name, content := range map[string]string{"old": "in the checkpoint", "new": "in the journal"} {
		if got := x.read(x.ino(name)); got != content {
			t.Errorf("%s is %q", name, got)
		}
	}
}
