package cow

import (
	"strings"
	"testing"

	"github.com/veneerfs/veneer/unionfs"
)

// A snapshot says what the server of the state says, while it runs and after its end, but for what has no name.
func TestSnapshotTellsUsage(t *testing.T) {
	x := newFixture(t, smallImage())
	x.create(unionfs.Root, "small", "text")
	x.write(x.create(unionfs.Root, "big", ""), strings.Repeat("x", 200_000), 0)
	x.write(x.ino("bin/sh"), "y", 50_000)
	holes := x.create(unionfs.Root, "holes", "")
	x.write(holes, strings.Repeat("z", 20_000), 1<<20)
	want := x.Usage()
	usage := func() Usage {
		s, err := OpenSnapshot(x.dir, x.img.tree, x.img, x.opts)
		must(t, err)
		defer s.Close()
		return s.Usage()
	}
	if got := usage(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	gone := x.create(unionfs.Root, "gone", "")
	x.write(gone, strings.Repeat("x", 100_000), 0)
	must(t, x.Unlink(unionfs.Root, "gone"))
	if got := usage(); got != want {
		t.Errorf("with a file that has no name: %+v, want %+v", got, want)
	}
	must(t, x.Close())
	if got := usage(); got != want {
		t.Errorf("after the end: %+v, want %+v", got, want)
	}
}
