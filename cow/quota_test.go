package cow

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// recount is Usage, from nothing.
func recount(f *FS) (u Usage) {
	for _, n := range f.nodes {
		if !f.inImage(n.ino) {
			u.Bytes, u.Inodes = u.Bytes+256, u.Inodes+1
		}
		if n.isRegular() {
			u.Bytes += recountContent(f, n)
		}
		if n.x == nil {
			continue
		}
		u.Bytes += int64(len(n.x.target))
		for _, x := range n.x.xattrs {
			u.Bytes += int64(64 + len(x.name) + len(x.value))
		}
		if n.x.dir != nil {
			for _, e := range n.x.dir.ents {
				if e.name != "" {
					u.Bytes += int64(64 + len(e.name))
				}
			}
		}
	}
	return u
}

func recountContent(f *FS, n *node) (bytes int64) {
	if n.slot != 0 {
		return n.slot.size()
	}
	var st unix.Stat_t
	switch err := unix.Stat(f.disk.path(objectName(n.ino)), &st); {
	case n.flags&flagSparse != 0 && err == nil:
		return (st.Blocks*512 + 4095) / 4096 * 4096
	case n.flags&flagSparse != 0:
		return 0
	case n.flags&flagPlain != 0:
		return (n.size() + 4095) / 4096 * 4096
	case n.runs() != nil:
		for _, leaf := range n.runs().leaves {
			for _, r := range leaf {
				bytes += (r.end+4095)/4096*4096 - r.off/4096*4096
			}
		}
	}
	return bytes
}

func (w *walker) checkUsage(when string) {
	w.t.Helper()
	if got, want := w.Usage(), recount(w.FS); got != want {
		w.t.Fatalf("%s, %s: usage is %+v, not %+v", w.last, when, got, want)
	}
}

func TestUsageIsWhatARecountGives(t *testing.T) {
	for seed := range uint64(6) {
		w := newWalker(t, 700+seed)
		must(t, w.Close())
		w.dir = fastDir(t) // where a file takes its blocks, and nothing for the list of them
		w.open()
		for i := range 400 {
			if i%3 == 0 {
				w.churn()
			} else {
				_, _ = w.step()
			}
			if i%10 == 0 {
				must(t, w.Sync()) // cut objects are cut now
			}
			if i%10 == 0 || seed == 0 && i%2 == 0 {
				w.checkUsage("live")
			}
			switch w.r.IntN(40) {
			case 0:
				w.forget()
			case 1:
				w.m.forget()
				w.reopen()
				w.checkUsage("after a crash")
			case 2:
				w.m.forget()
				w.remount()
				w.checkUsage("after a clean end")
			}
		}
	}
}

func newQuota(t *testing.T, bytes, inodes int64) *fixture {
	x := newFixture(t, smallImage())
	must(t, x.Close())
	x.opts.QuotaBytes, x.opts.QuotaInodes = bytes, inodes
	x.open()
	return x
}

// fillUp writes until there is no more room, and returns how much that was.
func (x *fixture) fillUp(ino Ino, from int64, chunk int) int64 {
	x.t.Helper()
	p := []byte(strings.Repeat("f", chunk))
	for {
		n, err := x.Write(x.t.Context(), ino, p, from, false)
		from += int64(n)
		if err != nil {
			want(x.t, "write", err, syscall.ENOSPC)
			return from
		}
	}
}

