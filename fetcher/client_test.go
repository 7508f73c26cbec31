package fetcher

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// logins is a keychain with one login for all registries; the zero logins is anonymous.
type logins authn.AuthConfig

func (l logins) Resolve(authn.Resource) (authn.Authenticator, error) {
	if l == (logins{}) {
		return authn.Anonymous, nil
	}
	return authn.FromConfig(authn.AuthConfig(l)), nil
}

func newTestClient(t *testing.T, edit ...func(*ClientOptions)) *Client {
	o := ClientOptions{Keychain: logins{}, Backoff: time.Microsecond, CertsDirs: []string{}}
	for _, e := range edit {
		e(&o)
	}
	c := NewClient(o)
	t.Cleanup(c.Close)
	return c
}

func mustParse(t *testing.T, s string) Reference {
	t.Helper()
	ref, err := ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

var amd64 = Platform{OS: "linux", Architecture: "amd64"}

func resolveTest(t *testing.T, c *Client, ref string) (*Image, error) {
	t.Helper()
	return c.Resolve(t.Context(), mustParse(t, ref), amd64)
}

func mustResolve(t *testing.T, c *Client, ref string) *Image {
	t.Helper()
	img, err := resolveTest(t, c, ref)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func smallImage(t *testing.T) *fetchtest.Image {
	return &fetchtest.Image{
		Layers: []fetchtest.Layer{
			fetchtest.NewLayer(t, fetchtest.EStargz(), fetchtest.Reg("a", "hello\n")),
			fetchtest.NewLayer(t, fetchtest.Gzip(), fetchtest.Reg("b", strings.Repeat("x", 10_000))),
		},
		Config: ocispec.ImageConfig{Cmd: []string{"/a"}},
	}
}

// assertAs fails unless err is an E that says what it should.
func assertAs[E error](t *testing.T, err error, says string) {
	t.Helper()
	var e E
	if !errors.As(err, &e) {
		t.Errorf("%T (%v) is not a %T", err, err, e)
	} else if !strings.Contains(err.Error(), says) {
		t.Errorf("%q does not speak of %q", err, says)
	}
}

func TestResolve(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	for _, docker := range []bool{false, true} {
		want := smallImage(t)
		want.Docker = docker
		img := mustResolve(t, newTestClient(t), reg.Push(t, "team/app:1", want))
		if img.Manifest != want.ManifestDigest(t) || digest.FromBytes(img.RawManifest) != img.Manifest {
			t.Errorf("manifest %s, want %s", img.Manifest, want.ManifestDigest(t))
		}
		if len(img.Layers) != 2 || img.Layers[0].Digest != want.Layers[0].Descriptor.Digest || img.DiffIDs[1] != want.Layers[1].DiffID {
			t.Errorf("layers %v, diff IDs %v", img.Layers, img.DiffIDs)
		}
		if img.Config.Config.Cmd[0] != "/a" || img.Platform != amd64 || img.Index != "" {
			t.Errorf("config %v, platform %v, index %q", img.Config.Config, img.Platform, img.Index)
		}
	}
}

func TestResolveByDigest(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	want := smallImage(t)
	reg.Push(t, "app:1", want)
	img := mustResolve(t, newTestClient(t), reg.Host()+"/app:gone@"+string(want.ManifestDigest(t)))
	if img.Manifest != want.ManifestDigest(t) {
		t.Errorf("manifest %s", img.Manifest)
	}
}

func TestResolvePicksThePlatform(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	images := map[string]*fetchtest.Image{}
	var list []*fetchtest.Image
	for _, arch := range []string{"arm64", "amd64", "unknown"} {
		img := smallImage(t)
		img.Platform = ocispec.Platform{OS: "linux", Architecture: arch}
		images[arch] = img
		list = append(list, img)
	}
	list[2].Platform.OS = "unknown"
	ref := mustParse(t, reg.PushIndex(t, "app:1", list...))
	c := newTestClient(t)
	for _, arch := range []string{"arm64", "amd64"} {
		img, err := c.Resolve(t.Context(), ref, Platform{OS: "linux", Architecture: arch})
		if err != nil {
			t.Fatal(err)
		}
		if img.Manifest != images[arch].ManifestDigest(t) || img.Index == "" || img.Platform.Architecture != arch {
			t.Errorf("%s: manifest %s of index %s for %s", arch, img.Manifest, img.Index, img.Platform)
		}
	}
	if img, err := c.Resolve(t.Context(), ref, AnyPlatform); err != nil || img.Platform.Architecture != "arm64" {
		t.Errorf("any platform: %v, %v", img, err)
	}
	_, err := c.Resolve(t.Context(), ref, Platform{OS: "linux", Architecture: "s390x"})
	assertAs[*PlatformError](t, err, "not for linux/s390x but for linux/arm64, linux/amd64")
}

func TestSingleManifestForAnotherPlatform(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	img := smallImage(t)
	img.Platform = ocispec.Platform{OS: "linux", Architecture: "arm64"}
	ref := reg.Push(t, "app:1", img)
	c := newTestClient(t)
	_, err := resolveTest(t, c, ref)
	assertAs[*PlatformError](t, err, "wrong platform: the image is not for linux/amd64 but for linux/arm64")
	if _, err := c.Resolve(t.Context(), mustParse(t, ref), AnyPlatform); err != nil {
		t.Errorf("any platform: %v", err)
	}
}

func TestImageWithoutLayers(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	if img := mustResolve(t, newTestClient(t), reg.Push(t, "empty:1", &fetchtest.Image{})); len(img.Layers) != 0 {
		t.Errorf("layers %v", img.Layers)
	}
}

func TestNestedIndexes(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	img := smallImage(t)
	ref := reg.PushIndex(t, "app:1", img)
	for depth := 2; depth <= 3; depth++ {
		c := newTestClient(t)
		inner := mustRaw(t, c, ref)
		raw := `{"schemaVersion":2,"manifests":[{"mediaType":"` + ocispec.MediaTypeImageIndex + `","digest":"` +
			string(digest.FromBytes(inner)) + `","size":1}]}`
		ref = reg.PushManifest(t, "app:1", ocispec.MediaTypeImageIndex, []byte(raw))
		got, err := resolveTest(t, c, ref)
		if depth <= maxIndexDepth && (err != nil || got.Manifest != img.ManifestDigest(t)) {
			t.Errorf("depth %d: %v", depth, err)
		}
		if depth > maxIndexDepth {
			assertAs[*ImageError](t, err, "nested more than 2 deep")
		}
	}
}

func mustRaw(t *testing.T, c *Client, ref string) []byte {
	t.Helper()
	raw, _, err := c.repository(mustParse(t, ref)).root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestLyingImages: what does not fit together is refused, by whichever digest or count it breaks.
func TestLyingImages(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*ocispec.Manifest, *ocispec.Image)
		says string
	}{
		"fewer diff IDs": {func(_ *ocispec.Manifest, c *ocispec.Image) { c.RootFS.DiffIDs = c.RootFS.DiffIDs[:1] }, "2 layers"},
		"bad diff ID":    {func(_ *ocispec.Manifest, c *ocispec.Image) { c.RootFS.DiffIDs[1] = "x" }, "diff ID of layer 1"},
		"config's size": {func(m *ocispec.Manifest, c *ocispec.Image) {
			m.Config.Digest, m.Config.Size = digest.FromString("{}"), 3
		}, "has 2 bytes, not 3"},
	} {
		reg := fetchtest.NewRegistry(t)
		reg.PushBlob([]byte("{}"))
		img := smallImage(t)
		img.Edit = c.edit
		_, err := resolveTest(t, newTestClient(t), reg.Push(t, "app:1", img))
		if assertAs[*ImageError](t, err, c.says); t.Failed() {
			t.Log(name)
		}
	}
}

func TestChangedManifestAndConfigAreFound(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	img := smallImage(t)
	reg.Push(t, "app:1", img)
	by := reg.Host() + "/app@" + string(img.ManifestDigest(t))

	other := fetchtest.NewRegistry(t)
	other.Push(t, "app:1", &fetchtest.Image{})
	remove := reg.Use(fetchtest.OnlyManifests(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			req = req.Clone(req.Context())
			req.URL.Path = "/v2/app/manifests/1"
			w.Header().Set("Docker-Content-Digest", string(img.ManifestDigest(t))) // it lies
			other.ServeHTTP(w, req)
		})
	}))
	_, err := resolveTest(t, newTestClient(t), by)
	assertAs[*DigestError](t, err, "the manifest is damaged")
	remove()

	good := mustResolve(t, newTestClient(t), by)
	d, err := good.configDescriptor()
	if err != nil {
		t.Fatal(err)
	}
	reg.FlipByte(t, d.Digest, 5)
	_, err = resolveTest(t, newTestClient(t), by)
	assertAs[*DigestError](t, err, "the image's config is damaged")
}

