package main

import (
	"encoding/json"
	"math/rand/v2"
	"strings"

	"golang.org/x/sys/unix"
)

// call is one system call, or a few that change one thing: what is under way when the server dies is at most one change.
// Paths are relative to the root of the side that it is made on.
type call struct {
	N     int    `json:"n"`              // place in the worker's sequence; what is written is made of it
	Op    string `json:"op"`             // see table
	P     string `json:"p,omitempty"`    // path
	Q     string `json:"q,omitempty"`    // second path, or the target of a symlink
	Fd    int    `json:"fd,omitempty"`   // slot of an open file
	Fd2   int    `json:"fd2,omitempty"`  // a second one
	Flags int    `json:"f,omitempty"`    // of open, renameat2, fallocate, setxattr
	Mode  uint32 `json:"m,omitempty"`    // permissions, or the type too
	Off   int64  `json:"off,omitempty"`  // also a uid, or seconds
	Len   int64  `json:"len,omitempty"`  // also a gid, or nanoseconds
	Name  string `json:"name,omitempty"` // of an xattr
	As    int    `json:"as,omitempty"`   // whose rights count (setfsuid)
}

func (c call) String() string {
	b, _ := json.Marshal(c)
	return string(b)
}

const (
	slots    = 4    // open files of a worker
	somebody = 1001 // a user without rights
)

// calls makes the sequence of a worker: it depends on nothing but the seed.
type calls struct {
	r      *rand.Rand
	n      int
	worker string // its directory, which nobody else uses; and what its names in shared directories begin with
	shared bool   // there are directories of all workers
	// readers are files open for reading only: on the passthrough rung they may go on with what they opened.
	readers bool
	kinds   []kind // of calls to make
	never   int    // flags of open
}

func (r *rig) newCalls(seed uint64, worker string) *calls {
	h := uint64(14695981039346656037)
	for _, b := range []byte(worker) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return &calls{r: rand.New(rand.NewPCG(seed, h)), worker: worker, shared: r.workers > 1, readers: r.io == "cached", kinds: kinds}
}

func (g *calls) chance(percent int) bool { return g.r.IntN(100) < percent }

func pickOf[T any](r *rand.Rand, all ...T) T { return all[r.IntN(len(all))] }

// path makes a name that may or may not be there, and may be anything.
func (g *calls) path() string {
	if g.shared && g.chance(8) {
		return pickOf(g.r, "s0/", "s1/") + g.worker + pickOf(g.r, "-a", "-b", "-c")
	}
	parts := []string{g.worker}
	for range pickOf(g.r, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4) {
		parts = append(parts, pickOf(g.r, "a", "b", "c", "d", "e"))
	}
	switch g.r.IntN(150) {
	case 0:
		parts[len(parts)-1] = strings.Repeat("n", 255)
	case 1:
		parts[len(parts)-1] = strings.Repeat("n", 256)
	case 2:
		parts = append(parts, "")
	case 3:
		parts = append(parts, ".")
	case 4:
		if len(parts) > 2 {
			parts = append(parts, "..")
		}
	case 5:
		parts[len(parts)-1] = "\xff\x01 \n\\"
	}
	return strings.Join(parts, "/")
}

func (g *calls) slot() int { return g.r.IntN(slots) }

// offset is near the edges that matter: pages, blocks, the ends of the files in the lower tree.
func (g *calls) offset() int64 {
	switch g.r.IntN(6) {
	case 0:
		return 0
	case 1:
		return int64(g.r.IntN(5)) * 4096
	case 2:
		return int64(g.r.IntN(400_000))
	case 3:
		return 65536*int64(g.r.IntN(5)) - int64(g.r.IntN(2))*min(1, int64(g.r.IntN(5)))
	default:
		return int64(g.r.IntN(20_000))
	}
}

func (g *calls) length() int64 {
	return pickOf(g.r, int64(1+g.r.IntN(64)), int64(1+g.r.IntN(64)), int64(1+g.r.IntN(9000)), 4096, int64(1+g.r.IntN(150_000)))
}

func (g *calls) mode() uint32 {
	if g.chance(70) {
		return pickOf(g.r, uint32(0o644), 0o600, 0o755, 0o666, 0o777)
	}
	m := uint32(g.r.IntN(0o10000))
	if m&unix.S_ISGID != 0 {
		// Without it who writes decides by his groups what becomes of set-gid, and FUSE does not tell them.
		m |= unix.S_IXGRP
	}
	return m
}

func (g *calls) id() int64 { return pickOf(g.r, int64(-1), 0, somebody, 1002) }

// next makes the next call.
func (g *calls) next() call {
	g.n++
	weights := 0
	for _, k := range g.kinds {
		weights += k.weight
	}
	at := g.r.IntN(weights)
	for _, k := range g.kinds {
		if at -= k.weight; at < 0 {
			c := call{N: g.n, Op: k.name}
			if k.make != nil {
				k.make(g, &c)
			}
			if g.chance(15) && c.byRights() {
				c.As = somebody
			}
			return c
		}
	}
	panic("torture: weights")
}

