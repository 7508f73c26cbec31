package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ClientOptions are the choices that a Client leaves to its user. The zero value is right for most.
type ClientOptions struct {
	PlainHTTP bool           // speak plain HTTP to every registry, not only to those on loopback
	Keychain  authn.Keychain // nil: Docker's config file and its credential helpers, or Podman's
	Log       *slog.Logger   // nil: nowhere
	UserAgent string         // "" is "veneer"

	CertsDirs []string // where hosts.toml files are looked for, below HOST; nil is DefaultCertsDirs

	Tries        int           // for one request, the first included; 0 is 4
	Backoff      time.Duration // before the second try, then doubled, with jitter; 0 is 200 ms
	StallTimeout time.Duration // a body from which (next to) nothing comes for so long is given up; 0 is 30 s
	HedgeAfter   time.Duration // a request for layer data that is not answered is sent once more; 0: when it is late, negative: never

	// Connections is up to how many connections to one host (with its port) there are at a time; 0 is 16. Clients with the same ConnectionDir, in
	// any process, keep to it together; with "" each has its own.
	Connections   int
	ConnectionDir string
}

func (o ClientOptions) withDefaults() ClientOptions {
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.CertsDirs == nil {
		o.CertsDirs = DefaultCertsDirs()
	}
	if o.UserAgent == "" {
		o.UserAgent = "veneer"
	}
	if o.Tries <= 0 {
		o.Tries = 4
	}
	if o.Backoff <= 0 {
		o.Backoff = 200 * time.Millisecond
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = 30 * time.Second
	}
	if o.Connections <= 0 {
		o.Connections = 16
	}
	return o
}

// Client resolves references and reads blobs. It keeps connections, logins and where blobs were redirected to.
// Its methods may be called concurrently.
type Client struct {
	opts    ClientOptions
	http    *http.Transport
	cap     *connCap // nil without a ConnectionDir
	traffic traffic
	life    context.Context // ends with Close
	end     context.CancelFunc

	mu       sync.Mutex
	repos    map[repoName]*repository  // guarded by mu
	archives map[string]*archive       // by path; guarded by mu
	special  map[*host]*http.Transport // of hosts with certificates of their own or the like; guarded by mu
}

// NewClient makes a Client. It does nothing yet: a start that finds all that it needs in the store never connects.
func NewClient(o ClientOptions) *Client {
	o = o.withDefaults()
	c := &Client{
		opts:     o,
		repos:    make(map[repoName]*repository),
		archives: make(map[string]*archive),
		special:  make(map[*host]*http.Transport),
	}
	c.life, c.end = context.WithCancel(context.Background())
	if o.ConnectionDir != "" {
		c.cap = &connCap{
			dir: o.ConnectionDir, limit: o.Connections, idle: c.closeIdle, done: c.life.Done(), open: map[string]int{},
		}
	}
	c.http = c.newHTTPTransport(nil, 0)
	return c
}

// Close drops the idle connections, and ends the waiting for new ones.
func (c *Client) Close() {
	c.end()
	c.closeIdle()
}

func (c *Client) closeIdle() {
	c.http.CloseIdleConnections()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.special {
		t.CloseIdleConnections()
	}
}

// Traffic returns what was asked and got since NewClient.
func (c *Client) Traffic() Traffic { return c.traffic.load() }

// traffic is a Traffic that counts.
type traffic struct {
	layerRequests, layerBytes, otherRequests, otherBytes atomic.Int64
}

func (t *traffic) load() Traffic {
	return Traffic{
		LayerRequests: t.layerRequests.Load(), LayerBytes: t.layerBytes.Load(),
		OtherRequests: t.otherRequests.Load(), OtherBytes: t.otherBytes.Load(),
	}
}

// source is where one reference's image comes from.
type source interface {
	// root returns what the reference names: a manifest or an index, and the source's idea of its media type.
	root(ctx context.Context) (raw []byte, mediaType string, err error)
	// manifest returns a manifest or an index by digest. It is not verified.
	manifest(ctx context.Context, d ocispec.Descriptor) (raw []byte, mediaType string, err error)
	// config returns a small blob. It is not verified and may be longer than d.Size.
	config(ctx context.Context, d ocispec.Descriptor) ([]byte, error)
	blob(d ocispec.Descriptor) Blob
}

