package fetcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// connCap bounds the connections to each host, of all processes that share a directory. It has one file for each host:
//
//	byte 0 … limit-1   locked by whoever has a connection: one byte each
//	byte waitByte      locked, shared, by who waits for one
//
// The kernel releases the locks of a process that dies. Connections that are kept for later hold their byte as well, so whoever has such
// looks now and then whether another waits, and drops them then.
type connCap struct {
	dir   string
	limit int
	idle  func()          // closes the connections that are not in use
	done  <-chan struct{} // closed by Client.Close: nobody waits any more

	mu      sync.Mutex
	open    map[string]int // connections by host; guarded by mu
	watched bool           // guarded by mu; a goroutine looks for waiters while connections are open
}

const (
	waitByte  = 1 << 20
	minPoll   = 20 * time.Millisecond // between two tries to get a connection, growing
	maxPoll   = 200 * time.Millisecond
	watchPoll = 250 * time.Millisecond
)

// acquire waits until there may be one more connection to addr, or for ctx to end. The caller releases what it returns.
func (c *connCap) acquire(ctx context.Context, addr string) (*cappedSlot, error) {
	f, err := c.file(addr)
	if err != nil {
		return nil, fmt.Errorf("count connections to %s: %w", addr, err)
	}
	poll := minPoll
	for {
		ok, err := c.tryOne(f)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("count connections to %s: %w", addr, err)
		}
		if ok {
			// It waits no more.
			rangeLock(f, unix.F_OFD_SETLK, unix.F_UNLCK, waitByte, 1)
			return c.opened(addr, f), nil
		}
		rangeLock(f, unix.F_OFD_SETLK, unix.F_RDLCK, waitByte, 1)
		timer := time.NewTimer(poll/2 + rand.N(poll))
		select {
		case <-timer.C:
			poll = min(2*poll, maxPoll)
		case <-ctx.Done():
			timer.Stop()
			f.Close()
			return nil, ctx.Err()
		case <-c.done:
			timer.Stop()
			f.Close()
			return nil, net.ErrClosed
		}
	}
}

func (c *connCap) file(addr string) (*os.File, error) {
	path := filepath.Join(c.dir, hexOf(addr))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(c.dir, 0o700); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	}
	return f, err
}

// tryOne locks any byte that is free.
func (c *connCap) tryOne(f *os.File) (bool, error) {
	first := rand.N(c.limit)
	for i := range c.limit {
		ok, err := tryLockRange(f, int64((first+i)%c.limit), 1)
		if ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// cappedSlot is the right to one connection.
type cappedSlot struct {
	c    *connCap
	addr string
	f    *os.File // its lock goes with it
	once sync.Once
}

func (c *connCap) opened(addr string, f *os.File) *cappedSlot {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[addr]++
	if !c.watched {
		c.watched = true
		go c.watch()
	}
	return &cappedSlot{c: c, addr: addr, f: f}
}

func (s *cappedSlot) release() {
	s.once.Do(func() {
		s.f.Close()
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		if s.c.open[s.addr]--; s.c.open[s.addr] == 0 {
			delete(s.c.open, s.addr)
		}
	})
}

// watch drops unused connections when others wait for one. It ends with the last connection.
func (c *connCap) watch() {
	tick := time.NewTicker(watchPoll)
	defer tick.Stop()
	for range tick.C {
		c.mu.Lock()
		hosts := make([]string, 0, len(c.open))
		for addr := range c.open {
			hosts = append(hosts, addr)
		}
		if len(hosts) == 0 {
			c.watched = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		for _, addr := range hosts {
			if c.isWaitedFor(addr) {
				c.idle()
				break
			}
		}
	}
}

func (c *connCap) isWaitedFor(addr string) bool {
	f, err := os.OpenFile(filepath.Join(c.dir, hexOf(addr)), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: waitByte, Len: 1}
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk) == nil && lk.Type != unix.F_UNLCK
}

// cappedConn is a connection that holds a slot.
type cappedConn struct {
	net.Conn
	slot *cappedSlot
}

func (c *cappedConn) Close() error {
	err := c.Conn.Close()
	c.slot.release()
	return err
}

// dialFunc makes connections.
type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// dial returns a dialer that keeps to the cap. A directory that cannot be used, on a full disk say, does not keep anyone from connecting.
func (c *connCap) dial(next dialFunc, log *slog.Logger) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		slot, err := c.acquire(ctx, addr)
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return nil, err
		case err != nil:
			log.Warn("connections are not counted", "error", err)
			return next(ctx, network, addr)
		}
		conn, err := next(ctx, network, addr)
		if err != nil {
			slot.release()
			return nil, err
		}
		return &cappedConn{conn, slot}, nil
	}
}
