package cow

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// smallDisk returns a directory on a file system of the given size of its own, which ends with the test.
func smallDisk(t testing.TB, size int) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)))
	file, err := os.Open(dir)
	// From here on only the descriptor leads to it, and nothing is left behind whatever happens.
	if e := unix.Unmount(dir, unix.MNT_DETACH); e != nil {
		t.Fatal(e)
	}
	must(t, err)
	t.Cleanup(func() { file.Close() })
	return fmt.Sprintf("/proc/self/fd/%d", file.Fd())
}

func newSmallDisk(t testing.TB, size int) *walker {
	w := newWalkerOn(t, newImage(t, smallImage()), 5)
	must(t, w.Close())
	w.dir = smallDisk(t, size)
	w.open()
	return w
}

func TestFullDiskGivesENOSPCAndLosesNothing(t *testing.T) {
	w := newSmallDisk(t, 2<<20)
	block := make([]byte, 64<<10)
	for i := range block {
		block[i] = byte(i % 251)
	}
	keep := w.create(unionfs.Root, "keep", "kept")
	big := w.create(unionfs.Root, "big", "")
	var size int64
	for {
		n, err := w.Write(t.Context(), big, block, size, false)
		size += int64(n)
		if err != nil {
			want(t, "write", err, syscall.ENOSPC)
			break
		}
	}
	check := func(when string) {
		t.Helper()
		if got := w.read(keep); got != "kept" {
			t.Errorf("%s: %q", when, got)
		}
		got := w.read(big)
		if int64(len(got)) != size {
			t.Fatalf("%s: %d bytes, not %d", when, len(got), size)
		}
		for i := range got {
			if got[i] != block[i%len(block)] {
				t.Fatalf("%s: byte %d is wrong", when, i)
			}
		}
	}
	check("full")
	w.reopen()
	check("full, after a crash")
	must(t, w.Unlink(unionfs.Root, "big"))
	w.Forget(big)
	w.create(unionfs.Root, "again", string(block))
	w.reopen()
	if got := w.read(w.ino("again")); got != string(block) {
		t.Error("what was written after room was made is wrong")
	}
}

// The disk is so full that the journal cannot grow: operations fail and change nothing, and files can be removed.
func TestFullJournalLetsFilesBeRemoved(t *testing.T) {
	w := newSmallDisk(t, 1<<20)
	long := make([]byte, 250)
	for i := range long {
		long[i] = 'n'
	}
	names := 0
	name := func(i int) string { return fmt.Sprintf("%d%s", i, long) }
	fill := w.create(unionfs.Root, "fill", "")
	_, err := w.Write(t.Context(), fill, make([]byte, 700<<10), 0, false)
	must(t, err)
	for {
		_, err := w.Mkdir(unionfs.Root, name(names), 0o755, owner)
		if err != nil {
			want(t, "mkdir", err, syscall.ENOSPC)
			break
		}
		names++
	}
	if names == 0 {
		t.Fatal("there was no room from the start")
	}
	if _, err := w.Lookup(unionfs.Root, name(names)); err != unix.ENOENT {
		t.Errorf("the directory that could not be made: %v", err)
	}
	for i := range 50 {
		must(t, w.Rmdir(unionfs.Root, name(i)))
	}
	w.reopen()
	for i := range names {
		if _, err := w.Lookup(unionfs.Root, name(i)); (err == nil) != (i >= 50) {
			t.Fatalf("directory %d: %v", i, err)
		}
	}
	must(t, w.Unlink(unionfs.Root, "fill"))
	w.Forget(fill)
	_, err = w.Mkdir(unionfs.Root, "room", 0o755, owner)
	must(t, err)
}

// What was removed last waits for a commit: closing must not fail for want of the room that it takes.
func TestCloseOfAFullDiskUsesWhatWasRemoved(t *testing.T) {
	w := newSmallDisk(t, 1<<20)
	w.create(unionfs.Root, "keep", "kept")
	big := w.create(unionfs.Root, "big", "")
	var size int64
	for block := make([]byte, 4<<10); ; {
		n, err := w.Write(t.Context(), big, block, size, false)
		if size += int64(n); err != nil {
			want(t, "write", err, syscall.ENOSPC)
			break
		}
	}
	must(t, w.Unlink(unionfs.Root, "big"))
	w.Forget(big)
	must(t, w.Close())
	w.open()
	if got := w.read(w.ino("keep")); got != "kept" {
		t.Errorf("read %q", got)
	}
}
