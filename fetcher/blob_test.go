package fetcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// blobTest is one layer of random bytes in a registry.
type blobTest struct {
	*fetchtest.Registry
	image *fetchtest.Image
	raw   []byte
}

func newBlobTest(t *testing.T, size int) *blobTest {
	b := &blobTest{Registry: fetchtest.NewRegistry(t), raw: make([]byte, size)}
	rand.NewChaCha8([32]byte{}).Read(b.raw)
	b.image = &fetchtest.Image{Layers: []fetchtest.Layer{fetchtest.RawLayer("application/vnd.oci.image.layer.v1.tar", b.raw)}}
	b.Push(t, "app:1", b.image)
	return b
}

// open resolves the image and returns its layer, with an empty log of requests.
func (b *blobTest) open(t *testing.T, edit ...func(*ClientOptions)) Blob {
	t.Helper()
	c := newTestClient(t, edit...)
	blob := c.Blob(mustResolve(t, c, b.Host()+"/app:1"), 0)
	b.ForgetRequests()
	return blob
}

func streamAll(t *testing.T, b Blob) ([]byte, error) {
	t.Helper()
	r, err := b.Stream(t.Context())
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func rangeError(t *testing.T, b Blob, off, n int64) error {
	t.Helper()
	r, err := b.ReadRange(t.Context(), off, n)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.ReadAll(r)
	return err
}

func TestBlobReads(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	b := reg.open(t)
	for _, r := range [][2]int64{{0, 1}, {99_999, 1}, {0, 99_999}, {1, 99_999}, {0, 100_000}, {500, 0}, {100_000, 0}, {1000, 5000}} {
		if got := readRange(t, b, r[0], r[1]); !bytes.Equal(got, reg.raw[r[0]:r[0]+r[1]]) {
			t.Errorf("wrong bytes at %d", r[0])
		}
	}
	if got := reg.LayerRequests(reg.image); len(got) != 6 || got[0].Range != "bytes=0-0" || got[4].Range != "" {
		t.Errorf("requests %+v", got)
	}
	if got, err := streamAll(t, b); err != nil || !bytes.Equal(got, reg.raw) {
		t.Errorf("stream: %d bytes, %v", len(got), err)
	}
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, 100_001}, {100_001, 0}, {99_999, 2}, {1, 1<<63 - 1}} {
		if err := rangeError(t, b, r[0], r[1]); err == nil {
			t.Errorf("no error for %d bytes at %d", r[1], r[0])
		}
	}
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	connections := make(map[string]bool)
	var mu sync.Mutex
	reg.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			mu.Lock()
			connections[req.RemoteAddr] = true
			mu.Unlock()
			next.ServeHTTP(w, req)
		})
	})
	b := reg.open(t)
	for i := range int64(20) {
		readRange(t, b, i*100, 100)
	}
	if len(connections) != 1 {
		t.Errorf("%d connections", len(connections))
	}
}

func TestIgnoredRange(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	b := reg.open(t)
	reg.Use(fetchtest.OnlyBlobs(fetchtest.IgnoreRange()))
	if err := rangeError(t, b, 10, 100); !errors.Is(err, ErrRangeIgnored) || Temporary(err) {
		t.Errorf("%v is not ErrRangeIgnored", err)
	}
	if got := readRange(t, b, 0, 100_000); !bytes.Equal(got, reg.raw) {
		t.Error("the whole body is wrong")
	}
	if got, err := streamAll(t, b); err != nil || !bytes.Equal(got, reg.raw) {
		t.Errorf("stream: %d bytes, %v", len(got), err)
	}
}

// TestCutBodiesAreContinued where they were cut, not from the start.
func TestCutBodiesAreContinued(t *testing.T) {
	for name, cut := range map[string]fetchtest.Fault{
		"truncated": fetchtest.OnlyBlobs(fetchtest.TruncateNext(3, 1000)),
		"reset":     fetchtest.OnlyBlobs(fetchtest.ResetNext(3, 1000)),
	} {
		t.Run(name, func(t *testing.T) {
			reg := newBlobTest(t, 100_000)
			b := reg.open(t)
			reg.Use(cut)
			if got := readRange(t, b, 50, 90_000); !bytes.Equal(got, reg.raw[50:90_050]) {
				t.Error("wrong bytes")
			}
			q := reg.LayerRequests(reg.image)
			if len(q) != 4 {
				t.Fatalf("%d requests, want 4", len(q))
			}
			if name == "truncated" && q[3].Range != "bytes=3050-90049" {
				t.Errorf("the last one asked for %s", q[3].Range)
			}
		})
	}
}

