package fs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// The rungs of the I/O ladder.
const (
	// IOAuto starts on the cached rung: it is the one that has none of overlayfs's quirks.
	IOAuto = "auto"
	// IOCached serves all reads and writes through the server and the kernel's page cache, without OPEN and RELEASE.
	IOCached = "cached"
	// IOPassthrough lets the kernel read and write the files that are complete on this host by itself. It needs Linux 6.9,
	// CAP_SYS_ADMIN and a Backend with Passthrough; without one of them the mount is on the cached rung.
	IOPassthrough = "passthrough"
)

// Options of a Server.
type Options struct {
	IO  string       // IOAuto when empty
	Log *slog.Logger // nothing is logged when nil
	// Device is the mount's "MAJ:MIN" (MountDevice); if given, its read-ahead is raised.
	Device string
	// Nested puts the tree's root into the mount's, as InnerRoot.
	Nested bool
	// Latency says when idle CPUs are kept awake for us: LatencyAuto when empty.
	Latency string
	// Resume goes on with a mount that another server has served, which is dead. It needs the cached rung, a Backend with Resumable
	// that knows what the other one did: else ErrNoResume.
	Resume *Session
}

// A Server answers the requests of one mount.
type Server struct {
	conn *conn
	loop *loop
	wire *wire
}

// maxBackground bounds the READs that the kernel sends ahead of any reader: each may hold maxRequest bytes here.
const maxBackground = 16

// NewServer takes fuse over, a descriptor that MountFD has mounted, here or in another process, and answers INIT.
// It serves nothing else before Serve.
func NewServer(fuse *os.File, b Backend, o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s, err := newServer(fuse, b, o)
	if err != nil {
		fuse.Close()
		return nil, fmt.Errorf("serve %s: %w", fuse.Name(), err)
	}
	return s, nil
}

func newServer(fuse *os.File, b Backend, o Options) (*Server, error) {
	if !slices.Contains([]string{"", IOAuto, IOCached, IOPassthrough}, o.IO) {
		return nil, fmt.Errorf("I/O mode %q is none of auto, passthrough, cached", o.IO)
	}
	if !slices.Contains([]string{"", LatencyAuto, LatencyOn, LatencyOff}, o.Latency) {
		return nil, fmt.Errorf("latency %q is none of auto, on, off", o.Latency)
	}
	s := &Server{wire: newWire(b, o.Log)}
	var err error
	if o.Resume != nil {
		s.conn, err = resumeConn(fuse, s.wire, o)
	} else {
		s.conn, err = newConn(fuse, s.wire, mountOptions(o))
	}
	if err != nil {
		return nil, err
	}
	s.wire.nested = o.Nested
	s.wire.dead = s.conn.dead
	s.loop = newLoop(s.conn.fd, o.Log, newLatency(o.Latency))
	s.loop.dispatch = (&dispatcher{wire: s.wire, loop: s.loop, flags: s.conn.flags}).handle
	s.wire.waits = s.loop.waits
	s.loop.large = o.Resume != nil
	if o.Resume != nil && !o.Resume.Resends() {
		s.loop.first = s.conn.failBefore
	}
	if o.IO == IOPassthrough {
		s.climb(o.Log)
	}
	if o.Device != "" {
		if err := TuneReadAhead(o.Device); err != nil {
			o.Log.Warn("reads stay small", "err", err)
		}
	}
	return s, nil
}

// climb goes from the cached to the passthrough rung, if the kernel and the backend can.
func (s *Server) climb(log *slog.Logger) {
	files, ok := s.wire.b.(backingFiles)
	if !ok {
		log.Warn("no passthrough: nothing here has local files; the mount is cached")
		return
	}
	if err := s.probe(); err != nil {
		log.Warn("no passthrough: the mount is cached", "err", err)
		return
	}
	s.wire.opens = newOpenTable(files, s.conn, log)
}

// probe registers a file, for only that tells whether kernel and privileges are there.
func (s *Server) probe() error {
	if s.conn.flags&fuse.CAP_PASSTHROUGH == 0 {
		return fmt.Errorf("the kernel lacks it (Linux 6.9 has it): %w", syscall.EOPNOTSUPP)
	}
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer f.Close()
	id, errno := s.conn.RegisterBackingFd(&fuse.BackingMap{Fd: int32(f.Fd())})
	if errno != 0 {
		return fmt.Errorf("register a backing file (it takes CAP_SYS_ADMIN): %w", errno)
	}
	s.conn.UnregisterBackingFd(id)
	return nil
}

// Serve answers until the mount is gone.
func (s *Server) Serve() error {
	err := s.loop.serve()
	s.loop.latency.close()
	if s.wire.opens != nil {
		s.wire.opens.readOnly.close()
	}
	return errors.Join(err, s.conn.close())
}

// IO returns the rung that the mount is on: IOCached or IOPassthrough.
func (s *Server) IO() string {
	if s.wire.opens != nil {
		return IOPassthrough
	}
	return IOCached
}

// Session returns what a server needs that takes over from this one.
func (s *Server) Session() Session { return Session{Flags: s.conn.flags} }

// Stats returns what has been counted so far.
func (s *Server) Stats() Stats { return s.wire.stats() }

func mountOptions(o Options) *fuse.MountOptions {
	// A stack depth that is not needed is one that overlayfs on top of us lacks.
	var without uint64 = fuse.CAP_PASSTHROUGH
	if o.IO == IOPassthrough {
		without = 0
	}
	return &fuse.MountOptions{
		MaxWrite:      maxRequest,
		MaxReadAhead:  maxRequest,
		MaxBackground: maxBackground,
		// Nobody else changes the tree: what the kernel has cached is right until it changes it itself.
		ExplicitDataCacheControl: true,
		EnableSymlinkCaching:     true,
		// KILLPRIV_V2: without it every write asks for security.capability first. Not ASYNC_DIO: a reader with O_DIRECT would
		// wait for us without INTERRUPT, and could not be killed (fs/fuse/file.c fuse_direct_IO).
		// READDIRPLUS_AUTO: attributes come with the names only where they were wanted before; ls of 20,000 names takes 22 small
		// requests instead of 100 big ones, find -ls no more than without.
		// DONT_MASK: a default ACL goes before the umask. SETXATTR_EXT: an access ACL may clear the set-group-id bit.
		// HAS_RESEND: see resume.go. EXPORT_SUPPORT: a file handle is good for a file that the kernel has forgotten; it asks for "." of the node, and for "..".
		ExtraCapabilities: fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_READDIRPLUS_AUTO |
			fuse.CAP_DONT_MASK | fuse.CAP_SETXATTR_EXT | fuse.CAP_EXPORT_SUPPORT | fuse.CAP_HAS_RESEND,
		EnableAcl:            true,
		DisabledCapabilities: without,
		Logger:               slog.NewLogLogger(o.Log.Handler(), slog.LevelWarn),
	}
}

func newWire(b Backend, log *slog.Logger) *wire {
	w := &wire{RawFileSystem: fuse.NewDefaultRawFileSystem(), b: b, log: log}
	w.resumable, _ = b.(Resumable)
	w.start = time.Now()
	return w
}
