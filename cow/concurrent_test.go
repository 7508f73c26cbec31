package cow

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// Many at once change and read the same few names, with checkpoints in between: afterwards every inode has as many
// names as its nlink says, every directory is where its '..' says, and another server sees the same.
func TestConcurrentOperationsKeepTheTreeWhole(t *testing.T) {
	x := newFixture(t, smallImage())
	must(t, x.Close())
	x.opts.Clock = nil
	x.opts.CheckpointBytes = 4 << 10
	x.opts.OpenObjects = 3
	x.open()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 9))
			for range 500 {
				if err := x.mess(t, r); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if x.journal.gen < 3 {
		t.Errorf("only %d checkpoints", x.journal.gen-1)
	}
	first := x.survey()
	x.reopen()
	if second := x.survey(); !slices.Equal(first, second) {
		t.Error("another server sees another tree")
	}
	x.remount()
	if second := x.survey(); !slices.Equal(first, second) {
		t.Error("after a clean end the tree is another")
	}
}

// mess makes one operation somewhere. Only errors that cannot come from a race are errors.
func (x *fixture) mess(t *testing.T, r *rand.Rand) error {
	dir := func() Ino {
		d := unionfs.Root
		for range r.IntN(4) {
			if a, err := x.Lookup(d, string(rune('a'+r.IntN(3)))); err == nil && a.Mode&unix.S_IFMT == unix.S_IFDIR {
				d = a.Ino
			}
		}
		return d
	}
	name := func() string { return string(rune('a' + r.IntN(5))) }
	var err error
	switch r.IntN(12) {
	case 0, 1:
		_, err = x.Mkdir(dir(), name(), 0o755, owner)
	case 2:
		_, err = x.Mknod(dir(), name(), unix.S_IFREG|0o644, 0, owner)
	case 3, 4:
		flags := [...]uint32{0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[r.IntN(3)]
		err = x.Rename(dir(), name(), dir(), name(), flags)
	case 5:
		err = x.Unlink(dir(), name())
	case 6:
		err = x.Rmdir(dir(), name())
	case 7:
		err = x.ReadDir(dir(), 0, func(e unionfs.Dirent) bool {
			_, _ = x.GetAttr(e.Ino)
			return true
		})
	default:
		a, e := x.Lookup(dir(), name())
		if e != nil {
			return nil
		}
		switch r.IntN(6) {
		case 0:
			_, err = x.Link(a.Ino, dir(), name())
		case 1, 2:
			_, err = x.Write(t.Context(), a.Ino, make([]byte, r.IntN(3000)), r.Int64N(3000), true)
		case 3:
			_, err = x.Read(t.Context(), a.Ino, make([]byte, 5000), 0)
		case 4:
			_, err = x.SetAttr(a.Ino, unionfs.SetAttr{Valid: unionfs.SetSize | unionfs.SetMode, Size: r.Int64N(4000), Mode: 0o600})
		case 5:
			err = x.Fsync(a.Ino, true)
		}
	}
	for _, ok := range [...]error{nil, syscall.EEXIST, syscall.ENOENT, syscall.ENOTDIR, syscall.EISDIR, syscall.ENOTEMPTY, syscall.EINVAL, syscall.EPERM, syscall.ESTALE} {
		if errors.Is(err, ok) {
			return nil
		}
	}
	return err
}

// survey walks the tree, checks that it is one, and returns a line for every entry.
func (x *fixture) survey() []string {
	x.t.Helper()
	var lines []string
	names := make(map[Ino]uint32)
	var walk func(dir Ino, path string)
	walk = func(dir Ino, path string) {
		a, err := x.GetAttr(dir)
		must(x.t, err)
		subdirs := uint32(0)
		must(x.t, x.ReadDir(dir, 2, func(e unionfs.Dirent) bool {
			child, err := x.Lookup(dir, e.Name)
			must(x.t, err)
			if child.Ino != e.Ino || child.Mode&unix.S_IFMT != e.Type {
				x.t.Errorf("%s/%s is %+v and %+v", path, e.Name, child, e)
			}
			names[child.Ino]++
			lines = append(lines, fmt.Sprintf("%s/%s %+v", path, e.Name, child))
			if e.Type == unix.S_IFDIR {
				subdirs++
				if up, err := x.Lookup(child.Ino, ".."); err != nil || up.Ino != dir {
					x.t.Errorf("%s/%s: '..' is %d, %v", path, e.Name, up.Ino, err)
				}
				walk(child.Ino, path+"/"+e.Name)
			}
			return true
		}))
		if a.Nlink != 2+subdirs {
			x.t.Errorf("%s: nlink %d with %d directories", path, a.Nlink, subdirs)
		}
	}
	walk(unionfs.Root, "")
	for ino, n := range names {
		a, err := x.GetAttr(ino)
		must(x.t, err)
		if a.Mode&unix.S_IFMT != unix.S_IFDIR && a.Nlink != n {
			x.t.Errorf("inode %d: nlink %d, and %d names", ino, a.Nlink, n)
		}
	}
	return lines
}

// A name that is replaced by rename is there at every moment.
func TestReplacedNameIsNeverMissing(t *testing.T) {
	x := newFixture(t, smallImage())
	etc := x.ino("etc")
	var done atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !done.Load() {
				if _, err := x.Lookup(etc, "passwd"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 500 {
		x.create(etc, "tmp", fmt.Sprint(i))
		must(t, x.Rename(etc, "tmp", etc, "passwd", 0))
	}
	done.Store(true)
	wg.Wait()
}

// Writers of one file do not lose each other's bytes, and a reader of the image's part is not held up by them.
func TestConcurrentWritersOfOneFile(t *testing.T) {
	x := newFixture(t, smallImage())
	x.Close()
	x.opts.Clock = nil
	x.open()
	sh := x.ino("bin/sh")
	inRead, release := make(chan struct{}), make(chan struct{})
	x.img.onRead = func() {
		x.img.onRead = nil
		close(inRead)
		<-release
	}
	var reader, writers sync.WaitGroup
	reader.Go(func() {
		if _, err := x.Read(t.Context(), sh, make([]byte, 100), 99_000); err != nil {
			t.Error(err)
		}
	})
	<-inRead // the network is slow: nothing may wait for it
	for g := range 4 {
		writers.Go(func() {
			for i := g; i < 400; i += 4 {
				x.write(sh, string(rune('a'+g)), int64(i)*10)
			}
		})
	}
	writers.Wait()
	close(release)
	reader.Wait()
	text := []byte(imageText(sh, 100_000))
	for i := range 400 {
		text[i*10] = byte('a' + i%4)
	}
	for range 2 {
		if x.read(sh) != string(text) {
			t.Fatal("wrong content")
		}
		x.reopen()
	}
}

// Small files are made, grow, are replaced and removed by some and read by others, with commits all the time, so that
// slots are used again as soon as they may: nobody sees another file's bytes.
func TestSlotsAreNotReadUnderAnotherName(t *testing.T) {
	x := newFixture(t, smallImage())
	must(t, x.Close())
	x.dir = fastDir(t) // hundreds of commits
	x.opts.Clock, x.opts.CommitInterval, x.opts.CheckpointBytes = nil, 50*time.Microsecond, 64<<10
	x.open()
	var writers, readers sync.WaitGroup
	stop := make(chan struct{})
	const files = 6
	for g := range files {
		name := fmt.Sprint(g)
		writers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 7))
			for range 100 {
				a, err := x.Mknod(unionfs.Root, name, unix.S_IFREG|0o600, 0, owner)
				must(t, err)
				for size := int64(0); r.IntN(4) > 0; {
					p := bytes.Repeat([]byte{byte('A' + g)}, 1+r.IntN(9000))
					_, err := x.Write(t.Context(), a.Ino, p, size, false)
					must(t, err)
					size += int64(len(p))
				}
				must(t, x.Unlink(unionfs.Root, name))
				x.Forget(a.Ino)
			}
		})
		readers.Go(func() {
			p := make([]byte, packMax)
			for {
				select {
				case <-stop:
					return
				default:
				}
				a, err := x.Lookup(unionfs.Root, name)
				if err != nil {
					continue
				}
				n, err := x.Read(t.Context(), a.Ino, p, 0)
				if err != nil && err != unix.ESTALE {
					t.Errorf("read: %v", err)
				}
				if i := bytes.IndexFunc(p[:n], func(c rune) bool { return c != rune('A'+g) }); i >= 0 {
					t.Errorf("byte %d of file %d is %q", i, g, p[i])
					return
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	must(t, x.Sync())
	st, err := x.pack.file.stat()
	must(t, err)
	if st.Size > 64<<20 {
		t.Errorf("a pack of %d bytes for %d small files", st.Size, files)
	}
	x.remount()
	if u := x.Usage(); u != (Usage{}) {
		t.Errorf("%+v is left", u)
	}
}
