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

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// repoName is a repository and the registry that has it: what one login is for.
type repoName struct{ host, repo string }

// repository is the source of images in one repository of a registry.
type repository struct {
	c     *Client
	name  repoName
	hedge *hedger

	mu        sync.Mutex
	access    *access                  // of the last login; nil before it and after it failed; guarded by mu
	locations map[digest.Digest]string // where a blob was redirected to; guarded by mu
}

// registryRef is a repository as the source of one reference.
type registryRef struct {
	*repository
	ref Reference
}

// access is a login that is under way, or done: done is closed then, and either client or err is set.
type access struct {
	done   chan struct{}
	client *http.Client
	scheme string
	err    error
}

func (c *Client) repository(ref Reference) *registryRef {
	n := repoName{ref.host, ref.repo}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.repos[n]
	if r == nil {
		r = &repository{c: c, name: n, hedge: newHedger(), locations: make(map[digest.Digest]string)}
		c.repos[n] = r
	}
	return &registryRef{r, ref}
}

// login returns the access to the repository; the first caller logs in, others wait for it.
func (r *repository) login(ctx context.Context) (*access, error) {
	for {
		r.mu.Lock()
		s := r.access
		if s == nil {
			s = &access{done: make(chan struct{})}
			r.access = s
			r.mu.Unlock()
			return s, r.lead(ctx, s)
		}
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.done:
		}
		// The one who logged in may have been interrupted: that is not our failure.
		if s.err == nil || !errors.Is(s.err, context.Canceled) && !errors.Is(s.err, context.DeadlineExceeded) {
			return s, s.err
		}
	}
}

// lead logs in for all who wait. A failure is told to them and forgotten: the next request tries again.
func (r *repository) lead(ctx context.Context, s *access) error {
	s.client, s.scheme, s.err = r.connect(ctx)
	if s.err != nil {
		r.mu.Lock()
		r.access = nil
		r.mu.Unlock()
	}
	close(s.done)
	return s.err
}

// connect finds out how the registry wants to be talked to. A registry on loopback that answers plain HTTP with TLS
// gets TLS: that is never less safe.
func (r *repository) connect(ctx context.Context) (*http.Client, string, error) {
	if !r.c.opts.PlainHTTP && !isLoopback(r.name.host) {
		client, err := r.connectBy(ctx, "https")
		return client, "https", err
	}
	client, err := r.connectBy(ctx, "http")
	var mismatch *SchemeError
	if errors.As(err, &mismatch) && !r.c.opts.PlainHTTP {
		client, err = r.connectBy(ctx, "https")
		return client, "https", err
	}
	return client, "http", err
}

func (r *repository) connectBy(ctx context.Context, scheme string) (*http.Client, error) {
	var options []name.Option
	if scheme == "http" {
		options = append(options, name.Insecure)
	}
	registry, err := name.NewRegistry(r.name.host, options...)
	if err != nil {
		return nil, err
	}
	repo := registry.Repo(r.name.repo)
	auth, err := authn.Resolve(ctx, r.c.opts.Keychain, repo)
	if err != nil {
		return nil, fmt.Errorf("look up the credentials for %s: %w", r.name.host, err)
	}
	gate := &schemeGate{next: r.c.roundTripper(), host: registry.RegistryStr(), scheme: scheme}
	base := &tokenGate{next: gate, host: registry.RegistryStr(), asked: map[string]*tokenAsked{}}
	rt, err := transport.NewWithContext(ctx, registry, auth, base, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, r.explain(ctx, err)
	}
	return &http.Client{Transport: rt}, nil
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

func (r *repository) registryHost() string {
	if r.name.host == dockerHub {
		return name.DefaultRegistry
	}
	return r.name.host
}

// get sends a GET for a path of the repository and returns the response whatever its status.
func (r *repository) get(ctx context.Context, path string, header http.Header) (*http.Response, error) {
	s, err := r.login(ctx)
	if err != nil {
		return nil, err
	}
	url := s.scheme + "://" + r.registryHost() + "/v2/" + r.name.repo + "/" + path
	resp, err := r.c.do(ctx, s.client, url, header)
	if err != nil {
		return nil, r.explain(ctx, err)
	}
	return resp, nil
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
	resp, err := client.Do(req)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = &stallBody{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, after: c.opts.StallTimeout}
	return resp, nil
}

// getAll gets a small body whole. what names it in a NotFoundError.
func (r *repository) getAll(ctx context.Context, path, accept, what string, limit int64) (body []byte, contentType string, err error) {
	for try := 1; ; try++ {
		header := http.Header{}
		if accept != "" {
			header.Set("Accept", accept)
		}
		resp, err := r.get(ctx, path, header)
		if err != nil {
			return nil, "", err
		}
		if resp.StatusCode != http.StatusOK {
			return nil, "", r.statusError(resp, what)
		}
		body, err := r.readAll(ctx, resp, what, limit)
		if err == nil || try >= r.c.opts.Tries || !Temporary(err) {
			return body, resp.Header.Get("Content-Type"), err
		}
		if err := r.c.wait(ctx, try, 0); err != nil {
			return nil, "", err
		}
	}
}

func (r *repository) readAll(ctx context.Context, resp *http.Response, what string, limit int64) ([]byte, error) {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, r.explainBody(ctx, err)
	}
	if int64(len(body)) > limit {
		return nil, imageErrorf("%s has more than the %d bytes that are allowed", what, limit)
	}
	return body, nil
}

