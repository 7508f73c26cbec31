package cow

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

func TestSeekDataAndHole(t *testing.T) {
	x := newFixture(t, smallImage())
	const k = 64 << 10 // what every host file system can leave out
	plain := x.create(unionfs.Root, "plain", "")
	x.write(plain, string(make([]byte, k)), 2*k)
	_, err := x.SetAttr(plain, unionfs.SetAttr{Valid: unionfs.SetSize, Size: 5 * k})
	must(t, err)
	none := x.create(unionfs.Root, "none", "")
	_, err = x.SetAttr(none, unionfs.SetAttr{Valid: unionfs.SetSize, Size: k})
	must(t, err)
	sh := x.ino("bin/sh") // 100,000 bytes of the image
	passwd := x.ino("etc/passwd")
	_, err = x.SetAttr(sh, unionfs.SetAttr{Valid: unionfs.SetSize, Size: 4 * k})
	must(t, err)
	x.write(sh, "x", 4*k)
	// A small file of ours that was the image's, whose content here is all hole.
	x.img.local = t.TempDir()
	small := x.ino("etc/rc.d/two")
	hole := filepath.Join(x.img.local, strconv.FormatUint(small, 10))
	must(t, os.WriteFile(hole, nil, 0o600))
	must(t, os.Truncate(hole, x.attr("etc/rc.d/two").Size))
	_, err = x.SetAttr(small, unionfs.SetAttr{Valid: unionfs.SetSize})
	must(t, err)
	x.write(small, "hello", 0)

	for _, c := range []struct {
		what   string
		ino    Ino
		off    int64
		whence int
		want   int64
		err    error
	}{
		{"plain: data after a hole", plain, 0, unix.SEEK_DATA, 2 * k, nil},
		{"plain: in a hole", plain, 1, unix.SEEK_HOLE, 1, nil},
		{"plain: hole after data", plain, 2*k + 5, unix.SEEK_HOLE, 3 * k, nil},
		{"plain: no data any more", plain, 3 * k, unix.SEEK_DATA, 0, syscall.ENXIO},
		{"plain: in the last hole", plain, 4 * k, unix.SEEK_HOLE, 4 * k, nil},
		{"plain: at the end", plain, 5 * k, unix.SEEK_HOLE, 0, syscall.ENXIO},
		{"never written: data", none, 0, unix.SEEK_DATA, 0, syscall.ENXIO},
		{"never written: hole", none, 7, unix.SEEK_HOLE, 7, nil},
		{"small: data", small, 1, unix.SEEK_DATA, 1, nil},
		{"small: hole", small, 1, unix.SEEK_HOLE, 5, nil},
		{"image: data", passwd, 3, unix.SEEK_DATA, 3, nil},
		{"image: hole", passwd, 3, unix.SEEK_HOLE, 1234, nil},
		{"image: after the end", passwd, 1234, unix.SEEK_DATA, 0, syscall.ENXIO},
		{"mixed: image's data", sh, 3, unix.SEEK_DATA, 3, nil},
		{"mixed: hole after the image's", sh, 3, unix.SEEK_HOLE, 100_000, nil},
		{"mixed: data of ours after the hole", sh, 100_000, unix.SEEK_DATA, 4 * k, nil},
		{"mixed: hole at the end", sh, 4 * k, unix.SEEK_HOLE, 4*k + 1, nil},
		{"below zero", sh, -1, unix.SEEK_DATA, 0, syscall.ENXIO},
		{"other whence", sh, 0, unix.SEEK_SET, 0, syscall.EINVAL},
	} {
		if got, err := x.Lseek(c.ino, c.off, c.whence); got != c.want || err != c.err {
			t.Errorf("%s: %d, %v; want %d, %v", c.what, got, err, c.want, c.err)
		}
	}
	if _, err := x.Lseek(x.ino("etc"), 0, unix.SEEK_DATA); err == nil {
		t.Error("a directory has data")
	}
}

func TestSparseFilesCountTheirBlocks(t *testing.T) {
	x := newFixture(t, smallImage())
	ino := x.create(unionfs.Root, "f", "")
	x.write(ino, "x", 10<<20)
	for range 2 {
		if a := x.attr("f"); a.Blocks == 0 || a.Blocks > 256 {
			t.Errorf("a sparse file has %d blocks", a.Blocks)
		}
		x.remount()
	}
	must(t, x.Fallocate(t.Context(), ino, unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20))
	if a := x.attr("f"); a.Blocks < 2048 || a.Size != 10<<20+1 {
		t.Errorf("after fallocate: %d blocks, %d bytes", a.Blocks, a.Size)
	}
	must(t, x.Fallocate(t.Context(), ino, unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, 0, 11<<20))
	if a := x.attr("f"); a.Blocks > 256 {
		t.Errorf("after a punched hole: %d blocks", a.Blocks)
	}
	if a := x.attr("bin/sh"); a.Blocks != 196 {
		t.Errorf("an image file of 100,000 bytes has %d blocks", a.Blocks)
	}
}
