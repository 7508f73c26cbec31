package fetchtest

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"

	"github.com/veneerfs/veneer/fetcher/embedded/slowlink"
)

// Registry is a registry on loopback. It takes pushes as well. Its methods may be called concurrently.
type Registry struct {
	Server *httptest.Server
	base   http.Handler // manifests and pushes

	mu       sync.Mutex
	blobs    map[digest.Digest][]byte // guarded by mu; the slices are never changed
	requests []*Request               // guarded by mu
	faults   []*Fault                 // guarded by mu; the last one is asked first
	auth     *auth                    // guarded by mu

	connections, most int // guarded by mu; open now, and at most so far
}

func (r *Registry) countConnections(_ net.Conn, state http.ConnState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch state {
	case http.StateNew:
		r.connections++
		r.most = max(r.most, r.connections)
	case http.StateClosed, http.StateHijacked:
		r.connections--
	}
}

// MostConnections returns how many connections there were at a time, at most.
func (r *Registry) MostConnections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.most
}

// Request is one request as the registry saw it.
type Request struct {
	Method string
	Path   string
	Query  string
	Range  string      // the header
	Header http.Header // all of it
	Status int         // 0 while there is no answer yet, and when the connection was cut before it
	Bytes  int64       // of the body, sent so far
}

// IsBlob reports whether r asks for a blob: a config or a layer.
func (r Request) IsBlob() bool { return strings.Contains(r.Path, "/blobs/") }

// Digest returns the digest at the end of the path, or "".
func (r Request) Digest() digest.Digest {
	d := digest.Digest(r.Path[strings.LastIndexByte(r.Path, '/')+1:])
	if d.Validate() != nil {
		return ""
	}
	return d
}

// NewRegistry starts a registry that speaks plain HTTP. It ends with the test.
func NewRegistry(t testing.TB) *Registry {
	r := newRegistry()
	r.Server = httptest.NewUnstartedServer(r)
	r.Server.Config.ConnState = r.countConnections
	r.Server.Start()
	t.Cleanup(r.close)
	return r
}

// NewTLSRegistry starts a registry that speaks HTTPS, by a certificate that nobody trusts (see Server.Certificate).
func NewTLSRegistry(t testing.TB) *Registry {
	r := newRegistry()
	r.Server = httptest.NewUnstartedServer(r)
	r.Server.EnableHTTP2 = true
	r.Server.Config.ConnState = r.countConnections
	r.Server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that clients break off
	r.Server.StartTLS()
	t.Cleanup(r.close)
	return r
}

func newRegistry() *Registry {
	r := &Registry{blobs: make(map[digest.Digest][]byte)}
	r.base = registry.New(registry.WithBlobHandler(pushedBlobs{r}), registry.Logger(log.New(io.Discard, "", 0)))
	return r
}

func (r *Registry) close() {
	r.Server.CloseClientConnections()
	r.Server.Close()
}

// Host returns the registry's name in references: "127.0.0.1:39251".
func (r *Registry) Host() string {
	u, err := url.Parse(r.Server.URL)
	if err != nil {
		panic(err) // httptest made it
	}
	return u.Host
}

// Slow returns the registry's name behind a link of that speed and round-trip time, which is up until the test ends.
func (r *Registry) Slow(t testing.TB, bitsPerSecond float64, rtt time.Duration) string {
	t.Helper()
	link, err := slowlink.New(r.Host(), bitsPerSecond, rtt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(link.Close)
	return link.Addr()
}

// Push stores an image under name, "app:1" or "team/app:1", and returns the whole reference.
func (r *Registry) Push(t testing.TB, name string, img *Image) string {
	t.Helper()
	r.push(t, name, img.build(t))
	return r.Host() + "/" + name
}

// PushIndex stores an index of images, by their platforms, and returns the whole reference.
func (r *Registry) PushIndex(t testing.TB, name string, images ...*Image) string {
	t.Helper()
	docker := len(images) > 0 && images[0].Docker
	r.push(t, name, buildIndex(t, docker, images))
	return r.Host() + "/" + name
}

// PushManifest stores any document as the manifest of name and returns the whole reference.
func (r *Registry) PushManifest(t testing.TB, name, mediaType string, raw []byte) string {
	t.Helper()
	repo, tag := splitName(name)
	r.put(t, repo, tag, mediaType, raw)
	return r.Host() + "/" + name
}

// PushBlob stores a blob, which all repositories have then.
func (r *Registry) PushBlob(raw []byte) digest.Digest {
	d := digest.FromBytes(raw)
	r.setBlob(d, raw)
	return d
}

func (r *Registry) push(t testing.TB, name string, b built) {
	t.Helper()
	repo, tag := splitName(name)
	for _, c := range append(b.child, b) {
		for d, raw := range c.blobs {
			r.setBlob(d, raw)
		}
	}
	for _, c := range b.child {
		r.put(t, repo, c.desc.Digest.String(), c.desc.MediaType, c.raw)
	}
	r.put(t, repo, tag, b.desc.MediaType, b.raw)
}

func splitName(name string) (repo, tag string) {
	repo, tag, ok := strings.Cut(name, ":")
	if !ok {
		tag = "latest"
	}
	return repo, tag
}

// put gives the manifest to the registry without a request that anyone sees.
func (r *Registry) put(t testing.TB, repo, target, mediaType string, raw []byte) {
	t.Helper()
	req := httptest.NewRequest(http.MethodPut, "/v2/"+repo+"/manifests/"+target, bytes.NewReader(raw))
	req.Header.Set("Content-Type", mediaType)
	w := httptest.NewRecorder()
	r.base.ServeHTTP(w, req)
	if w.Code != http.StatusCreated {
		t.Fatalf("push manifest %s of %s: %d %s", target, repo, w.Code, w.Body)
	}
}

// FlipByte inverts the byte of a blob at off; a second call makes it whole again.
func (r *Registry) FlipByte(t testing.TB, d digest.Digest, off int64) {
	t.Helper()
	r.ReplaceBlob(t, d, func(b []byte) []byte {
		b[off] = ^b[off]
		return b
	})
}

// ReplaceBlob lets edit change a copy of a blob that is served under its old digest from now on.
func (r *Registry) ReplaceBlob(t testing.TB, d digest.Digest, edit func([]byte) []byte) {
	t.Helper()
	raw, ok := r.getBlob(d)
	if !ok {
		t.Fatalf("there is no blob %s", d)
	}
	r.setBlob(d, edit(bytes.Clone(raw)))
}

// DeleteBlob makes the registry forget a blob.
func (r *Registry) DeleteBlob(d digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.blobs, d)
}

