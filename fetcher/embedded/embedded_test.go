package embedded

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// get asks h for path, a range of it when rng is not "".
func get(t *testing.T, h http.Handler, method, path, rng string) *http.Response {
	t.Helper()
	req := httptest.NewRequest(method, path, nil)
	if rng != "" {
		req.Header.Set("Range", rng)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w.Result()
}

func body(t *testing.T, r *http.Response) []byte {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func oneFile(name string, data []byte) func(*tar.Writer) error {
	return func(w *tar.Writer) error {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))}); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
}

func TestImageIsServedAsBuilt(t *testing.T) {
	r := NewRegistry(t.TempDir())
	data := bytes.Repeat([]byte("veneer "), 1<<20)
	l, err := r.AddLayer(gzip.BestSpeed, oneFile("data", data))
	if err != nil {
		t.Fatal(err)
	}
	want, err := r.AddImage("demo/app", "1", []Layer{l}, ocispec.Platform{OS: "linux", Architecture: "amd64"},
		ocispec.ImageConfig{Cmd: []string{"/bin/true"}})
	if err != nil {
		t.Fatal(err)
	}

	raw := body(t, get(t, r, "GET", "/v2/demo/app/manifests/1", ""))
	if digest.FromBytes(raw) != want {
		t.Fatalf("the tag's manifest is %s, want %s", digest.FromBytes(raw), want)
	}
	if again := body(t, get(t, r, "GET", "/v2/demo/app/manifests/"+want.String(), "")); !bytes.Equal(again, raw) {
		t.Error("the manifest by digest is another")
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	blob := body(t, get(t, r, "GET", "/v2/demo/app/blobs/"+m.Layers[0].Digest.String(), ""))
	if digest.FromBytes(blob) != m.Layers[0].Digest || int64(len(blob)) != m.Layers[0].Size {
		t.Fatal("the blob is not what the manifest says")
	}
	if part := get(t, r, "GET", "/v2/demo/app/blobs/"+m.Layers[0].Digest.String(), "bytes=10-19"); part.StatusCode != 206 ||
		!bytes.Equal(body(t, part), blob[10:20]) {
		t.Error("a range is not served")
	}

	z, err := estargz.Open(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.VerifyTOC(digest.Digest(m.Layers[0].Annotations[estargz.TOCJSONDigestAnnotation])); err != nil {
		t.Error(err)
	}
	f, err := z.OpenFile("data")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, data) {
		t.Errorf("data of %d bytes, %v", len(got), err)
	}
	gz, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	if diffID, err := digest.FromReader(gz); err != nil || diffID != l.DiffID {
		t.Errorf("diff ID %s, %v, want %s", diffID, err, l.DiffID)
	}
}

func TestOtherRequestsAreRefused(t *testing.T) {
	r := NewRegistry(t.TempDir())
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/v2/", 200},
		{"GET", "/", 404},
		{"GET", "/v2/x/manifests/none", 404},
		{"GET", "/v2/x/blobs/sha256:../../etc/passwd", 404},
		{"GET", "/v2/x/blobs/" + digest.FromString("none").String(), 404},
		{"GET", "/v2/x/tags/list", 404},
		{"POST", "/v2/x/blobs/uploads/", 405},
	} {
		if got := get(t, r, c.method, c.path, "").StatusCode; got != c.status {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, got, c.status)
		}
	}
}

func TestLayerThatCannotBeWrittenLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	broken := errors.New("disk on fire")
	_, err := NewRegistry(dir).AddLayer(gzip.BestSpeed, func(*tar.Writer) error { return broken })
	if err == nil {
		t.Error("no error")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}
