package cow

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

func (x *fixture) backing(ino Ino, write bool) *os.File {
	x.t.Helper()
	file, err := x.OpenBacking(ino, write)
	must(x.t, err)
	if file != nil {
		x.t.Cleanup(func() { file.Close() })
	}
	return file
}

func TestBackingOfUnchangedContentIsTheSharedFile(t *testing.T) {
	x := newFixture(t, smallImage())
	sh := x.ino("bin/sh")
	if x.backing(sh, false) != nil {
		t.Error("content that is not here has a backing")
	}
	x.img.local = t.TempDir()
	must(t, os.WriteFile(filepath.Join(x.img.local, strconv.FormatUint(sh, 10)), []byte(imageText(sh, 100_000)), 0o600))
	if x.backing(sh, false) == nil {
		t.Error("complete content has no backing")
	}
	if x.backing(sh, true) != nil {
		t.Error("shared content can be written")
	}
	_, err := x.SetAttr(sh, unionfs.SetAttr{Valid: unionfs.SetMode, Mode: 0o700})
	must(t, err)
	if x.backing(sh, false) == nil {
		t.Error("a new mode takes the backing away")
	}
	x.write(sh, "x", 0)
	if x.backing(sh, false) != nil || x.backing(sh, true) != nil {
		t.Error("mixed content has a backing")
	}
}

func TestCutContentHasNoBacking(t *testing.T) {
	x := newFixture(t, smallImage())
	sh := x.ino("bin/sh")
	x.img.local = t.TempDir()
	must(t, os.WriteFile(filepath.Join(x.img.local, strconv.FormatUint(sh, 10)), []byte(imageText(sh, 100_000)), 0o600))
	_, err := x.SetAttr(sh, unionfs.SetAttr{Valid: unionfs.SetSize, Size: 10})
	must(t, err)
	if x.backing(sh, false) != nil {
		t.Error("the whole content is the backing of its first 10 bytes")
	}
}

func TestBackingsTellWhoseTheyAre(t *testing.T) {
	x := newFixture(t, smallImage())
	sh, own, small := x.ino("bin/sh"), x.create(unionfs.Root, "own", string(make([]byte, packMax+1))), x.create(unionfs.Root, "small", "hello")
	x.img.local = t.TempDir()
	must(t, os.WriteFile(filepath.Join(x.img.local, strconv.FormatUint(sh, 10)), []byte(imageText(sh, 100_000)), 0o600))
	for _, c := range []struct {
		name   string
		ino    Ino
		access int
	}{{"shared content", sh, unix.O_RDONLY}, {"a data object", own, unix.O_RDWR}} {
		flags, err := unix.FcntlInt(x.backing(c.ino, false).Fd(), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_ACCMODE != c.access {
			t.Errorf("%s is open with flags %x, %v", c.name, flags, err)
		}
	}
	if x.backing(small, false) != nil {
		t.Error("a file of the pack has a backing")
	}
	if x.backing(small, true) == nil || x.backing(small, false) == nil || x.read(small) != "hello" {
		t.Error("a file of the pack does not move when it is opened for writing")
	}
}

func TestSizeAndMtimeComeFromTheBackingWhileItIsWritten(t *testing.T) {
	x := newFixture(t, smallImage())
	ino := x.create(unionfs.Root, "f", "hello")
	created := x.attr("f")
	file := x.backing(ino, true)
	if a := x.attr("f"); a.Mtime != created.Mtime || a.Size != 5 {
		t.Errorf("opening it changed %+v", a)
	}
	_, err := file.WriteAt([]byte("passed through"), 3)
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Fstat(int(file.Fd()), &st))
	mtime := unionfs.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}
	check := func(when string) {
		t.Helper()
		if a := x.attr("f"); a.Size != 17 || a.Mtime != mtime || a.Ctime != mtime {
			t.Errorf("%s: %+v", when, a)
		}
		if got := x.read(ino); got != "helpassed through" {
			t.Errorf("%s: %q", when, got)
		}
	}
	check("while it is open")
	x.CloseBacking(ino, true)
	check("after the close")
	x.reopen()
	check("after a crash")
}

func TestKilledWhileTheBackingWasWritten(t *testing.T) {
	x := newFixture(t, smallImage())
	ino := x.create(unionfs.Root, "f", "hello")
	x.backing(ino, true)
	x.reopen()
	// The kernel goes on writing, and a take-over would find this too; here the next server has closed it already.
	if a := x.attr("f"); a.Size != 5 {
		t.Errorf("size %d", a.Size)
	}
	file := x.backing(ino, true)
	_, err := file.WriteAt([]byte("0123456789"), 0)
	must(t, err)
	x.reopen()
	if got := x.read(ino); got != "0123456789" {
		t.Errorf("%q", got)
	}
	x.remount()
	if got := x.read(ino); got != "0123456789" {
		t.Errorf("after a clean end: %q", got)
	}
}

// What recovery changes is committed in the background, too.
func TestKilledWhileTheBackingWasWrittenThenCommits(t *testing.T) {
	x := newFixture(t, smallImage())
	x.opts.CommitInterval = time.Millisecond
	x.remount()
	ino := x.create(unionfs.Root, "f", "hello")
	file := x.backing(ino, true)
	_, err := file.WriteAt([]byte("0123456789"), 0)
	must(t, err)
	x.reopen()
	if got := x.read(ino); got != "0123456789" {
		t.Errorf("%q", got)
	}
}