func TestUnknownImagesAndTags(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	reg.Push(t, "app:1", smallImage(t))
	for _, ref := range []string{"/app:2", "/other:1", "/app@" + someDigest} {
		_, err := resolveTest(t, newTestClient(t), reg.Host()+ref)
		assertAs[*NotFoundError](t, err, "image not found: "+reg.Host()+ref)
		if Temporary(err) {
			t.Errorf("%v is temporary", err)
		}
	}
}

func TestHugeManifestIsRefused(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	reg.Use(fetchtest.OnlyManifests(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for range maxManifestSize>>16 + 1 {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		})
	}))
	_, err := resolveTest(t, newTestClient(t), reg.Host()+"/app")
	assertAs[*ImageError](t, err, "more than the 4194304 bytes that are allowed")
}

func TestRegistryThatIsNotThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, err = resolveTest(t, newTestClient(t), addr+"/app")
	assertAs[*NetworkError](t, err, "registry "+addr+": connection refused")
	if !Temporary(err) {
		t.Error("a refused connection is not temporary")
	}
}

func TestFaultsThatPassAreWaitedFor(t *testing.T) {
	for name, fault := range map[string]fetchtest.Fault{
		"500":               fetchtest.StatusNext(3, 500),
		"503":               fetchtest.StatusNext(3, 503, "Retry-After", "0"),
		"429":               fetchtest.StatusNext(2, 429),
		"408":               fetchtest.StatusNext(2, 408),
		"reset":             fetchtest.ResetNext(2, 0),
		"manifest cut":      fetchtest.OnlyManifests(fetchtest.TruncateNext(2, 100)),
		"manifest 502":      fetchtest.OnlyManifests(fetchtest.StatusNext(3, 502)),
		"config cut":        fetchtest.OnlyBlobs(fetchtest.TruncateNext(2, 10)),
		"config reset":      fetchtest.OnlyBlobs(fetchtest.ResetNext(2, 10)),
		"everything cut":    fetchtest.TruncateNext(3, 10),
		"small pieces only": fetchtest.Trickle(7),
	} {
		t.Run(name, func(t *testing.T) {
			reg := fetchtest.NewRegistry(t)
			ref := reg.Push(t, "app:1", smallImage(t))
			reg.Use(fault)
			mustResolve(t, newTestClient(t), ref)
		})
	}
}

