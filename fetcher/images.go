package fetcher

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// What has been resolved is kept below images/:
//
//	images/manifests/HEX         manifest and config of an image, by the manifest's digest (see storedManifest)
//	images/names/HEX.HEX         which manifest a reference means: sha256 of the reference, of the platform (see storedName)
//
// Each is written aside, made durable and renamed into its place. A name is written after the manifest that it names.
// Manifests stay when their last name goes: a container that was made from one finds it again by name@digest.

// ErrNotStored means that the store does not know an image, or not any more: it has to be resolved.
var ErrNotStored = errors.New("the image is not in the store")

// maxRecordSize bounds what is read back; base64 makes four bytes of three.
const maxRecordSize = 2 * (maxManifestSize + maxConfigSize)

// storedManifest is the content of a file in images/manifests.
type storedManifest struct {
	Manifest []byte `json:"manifest"`
	Config   []byte `json:"config"`
}

// storedName is the content of a file in images/names.
type storedName struct {
	Reference string        `json:"reference"`
	Platform  Platform      `json:"platform"`
	Manifest  digest.Digest `json:"manifest"`
	Index     digest.Digest `json:"index,omitempty"`
	Resolved  time.Time     `json:"resolved"`
}

// StoredImage is one line of a list of images.
type StoredImage struct {
	Ref      Reference
	Platform Platform
	Manifest digest.Digest
	Created  time.Time // zero if the image does not tell
	Resolved time.Time // when its source was asked last
	Size     int64     // of the layers as they are in the registry, bytes
}

// SaveImage keeps what img.Ref was resolved to, in the place of what it was resolved to before for the same platform.
// Once it has returned, that survives a power failure.
func (s *Store) SaveImage(img *Image) error {
	record := storedManifest{Manifest: img.RawManifest, Config: img.RawConfig}
	if err := s.writeRecord(s.manifestPath(img.Manifest), record); err != nil {
		return fmt.Errorf("save image %s: %w", img.Ref, err)
	}
	name := storedName{
		Reference: img.Ref.String(), Platform: img.Platform, Manifest: img.Manifest, Index: img.Index, Resolved: time.Now().UTC(),
	}
	if err := s.writeRecord(s.namePath(img.Ref, img.Platform), name); err != nil {
		return fmt.Errorf("save image %s: %w", img.Ref, err)
	}
	return nil
}

// Image returns what ref was resolved to for p, without asking anyone; ErrNotStored when it was not. A reference
// with a digest also finds an image that was resolved by another name of the same repository.
func (s *Store) Image(ref Reference, p Platform) (*Image, error) {
	p = p.orHost()
	// Most often the image is for exactly p: then no directory is read.
	if name, err := s.readName(s.namePath(ref, p)); err == nil && name.Reference == ref.String() {
		return s.load(ref, name)
	}
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	match := func(n storedName) bool { return n.Reference == ref.String() }
	if !slices.ContainsFunc(names, match) && ref.digest != "" {
		match = func(n storedName) bool { return n.isDigestOf(ref) }
	}
	names = slices.DeleteFunc(names, func(n storedName) bool { return !match(n) })
	platforms := make([]Platform, len(names))
	for i, n := range names {
		platforms[i] = n.Platform
	}
	if i := p.pick(platforms); i >= 0 {
		return s.load(ref, names[i])
	}
	if len(names) == 0 && ref.digest != "" {
		return s.loadDigest(ref, p)
	}
	return nil, ErrNotStored
}

// isDigestOf reports whether the digest in ref is what n stands for, in the same repository.
func (n storedName) isDigestOf(ref Reference) bool {
	other, err := ParseReference(n.Reference)
	return err == nil && (n.Manifest == ref.digest || n.Index == ref.digest) && other.Repository() == ref.Repository()
}

// loadDigest finds an image whose name now means another one.
func (s *Store) loadDigest(ref Reference, p Platform) (*Image, error) {
	img, err := s.load(ref, storedName{Manifest: ref.digest})
	if err != nil {
		return nil, err
	}
	img.Platform = platformOf(&img.Config.Platform)
	return img, img.checkPlatform(p)
}

