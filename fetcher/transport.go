package fetcher

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A request passes, from the outside in:
//
//	http.Client     redirects
//	login           go-containerregistry's transport: token or password, only to the registry itself
//	tokenGate       one new token for all who need one
//	hostGate        only the scheme that was chosen for the host, and the headers configured for it
//	retryTransport  tries again what may be tried again
//	wireTransport   counts, gives errors their types
//	http.Transport  connections

const (
	dialTimeout    = 10 * time.Second
	tlsTimeout     = 10 * time.Second
	headerTimeout  = 30 * time.Second // from the end of the request to the header of the answer
	idleTimeout    = 90 * time.Second
	maxBackoff     = 5 * time.Second
	maxRetryAfter  = 30 * time.Second // a registry that wants a longer pause than this gets to say so to the user
	purposeMark    = "Veneer-Purpose" // inside this process, what a request of ours is for; never sent
	forLayer       = "layer"
	forOther       = "other"
	maxErrorDetail = 64 << 10
)

// transport returns the connections to h and its like.
func (c *Client) transport(h *host) *http.Transport {
	if h.tls == nil && h.dial == 0 {
		return c.http
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.special[h]
	if t == nil {
		t = c.newHTTPTransport(h.tls, h.dial)
		c.special[h] = t
	}
	return t
}

func (c *Client) newHTTPTransport(tls *tls.Config, dial time.Duration) *http.Transport {
	if dial == 0 {
		dial = dialTimeout
	}
	dialer := &net.Dialer{Timeout: dial, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           c.capped(dialer.DialContext),
		TLSClientConfig:       tls,
		MaxConnsPerHost:       c.opts.Connections,
		TLSHandshakeTimeout:   tlsTimeout,
		ResponseHeaderTimeout: headerTimeout,
		IdleConnTimeout:       idleTimeout,
		MaxIdleConnsPerHost:   c.opts.Connections,
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
		DisableCompression:    true, // blobs are addressed by the digest of the bytes as they are
	}
}

// capped returns a dialer that keeps to the number of connections that all may have.
func (c *Client) capped(dial dialFunc) dialFunc {
	if c.cap == nil {
		return dial
	}
	return c.cap.dial(dial, c.opts.Log)
}

// roundTripper returns the chain below hostGate.
func (c *Client) roundTripper(t *http.Transport) http.RoundTripper {
	return &retryTransport{c: c, next: &wireTransport{c: c, next: t}}
}

// retryTransport repeats requests that change nothing, after answers and failures that are likely to pass. The last
// answer is returned as it is. A registry that is not there at all is not waited for: that is up to the caller.
type retryTransport struct {
	c    *Client
	next http.RoundTripper
}

func (t *retryTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	for try := 1; ; try++ {
		resp, err := t.next.RoundTrip(req)
		var after time.Duration
		switch {
		case req.Method != http.MethodGet && req.Method != http.MethodHead, try >= t.tries(req), req.Context().Err() != nil:
			return resp, err
		case err != nil && !transient(err):
			return nil, err
		case err == nil && !temporaryStatus(resp.StatusCode):
			return resp, nil
		case err == nil:
			if after = retryAfter(resp.Header, time.Now()); after > maxRetryAfter {
				return resp, nil
			}
			t.c.opts.Log.Debug("retry", "url", req.URL.Redacted(), "status", resp.StatusCode, "try", try)
			discard(resp)
		default:
			t.c.opts.Log.Debug("retry", "url", req.URL.Redacted(), "error", err, "try", try)
		}
		if err := t.c.wait(req.Context(), try, after); err != nil {
			return nil, err
		}
	}
}

func (t *retryTransport) tries(req *http.Request) int {
	if isImpatient(req.Context()) {
		return 1
	}
	return t.c.opts.Tries
}

// transient reports whether a connection broke that had been made.
func transient(err error) bool {
	var network *NetworkError
	if !errors.As(err, &network) {
		return false
	}
	var op *net.OpError
	dialed := !errors.As(err, &op) || op.Op != "dial"
	return dialed && !errors.Is(err, unix.ECONNREFUSED)
}

func temporaryStatus(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// retryAfter reads the header of that name, seconds or a date; 0 without one.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil && t.After(now) {
		return t.Sub(now)
	}
	return 0
}

// wait pauses before try+1: at least after, else twice as long each time, with jitter so that many clients do
// not come back together.
func (c *Client) wait(ctx context.Context, try int, after time.Duration) error {
	d := min(c.opts.Backoff<<min(try-1, 16), maxBackoff)
	d = max(d/2+rand.N(d/2+1), after)
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// discard reads the rest of an answer that is not wanted, if it is short, so that its connection can be used again.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, maxErrorDetail) // an error only costs the connection
	resp.Body.Close()
}

// wireTransport is nearest to the wire: it counts, and knows what an answer in the wrong protocol looks like.
type wireTransport struct {
	c    *Client
	next http.RoundTripper
}

func (t *wireTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	layer := req.Header.Get(purposeMark) == forLayer
	out := req.Clone(req.Context())
	out.Header.Del(purposeMark)
	out.Header.Set("User-Agent", t.c.opts.UserAgent)
	requests, received := &t.c.traffic.otherRequests, &t.c.traffic.otherBytes
	if layer {
		requests, received = &t.c.traffic.layerRequests, &t.c.traffic.layerBytes
	}
	requests.Add(1)
	resp, err := t.next.RoundTrip(out)
	if err != nil {
		if ctx := req.Context().Err(); ctx != nil {
			return nil, err
		}
		return nil, explainNetwork(req.URL.Host, err)
	}
	if err := checkPlainAnswer(resp); err != nil {
		return nil, err
	}
	resp.Request = req // not the clone: redirects and errors speak of what was asked
	resp.Body = &countingBody{ReadCloser: resp.Body, add: func(n int) { received.Add(int64(n)) }}
	return resp, nil
}

// checkPlainAnswer recognises what HTTPS servers answer to plain HTTP: 400 and a sentence about it. Otherwise the
// body is left as it was.
func checkPlainAnswer(resp *http.Response) error {
	if resp.Request.URL.Scheme != "http" || resp.StatusCode != http.StatusBadRequest {
		return nil
	}
	start, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // its error comes again for the one who reads the body
	text := strings.ToLower(string(start))
	if strings.Contains(text, "http request to an https server") || strings.Contains(text, "plain http request was sent to https port") {
		resp.Body.Close()
		return &SchemeError{Host: resp.Request.URL.Host, TLS: true}
	}
	resp.Body = readCloser{io.MultiReader(bytes.NewReader(start), resp.Body), resp.Body}
	return nil
}

type readCloser struct {
	io.Reader
	io.Closer
}

type countingBody struct {
	io.ReadCloser
	add func(int)
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.add(n)
	return n, err
}
