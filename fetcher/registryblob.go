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
	return newVerifiedBody(body, b.desc.Digest), nil
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
		err = b.repo.explainBody(ctx, err)
		if ctx.Err() != nil || failures >= b.repo.c.opts.Tries {
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
		return nil, b.repo.explainBody(ctx, err)
	}
	return body, nil
}

// openRange opens the n bytes from off.
func (b *registryBlob) openRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	whole := off == 0 && n == b.desc.Size
	header := http.Header{layerMark: {"1"}}
	if !whole {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	}
	resp, err := b.repo.hedgedBlob(ctx, b.desc.Digest, header)
	if err != nil {
		return nil, err
	}
	if err := b.check(resp, off, n, whole); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp.Body, nil
}

// check holds the answer against what was asked for.
func (b *registryBlob) check(resp *http.Response, off, n int64, whole bool) error {
	switch {
	case resp.StatusCode == http.StatusOK && whole:
	case resp.StatusCode == http.StatusOK:
		return ErrRangeIgnored
	case resp.StatusCode == http.StatusPartialContent && !whole:
		if err := unwrapSinglePart(resp); err != nil {
			return b.brokenRange("%v", err)
		}
		if err := checkContentRange(resp.Header.Get("Content-Range"), off, n, b.desc.Size); err != nil {
			return b.brokenRange("%v", err)
		}
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && !whole:
		return b.brokenRange("blob %s has no bytes %d to %d there: it is shorter than the manifest says", b.desc.Digest, off, off+n-1)
	case resp.StatusCode == http.StatusPartialContent || resp.StatusCode < 300:
		return b.broken("unexpected answer %s", statusText(resp.StatusCode))
	default:
		return b.repo.statusError(resp, "blob "+string(b.desc.Digest)+" of "+b.repo.name.host+"/"+b.repo.name.repo)
	}
	if resp.ContentLength >= 0 && resp.ContentLength != n {
		return b.broken("the answer has %d bytes where %d were asked for", resp.ContentLength, n)
	}
	return nil
}

func (b *registryBlob) broken(format string, a ...any) error {
	return &ResponseError{Host: b.repo.name.host, Reason: fmt.Sprintf(format, a...)}
}

func (b *registryBlob) brokenRange(format string, a ...any) error {
	return &ResponseError{Host: b.repo.name.host, Reason: fmt.Sprintf(format, a...), Range: true}
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