func TestStreamIsContinuedWithoutRanges(t *testing.T) {
	for _, ignore := range []bool{false, true} {
		reg := newBlobTest(t, 500_000)
		b := reg.open(t)
		if ignore {
			reg.Use(fetchtest.OnlyBlobs(fetchtest.IgnoreRange()))
		}
		reg.Use(fetchtest.OnlyBlobs(fetchtest.TruncateNext(1, 200_000)))
		if got, err := streamAll(t, b); err != nil || !bytes.Equal(got, reg.raw) {
			t.Errorf("ignoring ranges %v: %d bytes, %v", ignore, len(got), err)
		}
	}
}

func TestBodyThatIsAlwaysCutIsGivenUp(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	b := reg.open(t)
	reg.Use(fetchtest.OnlyBlobs(fetchtest.Truncate(10)))
	err := rangeError(t, b, 0, 50_000)
	assertAs[*NetworkError](t, err, "closed the connection in the middle")
	if n := len(reg.LayerRequests(reg.image)); n != 4 || !Temporary(err) {
		t.Errorf("%d requests, temporary %v", n, Temporary(err))
	}
}

// TestProgressRenewsTheTries: a link that breaks often brings a large body in the end.
func TestProgressRenewsTheTries(t *testing.T) {
	reg := newBlobTest(t, 2<<20)
	b := reg.open(t)
	reg.Use(fetchtest.OnlyBlobs(fetchtest.Truncate(100 << 10)))
	if got, err := streamAll(t, b); err != nil || !bytes.Equal(got, reg.raw) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestFlippedByteInStream(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	b := reg.open(t)
	reg.FlipByte(t, reg.image.Layers[0].Descriptor.Digest, 99_999)
	got, err := streamAll(t, b)
	assertAs[*DigestError](t, err, "is damaged")
	if len(got) != len(reg.raw) || Temporary(err) {
		t.Errorf("%d bytes, temporary %v", len(got), Temporary(err))
	}
}

func TestBlobOfAnotherLength(t *testing.T) {
	for _, length := range []int{50_000, 150_000} {
		reg := newBlobTest(t, 100_000)
		b := reg.open(t)
		reg.ReplaceBlob(t, reg.image.Layers[0].Descriptor.Digest, func([]byte) []byte { return make([]byte, length) })
		_, err := streamAll(t, b)
		assertAs[*ResponseError](t, err, fmt.Sprintf("has %d bytes where 100000 were asked for", length))
		err = rangeError(t, b, 10, 20)
		assertAs[*ResponseError](t, err, fmt.Sprintf("the blob has %d bytes there, not 100000", length))
	}
}

// TestBodyWithoutLength: sent in pieces, nothing says how long it is before it ends.
func TestBodyWithoutLength(t *testing.T) {
	for _, c := range []struct {
		length int
		good   bool
	}{{100, true}, {99, false}, {101, false}} {
		reg := newBlobTest(t, 100)
		b := reg.open(t)
		reg.Use(fetchtest.OnlyBlobs(func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				http.NewResponseController(w).Flush()
				w.Write(append(bytes.Clone(reg.raw), 'x')[:c.length])
			})
		}))
		got, err := streamAll(t, b)
		if good := err == nil && bytes.Equal(got, reg.raw); good != c.good {
			t.Errorf("%d bytes: got %d, %v", c.length, len(got), err)
		}
	}
}

func TestWrongContentRange(t *testing.T) {
	for _, header := range []string{"", "bytes 0-99/100000", "bytes 10-109/5", "bytes 10-110/100000", "bytes 10-109", "items 10-109/100000"} {
		reg := newBlobTest(t, 100_000)
		b := reg.open(t)
		reg.Use(fetchtest.OnlyBlobs(fetchtest.SetHeader("Content-Range", header)))
		assertAs[*ResponseError](t, rangeError(t, b, 10, 100), "registry "+reg.Host())
	}
	reg := newBlobTest(t, 100_000)
	b := reg.open(t)
	reg.Use(fetchtest.OnlyBlobs(fetchtest.SetHeader("Content-Range", "bytes 10-109/*")))
	readRange(t, b, 10, 100)
}

