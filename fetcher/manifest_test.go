package fetcher

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	configJSON = `{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + someDigest + `","size":2}`
	layerJSON  = `{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"` + someDigest + `","size":5}`
)

func manifestJSON(config, layers string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":%s}`, ocispec.MediaTypeImageManifest, config, layers)
}

func layerOfType(t string) string {
	return strings.Replace(layerJSON, ocispec.MediaTypeImageLayerGzip, t, 1)
}

// TestBadManifestsAreRefused: each with a sentence that says what is wrong.
func TestBadManifestsAreRefused(t *testing.T) {
	many := "[" + strings.Repeat(layerJSON+",", maxLayers) + layerJSON + "]"
	for name, c := range map[string]struct{ doc, contentType, says string }{
		"not JSON":            {`<html>`, "text/html", "is not one"},
		"nothing":             {`{"schemaVersion":2}`, "", "neither"},
		"schema 1":            {`{"schemaVersion":1,"fsLayers":[]}`, "", "schema 1"},
		"schema 1 by type":    {`{}`, dockerSchema1 + "+prettyjws", "schema 1"},
		"schema 3":            {`{"schemaVersion":3,"manifests":[]}`, "", "schema version 3"},
		"both":                {`{"schemaVersion":2,"manifests":[],"config":` + configJSON + `}`, "", "neither"},
		"index by name":       {strings.Replace(manifestJSON(configJSON, "[]"), "manifest.v1", "index.v1", 1), "", "is an index"},
		"index by header":     {manifestJSON(configJSON, "[]"), ocispec.MediaTypeImageIndex, "is an index"},
		"manifest by header":  {`{"schemaVersion":2,"manifests":[]}`, mediaTypeDockerManifest + "; charset=utf-8", "but is an index"},
		"unknown type":        {`{"schemaVersion":2,"mediaType":"text/plain","manifests":[]}`, "", "unknown type"},
		"no config":           {manifestJSON("null", "[]"), "", "no config"},
		"artifact":            {manifestJSON(strings.Replace(configJSON, "oci.image.config", "cncf.helm.config", 1), "[]"), "", "artifact"},
		"config's digest":     {manifestJSON(strings.Replace(configJSON, "sha256:e", "sha256:z", 1), "[]"), "", "not a digest"},
		"config's path":       {manifestJSON(strings.Replace(configJSON, someDigest, "sha256:../../etc/passwd", 1), "[]"), "", "not a digest"},
		"config's size":       {manifestJSON(strings.Replace(configJSON, `:2}`, `:-2}`, 1), "[]"), "", "negative"},
		"huge config":         {manifestJSON(strings.Replace(configJSON, `:2}`, `:20000000}`, 1), "[]"), "", "allowed"},
		"too many layers":     {manifestJSON(configJSON, many), "", "501 layers"},
		"negative layer":      {manifestJSON(configJSON, "["+strings.Replace(layerJSON, ":5}", ":-5}", 1)+"]"), "", "negative"},
		"huge layers":         {manifestJSON(configJSON, "["+layerJSON+","+strings.Replace(layerJSON, ":5}", ":9223372036854775807}", 1)+"]"), "", "add up"},
		"layer's digest":      {manifestJSON(configJSON, "["+strings.Replace(layerJSON, "sha256", "md5", 1)+"]"), "", "not a digest"},
		"encrypted layer":     {manifestJSON(configJSON, "["+layerOfType(ocispec.MediaTypeImageLayerGzip+"+encrypted")+"]"), "", "encrypted"},
		"foreign layer":       {manifestJSON(configJSON, "["+layerOfType(mediaTypeForeignLayer+"+gzip")+"]"), "", "foreign"},
		"Docker foreign":      {manifestJSON(configJSON, "["+layerOfType(mediaTypeDockerForeign+".gzip")+"]"), "", "foreign"},
		"unknown layer":       {manifestJSON(configJSON, "["+layerOfType("application/x-squashfs")+"]"), "", "unknown"},
		"layer without type":  {manifestJSON(configJSON, "["+layerOfType("")+"]"), "", "unknown"},
		"a number for a size": {manifestJSON(configJSON, "["+strings.Replace(layerJSON, ":5}", ":1e40}", 1)+"]"), "", "is not one"},
	} {
		err := func() error {
			d, err := parseDocument([]byte(c.doc), c.contentType)
			if err != nil {
				return err
			}
			if d.isIndex() {
				t.Fatalf("%s: is taken for an index", name)
			}
			_, err = newImage(Reference{}, []byte(c.doc), d)
			return err
		}()
		var bad *ImageError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v does not speak of %q", name, err, c.says)
		}
	}
}