func TestQuotaOfBytes(t *testing.T) {
	const limit = 1 << 20
	for _, chunk := range []int{100, 4096, 100_000, 3 << 20} {
		t.Run(fmt.Sprint(chunk), func(t *testing.T) {
			x := newQuota(t, limit, 0)
			big := x.create(unionfs.Root, "big", "")
			full := x.fillUp(big, 0, chunk)
			if full < limit-3*4096 || full > limit {
				t.Errorf("a file of %d bytes fills %d", full, limit)
			}
			sh := x.ino("bin/sh")
			_, err := x.Write(t.Context(), sh, make([]byte, 8192), 0, false)
			want(t, "write into the image's", err, syscall.ENOSPC)
			want(t, "fallocate", x.Fallocate(t.Context(), big, 0, 0, 2*limit), syscall.ENOSPC)
			want(t, "setxattr", x.SetXattr(big, "user.a", make([]byte, 8192), 0), syscall.ENOSPC)
			st, err := x.StatFS()
			must(t, err)
			if size := int64(st.BlockSize); int64(st.Blocks)*size != limit || int64(st.BlocksFree)*size > 8192 {
				t.Errorf("statfs: %+v", st)
			}
			// What always works.
			x.write(big, "in place", full-100)
			must(t, x.Rename(unionfs.Root, "big", unionfs.Root, "other", 0))
			_, err = x.SetAttr(big, unionfs.SetAttr{Valid: unionfs.SetSize, Size: full + 100*limit}) // a hole
			must(t, err)
			_, err = x.SetAttr(big, unionfs.SetAttr{Valid: unionfs.SetSize, Size: full / 2})
			must(t, err)
			if again := x.fillUp(big, full/2, chunk); again < full-8192 || again > full+8192 {
				t.Errorf("%d bytes, and %d after half was cut", full, again)
			}
			x.reopen()
			if u := x.Usage(); u.Bytes > limit || u.Bytes < limit-8192 || u != recount(x.FS) {
				t.Errorf("after a crash %+v, counted %+v", u, recount(x.FS))
			}
			must(t, x.Unlink(unionfs.Root, "other"))
			x.Forget(big)
			if u := x.Usage(); u != (Usage{}) {
				t.Errorf("%+v is left", u)
			}
			x.create(unionfs.Root, "again", string(make([]byte, limit/2)))
		})
	}
}

func TestQuotaOfInodes(t *testing.T) {
	x := newQuota(t, 0, 3)
	x.create(unionfs.Root, "a", "")
	x.create(unionfs.Root, "b", "")
	_, err := x.Symlink(unionfs.Root, "c", "a", owner)
	must(t, err)
	_, err = x.Mknod(unionfs.Root, "d", unix.S_IFREG, 0, owner)
	want(t, "mknod", err, syscall.ENOSPC)
	_, err = x.Mkdir(unionfs.Root, "d", 0o755, owner)
	want(t, "mkdir", err, syscall.ENOSPC)
	_, err = x.Symlink(unionfs.Root, "d", "a", owner)
	want(t, "symlink", err, syscall.ENOSPC)
	_, err = x.Tmpfile(unionfs.Root, 0o600, owner)
	want(t, "tmpfile", err, syscall.ENOSPC)
	want(t, "rename with a whiteout", x.Rename(unionfs.Root, "a", unionfs.Root, "d", unix.RENAME_WHITEOUT), syscall.ENOSPC)
	_, err = x.Link(x.ino("a"), unionfs.Root, "link")
	must(t, err)
	must(t, x.Rename(unionfs.Root, "a", unionfs.Root, "d", 0))
	if st, err := x.StatFS(); err != nil || st.Files != 3 || st.FilesFree != 0 {
		t.Errorf("statfs: %+v, %v", st, err)
	}
	b := x.ino("b")
	must(t, x.Unlink(unionfs.Root, "b"))
	x.Forget(b)
	x.create(unionfs.Root, "e", "")
}

// Whatever is done with a quota, no more is used, and what fails says ENOSPC and changes nothing.
func TestRandomOperationsStayInTheQuota(t *testing.T) {
	for seed := range uint64(5) {
		w := newWalker(t, 800+seed)
		must(t, w.Close())
		w.opts.QuotaBytes, w.opts.QuotaInodes = 60_000+rand.New(rand.NewPCG(seed, 9)).Int64N(100_000), 12
		w.open()
		hits := 0
		for range 300 {
			before := w.m.clone()
			got, should := w.step()
			if got == syscall.ENOSPC && should == nil {
				hits++
				w.m = before
			}
			// Renames may take a little more.
			if u := w.Usage(); u.Bytes > w.opts.QuotaBytes+20*(costEntry+maxName) || u.Inodes > 12 {
				t.Fatalf("%s: %+v of %d", w.last, u, w.opts.QuotaBytes)
			}
		}
		if hits == 0 {
			t.Error("the quota was never reached")
		}
		// A write that was cut short leaves the model behind: only what must be right whatever it is.
		must(t, w.Sync())
		w.checkUsage("at the end")
	}
}

func TestKernelDoesNotWriteBehindAQuota(t *testing.T) {
	x := newQuota(t, 1<<20, 0)
	if x.backing(x.create(unionfs.Root, "f", string(make([]byte, packMax+1))), true) != nil {
		t.Error("it gets the data object")
	}
}
