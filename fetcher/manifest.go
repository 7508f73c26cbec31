package fetcher

import (
	"encoding/json"
	"errors"
	"math"
	"mime"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	mediaTypeDockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	mediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	mediaTypeDockerConfig   = "application/vnd.docker.container.image.v1+json"
	mediaTypeDockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
	mediaTypeDockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	mediaTypeForeignLayer   = "application/vnd.oci.image.layer.nondistributable.v1.tar"
	dockerSchema1           = "application/vnd.docker.distribution.manifest.v1"
)

// Bounds on what comes from outside.
const (
	maxManifestSize = 4 << 20
	maxConfigSize   = 8 << 20
	maxLayers       = 500
	maxIndexDepth   = 2 // an index, and an index in it
)

// manifestTypes is what a registry is told that we read.
var manifestTypes = strings.Join([]string{
	ocispec.MediaTypeImageIndex, mediaTypeDockerIndex, ocispec.MediaTypeImageManifest, mediaTypeDockerManifest,
}, ", ")

// document is a manifest or an index: it is known which only after reading it.
type document struct {
	SchemaVersion int                   `json:"schemaVersion"`
	MediaType     string                `json:"mediaType"`
	ArtifactType  string                `json:"artifactType"`
	Config        *ocispec.Descriptor   `json:"config"`
	Layers        *[]ocispec.Descriptor `json:"layers"`
	Manifests     *[]ocispec.Descriptor `json:"manifests"`
	FSLayers      json.RawMessage       `json:"fsLayers"` // schema 1
}

func (d *document) isIndex() bool { return d.Manifests != nil }

// parseDocument reads a manifest or an index. contentType is what the source says that it is, or "".
func parseDocument(raw []byte, contentType string) (*document, error) {
	var d document
	if err := json.Unmarshal(raw, &d); err != nil {
		return nil, imageErrorf("the manifest is not one: %v", err)
	}
	if t, _, err := mime.ParseMediaType(contentType); err == nil {
		contentType = t
	}
	if strings.HasPrefix(contentType, dockerSchema1) || d.FSLayers != nil || d.SchemaVersion == 1 {
		return nil, imageErrorf("the image has a manifest of the old schema 1, which is not supported: " +
			"pull and push it again with a current tool")
	}
	if d.SchemaVersion != 2 {
		return nil, imageErrorf("the manifest has schema version %d: only 2 is known", d.SchemaVersion)
	}
	// A document that can be read both ways would be a different image to different tools (CVE-2021-41190).
	image := d.Config != nil || d.Layers != nil
	if image == d.isIndex() {
		return nil, imageErrorf("the manifest is neither that of an image nor an index")
	}
	if err := d.checkMediaTypes(contentType); err != nil {
		return nil, err
	}
	return &d, nil
}

// checkMediaTypes holds the document against what it says, and what the source said, that it is.
func (d *document) checkMediaTypes(contentType string) error {
	for _, t := range []string{d.MediaType, contentType} {
		switch t {
		case ocispec.MediaTypeImageIndex, mediaTypeDockerIndex:
			if !d.isIndex() {
				return imageErrorf("the manifest says that it is an index (%s) but is an image's", t)
			}
		case ocispec.MediaTypeImageManifest, mediaTypeDockerManifest:
			if d.isIndex() {
				return imageErrorf("the manifest says that it is an image's (%s) but is an index", t)
			}
		}
	}
	switch d.MediaType {
	case "", ocispec.MediaTypeImageIndex, mediaTypeDockerIndex, ocispec.MediaTypeImageManifest, mediaTypeDockerManifest:
		return nil
	}
	return imageErrorf("the manifest is of an unknown type (%s)", d.MediaType)
}

// pick chooses the manifest for p out of an index.
func (d *document) pick(p Platform) (ocispec.Descriptor, error) {
	var usable []ocispec.Descriptor
	var have []Platform
	for _, m := range *d.Manifests {
		if q, ok := describes(m); ok {
			usable, have = append(usable, m), append(have, q)
		}
	}
	i := p.pick(have)
	if i < 0 {
		return ocispec.Descriptor{}, &PlatformError{Want: p, Available: known(have)}
	}
	if err := checkDescriptor(usable[i]); err != nil {
		return ocispec.Descriptor{}, imageErrorf("the index's entry for %s: %v", have[i], err)
	}
	return usable[i], nil
}