func (r *registryRef) root(ctx context.Context) ([]byte, string, error) {
	id := r.ref.tag
	if r.ref.digest != "" {
		id = string(r.ref.digest)
	}
	return r.getManifest(ctx, id)
}

func (r *registryRef) manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, string, error) {
	return r.getManifest(ctx, string(d.Digest))
}

func (r *registryRef) getManifest(ctx context.Context, id string) ([]byte, string, error) {
	return r.getAll(ctx, "manifests/"+id, manifestTypes, r.manifestName(id), maxManifestSize)
}

func (r *registryRef) manifestName(id string) string {
	if id == r.ref.tag || id == string(r.ref.digest) {
		return r.ref.String()
	}
	return r.ref.Repository() + "@" + id
}

func (r *registryRef) config(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	raw, _, err := r.getAll(ctx, "blobs/"+string(d.Digest), "", "blob "+string(d.Digest), maxConfigSize)
	return raw, err
}

func (r *registryRef) blob(d ocispec.Descriptor) Blob {
	return &registryBlob{repo: r.repository, desc: d}
}

// hedgedBlob is getBlob, with a second try beside the first when that is late.
func (r *repository) hedgedBlob(ctx context.Context, d digest.Digest, header http.Header) (*http.Response, error) {
	after := r.c.opts.HedgeAfter
	if after < 0 {
		return r.getBlob(ctx, d, header)
	}
	if after == 0 {
		after = r.hedge.after()
	}
	return r.hedge.do(ctx, after, func(ctx context.Context) (*http.Response, error) { return r.getBlob(ctx, d, header) })
}

// getBlob sends a GET for a blob. Where the registry redirects to is remembered, so that the reads to come save a
// round trip; such addresses expire, and then the registry is asked again.
func (r *repository) getBlob(ctx context.Context, d digest.Digest, header http.Header) (*http.Response, error) {
	if resp := r.getRemembered(ctx, d, header); resp != nil {
		return resp, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	resp, err := r.get(ctx, "blobs/"+string(d), header)
	if err != nil {
		return nil, err
	}
	if url := resp.Request.URL; url.Host != r.registryHost() && isSuccess(resp) {
		r.mu.Lock()
		r.locations[d] = url.String()
		r.mu.Unlock()
	}
	return resp, nil
}

// getRemembered asks where the blob was last redirected to, without the login; nil when that does not work (any more).
func (r *repository) getRemembered(ctx context.Context, d digest.Digest, header http.Header) *http.Response {
	r.mu.Lock()
	location := r.locations[d]
	r.mu.Unlock()
	if location == "" {
		return nil
	}
	resp, err := r.c.do(ctx, &http.Client{Transport: r.c.roundTripper()}, location, header)
	if err == nil && isSuccess(resp) {
		return resp
	}
	if err == nil {
		discard(resp)
	}
	r.mu.Lock()
	if r.locations[d] == location {
		delete(r.locations, d)
	}
	r.mu.Unlock()
	return nil
}

func isSuccess(resp *http.Response) bool {
	return resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent
}
