package fs

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/veneerfs/veneer/unionfs"
)

// Stats counts what the kernel asked since NewServer.
type Stats struct {
	// Requests by opcode, as linux/fuse.h names them. FORGET counts inodes.
	Requests map[string]uint64
	// OpensPassthrough and OpensCached are opens that were answered. On the cached rung the kernel opens files without
	// asking, so there both stay 0 and FilesRead is the measure.
	OpensPassthrough, OpensCached uint64
	FilesRead                     uint64        // different files that at least one READ was for
	BytesRead, BytesWritten       uint64        // through READ and WRITE
	FirstRead                     time.Duration // from NewServer to the first READ; 0 before it
}

// Opcodes as in linux/fuse.h; go-fuse keeps its own private.
const (
	opLookup = iota
	opForget
	opGetattr
	opSetattr
	opReadlink
	opSymlink
	opMknod
	opMkdir
	opUnlink
	opRmdir
	opRename
	opLink
	opOpen
	opRead
	opWrite
	opStatfs
	opRelease
	opFsync
	opSetxattr
	opGetxattr
	opListxattr
	opRemovexattr
	opFlush
	opOpendir
	opReaddir
	opFsyncdir
	opAccess
	opCreate
	opIoctl
	opFallocate
	opReaddirplus
	opLseek
	opCopyFileRange
	opTmpfile
	opStatx
	opCount
)

var opNames = [opCount]string{
	opLookup: "LOOKUP", opForget: "FORGET", opGetattr: "GETATTR", opSetattr: "SETATTR", opReadlink: "READLINK",
	opSymlink: "SYMLINK", opMknod: "MKNOD", opMkdir: "MKDIR", opUnlink: "UNLINK", opRmdir: "RMDIR", opRename: "RENAME",
	opLink: "LINK", opOpen: "OPEN", opRead: "READ", opWrite: "WRITE", opStatfs: "STATFS", opRelease: "RELEASE",
	opFsync: "FSYNC", opSetxattr: "SETXATTR", opGetxattr: "GETXATTR", opListxattr: "LISTXATTR",
	opRemovexattr: "REMOVEXATTR", opFlush: "FLUSH", opOpendir: "OPENDIR", opReaddir: "READDIR", opFsyncdir: "FSYNCDIR",
	opAccess: "ACCESS", opCreate: "CREATE", opIoctl: "IOCTL", opFallocate: "FALLOCATE", opReaddirplus: "READDIRPLUS",
	opLseek: "LSEEK", opCopyFileRange: "COPY_FILE_RANGE", opTmpfile: "TMPFILE", opStatx: "STATX",
}

type counters struct {
	start        time.Time
	ops          [opCount]atomic.Uint64
	openPass     atomic.Uint64
	openCached   atomic.Uint64
	bytesRead    atomic.Uint64
	bytesWritten atomic.Uint64
	firstRead    atomic.Int64 // nanoseconds since start
	read         inoSet
}

// readFrom notes a READ of ino.
func (c *counters) readFrom(ino unionfs.Ino) {
	if c.firstRead.Load() == 0 {
		c.firstRead.CompareAndSwap(0, int64(time.Since(c.start)))
	}
	c.read.add(ino)
}

func (c *counters) stats() Stats {
	s := Stats{
		Requests:         make(map[string]uint64),
		OpensPassthrough: c.openPass.Load(),
		OpensCached:      c.openCached.Load(),
		FilesRead:        c.read.len(),
		BytesRead:        c.bytesRead.Load(),
		BytesWritten:     c.bytesWritten.Load(),
		FirstRead:        time.Duration(c.firstRead.Load()),
	}
	for op := range c.ops {
		if n := c.ops[op].Load(); n > 0 {
			s.Requests[opNames[op]] = n
		}
	}
	return s
}

// inoSet is a set of inode numbers: one bit each, in pages.
type inoSet struct {
	mu    sync.Mutex
	pages map[unionfs.Ino]*[8]uint64 // by ino / 512
	n     uint64
}

func (s *inoSet) add(ino unionfs.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pages[ino/512]
	if p == nil {
		if s.pages == nil {
			s.pages = make(map[unionfs.Ino]*[8]uint64)
		}
		p = new([8]uint64)
		s.pages[ino/512] = p
	}
	word, bit := &p[ino%512/64], uint64(1)<<(ino%64)
	if *word&bit == 0 {
		*word |= bit
		s.n++
	}
}

func (s *inoSet) len() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}