// multipartAnswer answers a range as multipart/byteranges, of so many parts.
func multipartAnswer(parts int, contentRange string, raw []byte) fetchtest.Fault {
	return fetchtest.OnlyBlobs(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "multipart/byteranges; boundary=edge")
			w.WriteHeader(http.StatusPartialContent)
			for range parts {
				fmt.Fprintf(w, "\r\n--edge\r\nContent-Type: application/octet-stream\r\nContent-Range: %s\r\n\r\n%s", contentRange, raw)
			}
			fmt.Fprint(w, "\r\n--edge--\r\n")
		})
	})
}

func TestMultipartAnswer(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	b := reg.open(t)
	remove := reg.Use(multipartAnswer(1, "bytes 10-109/100000", reg.raw[10:110]))
	if got := readRange(t, b, 10, 100); !bytes.Equal(got, reg.raw[10:110]) {
		t.Error("wrong bytes")
	}
	remove()
	for want, fault := range map[string]fetchtest.Fault{
		"without a part":        multipartAnswer(0, "", nil),
		"bytes 20-119":          multipartAnswer(1, "bytes 20-119/100000", reg.raw[20:120]),
		"longer than it should": multipartAnswer(1, "bytes 10-109/100000", reg.raw[10:120]),
	} {
		remove := reg.Use(fault)
		if err := rangeError(t, b, 10, 100); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		remove()
	}
}

// TestBrokenRangesAreStreamedInstead, whatever it is that breaks them.
func TestBrokenRangesAreStreamedInstead(t *testing.T) {
	body := noise(1, 50_000)
	for name, fault := range map[string]fetchtest.Fault{
		"416":                 fetchtest.Status(http.StatusRequestedRangeNotSatisfiable),
		"200":                 fetchtest.IgnoreRange(),
		"wrong Content-Range": fetchtest.SetHeader("Content-Range", "bytes 1-2/3"),
		"no Content-Range":    fetchtest.SetHeader("Content-Range", ""),
		"multipart":           fetchtest.SetHeader("Content-Type", "multipart/byteranges; boundary=nosuch"),
	} {
		t.Run(name, func(t *testing.T) {
			reg := fetchtest.NewRegistry(t)
			layer := fetchtest.NewLayer(t, fetchtest.EStargz().WithChunkSize(10_000), fetchtest.Reg("a", body), fetchtest.Reg("b", "b"))
			ref := reg.Push(t, "app:1", &fetchtest.Image{Layers: []fetchtest.Layer{layer}})
			x := openImage(t, testStore(t), ref, lazy)
			if got := x.readAll(t, "b"); got != "b" {
				t.Errorf("got %q", got)
			}
			reg.Use(fetchtest.OnlyBlobs(fetchtest.Only(func(r *http.Request) bool { return r.Header.Get("Range") != "" }, fault)))
			if got := x.readAll(t, "a"); got != body {
				t.Error("other bytes")
			}
			if n := x.Stats().LayersStreamed; n != 1 {
				t.Errorf("streamed %d times", n)
			}
		})
	}
}

func TestBlobStatus(t *testing.T) {
	reg := newBlobTest(t, 1000)
	b := reg.open(t)
	for status, check := range map[int]func(error){
		401: func(err error) { assertAs[*AuthError](t, err, "docker login "+reg.Host()) },
		403: func(err error) { assertAs[*AuthError](t, err, "forbidden") },
		404: func(err error) { assertAs[*NotFoundError](t, err, "image not found: blob sha256:") },
		416: func(err error) { assertAs[*ResponseError](t, err, "shorter than the manifest says") },
		204: func(err error) { assertAs[*ResponseError](t, err, "unexpected answer 204") },
		503: func(err error) { assertAs[*StatusError](t, err, "503 Service Unavailable") },
	} {
		remove := reg.Use(fetchtest.OnlyBlobs(fetchtest.Status(status)))
		err := rangeError(t, b, 1, 2)
		check(err)
		if Temporary(err) != (status == 503) {
			t.Errorf("%d: temporary %v", status, Temporary(err))
		}
		remove()
	}
}

