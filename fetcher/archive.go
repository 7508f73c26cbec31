package fetcher

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// archive says where the members of an OCI archive are: a tar of an OCI layout, read in place.
type archive struct {
	info    os.FileInfo // of the file when it was indexed
	members map[string]member
}

// member is a regular file in the tar, by its bytes.
type member struct{ off, size int64 }

// maxMembers bounds the memory for an archive's index: an image has two members more than it has layers, and an
// archive may hold many images.
const maxMembers = 100_000

// archiveSource is an archive as the source of one reference.
type archiveSource struct {
	c   *Client
	ref Reference
}

func (a *archiveSource) root(ctx context.Context) ([]byte, string, error) {
	raw, err := a.read(ctx, ocispec.ImageIndexFile, maxManifestSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", &NotFoundError{Name: a.ref.String(), Detail: "no OCI archive (a tar with an index.json) is there"}
	}
	if err != nil {
		return nil, "", err
	}
	d, err := pickRoot(raw, a.ref)
	if err != nil {
		return nil, "", err
	}
	return a.manifest(ctx, d)
}

func (a *archiveSource) manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, string, error) {
	raw, err := a.readBlob(ctx, d, maxManifestSize)
	return raw, d.MediaType, err
}

func (a *archiveSource) config(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	return a.readBlob(ctx, d, maxConfigSize)
}

func (a *archiveSource) readBlob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := checkDigest(d.Digest); err != nil {
		return nil, imageErrorf("%v", err)
	}
	raw, err := a.read(ctx, blobName(d), limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &NotFoundError{Name: "blob " + string(d.Digest) + " of " + a.ref.String()}
	}
	return raw, err
}

func (a *archiveSource) read(ctx context.Context, name string, limit int64) ([]byte, error) {
	f, m, err := a.open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimit(io.NewSectionReader(f, m.off, m.size), name, limit)
}

func (a *archiveSource) blob(d ocispec.Descriptor) Blob {
	return &fileBlob{desc: d, what: a.ref.String(), open: func() (*os.File, int64, error) {
		f, m, err := a.open(context.Background(), blobName(d))
		if err != nil {
			return nil, 0, err
		}
		if m.size != d.Size {
			f.Close()
			return nil, 0, imageErrorf("layer %s has %d bytes, not %d as the manifest says", d.Digest, m.size, d.Size)
		}
		return f, m.off, nil
	}}
}

// open opens the archive and finds a member in it; fs.ErrNotExist when either is not there. The archive is indexed
// again when the file is another one than last time.
func (a *archiveSource) open(ctx context.Context, name string) (*os.File, member, error) {
	f, err := os.Open(a.ref.path)
	if err != nil {
		return nil, member{}, err
	}
	index, err := a.index(ctx, f)
	if err != nil {
		f.Close()
		return nil, member{}, err
	}
	m, ok := index.members[name]
	if !ok {
		f.Close()
		return nil, member{}, &fs.PathError{Op: "find in " + a.ref.path, Path: name, Err: fs.ErrNotExist}
	}
	return f, m, nil
}

func (a *archiveSource) index(ctx context.Context, f *os.File) (*archive, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	a.c.mu.Lock()
	have := a.c.archives[a.ref.path]
	a.c.mu.Unlock()
	if have != nil && os.SameFile(have.info, info) && have.info.Size() == info.Size() && have.info.ModTime().Equal(info.ModTime()) {
		return have, nil
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read OCI archive %s: it is not a regular file", a.ref.path)
	}
	members, err := indexArchive(ctx, f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("read OCI archive %s: %w", a.ref.path, err)
	}
	index := &archive{info: info, members: members}
	a.c.mu.Lock()
	a.c.archives[a.ref.path] = index
	a.c.mu.Unlock()
	return index, nil
}

// archiveFile is what indexing needs of a file.
type archiveFile interface {
	io.ReadSeeker
	io.ReaderAt
}

// indexArchive goes from header to header; what lies between is skipped, not read.
func indexArchive(ctx context.Context, f archiveFile, size int64) (map[string]member, error) {
	if err := refuseCompressed(f); err != nil {
		return nil, err
	}
	members := make(map[string]member)
	r := tar.NewReader(f)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := r.Next()
		if err == io.EOF {
			return members, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg || isSparse(h) {
			continue
		}
		if len(members) == maxMembers {
			return nil, imageErrorf("it has more than %d members", maxMembers)
		}
		off, err := f.Seek(0, io.SeekCurrent) // tar.Reader reads headers by whole blocks and nothing ahead
		if err != nil {
			return nil, err
		}
		if h.Size > size-off {
			return nil, io.ErrUnexpectedEOF
		}
		if name := strings.TrimPrefix(path.Clean("/"+h.Name), "/"); isLayoutName(name) {
			members[name] = member{off, h.Size}
		}
	}
}

// isLayoutName keeps members out that nothing will ask for.
func isLayoutName(name string) bool {
	hex, isBlob := strings.CutPrefix(name, "blobs/sha256/")
	return name == ocispec.ImageIndexFile || isBlob && isHexDigest(hex)
}

// isSparse: the bytes of a sparse member are not those that lie in the tar. No one writes blobs so.
func isSparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
}

// refuseCompressed recognises what cannot be read in place.
func refuseCompressed(f io.ReaderAt) error {
	start := make([]byte, 4)
	if _, err := f.ReadAt(start, 0); err != nil && err != io.EOF {
		return err
	}
	switch {
	case bytes.HasPrefix(start, []byte{0x1f, 0x8b}):
		return errors.New("it is compressed: gunzip it first, it is read in place")
	case bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return errors.New("it is compressed: unzstd it first, it is read in place")
	}
	return nil
}