// load reads a stored manifest and checks it as if it came from a registry. One that is damaged is not there.
func (s *Store) load(ref Reference, n storedName) (*Image, error) {
	var record storedManifest
	if err := readRecord(s.manifestPath(n.Manifest), &record); errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotStored
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotStored, err)
	}
	img, err := record.image(ref, n.Manifest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotStored, err)
	}
	img.Index, img.Platform = n.Index, n.Platform
	return img, nil
}

func (r storedManifest) image(ref Reference, want digest.Digest) (*Image, error) {
	if err := verify("the stored manifest", r.Manifest, want); err != nil {
		return nil, err
	}
	d, err := parseDocument(r.Manifest, "")
	if err != nil {
		return nil, err
	}
	img, err := newImage(ref, r.Manifest, d)
	if err != nil {
		return nil, err
	}
	if err := verify("the stored config", r.Config, d.Config.Digest); err != nil {
		return nil, err
	}
	return img, img.setConfig(r.Config)
}

// Images lists the images in the store by name, without those whose files are damaged.
func (s *Store) Images() ([]StoredImage, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var list []StoredImage
	for _, n := range names {
		ref, err := ParseReference(n.Reference)
		if err != nil {
			continue
		}
		img, err := s.load(ref, n)
		if err != nil {
			s.log.Warn("skip stored image", "image", n.Reference, "error", err)
			continue
		}
		list = append(list, img.stored(n.Resolved))
	}
	slices.SortFunc(list, func(a, b StoredImage) int {
		return strings.Compare(a.Ref.String()+" "+a.Platform.String(), b.Ref.String()+" "+b.Platform.String())
	})
	return list, nil
}

func (img *Image) stored(resolved time.Time) StoredImage {
	line := StoredImage{
		Ref: img.Ref, Platform: img.Platform, Manifest: img.Manifest, Resolved: resolved, Size: img.CompressedSize(),
	}
	if img.Config.Created != nil {
		line.Created = *img.Config.Created
	}
	return line
}

// RemoveImage forgets what ref was resolved to, for all platforms; ErrNotStored when there is nothing to forget.
func (s *Store) RemoveImage(ref Reference) error {
	entries, err := os.ReadDir(s.namesDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	removed := 0
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), hexOf(ref.String())+".") {
			continue
		}
		if err := os.Remove(filepath.Join(s.namesDir(), e.Name())); err == nil {
			removed++
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove image %s: %w", ref, err)
		}
	}
	if removed == 0 {
		return ErrNotStored
	}
	return syncDir(s.namesDir())
}

func (s *Store) namesDir() string { return filepath.Join(s.root, "images", "names") }

func (s *Store) manifestPath(d digest.Digest) string {
	return filepath.Join(s.root, "images", "manifests", d.Encoded())
}

func (s *Store) namePath(ref Reference, p Platform) string {
	return filepath.Join(s.namesDir(), hexOf(ref.String())+"."+hexOf(p.String()))
}

func hexOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// names reads all of images/names, but for what is damaged.
func (s *Store) names() ([]storedName, error) {
	entries, err := os.ReadDir(s.namesDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var list []storedName
	for _, e := range entries {
		n, err := s.readName(filepath.Join(s.namesDir(), e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			s.log.Warn("skip stored name", "file", e.Name(), "error", err)
			continue
		}
		list = append(list, n)
	}
	return list, nil
}

func (s *Store) readName(path string) (storedName, error) {
	var n storedName
	if err := readRecord(path, &n); err != nil {
		return storedName{}, err
	}
	return n, checkDigest(n.Manifest)
}

func readRecord(path string, v any) error {
	raw, err := readFileLimit(path, maxRecordSize)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// writeRecord writes v so that a crash leaves the old file or the new one.
func (s *Store) writeRecord(path string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return s.full(err)
	}
	f, err := s.temp()
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(raw)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name()) // else it goes with the session
		return s.full(err)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
