package fetcher

import (
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is a resolved image: what its manifest and config say, verified by digest.
type Image struct {
	Ref      Reference
	Manifest digest.Digest // of the platform's manifest
	Index    digest.Digest // of the index it was picked from, or ""
	Platform Platform      // which it is for, by the index, else by the config

	RawManifest []byte // as the registry has it; sha256 is Manifest
	RawConfig   []byte // as the registry has it; sha256 is what the manifest says
	Config      ocispec.Image

	Layers  []ocispec.Descriptor // bottom first: media type, digest, size, annotations
	DiffIDs []digest.Digest      // of the layers' uncompressed tars; as many as Layers
}

// CompressedSize returns the bytes of all layers as they are in the registry.
func (img *Image) CompressedSize() int64 {
	var n int64
	for _, l := range img.Layers {
		n += l.Size
	}
	return n
}
