package fetchtest

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
)

// Fault stands in front of a registry and changes what it answers.
type Fault func(next http.Handler) http.Handler

// Use puts a fault in place and returns what takes it away again. The newest fault is the outermost one.
func (r *Registry) Use(f Fault) (remove func()) {
	p := &f
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, p)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.faults = slices.DeleteFunc(r.faults, func(q *Fault) bool { return q == p })
	}
}

// Only lets a fault act on the requests that match.
func Only(match func(*http.Request) bool, f Fault) Fault {
	return func(next http.Handler) http.Handler {
		faulty := f(next)
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if match(req) {
				faulty.ServeHTTP(w, req)
			} else {
				next.ServeHTTP(w, req)
			}
		})
	}
}

// OnlyBlobs lets a fault act on configs and layers.
func OnlyBlobs(f Fault) Fault {
	return Only(func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }, f)
}

// OnlyManifests lets a fault act on manifests and indexes.
func OnlyManifests(f Fault) Fault {
	return Only(func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }, f)
}

// OnlyFor lets a fault act on one blob or manifest.
func OnlyFor(d digest.Digest, f Fault) Fault {
	return Only(func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/"+string(d)) }, f)
}

// Next lets a fault act on the next n requests that reach it.
func Next(n int64, f Fault) Fault {
	var count atomic.Int64
	return Only(func(*http.Request) bool { return count.Add(1) <= n }, f)
}

// IgnoreRange answers ranged requests with the whole body.
func IgnoreRange() Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			req = req.Clone(req.Context())
			req.Header.Del("Range")
			next.ServeHTTP(w, req)
		})
	}
}

// Status answers with a status, and headers given as key, value, key, value.
func Status(status int, header ...string) Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			http.Error(w, http.StatusText(status), status)
		})
	}
}

// StatusNext is Next of Status.
func StatusNext(n int64, status int, header ...string) Fault {
	return Next(n, Status(status, header...))
}

// Truncate ends bodies after some bytes of what was announced, by closing the connection.
func Truncate(after int64) Fault {
	return bodyFault(after, func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
}

// TruncateNext is Next of Truncate.
func TruncateNext(n, after int64) Fault { return Next(n, Truncate(after)) }

// Reset resets the connection (RST) after so many bytes of the body; after 0 bytes, before any answer. Only
// for HTTP/1.
func Reset(after int64) Fault {
	cut := func(w http.ResponseWriter, _ *http.Request) bool {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		conn.Close()
		return false
	}
	if after > 0 {
		return bodyFault(after, cut)
	}
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { cut(w, req) })
	}
}

// ResetNext is Next of Reset.
func ResetNext(n, after int64) Fault { return Next(n, Reset(after)) }

// Hold is a fault that stops bodies after some bytes, until they are released or the client goes.
type Hold struct {
	Reached chan struct{} // gets one element for each body that stops

	after    int64
	once     sync.Once
	released chan struct{}
}

// NewHold makes a Hold. The test's end releases it.
func NewHold(t testing.TB, after int64) *Hold {
	h := &Hold{Reached: make(chan struct{}, 1000), after: after, released: make(chan struct{})}
	t.Cleanup(h.Release)
	return h
}

// Release lets all bodies go on.
func (h *Hold) Release() { h.once.Do(func() { close(h.released) }) }

// Fault is what to Use.
func (h *Hold) Fault() Fault {
	return bodyFault(h.after, func(w http.ResponseWriter, req *http.Request) bool {
		_ = http.NewResponseController(w).Flush()
		h.Reached <- struct{}{}
		select {
		case <-h.released:
		case <-req.Context().Done():
		}
		return true
	})
}

// Gate is a fault that holds requests until so many have come.
type Gate struct {
	left atomic.Int64
	open chan struct{}
}

// NewGate makes a Gate.
func NewGate(n int64) *Gate {
	g := &Gate{open: make(chan struct{})}
	g.left.Store(n)
	return g
}

// Fault is what to Use.
func (g *Gate) Fault() Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if g.left.Add(-1) == 0 {
				close(g.open)
			}
			select {
			case <-g.open:
			case <-req.Context().Done():
			}
			next.ServeHTTP(w, req)
		})
	}
}

// Trickle sends bodies in pieces of n bytes, each flushed.
func Trickle(n int) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			next.ServeHTTP(&trickleWriter{w, n}, req)
		})
	}
}

