package fetcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layout is an OCI image layout, a directory, as the source of one reference.
type layout struct{ ref Reference }

func (l *layout) root(ctx context.Context) ([]byte, string, error) {
	raw, err := readFileLimit(filepath.Join(l.ref.path, ocispec.ImageIndexFile), maxManifestSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", &NotFoundError{Name: l.ref.String(), Detail: "no OCI layout (a directory with an index.json) is there"}
	}
	if err != nil {
		return nil, "", err
	}
	d, err := pickRoot(raw, l.ref)
	if err != nil {
		return nil, "", err
	}
	return l.manifest(ctx, d)
}

func (l *layout) manifest(_ context.Context, d ocispec.Descriptor) ([]byte, string, error) {
	raw, err := l.readBlob(d, maxManifestSize)
	return raw, d.MediaType, err
}

func (l *layout) config(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	return l.readBlob(d, maxConfigSize)
}

func (l *layout) readBlob(d ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := checkDigest(d.Digest); err != nil {
		return nil, imageErrorf("%v", err)
	}
	raw, err := readFileLimit(l.blobPath(d), limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &NotFoundError{Name: "blob " + string(d.Digest) + " of " + l.ref.String()}
	}
	return raw, err
}

func (l *layout) blobPath(d ocispec.Descriptor) string {
	return filepath.Join(l.ref.path, blobName(d))
}

// blobName is where a layout has a blob whose digest has been checked.
func blobName(d ocispec.Descriptor) string {
	return "blobs/sha256/" + d.Digest.Encoded()
}

func (l *layout) blob(d ocispec.Descriptor) Blob {
	return &fileBlob{desc: d, what: l.ref.String(), open: func() (*os.File, int64, error) {
		f, err := os.Open(l.blobPath(d))
		if err != nil {
			return nil, 0, err
		}
		info, err := f.Stat()
		if err == nil && !info.Mode().IsRegular() {
			err = errors.New("not a regular file")
		}
		if err == nil && info.Size() != d.Size {
			err = imageErrorf("layer %s has %d bytes, not %d as the manifest says", d.Digest, info.Size(), d.Size)
		}
		if err != nil {
			f.Close()
			return nil, 0, err
		}
		return f, 0, nil
	}}
}

// pickRoot chooses the manifest that ref means out of a layout's index.json: by digest, by tag; without either the
// only one there is, or the one that is tagged latest.
func pickRoot(index []byte, ref Reference) (ocispec.Descriptor, error) {
	var ix ocispec.Index
	if err := json.Unmarshal(index, &ix); err != nil {
		return ocispec.Descriptor{}, imageErrorf("index.json of %s is not one: %v", ref.Repository(), err)
	}
	tag := ref.tag
	switch {
	case ref.digest != "":
		for _, m := range ix.Manifests {
			if m.Digest == ref.digest {
				return m, nil
			}
		}
		return ocispec.Descriptor{}, &NotFoundError{Name: ref.String()}
	case tag == "" && len(ix.Manifests) == 1:
		return ix.Manifests[0], nil
	case tag == "":
		tag = defaultTag
	}
	for _, m := range ix.Manifests {
		if m.Annotations[ocispec.AnnotationRefName] == tag {
			return m, nil
		}
	}
	return ocispec.Descriptor{}, noSuchTag(ref, ix.Manifests)
}

func noSuchTag(ref Reference, have []ocispec.Descriptor) error {
	var tags []string
	for _, m := range have {
		if t := m.Annotations[ocispec.AnnotationRefName]; t != "" {
			tags = append(tags, printable(t))
		}
	}
	slices.Sort(tags)
	if ref.tag == "" && len(have) > 1 {
		return imageErrorf("%s holds %d images: say which, by %s:TAG; its tags are: %s",
			ref.Repository(), len(have), ref.Repository(), strings.Join(tags, ", "))
	}
	detail := "it holds no tagged image"
	if len(tags) > 0 {
		detail = "its tags are: " + strings.Join(tags, ", ")
	}
	return &NotFoundError{Name: ref.String(), Detail: detail}
}

func readFileLimit(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimit(f, path, limit)
}

func readLimit(r io.Reader, what string, limit int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, imageErrorf("%s has more than the %d bytes that are allowed", what, limit)
	}
	return raw, nil
}

// fileBlob is a blob that is a run of bytes of a local file.
type fileBlob struct {
	desc ocispec.Descriptor
	what string                          // the source, for errors
	open func() (*os.File, int64, error) // a file of its own for each reader, and where the blob starts
}

func (b *fileBlob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := checkRange(off, n, b.desc); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, start, err := b.open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &NotFoundError{Name: "blob " + string(b.desc.Digest) + " of " + b.what}
	}
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", b.desc.Digest, err)
	}
	return &fileBody{ctx: ctx, r: io.NewSectionReader(f, start+off, n), left: n, Closer: f}, nil
}

func (b *fileBlob) Stream(ctx context.Context) (io.ReadCloser, error) {
	body, err := b.ReadRange(ctx, 0, b.desc.Size)
	if err != nil {
		return nil, err
	}
	return newVerifiedBody(body, b.desc.Digest, nil), nil
}

// fileBody reads a part of a file, until its context ends.
type fileBody struct {
	io.Closer
	ctx  context.Context // of the ReadRange that made it
	r    io.Reader
	left int64
}

func (b *fileBody) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	if err == io.EOF && b.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