func (c *Client) source(ref Reference) (source, error) {
	switch ref.kind {
	case KindRegistry:
		return c.repository(ref), nil
	case KindLayout:
		return &layout{ref: ref}, nil
	case KindArchive:
		return &archiveSource{c: c, ref: ref}, nil
	}
	return nil, errors.New("an empty image reference")
}

// Resolve asks the source what ref is for the platform p. What it returns is verified by digest, down from the
// digest in ref when it has one. Errors are, or wrap, *NotFoundError, *AuthError, *NetworkError, *SchemeError,
// *CertificateError, *StatusError, *ResponseError, *PlatformError, *ImageError, *DigestError and the like.
func (c *Client) Resolve(ctx context.Context, ref Reference, p Platform) (*Image, error) {
	src, err := c.source(ref)
	if err != nil {
		return nil, err
	}
	img, err := resolve(ctx, src, ref, p.orHost())
	var missing *NotFoundError
	if errors.As(err, &missing) {
		return nil, err // it names ref
	}
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", ref, err)
	}
	return img, nil
}

func resolve(ctx context.Context, src source, ref Reference, p Platform) (*Image, error) {
	raw, mediaType, err := src.root(ctx)
	if err != nil {
		return nil, err
	}
	if ref.digest != "" {
		if err := verify("the manifest", raw, ref.digest); err != nil {
			return nil, err
		}
	}
	img, err := descend(ctx, src, ref, p, raw, mediaType)
	if err != nil {
		return nil, err
	}
	if err := addConfig(ctx, src, img); err != nil {
		return nil, err
	}
	if img.Platform == (Platform{}) {
		img.Platform = platformOf(&img.Config.Platform)
		return img, img.checkPlatform(p)
	}
	return img, nil
}

// descend goes through indexes to the manifest for p. The image has a platform if an index said so.
func descend(ctx context.Context, src source, ref Reference, p Platform, raw []byte, mediaType string) (*Image, error) {
	var index digest.Digest
	var vouched Platform
	for depth := 0; ; depth++ {
		d, err := parseDocument(raw, mediaType)
		if err != nil {
			return nil, err
		}
		if !d.isIndex() {
			img, err := newImage(ref, raw, d)
			if err != nil {
				return nil, err
			}
			img.Index, img.Platform = index, vouched
			return img, nil
		}
		if depth == maxIndexDepth {
			return nil, imageErrorf("the image's index is nested more than %d deep", maxIndexDepth)
		}
		next, err := d.pick(p)
		if err != nil {
			return nil, err
		}
		if index == "" {
			index = digest.FromBytes(raw)
		}
		if next.Platform != nil {
			vouched = platformOf(next.Platform)
		}
		if raw, mediaType, err = src.manifest(ctx, next); err != nil {
			return nil, err
		}
		if err := verify("the manifest", raw, next.Digest); err != nil {
			return nil, err
		}
	}
}

func addConfig(ctx context.Context, src source, img *Image) error {
	d, err := img.configDescriptor()
	if err != nil {
		return err
	}
	raw, err := src.config(ctx, d)
	if err != nil {
		return fmt.Errorf("read the image's config: %w", err)
	}
	if int64(len(raw)) != d.Size {
		return imageErrorf("the image's config has %d bytes, not %d as the manifest says", len(raw), d.Size)
	}
	if err := verify("the image's config", raw, d.Digest); err != nil {
		return err
	}
	return img.setConfig(raw)
}

// Blob returns the blob of one of img's layers, from where img was resolved.
func (c *Client) Blob(img *Image, layer int) Blob {
	src, err := c.source(img.Ref)
	if err != nil {
		return brokenBlob{err}
	}
	return src.blob(img.Layers[layer])
}

// brokenBlob is the blob of an image that has no source.
type brokenBlob struct{ err error }

func (b brokenBlob) ReadRange(context.Context, int64, int64) (io.ReadCloser, error) {
	return nil, b.err
}
func (b brokenBlob) Stream(context.Context) (io.ReadCloser, error) { return nil, b.err }

func verify(what string, raw []byte, want digest.Digest) error {
	if got := digest.FromBytes(raw); got != want {
		return &DigestError{What: what, Want: want, Got: got}
	}
	return nil
}