func TestFaultsThatStayAreGivenUp(t *testing.T) {
	for _, c := range []struct {
		name     string
		fault    fetchtest.Fault
		says     string
		requests int
	}{
		{"500", fetchtest.Status(500), "answered 500 Internal Server Error", 3},
		{"long pause", fetchtest.Status(429, "Retry-After", "3600"), "answered 429 Too Many Requests", 1},
		{"418", fetchtest.OnlyManifests(fetchtest.Status(418)), "answered 418 I'm a teapot", 1},
		{"cut", fetchtest.OnlyManifests(fetchtest.Truncate(10)), "closed the connection", 3},
		{"manifest 503", fetchtest.OnlyManifests(fetchtest.Status(503)), "answered 503", 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg := fetchtest.NewRegistry(t)
			ref := reg.Push(t, "app:1", smallImage(t))
			reg.Use(c.fault)
			_, err := resolveTest(t, newTestClient(t, func(o *ClientOptions) { o.Tries = 3 }), ref)
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), reg.Host()) {
				t.Errorf("%v does not speak of %q", err, c.says)
			}
			if n := len(reg.Requests()); n != c.requests {
				t.Errorf("%d requests, want %d", n, c.requests)
			}
		})
	}
}

func TestRetryAfterIsUnderstood(t *testing.T) {
	now := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "-1": 0, "x": 0, "99999999999": 0,
		"Mon, 01 Jan 2024 00:00:20 GMT": 20 * time.Second, "Sun, 31 Dec 2023 00:00:00 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}}, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

func TestCancelledResolveEndsAtOnce(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	ref := mustParse(t, reg.Push(t, "app:1", smallImage(t)))
	hold := fetchtest.NewHold(t, 10)
	reg.Use(fetchtest.OnlyManifests(hold.Fault()))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-hold.Reached
		cancel()
	}()
	if _, err := newTestClient(t).Resolve(ctx, ref, amd64); !errors.Is(err, context.Canceled) || Temporary(err) {
		t.Errorf("%v is not the context's error", err)
	}
}