// describes returns for which platform an entry of an index is; not ok for what is no image, such as build
// attestations (platform unknown/unknown). An entry that does not say its platform is one of unknown platform: only
// its config tells, so it is taken when it is all there is.
func describes(m ocispec.Descriptor) (Platform, bool) {
	switch m.MediaType {
	case ocispec.MediaTypeImageManifest, mediaTypeDockerManifest, ocispec.MediaTypeImageIndex, mediaTypeDockerIndex:
	default:
		return Platform{}, false
	}
	if m.ArtifactType != "" && m.Platform == nil {
		return Platform{}, false
	}
	if m.Platform == nil {
		return Platform{}, true
	}
	p := platformOf(m.Platform)
	return p, p.OS != "unknown" && p.Architecture != "unknown"
}

func known(have []Platform) []Platform {
	var list []Platform
	for _, p := range have {
		if p != (Platform{}) {
			list = append(list, p)
		}
	}
	return list
}

func checkDescriptor(d ocispec.Descriptor) error {
	if err := checkDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 {
		return imageErrorf("negative size %d", d.Size)
	}
	return nil
}

// newImage checks an image's manifest and makes an Image of it, without its config.
func newImage(ref Reference, raw []byte, d *document) (*Image, error) {
	img := &Image{Ref: ref, Manifest: digest.FromBytes(raw), RawManifest: raw}
	if d.Config == nil {
		return nil, imageErrorf("the manifest names no config")
	}
	switch d.Config.MediaType {
	case ocispec.MediaTypeImageConfig, mediaTypeDockerConfig:
	default:
		what := d.ArtifactType
		if what == "" {
			what = d.Config.MediaType
		}
		return nil, imageErrorf("it is not a container image but an artifact of type %q", what)
	}
	if err := checkDescriptor(*d.Config); err != nil {
		return nil, imageErrorf("the manifest's config: %v", err)
	}
	if d.Config.Size > maxConfigSize {
		return nil, imageErrorf("the image's config has %d bytes: more than the %d that are allowed", d.Config.Size, maxConfigSize)
	}
	if d.Layers != nil {
		img.Layers = *d.Layers
	}
	return img, checkLayers(img.Layers)
}

func checkLayers(layers []ocispec.Descriptor) error {
	if len(layers) > maxLayers {
		return imageErrorf("the image has %d layers: more than the %d that are allowed", len(layers), maxLayers)
	}
	var total int64
	for i, l := range layers {
		if err := checkDescriptor(l); err != nil {
			return imageErrorf("layer %d: %v", i, err)
		}
		if err := checkLayerType(l.MediaType); err != nil {
			return imageErrorf("layer %d: %v", i, err)
		}
		if total > math.MaxInt64-l.Size {
			return imageErrorf("the sizes of the layers add up to more than there can be")
		}
		total += l.Size
	}
	return nil
}

func checkLayerType(t string) error {
	switch t {
	case ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		mediaTypeDockerLayer, mediaTypeDockerLayer + ".gzip", mediaTypeDockerLayer + ".zstd":
		return nil
	}
	switch {
	case strings.HasSuffix(t, "+encrypted"):
		return errors.New("it is encrypted, which is not supported: decrypt the image first")
	case strings.HasPrefix(t, mediaTypeForeignLayer), strings.HasPrefix(t, mediaTypeDockerForeign):
		return errors.New("it is a foreign layer, which registries do not hold")
	}
	return imageErrorf("its media type %q is unknown", t)
}

// configDescriptor returns where the config of an image that passed newImage is.
func (img *Image) configDescriptor() (ocispec.Descriptor, error) {
	d, err := parseDocument(img.RawManifest, "")
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return *d.Config, nil
}

// setConfig checks the config, whose digest has been verified, and adds it to the image.
func (img *Image) setConfig(raw []byte) error {
	if err := json.Unmarshal(raw, &img.Config); err != nil {
		return imageErrorf("the image's config is not one: %v", err)
	}
	img.RawConfig, img.DiffIDs = raw, img.Config.RootFS.DiffIDs
	if len(img.DiffIDs) != len(img.Layers) {
		return imageErrorf("the manifest has %d layers, but the config tells the diff IDs of %d", len(img.Layers), len(img.DiffIDs))
	}
	for i, d := range img.DiffIDs {
		if err := checkDigest(d); err != nil {
			return imageErrorf("diff ID of layer %d: %v", i, err)
		}
	}
	return nil
}

// checkPlatform is for an image that no index vouches for: what its config says must do for p. Variants are left
// alone, since configs seldom tell them right.
func (img *Image) checkPlatform(p Platform) error {
	have := img.Platform
	same := have.OS == p.OS && have.Architecture == p.Architecture
	if p == AnyPlatform || have.OS == "" || have.Architecture == "" || same {
		return nil
	}
	return &PlatformError{Want: p, Available: []Platform{have}}
}