// byRights tells whether a call does the same for everybody who may make it. A whiteout belongs to root, on ext4 to who
// renames; trusted xattrs are listed for root, on ext4 for who has CAP_SYS_ADMIN, which setfsuid leaves.
func (c *call) byRights() bool {
	return c.Op != "listxattr" && (c.Op != "rename" || c.Flags&unix.RENAME_WHITEOUT == 0)
}

// reads tells whether a call reads content.
func (c *call) reads() bool {
	return c.Op == "read" || c.Op == "pread" || c.Op == "readfile"
}

// kind is a system call that calls makes and sides do.
type kind struct {
	name   string
	weight int
	make   func(*calls, *call)
	do     func(*side, *call) (string, error)
}

func onPath(g *calls, c *call)  { c.P = g.path() }
func onPaths(g *calls, c *call) { c.P, c.Q = g.path(), g.path() }
func onFd(g *calls, c *call)    { c.Fd = g.slot() }
func onRange(g *calls, c *call) { c.Fd, c.Off, c.Len = g.slot(), g.offset(), g.length() }

func makeOpen(g *calls, c *call) {
	c.P, c.Fd, c.Mode = g.path(), g.slot(), g.mode()
	c.Flags = pickOf(g.r, unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR, unix.O_RDWR)
	for _, f := range []struct{ flag, percent int }{
		{unix.O_CREAT, 50}, {unix.O_EXCL, 10}, {unix.O_TRUNC, 15}, {unix.O_APPEND, 15}, {unix.O_NOFOLLOW, 5}, {unix.O_DIRECTORY, 3},
	} {
		if g.chance(f.percent) {
			c.Flags |= f.flag
		}
	}
	if g.chance(4) {
		c.Flags = unix.O_TMPFILE | unix.O_RDWR
	}
	c.Flags &^= g.never
	if !g.readers && c.Flags&(unix.O_ACCMODE|unix.O_DIRECTORY) == unix.O_RDONLY {
		c.Flags |= unix.O_RDWR
	}
}

func makeRename(g *calls, c *call) {
	onPaths(g, c)
	if g.chance(40) {
		c.Flags = pickOf(g.r, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_WHITEOUT, unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE)
	}
}

func makeMknod(g *calls, c *call) {
	c.P = g.path()
	c.Mode = g.mode()&0o777 | pickOf(g.r, uint32(unix.S_IFIFO), unix.S_IFSOCK, unix.S_IFREG, unix.S_IFCHR, unix.S_IFBLK, 0)
	// Devices that no machine has: the kernel registers major numbers below 512 only (CHRDEV_MAJOR_MAX, BLKDEV_MAJOR_MAX).
	c.Off = int64(unix.Mkdev(uint32(600+g.r.IntN(3000)), uint32(g.r.IntN(70_000))))
}

func makeFallocate(g *calls, c *call) {
	onRange(g, c)
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	c.Flags = pickOf(g.r, 0, keep, punch|keep, punch|keep, zero, zero|keep)
}

func makeTimes(g *calls, c *call) {
	c.P, c.Flags = g.path(), g.r.IntN(4)
	c.Off, c.Len = pickOf(g.r, int64(0), -1_000_000_000, 5_000_000_000, 1_500_000_000), int64(g.r.IntN(1e9))
}

func makeXattr(g *calls, c *call) {
	c.P = g.path()
	c.Name = pickOf(g.r, "user.a", "user.a", "user.b", "trusted.t", "security.s", "security.capability", "user.", "nospace.x")
	c.Flags = pickOf(g.r, 0, 0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE)
	c.Len = 4 + pickOf(g.r, int64(0), 3, int64(g.r.IntN(600))) // ext4 does not touch ctime for the value that is there
}

// makeACL makes one with entries for all kinds, somebody and a group; its permissions come out of Mode.
func makeACL(g *calls, c *call) {
	c.P, c.Mode = g.path(), uint32(g.r.IntN(1<<18))
	c.Name = pickOf(g.r, "system.posix_acl_access", "system.posix_acl_default")
}

func makeSymlink(g *calls, c *call) {
	c.P, c.Q = g.path(), pickOf(g.r, "a", "b/c", "c", ".", "./d", "nosuch", "e/e/e")
	if strings.HasPrefix(c.P, "s") {
		c.Q = g.worker + "-b" // not a way to what others do
	}
}

func makeChown(g *calls, c *call) {
	c.P, c.Off, c.Len = g.path(), g.id(), g.id()
	if c.Off == -1 && c.Len == -1 {
		c.Len = somebody // FUSE does not tell that root's chown(-1, -1) is to clear set-id bits
	}
}

func makeChmod(g *calls, c *call) { c.P, c.Mode = g.path(), g.mode() }
