package fetcher

import (
	"context"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// repoName is a repository and the registry that has it.
type repoName struct{ host, repo string }

// repository is the source of images in one repository of a registry: at the registry itself, and at its mirrors.
type repository struct {
	c     *Client
	name  repoName
	hedge *hedger

	// endpoints returns where it is, in the order in which they are tried. They are looked up when the first is needed.
	endpoints func() ([]*endpoint, error)
}

// registryRef is a repository as the source of one reference.
type registryRef struct {
	*repository
	ref Reference
}

func (c *Client) repository(ref Reference) *registryRef {
	n := repoName{ref.host, ref.repo}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.repos[n]
	if r == nil {
		r = &repository{c: c, name: n, hedge: newHedger()}
		r.endpoints = sync.OnceValues(r.findEndpoints)
		c.repos[n] = r
	}
	return &registryRef{r, ref}
}

func (r *repository) findEndpoints() ([]*endpoint, error) {
	hosts, err := findHosts(r.c.opts.CertsDirs, r.name.host)
	if err != nil {
		return nil, err
	}
	out := make([]*endpoint, len(hosts))
	for i, h := range hosts {
		out[i] = r.c.newEndpoint(h, r.name)
	}
	return out, nil
}

// capability is what a host must be trusted with.
type capability func(*host) bool

func canResolve(h *host) bool { return h.resolve }
func canPull(h *host) bool    { return h.pull }

// anywhere calls f for one host after the other until it succeeds: in the order of the configuration, but those that failed lately come last. The
// error is the registry's own, if that was asked.
func (r *repository) anywhere(ctx context.Context, can capability, f func(context.Context, *endpoint) error) error {
	all, err := r.endpoints()
	if err != nil {
		return err
	}
	var fit, resting []*endpoint
	for _, e := range all {
		switch {
		case !can(e.host):
		case e.isResting():
			resting = append(resting, e)
		default:
			fit = append(fit, e)
		}
	}
	fit = append(fit, resting...)
	if len(fit) == 0 {
		return &ResponseError{Host: r.name.host, Reason: "no host is configured that may be asked for this"}
	}
	if isSecondTry(ctx) && len(fit) > 1 {
		fit = append(fit[1:], fit[0]) // the first is what is waited for
	}
	var failed error
	for i, e := range fit {
		err := f(withTries(ctx, i < len(fit)-1), e)
		if ctx.Err() != nil {
			return err
		}
		e.judge(err)
		if err == nil {
			return nil
		}
		if len(fit) > 1 {
			r.c.opts.Log.Debug("a host failed", "host", e.host, "repository", r.name.repo, "error", err)
		}
		if failed == nil || !e.host.mirror {
			failed = err
		}
	}
	return failed
}

// impatientKey marks the context of requests that are not tried again at the same host, because there is another.
type impatientKey struct{}

func withTries(ctx context.Context, another bool) context.Context {
	if !another {
		return ctx
	}
	return context.WithValue(ctx, impatientKey{}, true)
}

func isImpatient(ctx context.Context) bool { return ctx.Value(impatientKey{}) != nil }

// getAll gets a small body whole. what names it in a NotFoundError. want is the digest that it has to have, or "".
func (r *repository) getAll(ctx context.Context, can capability, path, accept, what string, want digest.Digest, limit int64) (body []byte, contentType string, err error) {
	header := http.Header{}
	if accept != "" {
		header.Set("Accept", accept)
	}
	for try := 1; ; try++ {
		cut := false // what came before the body was tried again by others
		err := r.anywhere(ctx, can, func(ctx context.Context, e *endpoint) error {
			resp, err := e.get(ctx, path, header)
			if err != nil {
				return err
			}
			if resp.StatusCode != http.StatusOK {
				return e.statusError(resp, what)
			}
			contentType = resp.Header.Get("Content-Type")
			body, err = e.readAll(ctx, resp, what, limit)
			cut = err != nil
			if err == nil && e.host.mirror && want != "" {
				err = verify(what, body, want) // else whoever asked does it
			}
			return err
		})
		if err == nil || !cut || try >= r.c.opts.Tries || !Temporary(err) {
			return body, contentType, err
		}
		if err := r.c.wait(ctx, try, 0); err != nil {
			return nil, "", err
		}
	}
}

func (r *registryRef) root(ctx context.Context) ([]byte, string, error) {
	if r.ref.digest != "" {
		return r.getManifest(ctx, canPull, string(r.ref.digest), r.ref.digest)
	}
	return r.getManifest(ctx, canResolve, r.ref.tag, "")
}

func (r *registryRef) manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, string, error) {
	return r.getManifest(ctx, canPull, string(d.Digest), d.Digest)
}

func (r *registryRef) getManifest(ctx context.Context, can capability, id string, want digest.Digest) ([]byte, string, error) {
	return r.getAll(ctx, can, "manifests/"+id, manifestTypes, r.manifestName(id), want, maxManifestSize)
}

func (r *registryRef) manifestName(id string) string {
	if id == r.ref.tag || id == string(r.ref.digest) {
		return r.ref.String()
	}
	return r.ref.Repository() + "@" + id
}

func (r *registryRef) config(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	raw, _, err := r.getAll(ctx, canPull, "blobs/"+string(d.Digest), "", "blob "+string(d.Digest), d.Digest, maxConfigSize)
	return raw, err
}

func (r *registryRef) blob(d ocispec.Descriptor) Blob {
	return &registryBlob{repo: r.repository, desc: d}
}

// hedgeAfter returns when an answer is late; never is a long time.
func (r *repository) hedgeAfter() time.Duration {
	switch after := r.c.opts.HedgeAfter; {
	case after < 0:
		return math.MaxInt64
	case after > 0:
		return after
	}
	return r.hedge.after()
}
