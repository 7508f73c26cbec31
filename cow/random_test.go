package cow

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// walker makes random operations on a file system and its model at once.
type walker struct {
	*fixture
	m    *model
	r    *rand.Rand
	n    int64 // operations so far
	last string
}

func newWalker(t testing.TB, seed uint64) *walker {
	return newWalkerOn(t, newImage(t, smallImage()), seed)
}

func newWalkerOn(t testing.TB, img *image, seed uint64) *walker {
	w := &walker{fixture: &fixture{t: t, img: img, dir: t.TempDir()}, r: rand.New(rand.NewPCG(seed, 1))}
	w.m = newModel(w.img)
	w.opts.Clock = func() unionfs.Time { return w.now() }
	w.opts.OpenObjects = 4
	w.opts.CommitInterval = -1
	w.open()
	return w
}

func (w *walker) now() unionfs.Time {
	return unionfs.Time{Sec: 3_000_000_000 + w.n, Nsec: uint32(w.n % 1e9)}
}

// pick returns one of the inodes for which ok holds, or of all when there is none.
func (w *walker) pick(ok func(*mInode) bool) *mInode {
	var some, all []Ino
	for ino, n := range w.m.inodes {
		all = append(all, ino)
		if ok(n) {
			some = append(some, ino)
		}
	}
	if len(some) == 0 || w.r.IntN(50) == 0 {
		some = all
	}
	slices.Sort(some)
	return w.m.inodes[some[w.r.IntN(len(some))]]
}

func (w *walker) aDir() *mInode { return w.pick((*mInode).isDir) }
func (w *walker) aFile() *mInode {
	return w.pick(func(n *mInode) bool { return n.typ() == unix.S_IFREG })
}
func (w *walker) any() *mInode { return w.pick(func(*mInode) bool { return true }) }

// name is one that is in dir, or one of a few.
func (w *walker) name(dir *mInode) string {
	if len(dir.ents) > 0 && w.r.IntN(3) > 0 {
		var names []string
		for name := range dir.ents {
			names = append(names, name)
		}
		slices.Sort(names)
		return names[w.r.IntN(len(names))]
	}
	return string(rune('a' + w.r.IntN(6)))
}

func (w *walker) born(n *mInode, a unionfs.Attr, err error) {
	if err != nil {
		return
	}
	if w.m.inodes[a.Ino] != nil || a.Ino <= w.img.tree.MaxIno() {
		w.t.Fatalf("%s: inode number %d again", w.last, a.Ino)
	}
	n.ino = a.Ino
	w.m.inodes[a.Ino] = n
}

// step makes one operation and returns what the file system and what the model said.
func (w *walker) step() (got, should error) {
	w.n++
	now := w.now()
	do := func(format string, a ...any) { w.last = fmt.Sprintf("%d: "+format, append([]any{w.n}, a...)...) }
	switch w.r.IntN(22) {
	case 0, 1, 2:
		d := w.aDir()
		name := w.name(d)
		n := &mInode{mode: unix.S_IFREG | 0o640 | uint32(w.r.IntN(2))<<11, uid: 10, gid: 20}
		if w.r.IntN(6) == 0 {
			n.mode, n.rdev = unix.S_IFCHR|0o600, 5
		}
		do("mknod %d/%s %o", d.ino, name, n.mode)
		a, err := w.Mknod(d.ino, name, n.mode, n.rdev, owner)
		w.born(n, a, err)
		return err, w.m.make(d, name, n, now)
	case 3, 4:
		d := w.aDir()
		name := w.name(d)
		n := &mInode{mode: unix.S_IFDIR | 0o755 | uint32(w.r.IntN(2))<<10, uid: 10, gid: 20}
		do("mkdir %d/%s", d.ino, name)
		a, err := w.Mkdir(d.ino, name, n.mode, owner)
		w.born(n, a, err)
		return err, w.m.make(d, name, n, now)
	case 5:
		d := w.aDir()
		name := w.name(d)
		n := &mInode{mode: unix.S_IFLNK | 0o777, uid: 10, gid: 20, target: "to/" + name}
		do("symlink %d/%s", d.ino, name)
		a, err := w.Symlink(d.ino, name, n.target, owner)
		w.born(n, a, err)
		return err, w.m.make(d, name, n, now)
	case 6:
		d := w.aDir()
		n := &mInode{mode: unix.S_IFREG | 0o600, uid: 10, gid: 20}
		do("tmpfile %d", d.ino)
		a, err := w.Tmpfile(d.ino, n.mode, owner)
		w.born(n, a, err)
		return err, w.m.tmpfile(d, n, now)
	case 7, 8:
		n, d := w.any(), w.aDir()
		name := w.name(d)
		do("link %d %d/%s", n.ino, d.ino, name)
		_, err := w.Link(n.ino, d.ino, name)
		return err, w.m.link(n, d, name, now)
	case 9, 10:
		d := w.aDir()
		name := w.name(d)
		do("unlink %d/%s", d.ino, name)
		return w.Unlink(d.ino, name), w.m.remove(d, name, false, now)
	case 11:
		d := w.aDir()
		name := w.name(d)
		do("rmdir %d/%s", d.ino, name)
		return w.Rmdir(d.ino, name), w.m.remove(d, name, true, now)
	case 12, 13, 14:
		return w.rename(now)
	case 15, 16:
		n := w.aFile()
		p, off, kill := w.bytes(), int64(w.r.IntN(12_000)), w.r.IntN(3) == 0
		do("write %d: %d at %d, kill %v", n.ino, len(p), off, kill)
		_, err := w.Write(w.t.Context(), n.ino, p, off, kill)
		return err, w.m.write(n, p, off, kill, now)
	case 17, 18:
		n := w.any()
		s := w.setAttr(n)
		do("setattr %d: %+v", n.ino, s)
		_, err := w.SetAttr(n.ino, s)
		return err, w.m.setAttr(n, s, now)
	case 19:
		n := w.aFile()
		const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
		mode := [...]uint32{0, keep, keep | punch, zero, zero | keep}[w.r.IntN(5)]
		off, length := int64(w.r.IntN(12_000)), int64(1+w.r.IntN(9000))
		do("fallocate %d: %#x %d %d", n.ino, mode, off, length)
		return w.Fallocate(w.t.Context(), n.ino, mode, off, length), w.m.fallocate(n, mode, off, length, now)
	case 20:
		n := w.any()
		name, value := w.xattrName(), fmt.Sprint(w.n)
		flags := uint32(w.r.IntN(3))
		do("setxattr %d %s %d", n.ino, name, flags)
		return w.SetXattr(n.ino, name, []byte(value), flags), w.m.setXattr(n, name, value, flags, now)
	default:
		n := w.any()
		name := w.xattrName()
		do("removexattr %d %s", n.ino, name)
		return w.RemoveXattr(n.ino, name), w.m.removeXattr(n, name, now)
	}
}

