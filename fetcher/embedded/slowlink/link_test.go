package slowlink

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"
)

// echoServer sends back what it gets, after the client has ended its direction.
func echoServer(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if b, err := io.ReadAll(c); err == nil {
					c.Write(b)
				}
			}()
		}
	}()
	return ln.Addr().String()
}

func TestLinkCarriesAllBytesAndTheEnd(t *testing.T) {
	l, err := New(echoServer(t), 10e9, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	data := make([]byte, 3<<20+17)
	rand.NewChaCha8([32]byte{1}).Read(data)
	c, err := net.Dial("tcp", l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		c.Write(data)
		c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("got %d bytes back, %v, want the %d that were sent", len(got), err, len(data))
	}
	if n := l.Received(); n != int64(len(data)) {
		t.Errorf("the link counts %d bytes, want %d", n, len(data))
	}
}

func TestLinkEndsWithItsConnections(t *testing.T) {
	l, err := New(echoServer(t), 10e9, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	l.Close()     // returns only when all goroutines have ended
	io.ReadAll(c) // comes back, by an orderly end or a reset
	if again, err := net.Dial("tcp", l.Addr()); err == nil {
		again.Close()
		t.Error("the link still accepts connections")
	}
}

func TestLaneSendsOneAfterAnother(t *testing.T) {
	l := lane{rate: wirePerPayload * 1000} // 1000 bytes of payload a second
	start := time.Unix(0, 0)
	for _, c := range []struct {
		at   time.Duration // when it is given to the lane
		n    int
		want time.Duration // when it has left
	}{
		{0, 500, 500 * time.Millisecond},
		{0, 500, time.Second},                                  // waits for the first
		{900 * time.Millisecond, 100, 1100 * time.Millisecond}, // and for both
		{5 * time.Second, 1000, 6 * time.Second},               // an idle lane saves nothing up
	} {
		if got := l.send(start.Add(c.at), c.n).Sub(start); got.Round(time.Microsecond) != c.want {
			t.Errorf("%d bytes at %v have left at %v, want %v", c.n, c.at, got, c.want)
		}
	}
}
