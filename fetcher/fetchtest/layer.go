package fetchtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is one entry of a layer: a tar header and, for regular files, a body. Header.Size is set from Body.
type File struct {
	tar.Header
	Body string
}

// ModTime is what the entries made here have.
var ModTime = time.Date(2024, 2, 29, 12, 30, 15, 0, time.UTC)

func entry(typ byte, name string, mode int64) File {
	return File{Header: tar.Header{Typeflag: typ, Name: name, Mode: mode, ModTime: ModTime}}
}

// Reg is a regular file of mode 0644.
func Reg(name, body string) File {
	f := entry(tar.TypeReg, name, 0o644)
	f.Body = body
	return f
}

// Dir is a directory of mode 0755.
func Dir(name string) File { return entry(tar.TypeDir, strings.TrimSuffix(name, "/")+"/", 0o755) }

// Symlink points from name to target.
func Symlink(name, target string) File {
	f := entry(tar.TypeSymlink, name, 0o777)
	f.Linkname = target
	return f
}

// Link is a hard link: one more name for target.
func Link(name, target string) File {
	f := entry(tar.TypeLink, name, 0o644)
	f.Linkname = target
	return f
}

// Whiteout removes name from the layers below.
func Whiteout(name string) File {
	return Reg(path.Join(path.Dir(name), ".wh."+path.Base(name)), "")
}

// Opaque hides what the layers below have in dir.
func Opaque(dir string) File { return Reg(path.Join(dir, ".wh..wh..opq"), "") }

// Device is a character (tar.TypeChar) or block device (tar.TypeBlock).
func Device(name string, typ byte, major, minor int64) File {
	f := entry(typ, name, 0o600)
	f.Devmajor, f.Devminor = major, minor
	return f
}

// FIFO is a named pipe.
func FIFO(name string) File { return entry(tar.TypeFifo, name, 0o600) }

// WithMode returns f with the 07777 bits.
func (f File) WithMode(mode int64) File { f.Mode = mode; return f }

// WithOwner returns f with an owner.
func (f File) WithOwner(uid, gid int) File { f.Uid, f.Gid = uid, gid; return f }

// WithXattr returns f with one more xattr, whose value may be binary.
func (f File) WithXattr(name, value string) File {
	records := map[string]string{"SCHILY.xattr." + name: value}
	for k, v := range f.PAXRecords {
		records[k] = v
	}
	f.PAXRecords = records
	return f
}

// Tar returns the tar of files.
func Tar(t testing.TB, files ...File) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := f.Header
		h.Size = int64(len(f.Body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("write tar header of %s: %v", f.Name, err)
		}
		if _, err := io.WriteString(w, f.Body); err != nil {
			t.Fatalf("write %s to tar: %v", f.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Format says how a layer is written.
type Format struct {
	name         string
	ChunkSize    int      // of lazy formats: a larger file is cut; 0 is 4 MiB
	MinChunkSize int      // of eStargz: smaller files share a gzip member; 0 gives each its own
	Prioritized  []string // of lazy formats: files that come first, to be prefetched
}

// Plain is an uncompressed tar.
func Plain() Format { return Format{name: "plain"} }

// Gzip is a gzipped tar.
func Gzip() Format { return Format{name: "gzip"} }

// Zstd is a zstd-compressed tar.
func Zstd() Format { return Format{name: "zstd"} }

// EStargz is a gzipped tar with a table of contents.
func EStargz() Format { return Format{name: "estargz"} }

// ZstdChunked is a zstd-compressed tar with a table of contents.
func ZstdChunked() Format { return Format{name: "zstdchunked"} }

// Formats returns all formats.
func Formats() []Format { return []Format{Plain(), Gzip(), Zstd(), EStargz(), ZstdChunked()} }

func (f Format) String() string { return f.name }

// Lazy reports whether the format has a table of contents.
func (f Format) Lazy() bool { return f.name == "estargz" || f.name == "zstdchunked" }

// WithChunkSize returns the format with files cut into chunks of n bytes.
func (f Format) WithChunkSize(n int) Format { f.ChunkSize = n; return f }

// WithMinChunkSize returns the format with members of at least n bytes.
func (f Format) WithMinChunkSize(n int) Format { f.MinChunkSize = n; return f }

// WithPrioritized returns the format with files that come first.
func (f Format) WithPrioritized(names ...string) Format { f.Prioritized = names; return f }

// Layer is a layer that is ready to be pushed.
type Layer struct {
	Descriptor ocispec.Descriptor
	DiffID     digest.Digest
	Blob       []byte
}

// NewLayer returns a layer of files.
func NewLayer(t testing.TB, f Format, files ...File) Layer {
	t.Helper()
	return LayerOfTar(t, f, Tar(t, files...))
}

// LayerOfTar returns a layer of what a tar holds. The lazy formats write a tar of their own, with the same entries.
func LayerOfTar(t testing.TB, f Format, tarball []byte) Layer {
	t.Helper()
	if f.Lazy() {
		return lazyLayer(t, f, tarball)
	}
	l := RawLayer(ocispec.MediaTypeImageLayer, compress(t, f, tarball))
	l.DiffID = digest.FromBytes(tarball)
	switch f.name {
	case "gzip":
		l.Descriptor.MediaType = ocispec.MediaTypeImageLayerGzip
	case "zstd":
		l.Descriptor.MediaType = ocispec.MediaTypeImageLayerZstd
	}
	return l
}

// RawLayer returns a layer whose blob is given, whatever it is, for layers that lie. Its diff ID is the blob's digest.
func RawLayer(mediaType string, blob []byte) Layer {
	d := digest.FromBytes(blob)
	return Layer{
		Descriptor: ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(blob))},
		DiffID:     d,
		Blob:       blob,
	}
}

func compress(t testing.TB, f Format, tarball []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser
	switch f.name {
	case "plain":
		return tarball
	case "gzip":
		w = gzip.NewWriter(&buf)
	case "zstd":
		var err error
		if w, err = zstd.NewWriter(&buf); err != nil {
			t.Fatal(err)
		}
	default:
		t.Fatalf("unknown format %q", f.name)
	}
	if _, err := w.Write(tarball); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

type zstdCompression struct {
	*zstdchunked.Decompressor
	*zstdchunked.Compressor
}

func lazyLayer(t testing.TB, f Format, tarball []byte) Layer {
	t.Helper()
	annotations := map[string]string{}
	opts := []estargz.Option{estargz.WithPrioritizedFiles(f.Prioritized), estargz.WithMinChunkSize(f.MinChunkSize)}
	if f.ChunkSize > 0 {
		opts = append(opts, estargz.WithChunkSize(f.ChunkSize))
	}
	mediaType := ocispec.MediaTypeImageLayerGzip
	if f.name == "zstdchunked" {
		mediaType = ocispec.MediaTypeImageLayerZstd
		opts = append(opts, estargz.WithCompression(&zstdCompression{new(zstdchunked.Decompressor),
			&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: annotations}}))
	}
	b, err := estargz.Build(io.NewSectionReader(bytes.NewReader(tarball), 0, int64(len(tarball))), opts...)
	if err != nil {
		t.Fatalf("build %s layer: %v", f, err)
	}
	blob, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	size, err := b.UncompressedSize()
	if err != nil {
		t.Fatal(err)
	}
	annotations[estargz.TOCJSONDigestAnnotation] = b.TOCDigest().String()
	annotations[estargz.StoreUncompressedSizeAnnotation] = fmt.Sprint(size)
	l := RawLayer(mediaType, blob)
	l.DiffID, l.Descriptor.Annotations = b.DiffID(), annotations
	return l
}