type trickleWriter struct {
	http.ResponseWriter
	n int
}

func (w *trickleWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *trickleWriter) Write(p []byte) (int, error) {
	written := 0
	for piece := range slices.Chunk(p, w.n) {
		n, err := w.ResponseWriter.Write(piece)
		written += n
		if err != nil {
			return written, err
		}
		_ = http.NewResponseController(w.ResponseWriter).Flush()
	}
	return written, nil
}

// SetHeader replaces a header of the answers: Content-Range, Content-Type, … An empty value removes it.
func SetHeader(key, value string) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			next.ServeHTTP(&headerWriter{ResponseWriter: w, key: key, value: value}, req)
		})
	}
}

type headerWriter struct {
	http.ResponseWriter
	key, value string
	done       bool
}

func (w *headerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *headerWriter) WriteHeader(status int) {
	if !w.done {
		w.done = true
		w.Header().Del(w.key)
		if w.value != "" {
			w.Header().Set(w.key, w.value)
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *headerWriter) Write(p []byte) (int, error) {
	if !w.done {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(p)
}

// bodyFault acts once after so many bytes of a body. The body goes on when act returns true; else the handler must
// not touch the connection any more.
func bodyFault(after int64, act func(http.ResponseWriter, *http.Request) bool) Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			next.ServeHTTP(&cutWriter{ResponseWriter: w, req: req, left: after, act: act}, req)
		})
	}
}

type cutWriter struct {
	http.ResponseWriter
	req   *http.Request
	left  int64
	act   func(http.ResponseWriter, *http.Request) bool
	acted bool
	dead  bool
}

func (w *cutWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *cutWriter) Write(p []byte) (int, error) {
	switch {
	case w.dead:
		return 0, net.ErrClosed
	case w.acted || int64(len(p)) < w.left:
		w.left -= int64(len(p))
		return w.ResponseWriter.Write(p)
	}
	n, err := w.ResponseWriter.Write(p[:w.left])
	if err != nil {
		return n, err
	}
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	w.acted = true
	if w.dead = !w.act(w.ResponseWriter, w.req); w.dead {
		return n, net.ErrClosed
	}
	m, err := w.ResponseWriter.Write(p[n:])
	return n + m, err
}

// BlobHost is another server, to which a registry redirects for blobs, as registries in front of an object store do.
// Like such a store it refuses requests that bring a login along.
type BlobHost struct {
	Server *httptest.Server
	r      *Registry

	mu       sync.Mutex
	requests []*Request // guarded by mu
	expired  bool       // guarded by mu
}

// RedirectBlobs makes the registry redirect all reads of blobs to another host.
func (r *Registry) RedirectBlobs(t testing.TB) *BlobHost {
	h := &BlobHost{r: r}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Server.Close)
	r.Use(Only(func(req *http.Request) bool {
		return req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/")
	}, h.redirect))
	return h
}

// redirect answers as the registry does, but to a read that it would serve by the address at the other host.
func (h *BlobHost) redirect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !h.r.admit(w, req) {
			return
		}
		h.mu.Lock()
		h.expired = false
		h.mu.Unlock()
		// By another name than the registry's, so that cookies and logins by host name would not fit either.
		u, err := url.Parse(h.Server.URL)
		if err != nil {
			panic(err)
		}
		u.Host = net.JoinHostPort("localhost", u.Port())
		http.Redirect(w, req, u.String()+req.URL.Path+"?signature=secret", http.StatusTemporaryRedirect)
	})
}

// Expire makes the addresses given out so far useless (403), until the registry gives out a new one.
func (h *BlobHost) Expire() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expired = true
}

// Requests returns what this host was asked.
func (h *BlobHost) Requests() []Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]Request, len(h.requests))
	for i, q := range h.requests {
		list[i] = *q
	}
	return list
}

// ServeHTTP serves the registry's blobs.
func (h *BlobHost) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	h.mu.Lock()
	h.requests = append(h.requests, &Request{
		Method: req.Method, Path: req.URL.Path, Range: req.Header.Get("Range"), Header: req.Header.Clone()})
	expired := h.expired
	h.mu.Unlock()
	if expired || req.URL.Query().Get("signature") != "secret" || req.Header.Get("Authorization") != "" {
		http.Error(w, "the signature does not do", http.StatusForbidden)
		return
	}
	h.r.serveBlob(w, req)
}
