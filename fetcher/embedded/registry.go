// Package embedded is a registry inside the process that holds images built on the spot: for the demo and for benches
// on machines that have no registry and no image. Nothing else should use it: it checks nothing that clients send.
package embedded

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registry answers the reading half of the OCI distribution API, ranged requests included. Blobs and manifests are
// files of its directory, by digest. Its methods may be called concurrently.
//
// It stands in place of go-containerregistry's registry because that one hashes a whole blob again for each request.
type Registry struct {
	dir string

	mu   sync.Mutex
	tags map[string]digest.Digest // "name:tag" → manifest; guarded by mu
}

// NewRegistry returns a registry without images. dir must exist; it is the caller's to remove.
func NewRegistry(dir string) *Registry {
	return &Registry{dir: dir, tags: make(map[string]digest.Digest)}
}

// AddImage stores config and manifest of an image of layers, bottom first, under name:tag.
func (r *Registry) AddImage(name, tag string, layers []Layer, p ocispec.Platform, c ocispec.ImageConfig) (digest.Digest, error) {
	now := time.Now().UTC()
	config := ocispec.Image{Created: &now, Platform: p, Config: c, RootFS: ocispec.RootFS{Type: "layers"}}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Layers:    []ocispec.Descriptor{},
	}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.DiffID)
		manifest.Layers = append(manifest.Layers, l.Descriptor)
	}
	var err error
	if manifest.Config, err = r.addJSON(ocispec.MediaTypeImageConfig, config); err != nil {
		return "", fmt.Errorf("add config of %s:%s: %w", name, tag, err)
	}
	d, err := r.addJSON(ocispec.MediaTypeImageManifest, manifest)
	if err != nil {
		return "", fmt.Errorf("add manifest of %s:%s: %w", name, tag, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tags[name+":"+tag] = d.Digest
	return d.Digest, nil
}

func (r *Registry) addJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return d, os.WriteFile(r.path(d.Digest), raw, 0o600)
}

func (r *Registry) path(d digest.Digest) string { return filepath.Join(r.dir, d.Encoded()) }

// ServeHTTP answers GET and HEAD of /v2/, /v2/NAME/manifests/TAG|DIGEST and /v2/NAME/blobs/DIGEST.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		http.Error(w, "read-only registry", http.StatusMethodNotAllowed)
		return
	}
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	if path == "" {
		return
	}
	parts := strings.Split(path, "/")
	if len(parts) < 3 {
		http.NotFound(w, req)
		return
	}
	name, kind, ref := strings.Join(parts[:len(parts)-2], "/"), parts[len(parts)-2], parts[len(parts)-1]
	switch kind {
	case "manifests":
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		r.serveDigest(w, req, r.resolve(name, ref))
	case "blobs":
		w.Header().Set("Content-Type", "application/octet-stream")
		r.serveDigest(w, req, digest.Digest(ref))
	default:
		http.NotFound(w, req)
	}
}

// resolve returns the digest that ref is, or that it is the tag of.
func (r *Registry) resolve(name, ref string) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d, ok := r.tags[name+":"+ref]; ok {
		return d
	}
	return digest.Digest(ref)
}

func (r *Registry) serveDigest(w http.ResponseWriter, req *http.Request, d digest.Digest) {
	if d.Validate() != nil {
		http.NotFound(w, req)
		return
	}
	f, err := os.Open(r.path(d))
	if errors.Is(err, os.ErrNotExist) {
		http.NotFound(w, req)
		return
	} else if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	w.Header().Set("Docker-Content-Digest", d.String())
	http.ServeContent(w, req, "", time.Time{}, f)
}