func (w *walker) xattrName() string {
	return [...]string{"user.note", "user.b", "trusted.overlay.opaque", capability}[w.r.IntN(4)]
}

func (w *walker) bytes() []byte {
	p := make([]byte, 1+w.r.IntN(5000))
	for i := range p {
		p[i] = byte(w.n*31 + int64(i))
	}
	return p
}

func (w *walker) rename(now unionfs.Time) (got, should error) {
	od, nd := w.aDir(), w.aDir()
	oname, nname := w.name(od), w.name(nd)
	flags := [...]uint32{0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_WHITEOUT}[w.r.IntN(6)]
	w.last = fmt.Sprintf("%d: rename %d/%s %d/%s %#x", w.n, od.ino, oname, nd.ino, nname, flags)
	whiteout := w.next
	got = w.Rename(od.ino, oname, nd.ino, nname, flags)
	return got, w.m.rename(od, oname, nd, nname, flags, whiteout, now)
}

func (w *walker) setAttr(n *mInode) unionfs.SetAttr {
	s := unionfs.SetAttr{
		Mode: uint32(w.r.IntN(0o10000)), UID: uint32(w.r.IntN(5)), GID: uint32(w.r.IntN(5)), Size: int64(w.r.IntN(15_000)),
		Atime: unionfs.Time{Sec: -5, Nsec: 7}, Mtime: unionfs.Time{Sec: 1 << 40, Nsec: 999_999_999},
	}
	s.Valid = uint32(w.r.IntN(256)) &^ unionfs.SetCtime
	if n.typ() != unix.S_IFREG || w.r.IntN(2) == 0 {
		s.Valid &^= unionfs.SetSize
	}
	return s
}

// forget tells the file system that some inodes without a name are not open any more.
func (w *walker) forget() {
	for _, ino := range slices.Sorted(maps.Keys(w.m.inodes)) {
		if w.m.inodes[ino].nlink == 0 && w.r.IntN(2) == 0 {
			w.Forget(ino)
			delete(w.m.inodes, ino)
		}
	}
}

func (w *walker) check(when string) {
	w.t.Helper()
	if err := w.m.compare(w.FS, nil); err != nil {
		w.t.Fatalf("%s, after %s: %v", when, w.last, err)
	}
}

func TestRandomOperationsMatchTheModel(t *testing.T) {
	rounds, steps := uint64(30), 400
	if testing.Short() {
		rounds = 5
	}
	for seed := range rounds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWalker(t, seed)
			for range steps {
				got, should := w.step()
				if should == nil && got != nil || should != nil && !errors.Is(got, should) {
					t.Fatalf("%s: %v, want %v", w.last, got, should)
				}
				switch w.r.IntN(40) {
				case 0:
					w.forget()
				case 1:
					w.m.forget()
					w.reopen()
					w.check("after a crash")
				case 2:
					w.m.forget()
					w.remount()
					w.check("after a clean end")
				case 3, 4:
					w.check("live")
				}
			}
			w.check("at the end")
		})
	}
}
