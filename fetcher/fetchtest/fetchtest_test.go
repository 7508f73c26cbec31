package fetchtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

func uncompressed(t *testing.T, f Format, blob []byte) []byte {
	t.Helper()
	r := io.Reader(bytes.NewReader(blob))
	var err error
	switch f.String() {
	case "gzip", "estargz":
		r, err = gzip.NewReader(r)
	case "zstd", "zstdchunked":
		r, err = zstd.NewReader(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestEveryFormatHoldsTheSameFiles(t *testing.T) {
	files := []File{Dir("etc"), Reg("etc/motd", "hello\n"), Symlink("etc/m", "motd"), Link("etc/n", "etc/motd"),
		Reg("big", string(bytes.Repeat([]byte("x"), 100_000))).WithXattr("user.a", "b\x00c").WithOwner(7, 8).WithMode(0o4755)}
	for _, f := range Formats() {
		t.Run(f.String(), func(t *testing.T) {
			l := NewLayer(t, f.WithChunkSize(4096).WithPrioritized("etc/motd"), files...)
			if digest.FromBytes(l.Blob) != l.Descriptor.Digest || int64(len(l.Blob)) != l.Descriptor.Size {
				t.Error("the descriptor is not the blob's")
			}
			raw := uncompressed(t, f, l.Blob)
			if !f.Lazy() && digest.FromBytes(raw) != l.DiffID {
				t.Error("the diff ID is not the tar's")
			}
			found := 0
			for r := tar.NewReader(bytes.NewReader(raw)); ; found++ {
				h, err := r.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if h.Name == "big" && (h.PAXRecords["SCHILY.xattr.user.a"] != "b\x00c" || h.Uid != 7 || h.Mode != 0o4755) {
					t.Errorf("big is %+v", h)
				}
			}
			if found < len(files) {
				t.Errorf("%d entries, want at least %d", found, len(files))
			}
		})
	}
}

func TestTOCDigestAnnotationIsRight(t *testing.T) {
	for _, f := range []Format{EStargz(), ZstdChunked()} {
		l := NewLayer(t, f, Reg("a", "hello"))
		r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(l.Blob), 0, int64(len(l.Blob))),
			estargz.WithDecompressors(new(zstdchunked.Decompressor)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.VerifyTOC(digest.Digest(l.Descriptor.Annotations[estargz.TOCJSONDigestAnnotation])); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// get returns status and body of a GET, and the error with which the body ended.
func get(t *testing.T, url, ranged string) (int, []byte, error) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if ranged != "" {
		req.Header.Set("Range", ranged)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

func TestFaultsDoWhatTheySay(t *testing.T) {
	r := NewRegistry(t)
	blob := []byte("0123456789")
	url := r.Server.URL + "/v2/app/blobs/" + string(r.PushBlob(blob))

	if status, body, err := get(t, url, "bytes=2-4"); status != 206 || string(body) != "234" || err != nil {
		t.Errorf("range: %d %q %v", status, body, err)
	}
	q := r.Requests()
	if len(q) != 1 || q[0].Range != "bytes=2-4" || q[0].Status != 206 || q[0].Bytes != 3 || !q[0].IsBlob() {
		t.Errorf("the log has %+v", q)
	}

	remove := r.Use(OnlyBlobs(IgnoreRange()))
	if status, body, err := get(t, url, "bytes=2-4"); status != 200 || string(body) != "0123456789" || err != nil {
		t.Errorf("ignored range: %d %q %v", status, body, err)
	}
	remove()

	r.Use(StatusNext(1, 503, "Retry-After", "1"))
	if status, _, _ := get(t, url, ""); status != 503 {
		t.Errorf("status: %d", status)
	}
	r.Use(TruncateNext(1, 4))
	if _, body, err := get(t, url, ""); string(body) != "0123" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("truncated: %q %v", body, err)
	}
	r.Use(ResetNext(1, 4))
	if _, _, err := get(t, url, ""); err == nil {
		t.Error("no error after a reset in the body")
	}
	r.Use(ResetNext(1, 0))
	if _, _, err := get(t, url+"?", ""); err == nil {
		// net/http asks again by itself when it had used the connection before.
		if n := len(r.Requests()); n < 7 {
			t.Errorf("no error after a reset, and %d requests", n)
		}
	}
	remove = r.Use(SetHeader("Content-Range", "bytes 0-2/10"))
	if status, body, err := get(t, url, "bytes=2-4"); status != 206 || string(body) != "234" || err != nil {
		t.Errorf("wrong header: %d %q %v", status, body, err)
	}
	remove()
	remove = r.Use(Trickle(3))
	if _, body, err := get(t, url, ""); string(body) != "0123456789" || err != nil {
		t.Errorf("trickle: %q %v", body, err)
	}
	remove()
	if status, body, err := get(t, url, ""); status != 200 || string(body) != "0123456789" || err != nil {
		t.Errorf("after all faults: %d %q %v", status, body, err)
	}
}

func TestHoldStopsInTheBody(t *testing.T) {
	r := NewRegistry(t)
	url := r.Server.URL + "/v2/app/blobs/" + string(r.PushBlob([]byte("0123456789")))
	h := NewHold(t, 4)
	r.Use(h.Fault())
	done := make(chan string)
	go func() {
		_, body, err := get(t, url, "")
		if err != nil {
			body = []byte(err.Error())
		}
		done <- string(body)
	}()
	<-h.Reached
	select {
	case <-done:
		t.Fatal("the body came whole")
	default:
	}
	h.Release()
	if got := <-done; got != "0123456789" {
		t.Errorf("got %q", got)
	}
}

func TestRedirectLeadsToAnotherHost(t *testing.T) {
	r := NewRegistry(t)
	h := r.RedirectBlobs(t)
	url := r.Server.URL + "/v2/app/blobs/" + string(r.PushBlob([]byte("0123456789")))
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); string(body) != "0123456789" || len(h.Requests()) != 1 {
		t.Errorf("got %q, the other host was asked %d times", body, len(h.Requests()))
	}
}

func TestSlowLinkLeadsToTheRegistry(t *testing.T) {
	r := NewRegistry(t)
	blob := bytes.Repeat([]byte("0123456789"), 10_000)
	d := r.PushBlob(blob)
	if status, body, err := get(t, "http://"+r.Slow(t, 1e9, 0)+"/v2/app/blobs/"+string(d), ""); status != 200 || !bytes.Equal(body, blob) || err != nil {
		t.Errorf("%d, %d bytes, %v", status, len(body), err)
	}
}