func TestStalledBodyIsContinued(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	b := reg.open(t, func(o *ClientOptions) { o.StallTimeout = 50 * time.Millisecond })
	hold := fetchtest.NewHold(t, 1000)
	reg.Use(fetchtest.OnlyBlobs(fetchtest.Next(1, hold.Fault())))
	if got := readRange(t, b, 10, 50_000); !bytes.Equal(got, reg.raw[10:50_010]) {
		t.Error("wrong bytes")
	}
	if q := reg.LayerRequests(reg.image); len(q) != 2 || q[1].Range != "bytes=1010-50009" {
		t.Errorf("requests %+v", q)
	}
}

func TestBodyThatAlwaysStallsIsGivenUp(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	b := reg.open(t, func(o *ClientOptions) { o.StallTimeout, o.Tries = 10*time.Millisecond, 2 })
	reg.Use(fetchtest.OnlyBlobs(fetchtest.NewHold(t, 1000).Fault()))
	err := rangeError(t, b, 10, 50_000)
	assertAs[*NetworkError](t, err, "no answer in time")
	if !Temporary(err) {
		t.Error("a stall is not temporary")
	}
}

func TestCancelEndsABodyAtOnce(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	b := reg.open(t)
	hold := fetchtest.NewHold(t, 1000)
	reg.Use(fetchtest.OnlyBlobs(hold.Fault()))
	for _, open := range []func(context.Context) (io.ReadCloser, error){
		b.Stream,
		func(ctx context.Context) (io.ReadCloser, error) { return b.ReadRange(ctx, 1, 50_000) },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := open(ctx)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			<-hold.Reached
			cancel()
		}()
		if n, err := io.Copy(io.Discard, r); !errors.Is(err, context.Canceled) || n > 1000 {
			t.Errorf("%d bytes, %v", n, err)
		}
		r.Close()
	}
}

func TestClosedBodyEndsItsRequest(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	b := reg.open(t)
	gone := make(chan struct{})
	reg.Use(fetchtest.OnlyBlobs(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-49999/100000")
			w.Header().Set("Content-Length", "50000")
			w.WriteHeader(http.StatusPartialContent)
			http.NewResponseController(w).Flush()
			<-req.Context().Done()
			close(gone)
		})
	}))
	r, err := b.ReadRange(t.Context(), 0, 50_000)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	<-gone
	if _, err := r.Read(make([]byte, 1)); err == nil {
		t.Error("a closed body can be read")
	}
}

func TestRedirectedBlobs(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	reg.RequireBasic("me", "secret")
	b := reg.open(t, func(o *ClientOptions) { o.Keychain = logins{Username: "me", Password: "secret"} })
	other := reg.RedirectBlobs(t)

	for i := range int64(3) {
		if got := readRange(t, b, i*10, 100); !bytes.Equal(got, reg.raw[i*10:i*10+100]) {
			t.Error("wrong bytes")
		}
	}
	if n := len(reg.LayerRequests(reg.image)); n != 1 {
		t.Errorf("the registry was asked %d times where the blob is, want once", n)
	}
	q := other.Requests()
	if len(q) != 3 || q[0].Range != "bytes=0-99" {
		t.Errorf("the other host was asked %+v", q)
	}
	for _, r := range q {
		if r.Header.Get("Authorization") != "" || r.Header.Get(purposeMark) != "" {
			t.Errorf("the other host got %v", r.Header)
		}
	}

	other.Expire()
	readRange(t, b, 0, 100)
	if n := len(reg.LayerRequests(reg.image)); n != 2 {
		t.Errorf("after the address expired the registry was asked %d times, want twice", n)
	}
	if got, err := streamAll(t, b); err != nil || !bytes.Equal(got, reg.raw) {
		t.Errorf("stream: %d bytes, %v", len(got), err)
	}
}

func TestConcurrentReadsShareALogin(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	reg.RequireToken("", "")
	c := newTestClient(t)
	img := &Image{Ref: mustParse(t, reg.Host()+"/app:1")}
	img.Layers = mustResolve(t, newTestClient(t), reg.Host()+"/app:1").Layers
	reg.ForgetRequests()
	var wg sync.WaitGroup
	for i := range int64(20) {
		wg.Go(func() {
			r, err := c.Blob(img, 0).ReadRange(t.Context(), i, 100)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, reg.raw[i:i+100]) {
				t.Errorf("wrong bytes, %v", err)
			}
		})
	}
	wg.Wait()
	logins := 0
	for _, q := range reg.Requests() {
		if q.Path == "/v2/" || q.Path == "/token" {
			logins++
		}
	}
	if logins != 1 {
		t.Errorf("%d requests to log in, want one for a token", logins)
	}
}
