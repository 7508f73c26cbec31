package fetchtest

import (
	"archive/tar"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image to push or to write.
type Image struct {
	Layers   []Layer // bottom first
	Config   ocispec.ImageConfig
	Platform ocispec.Platform // zero: linux/amd64
	Docker   bool             // Docker's media types instead of OCI's

	// Edit, when not nil, changes manifest and config before they are written, for images that lie. The manifest gets
	// the config's digest and size afterwards, unless Edit sets a digest.
	Edit func(m *ocispec.Manifest, c *ocispec.Image)
}

// The media types of Docker's image manifest, version 2, schema 2.
const (
	DockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	DockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig   = "application/vnd.docker.container.image.v1+json"
	DockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
)

// built is an image, or an index of images, as blobs.
type built struct {
	desc  ocispec.Descriptor // of the manifest or index
	raw   []byte             // of it
	blobs map[digest.Digest][]byte
	child []built // of an index
}

func (img *Image) platform() ocispec.Platform {
	if img.Platform.OS == "" {
		return ocispec.Platform{OS: "linux", Architecture: "amd64"}
	}
	return img.Platform
}

func (img *Image) build(t testing.TB) built {
	t.Helper()
	b := built{blobs: map[digest.Digest][]byte{}}
	created := ModTime
	config := ocispec.Image{Created: &created, Platform: img.platform(), Config: img.Config, RootFS: ocispec.RootFS{Type: "layers"}}
	config.RootFS.DiffIDs = []digest.Digest{}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig},
		Layers:    []ocispec.Descriptor{},
	}
	for _, l := range img.Layers {
		manifest.Layers = append(manifest.Layers, l.Descriptor)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.DiffID)
		b.blobs[l.Descriptor.Digest] = l.Blob
	}
	if img.Docker {
		toDocker(&manifest)
	}
	if img.Edit != nil {
		img.Edit(&manifest, &config)
	}
	raw := mustJSON(t, config)
	if manifest.Config.Digest == "" {
		manifest.Config.Digest, manifest.Config.Size = digest.FromBytes(raw), int64(len(raw))
	}
	b.blobs[digest.FromBytes(raw)] = raw
	b.raw = mustJSON(t, manifest)
	b.desc = ocispec.Descriptor{MediaType: manifest.MediaType, Digest: digest.FromBytes(b.raw), Size: int64(len(b.raw))}
	return b
}

func toDocker(m *ocispec.Manifest) {
	m.MediaType, m.Config.MediaType = DockerManifest, DockerConfig
	for i := range m.Layers {
		l := &m.Layers[i]
		_, compression, _ := strings.Cut(l.MediaType, "+")
		l.MediaType = strings.TrimSuffix(DockerLayer+"."+compression, ".")
	}
}

// ManifestDigest returns the digest that the image's manifest has.
func (img *Image) ManifestDigest(t testing.TB) digest.Digest { return img.build(t).desc.Digest }

func buildIndex(t testing.TB, docker bool, images []*Image) built {
	t.Helper()
	ix := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	if docker {
		ix.MediaType = DockerIndex
	}
	var b built
	for _, img := range images {
		c := img.build(t)
		d, p := c.desc, img.platform()
		d.Platform = &p
		ix.Manifests = append(ix.Manifests, d)
		b.child = append(b.child, c)
	}
	b.raw = mustJSON(t, ix)
	b.desc = ocispec.Descriptor{MediaType: ix.MediaType, Digest: digest.FromBytes(b.raw), Size: int64(len(b.raw))}
	return b
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// layoutFiles returns the files of an OCI layout of images by tag; the tag "" gives an image without one.
func layoutFiles(t testing.TB, images map[string]*Image) map[string][]byte {
	t.Helper()
	files := map[string][]byte{ocispec.ImageLayoutFile: []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	ix := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{}}
	for _, tag := range slices.Sorted(maps.Keys(images)) {
		b := images[tag].build(t)
		for d, raw := range b.blobs {
			files["blobs/sha256/"+d.Encoded()] = raw
		}
		files["blobs/sha256/"+b.desc.Digest.Encoded()] = b.raw
		d := b.desc
		if tag != "" {
			d.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
		}
		ix.Manifests = append(ix.Manifests, d)
	}
	files[ocispec.ImageIndexFile] = mustJSON(t, ix)
	return files
}

// WriteLayout writes an OCI layout of images, by tag ("" for one without), to the directory dir, which is made.
func WriteLayout(t testing.TB, dir string, images map[string]*Image) {
	t.Helper()
	for name, raw := range layoutFiles(t, images) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// WriteArchive writes the tar of such a layout to file.
func WriteArchive(t testing.TB, file string, images map[string]*Image) {
	t.Helper()
	files := layoutFiles(t, images)
	list := []File{Dir("blobs"), Dir("blobs/sha256")}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		list = append(list, Reg(name, string(files[name])))
	}
	for i := range list {
		list[i].Format = tar.FormatPAX
	}
	if err := os.WriteFile(file, Tar(t, list...), 0o644); err != nil {
		t.Fatal(err)
	}
}
