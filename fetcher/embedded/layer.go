package embedded

import (
	"archive/tar"
	"fmt"
	"io"
	"os"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layer is an eStargz layer whose blob a Registry holds.
type Layer struct {
	Descriptor ocispec.Descriptor
	DiffID     digest.Digest
}

// AddLayer compresses the tar that write writes to an eStargz blob and keeps it. level is gzip's; what is
// incompressible costs least with gzip.NoCompression.
func (r *Registry) AddLayer(level int, write func(*tar.Writer) error) (Layer, error) {
	f, err := os.CreateTemp(r.dir, "layer-")
	if err != nil {
		return Layer{}, err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	defer f.Close()

	blob := digest.Canonical.Digester()
	z := estargz.NewWriterLevel(io.MultiWriter(f, blob.Hash()), level)
	stream := tarStream(write)
	defer stream.Close() // ends write when compressing fails first
	if err := z.AppendTar(stream); err != nil {
		return Layer{}, fmt.Errorf("compress layer: %w", err)
	}
	toc, err := z.Close()
	if err != nil {
		return Layer{}, fmt.Errorf("finish layer: %w", err)
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return Layer{}, err
	}
	l := Layer{
		DiffID: digest.Digest(z.DiffID()),
		Descriptor: ocispec.Descriptor{
			MediaType:   ocispec.MediaTypeImageLayerGzip,
			Digest:      blob.Digest(),
			Size:        size,
			Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: toc.String()},
		},
	}
	return l, os.Rename(f.Name(), r.path(l.Descriptor.Digest))
}

// tarStream returns the tar that write writes, as it is written. An error of write is the reader's.
func tarStream(write func(*tar.Writer) error) *io.PipeReader {
	pr, pw := io.Pipe()
	go func() {
		tw := tar.NewWriter(pw)
		err := write(tw)
		if err == nil {
			err = tw.Close()
		}
		pw.CloseWithError(err)
	}()
	return pr
}
