package cow

import (
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// page reads at most n entries after pos.
func (x *fixture) page(dir Ino, pos uint64, n int) (names []string, next uint64) {
	x.t.Helper()
	next = pos
	err := x.ReadDir(dir, pos, func(e unionfs.Dirent) bool {
		if len(names) == n {
			return false
		}
		names, next = append(names, e.Name), e.Next
		return true
	})
	must(x.t, err)
	return names, next
}

func wantNames(t *testing.T, when string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %v, want %v", when, got, want)
	}
}

func TestReadDirPositionsStayWhileEntriesComeAndGo(t *testing.T) {
	x := newFixture(t, smallImage())
	etc := x.ino("etc") // empty mtab passwd rc.d
	for _, name := range []string{"n1", "n2", "n3"} {
		x.create(etc, name, "")
	}
	names, pos := x.page(etc, 0, 4)
	wantNames(t, "first", names, ".", "..", "empty", "mtab")

	must(t, x.Unlink(etc, "empty"))
	must(t, x.Unlink(etc, "n1"))
	x.create(etc, "n4", "")
	names, _ = x.page(etc, pos, 100)
	wantNames(t, "after two are gone", names, "passwd", "rc.d", "n2", "n3")

	names, pos = x.page(etc, pos, 3)
	wantNames(t, "in the new ones", names, "passwd", "rc.d", "n2")
	x.reopen()
	names, _ = x.page(etc, pos, 100)
	wantNames(t, "after a crash", names, "n3", "n4")
	x.remount()
	x.create(etc, "n0", "")
	names, _ = x.page(etc, pos, 100)
	wantNames(t, "after a clean end", names, "n3", "n4", "n0")
	wantNames(t, "from the beginning", x.list(etc), "mtab", "passwd", "rc.d", "n2", "n3", "n4", "n0")
}

func TestReplacedNameKeepsItsPosition(t *testing.T) {
	x := newFixture(t, smallImage())
	etc := x.ino("etc")
	file := x.create(etc, "new", "")
	must(t, x.Rename(etc, "new", etc, "mtab", 0))
	wantNames(t, "replaced by rename", x.list(etc), "empty", "mtab", "passwd", "rc.d")
	if got := x.ino("etc/mtab"); got != file {
		t.Errorf("mtab is %d", got)
	}
	must(t, x.Rename(etc, "empty", etc, "rc.d", unix.RENAME_EXCHANGE))
	wantNames(t, "exchanged", x.list(etc), "empty", "mtab", "passwd", "rc.d")
}

func TestDotDotFollowsAMovedDirectory(t *testing.T) {
	x := newFixture(t, smallImage())
	etc, bin, rc := x.ino("etc"), x.ino("bin"), x.ino("etc/rc.d")
	nlink := func(path string) uint32 { return x.attr(path).Nlink }
	before := [2]uint32{nlink("etc"), nlink("bin")}
	must(t, x.Rename(etc, "rc.d", bin, "rc", 0))
	for range 2 {
		var up Ino
		must(t, x.ReadDir(rc, 1, func(e unionfs.Dirent) bool { up = e.Ino; return false }))
		if up != bin {
			t.Errorf("'..' is inode %d, want %d", up, bin)
		}
		if a, err := x.Lookup(rc, ".."); err != nil || a.Ino != bin {
			t.Errorf("lookup of '..': %d, %v", a.Ino, err)
		}
		wantNames(t, "children", x.list(rc), "one", "two")
		if now := [2]uint32{nlink("etc"), nlink("bin")}; now != [2]uint32{before[0] - 1, before[1] + 1} {
			t.Errorf("nlink of etc and bin: %v, were %v", now, before)
		}
		x.reopen()
	}
}

func TestBigDirectory(t *testing.T) {
	x := newFixture(t, smallImage())
	tmp := x.ino("tmp")
	for i := range 3000 {
		x.create(tmp, fmt.Sprint(i), "")
	}
	for i := range 3000 {
		if i%3 != 0 {
			must(t, x.Unlink(tmp, fmt.Sprint(i)))
		}
	}
	for _, end := range []func(){func() {}, x.reopen, x.remount} {
		end()
		names := x.list(tmp)
		if len(names) != 1000 || names[1] != "3" || names[999] != "2997" {
			t.Fatalf("%d names", len(names))
		}
		for i := range 3000 {
			if _, err := x.Lookup(tmp, fmt.Sprint(i)); (err == nil) != (i%3 == 0) {
				t.Fatalf("lookup of %d: %v", i, err)
			}
		}
	}
}

// yield may ask for more, as READDIRPLUS does, while somebody wants to change the directory.
func TestReadDirHoldsNoLockOverYield(t *testing.T) {
	x := newFixture(t, smallImage())
	etc := x.ino("etc")
	n := 0
	must(t, x.ReadDir(etc, 2, func(e unionfs.Dirent) bool {
		x.create(etc, fmt.Sprint("more", n), "")
		if _, err := x.Lookup(etc, e.Name); err != nil {
			t.Error(err)
		}
		n++
		return n < 3
	}))
}

// Who renames what he reads comes to an end, and so does who makes files meanwhile.
func TestReadDirEndsWhileEntriesMove(t *testing.T) {
	x := newFixture(t, smallImage())
	etc := x.ino("etc")
	for i := range 100 {
		x.create(etc, fmt.Sprint("file", i), "")
	}
	seen, pos := 0, uint64(0)
	for {
		names, next := x.page(etc, pos, 1)
		if len(names) == 0 {
			break
		}
		if seen++; seen > 106 {
			t.Fatal("it does not end")
		}
		if pos = next; names[0] != "." && names[0] != ".." {
			must(t, x.Rename(etc, names[0], etc, "moving", 0))
			must(t, x.Rename(etc, "moving", etc, names[0], 0))
			x.create(etc, fmt.Sprint("new", seen), "")
		}
	}
	if seen != 106 {
		t.Errorf("%d names, want those that were there at the beginning: 106", seen)
	}
	if names := x.list(etc); len(names) != 104+104 {
		t.Errorf("%d names to who begins now, want %d", len(names), 104+104)
	}
}
