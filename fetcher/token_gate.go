package fetcher

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// tokenGate sits below the login, which fetches a new token for every request that is answered with 401. When a token expires under load that
// would be one token for each request under way. The gate answers a request for a token with the last one, until that was refused; lets
// equal ones share one answer; and repeats a request that was refused with an old token when a newer one has come meanwhile.
type tokenGate struct {
	next http.RoundTripper
	host string // the registry's; what goes elsewhere has no token of its

	mu      sync.Mutex
	token   string                 // guarded by mu; the last that was given out; "" before
	refused string                 // guarded by mu; the last that was refused although it was the newest
	asked   map[string]*tokenAsked // guarded by mu; under way or answered with a token, by what tells requests for a token apart
}

// tokenAsked is a request for a token that is under way, or done: done is closed then.
type tokenAsked struct {
	done   chan struct{}
	status int
	header http.Header
	body   []byte
	token  string // in it
	err    error
}

// isUnderWay reports whether nobody has answered yet.
func (t *tokenAsked) isUnderWay() bool {
	select {
	case <-t.done:
		return false
	default:
		return true
	}
}

// tokenTimeout bounds a request for a token, which belongs to nobody: whoever began it may go away.
const tokenTimeout = time.Minute

const maxTokenAnswer = 64 << 10

func (g *tokenGate) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Header.Get(purposeMark) == "" { // it is not ours but the login's
		return g.askToken(req)
	}
	used, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	resp, err := g.next.RoundTrip(req)
	if err != nil || !ok || resp.StatusCode != http.StatusUnauthorized || req.URL.Host != g.host || req.Body != nil {
		return resp, err
	}
	newest := g.newerThan(used)
	if newest == "" {
		return resp, nil // the login asks for a new one
	}
	discard(resp)
	again := req.Clone(req.Context())
	again.Header.Set("Authorization", "Bearer "+newest)
	return g.next.RoundTrip(again)
}

// newerThan returns the last token that was given out, or "" when it is the one that was refused.
func (g *tokenGate) newerThan(refused string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.token == refused {
		g.refused = refused
		return ""
	}
	return g.token
}

// askToken sends req, or waits for the answer to an equal one that is under way.
func (g *tokenGate) askToken(req *http.Request) (*http.Response, error) {
	key, err := tokenKey(req)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	t := g.asked[key]
	if t == nil || !t.isUnderWay() && t.token == g.refused {
		t = &tokenAsked{done: make(chan struct{})}
		g.asked[key] = t
		go g.lead(req, key, t)
	}
	g.mu.Unlock()
	select {
	case <-t.done:
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	if t.err != nil {
		return nil, t.err
	}
	return &http.Response{
		Status: statusText(t.status), StatusCode: t.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: t.header.Clone(), Body: io.NopCloser(bytes.NewReader(t.body)), ContentLength: int64(len(t.body)), Request: req,
	}, nil
}

// tokenKey returns what tells requests for a token apart, and leaves req with a body that can be read again.
func tokenKey(req *http.Request) (string, error) {
	var body []byte
	if req.Body != nil {
		var err error
		body, err = io.ReadAll(io.LimitReader(req.Body, maxTokenAnswer))
		req.Body.Close()
		if err != nil {
			return "", err
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	return strings.Join([]string{req.Method, req.URL.String(), req.Header.Get("Authorization"), string(body)}, "\n"), nil
}

func (g *tokenGate) lead(req *http.Request, key string, t *tokenAsked) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(req.Context()), tokenTimeout)
	defer cancel()
	resp, err := g.next.RoundTrip(req.Clone(ctx))
	if err == nil {
		t.status, t.header = resp.StatusCode, resp.Header
		t.body, err = io.ReadAll(io.LimitReader(resp.Body, maxTokenAnswer))
		resp.Body.Close()
	}
	t.err = err
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.token = tokenIn(t); t.token != "" {
		g.token = t.token
	} else {
		delete(g.asked, key)
	}
	close(t.done)
}

// tokenIn returns the token of an answer, or "".
func tokenIn(t *tokenAsked) string {
	var answer struct {
		Token  string `json:"token"`
		Access string `json:"access_token"`
	}
	if t.err != nil || t.status != http.StatusOK || json.Unmarshal(t.body, &answer) != nil {
		return ""
	}
	if answer.Access != "" {
		return answer.Access
	}
	return answer.Token
}