// What a file lost before it was opened for writing is given back when that is committed, and nothing more.
func TestCommitLeavesWhatTheKernelHasWritten(t *testing.T) {
	x := newFixture(t, smallImage())
	long := strings.Repeat("x", packMax+1)
	ino := x.create(unionfs.Root, "f", long)
	_, err := x.SetAttr(ino, unionfs.SetAttr{Valid: unionfs.SetSize})
	must(t, err)
	x.write(ino, "hello", 0)
	file := x.backing(ino, true)
	_, err = x.SetAttr(ino, unionfs.SetAttr{Valid: unionfs.SetSize}) // O_TRUNC
	must(t, err)
	_, err = file.WriteString(long)
	must(t, err)
	must(t, x.Sync())
	if got := x.read(ino); got != long {
		t.Errorf("%d bytes of %d are left", len(got), len(long))
	}
	x.CloseBacking(ino, true)
	x.reopen()
	if got := x.read(ino); got != long {
		t.Errorf("after a crash, %d bytes of %d are left", len(got), len(long))
	}
}

func TestCheckpointKeepsOpenBackings(t *testing.T) {
	x := newFixture(t, smallImage())
	ino := x.create(unionfs.Root, "f", "hello")
	file := x.backing(ino, true)
	x.op.Lock()
	must(t, x.checkpoint())
	x.op.Unlock()
	_, err := file.WriteAt([]byte("0123456789"), 0)
	must(t, err)
	x.reopen()
	if got := x.read(ino); got != "0123456789" {
		t.Errorf("%q", got)
	}
}

func TestTimesThatAreSetWhileABackingIsOpenHold(t *testing.T) {
	x := newFixture(t, smallImage())
	ino := x.create(unionfs.Root, "f", "hello")
	file := x.backing(ino, true)
	_, err := file.WriteAt([]byte("J"), 0)
	must(t, err)
	old := unionfs.Time{Sec: 5, Nsec: 6}
	_, err = x.SetAttr(ino, unionfs.SetAttr{Valid: unionfs.SetMtime, Mtime: old})
	must(t, err)
	if got := x.attr("f").Mtime; got != old {
		t.Errorf("while it is open: %v", got)
	}
	x.CloseBacking(ino, true)
	if got := x.attr("f").Mtime; got != old {
		t.Errorf("after the close: %v", got)
	}
}

func TestChangeOfAWrittenFileSetsItsCtime(t *testing.T) {
	x := newFixture(t, smallImage())
	ino := x.create(unionfs.Root, "f", "hello")
	file := x.backing(ino, true)
	_, err := file.WriteString("written")
	must(t, err)
	written, err := x.GetAttr(ino)
	must(t, err)
	must(t, x.SetXattr(ino, "user.a", []byte("a"), 0))
	changed, err := x.GetAttr(ino)
	must(t, err)
	if changed.Ctime == written.Ctime || changed.Mtime != written.Mtime {
		t.Errorf("ctime %v, mtime %v; before the change %v, %v", changed.Ctime, changed.Mtime, written.Ctime, written.Mtime)
	}
	x.CloseBacking(ino, true)
	if closed, err := x.GetAttr(ino); err != nil || closed.Ctime != changed.Ctime || closed.Mtime != changed.Mtime {
		t.Errorf("after the close: ctime %v, mtime %v, %v; want %v, %v", closed.Ctime, closed.Mtime, err, changed.Ctime, changed.Mtime)
	}
}

func TestTruncateWhileABackingIsOpen(t *testing.T) {
	x := newFixture(t, smallImage())
	ino := x.create(unionfs.Root, "f", "hello")
	file := x.backing(ino, true)
	x.backing(ino, true)
	_, err := file.WriteAt([]byte("0123456789"), 0)
	must(t, err)
	for _, size := range []int64{3, 6} {
		a, err := x.SetAttr(ino, unionfs.SetAttr{Valid: unionfs.SetSize, Size: size})
		must(t, err)
		if st, err := file.Stat(); err != nil || st.Size() != size || a.Size != size {
			t.Errorf("size %d: the object has %d, the file %d", size, st.Size(), a.Size)
		}
	}
	x.CloseBacking(ino, true)
	if got := x.read(ino); got != "012\x00\x00\x00" {
		t.Errorf("%q", got)
	}
	x.CloseBacking(ino, true)
	x.reopen()
	if got := x.read(ino); got != "012\x00\x00\x00" {
		t.Errorf("after a crash: %q", got)
	}
}

func TestWholeOverwriteMakesAFilePlain(t *testing.T) {
	x := newFixture(t, smallImage())
	ping := x.ino("bin/ping")
	x.write(ping, string(make([]byte, 3000)), 2000)
	if x.backing(ping, true) != nil {
		t.Fatal("it is plain too early")
	}
	x.write(ping, string(make([]byte, 2000)), 0)
	for range 2 {
		if x.backing(ping, true) == nil {
			t.Fatal("it is not plain")
		}
		x.CloseBacking(ping, true)
		x.reopen()
	}
	sh := x.ino("bin/sh")
	_, err := x.SetAttr(sh, unionfs.SetAttr{Valid: unionfs.SetSize, Size: 0})
	must(t, err)
	if x.backing(sh, true) == nil {
		t.Error("an emptied file is not plain")
	}
}

func TestForgottenBackingIsGone(t *testing.T) {
	x := newFixture(t, smallImage())
	ino := x.create(unionfs.Root, "f", "hello")
	x.backing(ino, true)
	must(t, x.Unlink(unionfs.Root, "f"))
	x.CloseBacking(ino, true)
	x.Forget(ino)
	must(t, x.Sync())
	if _, err := os.Stat(filepath.Join(x.dir, objectName(ino))); !os.IsNotExist(err) {
		t.Errorf("data object: %v", err)
	}
	x.reopen()
	if _, err := x.GetAttr(ino); err != unix.ESTALE {
		t.Errorf("forgotten inode: %v", err)
	}
}
