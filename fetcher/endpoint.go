package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
)

// endpoint is a repository at one host.
type endpoint struct {
	c    *Client
	host *host
	name repoName // what the repository is called, and of which registry it is
	base http.RoundTripper

	mu        sync.Mutex
	scheme    string                   // guarded by mu
	access    *access                  // guarded by mu; the last, or the one that is being made
	locations map[digest.Digest]string // where a blob was redirected to; guarded by mu
	failures  int                      // in a row; guarded by mu
	restUntil time.Time                // others are asked before it until then; guarded by mu
}

// access is a way in: anonymous at first, or a login that is under way or done: done is closed then, and either client or err is set.
type access struct {
	anonymous bool
	done      chan struct{}
	client    *http.Client
	err       error
}

func (c *Client) newEndpoint(h *host, n repoName) *endpoint {
	e := &endpoint{c: c, host: h, name: n, scheme: h.scheme, locations: make(map[digest.Digest]string)}
	if e.scheme == "" {
		e.scheme = "https"
		if c.opts.PlainHTTP || isLoopback(h.addr) {
			e.scheme = "http"
		}
	}
	e.base = &hostGate{e: e, next: c.roundTripper(c.transport(h))}
	return e
}

// isLoopback reports whether host[:port] is this machine.
func isLoopback(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// get sends a GET for a path of the repository and returns the response whatever its status, but for one that a login can change.
//
// The host is asked without a login first. What it wants it says with that answer, so no other request has to find out.
func (e *endpoint) get(ctx context.Context, path string, header http.Header) (*http.Response, error) {
	a, err := e.enter(ctx, nil, nil)
	for {
		if err != nil {
			return nil, err
		}
		resp, err2 := e.c.do(ctx, a.client, e.url(path), header)
		var mismatch *SchemeError
		switch {
		case errors.As(err2, &mismatch) && e.toTLS():
			continue
		case err2 != nil:
			return nil, e.explain(ctx, err2)
		case resp.StatusCode != http.StatusUnauthorized || !a.anonymous:
			return resp, nil
		}
		challenge := resp.Header.Values("WWW-Authenticate")
		discard(resp)
		a, err = e.enter(ctx, a, challenge)
	}
}

// toTLS turns to HTTPS where plain HTTP was only tried because the host is on loopback: that is never less safe.
func (e *endpoint) toTLS() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.host.scheme != "" || e.c.opts.PlainHTTP || e.scheme == "https" {
		return false
	}
	e.scheme = "https"
	return true
}

func (e *endpoint) currentScheme() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.scheme
}

func (e *endpoint) url(path string) string {
	u := e.currentScheme() + "://" + e.host.addr + e.host.root + "/" + e.name.repo + "/" + path
	if e.host.mirror {
		u += "?ns=" + e.name.host // tells a mirror of many registries which one is meant
	}
	return u
}

// enter returns the way in after old, which was refused with a challenge. The first caller logs in, others wait for it.
func (e *endpoint) enter(ctx context.Context, old *access, challenge []string) (*access, error) {
	for {
		e.mu.Lock()
		a := e.access
		switch {
		case a == nil && old == nil:
			a = &access{anonymous: true, done: make(chan struct{}), client: &http.Client{Transport: e.base}}
			close(a.done)
			e.access = a
		case a == nil || a == old:
			a = &access{done: make(chan struct{})}
			e.access = a
			e.mu.Unlock()
			return a, e.lead(ctx, a, challenge)
		}
		e.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-a.done:
		}
		// The one who logged in may have been interrupted: that is not our failure.
		if a.err == nil || !errors.Is(a.err, context.Canceled) && !errors.Is(a.err, context.DeadlineExceeded) {
			return a, a.err
		}
	}
}

// lead logs in for all who wait. A failure is told to them and forgotten: the next request begins again.
func (e *endpoint) lead(ctx context.Context, a *access, challenge []string) error {
	a.client, a.err = e.login(ctx, challenge)
	if a.err != nil {
		e.mu.Lock()
		e.access = nil
		e.mu.Unlock()
	}
	close(a.done)
	return a.err
}

func (e *endpoint) login(ctx context.Context, challenge []string) (*http.Client, error) {
	var options []name.Option
	if e.currentScheme() == "http" {
		options = append(options, name.Insecure)
	}
	registry, err := name.NewRegistry(e.host.addr, options...)
	if err != nil {
		return nil, err
	}
	repo := registry.Repo(e.name.repo)
	auth, err := authn.Resolve(ctx, e.c.opts.Keychain, repo)
	if err != nil {
		return nil, fmt.Errorf("look up the credentials for %s: %w", e.host.addr, err)
	}
	gate := &tokenGate{next: e.base, host: registry.RegistryStr(), asked: map[string]*tokenAsked{}}
	known := &knownChallenge{next: gate, scheme: e.currentScheme(), challenge: challenge}
	rt, err := transport.NewWithContext(ctx, registry, auth, known, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, e.explain(ctx, err)
	}
	return &http.Client{Transport: rt}, nil
}