// TestOneLoginServesAllWhoWait: and one that was interrupted does not spoil it for the others.
func TestInterruptedLoginIsTakenOver(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	ref := mustParse(t, reg.Push(t, "app:1", smallImage(t)))
	reached := make(chan struct{}, 2)
	reg.Use(fetchtest.Next(1, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
			reached <- struct{}{}
			<-req.Context().Done()
		})
	}))
	c := newTestClient(t)
	ctx, cancel := context.WithCancel(t.Context())
	results := make(chan error, 2)
	go func() { _, err := c.Resolve(ctx, ref, amd64); results <- err }()
	<-reached // the first one is logging in
	go func() { _, err := c.Resolve(t.Context(), ref, amd64); results <- err }()
	cancel()
	first, second := <-results, <-results
	if first == nil {
		first, second = second, first
	}
	if !errors.Is(first, context.Canceled) || second != nil {
		t.Errorf("%v and %v", first, second)
	}
}

func TestTrafficIsCountedByKind(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	reg.RequireToken("", "")
	want := smallImage(t)
	c := newTestClient(t)
	img := mustResolve(t, c, reg.Push(t, "app:1", want))
	if got := c.Traffic(); got.LayerRequests != 0 || got.LayerBytes != 0 || got.OtherRequests != 4 {
		t.Errorf("after resolving: %+v, want ping, token, manifest, config", got)
	}
	reg.ExpireTokens()
	readRange(t, c.Blob(img, 1), 10, 100)
	got := c.Traffic()
	if got.LayerRequests != 2 || got.OtherRequests != 5 { // 401, token, the range
		t.Errorf("after a read with an expired token: %+v", got)
	}
	if n := int64(len(`{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)); got.LayerBytes < 100 || got.LayerBytes > 100+n {
		t.Errorf("%d bytes of layers", got.LayerBytes)
	}
}

// readRange reads n bytes from off and returns them.
func readRange(t *testing.T, b Blob, off, n int64) []byte {
	t.Helper()
	r, err := b.ReadRange(t.Context(), off, n)
	if err != nil {
		t.Fatalf("read %d bytes at %d: %v", n, off, err)
	}
	defer r.Close()
	raw, err := io.ReadAll(r)
	if err != nil || int64(len(raw)) != n {
		t.Fatalf("read %d bytes at %d: %d bytes, %v", n, off, len(raw), err)
	}
	return raw
}
