// Package slowlink is a slow network link inside the process: a port on loopback whose connections reach a server
// through a shared rate and a delay. It keeps to what a user notices, bandwidth, round trips and the handshake of a
// connection; TCP's slow start and losses are left out.
package slowlink

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Link is a link that is up. For each connection and direction one goroutine reads pieces and gives each its time of
// arrival, and one sleeps until then and writes.
type Link struct {
	listener net.Listener
	server   string        // address
	rtt      time.Duration // round-trip time
	up, down lane
	received atomic.Int64 // bytes that came down

	wg    sync.WaitGroup
	mu    sync.Mutex
	conns map[net.Conn]bool // guarded by mu; nil after Close
}

const (
	pieceSize = 16 << 10 // bytes that are sent at once: what competing connections wait for each other
	queueLen  = 32       // pieces on their way, for each connection

	// Of an Ethernet frame's 1538 bytes on the wire, 1460 are payload.
	wirePerPayload = 1538.0 / 1460
)

// New opens a link to server, a TCP address.
func New(server string, bitsPerSecond float64, rtt time.Duration) (*Link, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("open the link: %w", err)
	}
	rate := bitsPerSecond / 8
	l := &Link{
		listener: ln, server: server, rtt: rtt,
		up: lane{rate: rate}, down: lane{rate: rate},
		conns: make(map[net.Conn]bool),
	}
	l.wg.Go(l.accept)
	return l, nil
}

// Addr is where clients find the server.
func (l *Link) Addr() string { return l.listener.Addr().String() }

// Close ends all connections and waits until nothing of the link runs any more.
func (l *Link) Close() {
	l.listener.Close()
	l.mu.Lock()
	for c := range l.conns {
		c.Close()
	}
	l.conns = nil
	l.mu.Unlock()
	l.wg.Wait()
}

// Received returns the bytes that have come down to the clients, without framing.
func (l *Link) Received() int64 { return l.received.Load() }

func (l *Link) accept() {
	for {
		client, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() { l.connect(client) })
	}
}

// connect carries one connection until both directions have ended.
func (l *Link) connect(client net.Conn) {
	defer l.drop(client)
	// The kernel has done the handshake with the client at once: the first byte pays for it.
	established := time.Now().Add(l.rtt)
	server, err := net.Dial("tcp", l.server)
	if err != nil {
		return
	}
	defer l.drop(server)
	if !l.keep(client, server) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { l.carry(server, client, &l.up, established, nil) })
	both.Go(func() { l.carry(client, server, &l.down, established, &l.received) })
	both.Wait()
}

// keep registers connections for Close; false after it.
func (l *Link) keep(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		return false
	}
	for _, c := range conns {
		l.conns[c] = true
	}
	return true
}

func (l *Link) drop(c net.Conn) {
	c.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

// piece is some bytes and when the last of them arrives.
type piece struct {
	data []byte
	at   time.Time
}

// carry brings bytes from src to dst until src ends, then ends dst's direction. count may be nil.
func (l *Link) carry(dst, src net.Conn, via *lane, earliest time.Time, count *atomic.Int64) {
	pieces := make(chan piece, queueLen)
	go func() {
		defer close(pieces)
		for {
			buf := make([]byte, pieceSize)
			n, err := src.Read(buf)
			if n > 0 {
				now := time.Now()
				if now.Before(earliest) {
					now = earliest
				}
				pieces <- piece{buf[:n], via.send(now, n).Add(l.rtt / 2)}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range pieces {
		time.Sleep(time.Until(p.at))
		if _, err := dst.Write(p.data); err != nil {
			src.Close() // ends the reader
			continue
		}
		if count != nil {
			count.Add(int64(len(p.data)))
		}
	}
	if c, ok := dst.(*net.TCPConn); ok {
		c.CloseWrite()
	}
}

// lane is one direction of the link: bytes of all connections leave one after another.
type lane struct {
	rate float64 // bytes per second on the wire

	mu   sync.Mutex
	free time.Time // when the last byte so far has left; guarded by mu
}

// send says when n bytes that are given to the lane now have left it.
func (l *lane) send(now time.Time, n int) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) * wirePerPayload / l.rate * float64(time.Second)))
	return l.free
}
