package fetcher

import (
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Progress hears what Tree and Pull do with the layers of an image. Its methods are called concurrently. A nil Progress is
// silent.
type Progress interface {
	// LayerStarted says that total bytes of layer are about to be read: its table of contents, or the whole blob.
	LayerStarted(layer int, d ocispec.Descriptor, total int64)
	// LayerBytes says that n more of them were read.
	LayerBytes(layer int, n int64)
	// LayerDone ends what LayerStarted began.
	LayerDone(layer int, err error)
}

// silent is the Progress of those who want none.
type silent struct{}

func (silent) LayerStarted(int, ocispec.Descriptor, int64) {}
func (silent) LayerBytes(int, int64)                       {}
func (silent) LayerDone(int, error)                        {}

func progressOrSilent(p Progress) Progress {
	if p == nil {
		return silent{}
	}
	return p
}

// progressReader tells a Progress what is read through it.
type progressReader struct {
	r     io.Reader
	layer int
	p     Progress
}

func (r *progressReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if n > 0 {
		r.p.LayerBytes(r.layer, int64(n))
	}
	return n, err
}