// knownChallenge answers the first request of a login, for /v2/, which is to find out what the host wants: it has said so.
type knownChallenge struct {
	next      http.RoundTripper
	scheme    string
	challenge []string
}

func (k *knownChallenge) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Path != "/v2/" {
		return k.next.RoundTrip(req)
	}
	if req.URL.Scheme != k.scheme {
		return nil, fmt.Errorf("%s is not used with %s", req.URL.Scheme, req.URL.Host)
	}
	return &http.Response{
		Status: statusText(http.StatusUnauthorized), StatusCode: http.StatusUnauthorized, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Www-Authenticate": k.challenge}, Body: http.NoBody, Request: req,
	}, nil
}

// hostGate lets requests to its host pass by one scheme only, which the login might change, and gives them the headers that are configured for it.
// No other host gets those.
type hostGate struct {
	e    *endpoint
	next http.RoundTripper
}

func (g *hostGate) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host != g.e.host.addr {
		return g.next.RoundTrip(req)
	}
	if req.URL.Scheme != g.e.currentScheme() {
		return nil, fmt.Errorf("%s is not used with registry %s", req.URL.Scheme, req.URL.Host)
	}
	if len(g.e.host.header) > 0 {
		req = req.Clone(req.Context())
		for key, values := range g.e.host.header {
			req.Header[key] = values
		}
	}
	return g.next.RoundTrip(req)
}

// do sends a GET. The body of the answer must be closed; it ends with an error when nothing comes for too long.
func (c *Client) do(ctx context.Context, client *http.Client, url string, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	req.Header = header.Clone()
	if req.Header.Get(purposeMark) == "" {
		req.Header.Set(purposeMark, forOther)
	}
	resp, err := client.Do(req)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = &stallBody{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, after: c.opts.StallTimeout}
	return resp, nil
}

// readAll reads a small body whole. what names it.
func (e *endpoint) readAll(ctx context.Context, resp *http.Response, what string, limit int64) ([]byte, error) {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, e.explainBody(ctx, err)
	}
	if int64(len(body)) > limit {
		return nil, imageErrorf("%s has more than the %d bytes that are allowed", what, limit)
	}
	return body, nil
}

// getBlob sends a GET for a blob. Where the host redirects to is remembered, so that the reads to come save a
// round trip; such addresses expire, and then the host is asked again.
func (e *endpoint) getBlob(ctx context.Context, d digest.Digest, header http.Header) (*http.Response, error) {
	if resp := e.getRemembered(ctx, d, header); resp != nil {
		return resp, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	resp, err := e.get(ctx, "blobs/"+string(d), header)
	if err != nil {
		return nil, err
	}
	if url := resp.Request.URL; url.Host != e.host.addr && isSuccess(resp) {
		e.mu.Lock()
		e.locations[d] = url.String()
		e.mu.Unlock()
	}
	return resp, nil
}

// getRemembered asks where the blob was last redirected to, without the login; nil when that does not work (any more).
func (e *endpoint) getRemembered(ctx context.Context, d digest.Digest, header http.Header) *http.Response {
	e.mu.Lock()
	location := e.locations[d]
	e.mu.Unlock()
	if location == "" {
		return nil
	}
	resp, err := e.c.do(ctx, &http.Client{Transport: e.base}, location, header)
	if err == nil && isSuccess(resp) {
		return resp
	}
	if err == nil {
		discard(resp)
	}
	e.mu.Lock()
	if e.locations[d] == location {
		delete(e.locations, d)
	}
	e.mu.Unlock()
	return nil
}

func isSuccess(resp *http.Response) bool {
	return resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent
}

// The rest of a host that failed grows with its failures in a row.
const (
	firstRest = 5 * time.Second
	maxRest   = 5 * time.Minute
)

// judge notes how the host did: one that fails is asked after others for a while. That it does not have something is no failure.
func (e *endpoint) judge(err error) {
	var missing *NotFoundError
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil || errors.As(err, &missing) {
		e.failures, e.restUntil = 0, time.Time{}
		return
	}
	e.restUntil = time.Now().Add(min(maxRest, firstRest<<min(e.failures, 10)))
	e.failures++
}

// distrust lets the host rest for as long as that can be.
func (e *endpoint) distrust() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failures, e.restUntil = e.failures+1, time.Now().Add(maxRest)
}

func (e *endpoint) isResting() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return time.Now().Before(e.restUntil)
}

// registry returns the name by which the user logs in.
func (e *endpoint) registry() string {
	if e.host.mirror {
		return e.host.addr
	}
	return e.name.host
}