func (r *Registry) setBlob(d digest.Digest, raw []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[d] = raw
}

func (r *Registry) getBlob(d digest.Digest) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	raw, ok := r.blobs[d]
	return raw, ok
}

// Requests returns what was asked since the start or ForgetRequests, in the order in which it came.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]Request, len(r.requests))
	for i, q := range r.requests {
		list[i] = *q
	}
	return list
}

// RequestsFor returns those of them that asked for a blob or manifest by one of these digests.
func (r *Registry) RequestsFor(digests ...digest.Digest) []Request {
	var list []Request
	for _, q := range r.Requests() {
		if slices.Contains(digests, q.Digest()) {
			list = append(list, q)
		}
	}
	return list
}

// LayerRequests returns those of them that asked for a layer of img.
func (r *Registry) LayerRequests(img *Image) []Request {
	var digests []digest.Digest
	for _, l := range img.Layers {
		digests = append(digests, l.Descriptor.Digest)
	}
	return r.RequestsFor(digests...)
}

// ForgetRequests empties the log.
func (r *Registry) ForgetRequests() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
}

// ServeHTTP logs the request, asks the faults from the newest on, then the login, then the registry.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	q := &Request{Method: req.Method, Path: req.URL.Path, Query: req.URL.RawQuery, Range: req.Header.Get("Range"), Header: req.Header.Clone()}
	r.mu.Lock()
	r.requests = append(r.requests, q)
	faults := slices.Clone(r.faults)
	r.mu.Unlock()

	handler := http.Handler(http.HandlerFunc(r.serve))
	for _, f := range faults {
		handler = (*f)(handler)
	}
	handler.ServeHTTP(&loggedWriter{ResponseWriter: w, r: r, q: q}, req)
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	if !r.admit(w, req) {
		return
	}
	read := req.Method == http.MethodGet || req.Method == http.MethodHead
	if q := (Request{Path: req.URL.Path}); read && q.IsBlob() && q.Digest() != "" {
		r.serveBlob(w, req)
		return
	}
	r.base.ServeHTTP(w, req)
}

func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request) {
	raw, ok := r.getBlob(Request{Path: req.URL.Path}.Digest())
	if !ok {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}`)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(raw))
}

// loggedWriter tells the log of the answer.
type loggedWriter struct {
	http.ResponseWriter
	r *Registry
	q *Request
}

// Unwrap is for http.ResponseController.
func (w *loggedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *loggedWriter) WriteHeader(status int) {
	w.r.mu.Lock()
	w.q.Status = status
	w.r.mu.Unlock()
	w.ResponseWriter.WriteHeader(status)
}

func (w *loggedWriter) Write(p []byte) (int, error) {
	w.r.mu.Lock()
	if w.q.Status == 0 {
		w.q.Status = http.StatusOK
	}
	w.r.mu.Unlock()
	n, err := w.ResponseWriter.Write(p)
	w.r.mu.Lock()
	w.q.Bytes += int64(n)
	w.r.mu.Unlock()
	return n, err
}

// pushedBlobs is where go-containerregistry's registry puts what clients push.
type pushedBlobs struct{ r *Registry }

func (p pushedBlobs) Get(_ context.Context, _ string, h v1.Hash) (io.ReadCloser, error) {
	raw, ok := p.r.getBlob(digest.Digest(h.String()))
	if !ok {
		return nil, registry.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(raw)), nil
}

func (p pushedBlobs) Stat(_ context.Context, _ string, h v1.Hash) (int64, error) {
	raw, ok := p.r.getBlob(digest.Digest(h.String()))
	if !ok {
		return 0, registry.ErrNotFound
	}
	return int64(len(raw)), nil
}

func (p pushedBlobs) Put(_ context.Context, _ string, h v1.Hash, rc io.ReadCloser) error {
	defer rc.Close()
	raw, err := io.ReadAll(rc)
	if err != nil {
		return err
	}
	p.r.setBlob(digest.Digest(h.String()), raw)
	return nil
}
