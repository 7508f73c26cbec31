package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// registryBlob is a layer in a registry.
type registryBlob struct {
	repo *repository
	desc ocispec.Descriptor
}

func (b *registryBlob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := checkRange(off, n, b.desc); err != nil {
		return nil, err
	}
	if n == 0 {
		return http.NoBody, nil
	}
	first, err := b.openRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	end := off + n
	body := &resumingBody{body: first, off: off, end: end, retry: b.retry(ctx)}
	body.open = func(off int64) (io.ReadCloser, error) { return b.openRange(ctx, off, max(end-off, 0)) }
	return body, nil
}

func (b *registryBlob) Stream(ctx context.Context) (io.ReadCloser, error) {
	first, err := b.openFrom(ctx, 0)
	if err != nil {
		return nil, err
	}
	body := &resumingBody{body: first, end: b.desc.Size, retry: b.retry(ctx)}
	body.open = func(off int64) (io.ReadCloser, error) { return b.openFrom(ctx, off) }
	return newVerifiedBody(body, b.desc.Digest, func() { b.Distrust() }), nil
}

// Distrust says that what was read was not what it should have been. It reports whether there were mirrors that it may have come from: they are
// asked last from now on.
func (b *registryBlob) Distrust() bool {
	all, _ := b.repo.endpoints()
	found := false
	for _, e := range all {
		if e.host.mirror && e.host.pull && !e.isResting() {
			b.repo.c.opts.Log.Warn("damaged bytes may have come from a mirror: it is asked last", "mirror", e.host, "layer", b.desc.Digest)
			e.distrust()
			found = true
		}
	}
	return found
}

func checkRange(off, n int64, d ocispec.Descriptor) error {
	if off < 0 || n < 0 || off > d.Size || n > d.Size-off {
		return imageErrorf("the %d bytes from %d are not in layer %s, which has %d bytes", n, off, d.Digest, d.Size)
	}
	return nil
}

// retry decides what happens after a body was cut.
func (b *registryBlob) retry(ctx context.Context) func(error, int) error {
	return func(err error, failures int) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err = explainNetwork(b.repo.name.host, err)
		if failures >= b.repo.c.opts.Tries {
			return err
		}
		b.repo.c.opts.Log.Debug("body cut", "blob", b.desc.Digest, "error", err, "failures", failures)
		return b.repo.c.wait(ctx, failures, 0)
	}
}

// openFrom opens the body from off to its end, from a registry that ignores ranges too.
func (b *registryBlob) openFrom(ctx context.Context, off int64) (io.ReadCloser, error) {
	if off == b.desc.Size && off > 0 {
		return http.NoBody, nil
	}
	body, err := b.openRange(ctx, off, b.desc.Size-off)
	if !errors.Is(err, ErrRangeIgnored) {
		return body, err
	}
	if body, err = b.openRange(ctx, 0, b.desc.Size); err != nil {
		return nil, err
	}
	if _, err := io.CopyN(io.Discard, body, off); err != nil {
		body.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, explainNetwork(b.repo.name.host, err)
	}
	return body, nil
}

// openRange opens the n bytes from off, wherever they are to be had.
func (b *registryBlob) openRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	whole := off == 0 && n == b.desc.Size
	header := http.Header{purposeMark: {forLayer}}
	if !whole {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	}
	resp, err := b.repo.hedge.do(ctx, b.repo.hedgeAfter(), func(ctx context.Context) (resp *http.Response, err error) {
		err = b.repo.anywhere(ctx, canPull, func(ctx context.Context, e *endpoint) error {
			if resp, err = e.getBlob(ctx, b.desc.Digest, header); err != nil {
				return err
			}
			if err := b.check(e, resp, off, n, whole); err != nil {
				resp.Body.Close()
				return err
			}
			resp.Body = &judgedBody{resp.Body, ctx, e}
			return nil
		})
		return resp, err
	})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// judgedBody tells its endpoint when it is cut, so that the rest is asked for elsewhere.
type judgedBody struct {
	io.ReadCloser
	ctx context.Context
	e   *endpoint
}

func (b *judgedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF && b.ctx.Err() == nil {
		b.e.judge(err)
	}
	return n, err
}

// check holds the answer of e against what was asked for.
func (b *registryBlob) check(e *endpoint, resp *http.Response, off, n int64, whole bool) error {
	broken := func(isRange bool, format string, a ...any) error {
		return &ResponseError{Host: e.host.addr, Reason: fmt.Sprintf(format, a...), Range: isRange}
	}
	switch {
	case resp.StatusCode == http.StatusOK && whole:
	case resp.StatusCode == http.StatusOK:
		return ErrRangeIgnored
	case resp.StatusCode == http.StatusPartialContent && !whole:
		if err := unwrapSinglePart(resp); err != nil {
			return broken(true, "%v", err)
		}
		if err := checkContentRange(resp.Header.Get("Content-Range"), off, n, b.desc.Size); err != nil {
			return broken(true, "%v", err)
		}
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && !whole:
		return broken(true, "blob %s has no bytes %d to %d there: it is shorter than the manifest says", b.desc.Digest, off, off+n-1)
	case resp.StatusCode == http.StatusPartialContent || resp.StatusCode < 300:
		return broken(false, "unexpected answer %s", statusText(resp.StatusCode))
	default:
		return e.statusError(resp, "blob "+string(b.desc.Digest)+" of "+b.repo.name.host+"/"+b.repo.name.repo)
	}
	if resp.ContentLength >= 0 && resp.ContentLength != n {
		return broken(false, "the answer has %d bytes where %d were asked for", resp.ContentLength, n)
	}
	return nil
}

// unwrapSinglePart makes an ordinary answer of a multipart/byteranges one (RFC 9110, 14.6), of which the first part counts: one range
// was asked for.
func unwrapSinglePart(resp *http.Response) error {
	kind, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" {
		return nil
	}
	part, err := multipart.NewReader(resp.Body, params["boundary"]).NextRawPart()
	if err != nil {
		return fmt.Errorf("a multipart answer without a part: %w", err)
	}
	resp.Header.Set("Content-Range", part.Header.Get("Content-Range"))
	resp.ContentLength = -1
	resp.Body = readCloser{part, resp.Body}
	return nil
}

// checkContentRange accepts "bytes FIRST-LAST/TOTAL" and "bytes FIRST-LAST/*" of exactly what was asked for.
func checkContentRange(header string, off, n, size int64) error {
	want := fmt.Sprintf("bytes %d-%d/", off, off+n-1)
	total, ok := strings.CutPrefix(header, want)
	if !ok {
		return fmt.Errorf("asked for %s, it answers with Content-Range %q", strings.TrimSuffix(want, "/"), printable(header))
	}
	if total != "*" && total != strconv.FormatInt(size, 10) {
		return fmt.Errorf("the blob has %s bytes there, not %d as the manifest says", printable(total), size)
	}
	return nil
}
