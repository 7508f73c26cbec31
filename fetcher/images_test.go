package fetcher

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

func newTestStore(t *testing.T) *Store {
	t.Helper()
	s, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// reopen returns the store as another process sees it.
func reopen(t *testing.T, s *Store) *Store {
	t.Helper()
	other, err := OpenStore(s.Root())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return other
}

func saveImage(t *testing.T, s *Store, img *Image) {
	t.Helper()
	if err := s.SaveImage(img); err != nil {
		t.Fatal(err)
	}
}

func sameImage(a, b *Image) bool {
	return a.Ref == b.Ref && a.Manifest == b.Manifest && a.Index == b.Index && a.Platform == b.Platform &&
		string(a.RawManifest) == string(b.RawManifest) && string(a.RawConfig) == string(b.RawConfig) &&
		len(a.Layers) == len(b.Layers) && len(a.DiffIDs) == len(b.DiffIDs) && a.Layers[0].Digest == b.Layers[0].Digest &&
		a.Layers[0].Annotations["containerd.io/snapshot/stargz/toc.digest"] == b.Layers[0].Annotations["containerd.io/snapshot/stargz/toc.digest"]
}

func TestSavedImageIsFoundWithoutARegistry(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	ref := reg.Push(t, "app:1", smallImage(t))
	img := mustResolve(t, newTestClient(t), ref)
	s := newTestStore(t)
	if _, err := s.Image(img.Ref, amd64); !errors.Is(err, ErrNotStored) {
		t.Errorf("an image that was never saved: %v", err)
	}
	saveImage(t, s, img)
	reg.ForgetRequests()
	got, err := reopen(t, s).Image(mustParse(t, ref), amd64)
	if err != nil {
		t.Fatal(err)
	}
	if !sameImage(got, img) {
		t.Errorf("got %+v, want %+v", got, img)
	}
	if n := len(reg.Requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
	for _, other := range []string{"app:2", "app2:1", "app:1@" + someDigest} {
		if _, err := s.Image(mustParse(t, reg.Host()+"/"+other), amd64); !errors.Is(err, ErrNotStored) {
			t.Errorf("%s: %v", other, err)
		}
	}
}

func TestSavedPlatformsAreKeptApart(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	var list []*fetchtest.Image
	for _, arch := range []string{"amd64", "arm64"} {
		img := smallImage(t)
		img.Platform = ocispec.Platform{OS: "linux", Architecture: arch, Variant: map[string]string{"arm64": "v8"}[arch]}
		list = append(list, img)
	}
	ref := mustParse(t, reg.PushIndex(t, "app:1", list...))
	s := newTestStore(t)
	c := newTestClient(t)
	arm64 := Platform{OS: "linux", Architecture: "arm64"}
	for _, p := range []Platform{amd64, arm64} {
		img, err := c.Resolve(t.Context(), ref, p)
		if err != nil {
			t.Fatal(err)
		}
		saveImage(t, s, img)
	}
	for i, p := range []Platform{amd64, arm64} {
		img, err := s.Image(ref, p)
		if err != nil || img.Manifest != list[i].ManifestDigest(t) || img.Index == "" {
			t.Errorf("%s: %v, %v", p, img, err)
		}
	}
	if _, err := s.Image(ref, Platform{OS: "linux", Architecture: "s390x"}); !errors.Is(err, ErrNotStored) {
		t.Errorf("another platform: %v", err)
	}
	if img, err := s.Image(ref, AnyPlatform); err != nil || img == nil {
		t.Errorf("any platform: %v", err)
	}
	byIndex, err := s.Image(mustParse(t, reg.Host()+"/app@"+string(mustImage(t, s, ref).Index)), arm64)
	if err != nil || byIndex.Manifest != list[1].ManifestDigest(t) {
		t.Errorf("by the digest of the index: %v, %v", byIndex, err)
	}
}

func mustImage(t *testing.T, s *Store, ref Reference) *Image {
	t.Helper()
	img, err := s.Image(ref, amd64)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// TestMovedTag: the tag means the new image, the old one is still there by its digest.
func TestMovedTag(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	c, s := newTestClient(t), newTestStore(t)
	first := mustResolve(t, c, reg.Push(t, "app:1", smallImage(t)))
	saveImage(t, s, first)
	changed := smallImage(t)
	changed.Config.Cmd = []string{"/changed"}
	second := mustResolve(t, c, reg.Push(t, "app:1", changed))
	saveImage(t, s, second)

	if img := mustImage(t, s, first.Ref); img.Manifest != second.Manifest {
		t.Errorf("the tag means %s", img.Manifest)
	}
	if img := mustImage(t, s, first.Ref.WithDigest(first.Manifest)); img.Manifest != first.Manifest || img.Platform != amd64 {
		t.Errorf("the old digest means %s for %s", img.Manifest, img.Platform)
	}
	list, err := s.Images()
	if err != nil || len(list) != 1 || list[0].Manifest != second.Manifest {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestImagesLists(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	c, s := newTestClient(t), newTestStore(t)
	if list, err := s.Images(); err != nil || len(list) != 0 {
		t.Errorf("an empty store has %v, %v", list, err)
	}
	for _, name := range []string{"b:1", "a:2", "a:1"} {
		saveImage(t, s, mustResolve(t, c, reg.Push(t, name, smallImage(t))))
	}
	list, err := reopen(t, s).Images()
	if err != nil || len(list) != 3 {
		t.Fatalf("%v, %v", list, err)
	}
	for i, want := range []string{"a:1", "a:2", "b:1"} {
		line := list[i]
		if line.Ref.Repository()+":"+line.Ref.Tag() != reg.Host()+"/"+want || line.Size == 0 || line.Manifest == "" ||
			!line.Created.Equal(fetchtest.ModTime) || line.Resolved.IsZero() || line.Platform != amd64 {
			t.Errorf("line %d is %+v", i, line)
		}
	}
	if err := s.RemoveImage(list[0].Ref); err != nil {
		t.Error(err)
	}
	if err := s.RemoveImage(list[0].Ref); !errors.Is(err, ErrNotStored) {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := s.Image(list[0].Ref, amd64); !errors.Is(err, ErrNotStored) {
		t.Errorf("removed: %v", err)
	}
	if list, err := s.Images(); err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
}

// TestDamagedRecords are as good as none: the image is resolved again.
func TestDamagedRecords(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	img := mustResolve(t, newTestClient(t), reg.Push(t, "app:1", smallImage(t)))
	for _, dir := range []string{"names", "manifests"} {
		for _, content := range []string{"", "{", `{"manifest":"sha256:../../x"}`, `{"reference":"app","manifest":"` + someDigest + `"}`, "delete"} {
			s := newTestStore(t)
			saveImage(t, s, img)
			files, err := filepath.Glob(filepath.Join(s.Root(), "images", dir, "*"))
			if err != nil || len(files) != 1 {
				t.Fatalf("%v, %v", files, err)
			}
			if err := os.Chmod(files[0], 0o600); err != nil {
				t.Fatal(err)
			}
			if content == "delete" {
				err = os.Remove(files[0])
			} else {
				err = os.WriteFile(files[0], []byte(content), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Image(img.Ref, amd64); !errors.Is(err, ErrNotStored) {
				t.Errorf("%s %q: %v", dir, content, err)
			}
			if list, err := s.Images(); err != nil || len(list) != 0 {
				t.Errorf("%s %q: listed %v, %v", dir, content, list, err)
			}
			saveImage(t, s, img)
			if !sameImage(mustImage(t, s, img.Ref), img) {
				t.Errorf("%s %q: not mended", dir, content)
			}
		}
	}
}

// TestExchangedRecord: a manifest that is whole, but another one, is found out by its digest.
func TestExchangedRecord(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	c, s := newTestClient(t), newTestStore(t)
	one := mustResolve(t, c, reg.Push(t, "app:1", smallImage(t)))
	two := mustResolve(t, c, reg.Push(t, "app:2", &fetchtest.Image{}))
	saveImage(t, s, one)
	saveImage(t, s, two)
	if err := os.Rename(s.manifestPath(two.Manifest), s.manifestPath(one.Manifest)); err != nil {
		t.Fatal(err)
	}
	_, err := s.Image(one.Ref, amd64)
	assertAs[*DigestError](t, err, "the stored manifest is damaged")
	if !errors.Is(err, ErrNotStored) {
		t.Errorf("%v is not ErrNotStored", err)
	}
}

// TestNamesAreSafe: whatever a reference holds, its files stay in their directory.
func TestNamesAreSafe(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a:b", "..", "…\n[x]*")
	fetchtest.WriteLayout(t, dir, map[string]*fetchtest.Image{"": smallImage(t)})
	img := mustResolve(t, newTestClient(t), "oci:"+dir+":")
	s := newTestStore(t)
	saveImage(t, s, img)
	files, err := filepath.Glob(filepath.Join(s.Root(), "images", "names", "*"))
	if err != nil || len(files) != 1 || len(filepath.Base(files[0])) != 129 {
		t.Errorf("%q, %v", files, err)
	}
	if !sameImage(mustImage(t, s, img.Ref), img) {
		t.Error("another image")
	}
}