func TestLayerTypes(t *testing.T) {
	for _, typ := range []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		mediaTypeDockerLayer, mediaTypeDockerLayer + ".gzip", mediaTypeDockerLayer + ".zstd"} {
		if err := checkLayerType(typ); err != nil {
			t.Errorf("%s: %v", typ, err)
		}
	}
}

func TestIndexPassesOverWhatIsNoImage(t *testing.T) {
	entry := func(mediaType string, p *ocispec.Platform) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(mediaType + fmt.Sprint(p)), Size: 1, Platform: p}
	}
	want := entry(ocispec.MediaTypeImageManifest, &ocispec.Platform{OS: "linux", Architecture: "amd64"})
	other := entry(mediaTypeDockerManifest, &ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"})
	noise := []ocispec.Descriptor{
		entry(ocispec.MediaTypeImageManifest, &ocispec.Platform{OS: "unknown", Architecture: "unknown"}), // an attestation
		entry("application/vnd.example+json", &ocispec.Platform{OS: "linux", Architecture: "amd64"}),
		entry(ocispec.MediaTypeImageManifest, nil),
	}
	amd64 := Platform{OS: "linux", Architecture: "amd64"}
	for _, c := range []struct {
		entries []ocispec.Descriptor
		want    digest.Digest
	}{
		{append(noise, other, want), want.Digest},
		{append(noise, other), noise[2].Digest}, // it may be for any platform: its config tells
		{[]ocispec.Descriptor{other, noise[0]}, ""},
	} {
		d := &document{Manifests: &c.entries}
		got, err := d.pick(amd64)
		if c.want != "" && (err != nil || got.Digest != c.want) {
			t.Errorf("picked %v, %v", got, err)
		}
		var wrong *PlatformError
		if c.want == "" && (!errors.As(err, &wrong) || !strings.Contains(err.Error(), "not for linux/amd64 but for linux/arm/v7")) {
			t.Errorf("%v is not the error for a wrong platform", err)
		}
	}
}

// FuzzManifest: what is accepted keeps to the bounds and survives a round trip through the store's form.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(manifestJSON(configJSON, "["+layerJSON+"]")), ocispec.MediaTypeImageManifest)
	f.Add([]byte(manifestJSON(configJSON, "[]")), "")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[`+strings.Replace(layerJSON, "layer.v1.tar+gzip", "manifest.v1+json", 1)+`]}`), "")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"`+ocispec.MediaTypeImageIndex+`","digest":"`+someDigest+
		`","size":1,"platform":{"os":"linux","architecture":"arm","variant":"v7"}}]}`), mediaTypeDockerIndex)
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[]}`), dockerSchema1)
	f.Fuzz(func(t *testing.T, raw []byte, contentType string) {
		d, err := parseDocument(raw, contentType)
		if err != nil {
			return
		}
		if d.isIndex() {
			for _, p := range []Platform{HostPlatform(), AnyPlatform, {OS: "linux", Architecture: "arm"}} {
				if m, err := d.pick(p); err == nil && (m.Size < 0 || checkDigest(m.Digest) != nil) {
					t.Errorf("picked %+v", m)
				}
			}
			return
		}
		img, err := newImage(Reference{}, raw, d)
		if err != nil {
			return
		}
		if len(img.Layers) > maxLayers || img.CompressedSize() < 0 {
			t.Errorf("%d layers of %d bytes", len(img.Layers), img.CompressedSize())
		}
		if again, err := img.configDescriptor(); err != nil || again.Digest != d.Config.Digest {
			t.Errorf("config %v, %v", again, err)
		}
	})
}

// FuzzConfig: a config is refused or has as many diff IDs as there are layers.
func FuzzConfig(f *testing.F) {
	raw, err := json.Marshal(ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{someDigest}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"rootfs":{"diff_ids":["x"]}}`))
	f.Add([]byte(`{"architecture":7}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		img := Image{Layers: make([]ocispec.Descriptor, 1)}
		if err := img.setConfig(raw); err == nil && (len(img.DiffIDs) != 1 || checkDigest(img.DiffIDs[0]) != nil) {
			t.Errorf("accepted %v", img.DiffIDs)
		}
	})
}
