package fetcher

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// withHosts configures a registry, or "_default".
func withHosts(t *testing.T, registry, text string) func(*ClientOptions) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, registry, "hosts.toml"), text)
	return func(o *ClientOptions) { o.CertsDirs = []string{dir} }
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// mirrorTest is a registry and a mirror that has the same image.
type mirrorTest struct {
	*blobTest
	mirror *fetchtest.Registry
}

func newMirrorTest(t *testing.T) *mirrorTest {
	m := &mirrorTest{newBlobTest(t, 100_000), fetchtest.NewRegistry(t)}
	m.mirror.Push(t, "app:1", m.image)
	return m
}

// hosts is a configuration with the mirror in front of the registry, and more lines for the mirror.
func (m *mirrorTest) hosts(lines ...string) string {
	return fmt.Sprintf("server = %q\n[host.%q]\n%s\n", m.Server.URL, m.mirror.Server.URL, strings.Join(lines, "\n"))
}

func (m *mirrorTest) client(t *testing.T, lines ...string) *Client {
	return newTestClient(t, withHosts(t, m.Host(), m.hosts(lines...)))
}

// read resolves the image anew and reads its layer.
func (m *mirrorTest) read(t *testing.T, c *Client) {
	t.Helper()
	b := c.Blob(mustResolve(t, c, m.Host()+"/app:1"), 0)
	if got := readRange(t, b, 100, 50_000); !bytes.Equal(got, m.raw[100:50_100]) {
		t.Error("wrong bytes")
	}
}

func TestMirrorIsAskedInPlaceOfTheRegistry(t *testing.T) {
	m := newMirrorTest(t)
	m.read(t, m.client(t))
	if n := len(m.Requests()); n != 0 {
		t.Errorf("the registry was asked: %+v", m.Requests())
	}
	for _, q := range m.mirror.Requests() {
		if q.Query != "ns="+url.QueryEscape(m.Host()) && q.Query != "ns="+m.Host() {
			t.Errorf("%s was asked with %q", q.Path, q.Query)
		}
	}
}

func TestMirrorsCapabilities(t *testing.T) {
	m := newMirrorTest(t)
	m.read(t, m.client(t, `capabilities = ["pull"]`))
	for _, q := range m.Requests() {
		if !strings.HasSuffix(q.Path, "/manifests/1") {
			t.Errorf("the registry was asked for %s", q.Path)
		}
	}
	if q := m.mirror.LayerRequests(m.image); len(q) != 1 {
		t.Errorf("the mirror was asked %+v", q)
	}
	m.ForgetRequests()
	m.mirror.ForgetRequests()
	m.read(t, m.client(t, `capabilities = ["resolve"]`))
	if len(m.mirror.Requests()) != 1 || len(m.LayerRequests(m.image)) != 1 {
		t.Errorf("the mirror was asked %+v", m.mirror.Requests())
	}
	_, err := resolveTest(t, newTestClient(t, withHosts(t, m.Host(), `capabilities = ["push"]`)), m.Host()+"/app:1")
	assertAs[*ResponseError](t, err, "no host is configured")
}

// TestRegistryStandsInForItsMirror, however that fails.
func TestRegistryStandsInForItsMirror(t *testing.T) {
	for name, fault := range map[string]fetchtest.Fault{
		"500":             fetchtest.Status(500),
		"404":             fetchtest.Status(404),
		"403":             fetchtest.Status(403),
		"401":             fetchtest.Status(401),
		"429":             fetchtest.Status(429, "Retry-After", "1000"),
		"reset":           fetchtest.Reset(0),
		"cut":             fetchtest.Truncate(10),
		"ignores ranges":  fetchtest.IgnoreRange(),
		"wrong range":     fetchtest.SetHeader("Content-Range", "bytes 1-2/3"),
		"other manifests": fetchtest.OnlyManifests(answerWith("{}")),
	} {
		t.Run(name, func(t *testing.T) {
			m := newMirrorTest(t)
			m.mirror.Use(fault)
			m.read(t, m.client(t, `capabilities = ["pull"]`))
			byDigest := 0
			for _, q := range m.mirror.Requests() {
				if q.Digest() == m.image.ManifestDigest(t) {
					byDigest++
				}
			}
			if byDigest > 1 {
				t.Errorf("the mirror was asked %d times for one thing", byDigest)
			}
		})
	}
}

func answerWith(text string) fetchtest.Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) })
	}
}

func TestMirrorThatIsGone(t *testing.T) {
	m := newMirrorTest(t)
	m.mirror.Server.Close()
	m.read(t, m.client(t, `dial_timeout = "1s"`))
}

// A mirror that failed is asked last for a while; one that just does not have something is not.
func TestFailedMirrorRests(t *testing.T) {
	m := newMirrorTest(t)
	c := m.client(t)
	remove := m.mirror.Use(fetchtest.Status(500))
	m.read(t, c)
	m.mirror.ForgetRequests()
	remove()
	m.read(t, c)
	if n := len(m.mirror.Requests()); n != 0 {
		t.Errorf("asked %d times while it rests", n)
	}
	m.Use(fetchtest.Status(500)) // it is better than none
	m.read(t, c)

	m = newMirrorTest(t)
	c = m.client(t)
	m.mirror.Use(fetchtest.Next(1, fetchtest.Status(404)))
	m.read(t, c)
	if n := len(m.mirror.LayerRequests(m.image)); n != 1 {
		t.Errorf("the layer was asked for %d times", n)
	}
}

// A body that the mirror cuts is continued by the registry.
func TestBodyCutByAMirrorIsContinuedElsewhere(t *testing.T) {
	m := newMirrorTest(t)
	m.mirror.Use(fetchtest.OnlyFor(m.image.Layers[0].Descriptor.Digest, fetchtest.Truncate(10_000)))
	m.read(t, m.client(t))
	if q := m.LayerRequests(m.image); len(q) != 1 || q[0].Range != "bytes=10100-50099" {
		t.Errorf("the registry was asked %+v", q)
	}
}

// What a mirror has changed is fetched from the registry: the reader does not notice.
func TestDamagedBytesOfAMirrorAreFetchedElsewhere(t *testing.T) {
	bothLazy(t, func(t *testing.T, f fetchtest.Format) {
		body := noise(1, 50_000)
		layer := fetchtest.NewLayer(t, f, fetchtest.Reg("a", body))
		img := &fetchtest.Image{Layers: []fetchtest.Layer{layer}}
		m := &mirrorTest{&blobTest{Registry: fetchtest.NewRegistry(t), image: img}, fetchtest.NewRegistry(t)}
		ref := m.Push(t, "app:1", img)
		m.mirror.Push(t, "app:1", img)
		m.mirror.FlipByte(t, layer.Descriptor.Digest, int64(bytes.Index(layer.Blob, []byte(body[25_000:25_100]))))
		var log logged
		c := newTestClient(t, withHosts(t, m.Host(), m.hosts()), func(o *ClientOptions) { o.Log = log.logger() })
		x := openImageBy(t, c, testStore(t), ref, ContentsOptions{Log: log.logger()})
		if got := x.readAll(t, "a"); got != body {
			t.Error("other bytes")
		}
		if !strings.Contains(log.String(), "asked last") || strings.Contains(log.String(), "reads of it fail") {
			t.Errorf("the log: %s", log.String())
		}
		// The registry itself has no one behind it.
		m.FlipByte(t, layer.Descriptor.Digest, int64(bytes.Index(layer.Blob, []byte(body[25_000:25_100]))))
		x = openImageBy(t, c, testStore(t), ref, ContentsOptions{Log: log.logger()})
		if _, err := x.ReadAt(t.Context(), x.ino(t, "a"), make([]byte, 10), 25_000); !errors.Is(err, syscall.EIO) {
			t.Errorf("got %v", err)
		}
	})
}

func TestErrorIsTheRegistrysOwn(t *testing.T) {
	m := newMirrorTest(t)
	m.mirror.Use(fetchtest.Status(500))
	_, err := resolveTest(t, m.client(t), m.Host()+"/nosuch:1")
	assertAs[*NotFoundError](t, err, "nosuch")
}

func TestMirrorsLoginIsItsOwn(t *testing.T) {
	m := newMirrorTest(t)
	m.mirror.RequireToken("me", "secret")
	options := withHosts(t, m.Host(), m.hosts())
	c := newTestClient(t, options, withLogin("me", "secret"))
	m.read(t, c)
	if n := len(m.Requests()); n != 0 {
		t.Errorf("the registry was asked: %+v", m.Requests())
	}
}

func TestMirrorWithPathAndHeader(t *testing.T) {
	for name, c := range map[string]struct{ path, lines, root string }{
		"below a path": {"/cache", "", "/cache/v2/"},
		"own root":     {"/cache/api", "override_path = true", "/cache/api/"},
		"with v2":      {"/cache/v2", "", "/cache/v2/"},
		"bare root":    {"/", "override_path = true", "/"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMirrorTest(t)
			m.mirror.RequireToken("me", "secret")
			var headers []string
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if rest, ok := strings.CutPrefix(req.URL.Path, c.root); ok && rest != "token" {
					headers = append(headers, strings.Join(req.Header.Values("X-Test"), ","))
					req.URL.Path = "/v2/" + rest
				}
				m.mirror.ServeHTTP(w, req)
			}))
			defer front.Close()
			text := fmt.Sprintf("server = %q\n[host.%q]\n%s\n[host.%[2]q.header]\nX-Test = [\"a\", \"b\"]\n", m.Server.URL, front.URL+c.path, c.lines)
			m.read(t, newTestClient(t, withHosts(t, m.Host(), text), withLogin("me", "secret")))
			if len(m.Requests()) != 0 || len(headers) < 3 || headers[0] != "a,b" {
				t.Errorf("the registry was asked %+v, headers %q", m.Requests(), headers)
			}
		})
	}
}

// What is configured for a host is not for those to which it redirects.
func TestHeadersAreNotSentElsewhere(t *testing.T) {
	reg := newBlobTest(t, 1000)
	other := reg.RedirectBlobs(t)
	text := fmt.Sprintf("server = %q\n[header]\nX-Test = \"secret\"\n", reg.Server.URL)
	c := newTestClient(t, withHosts(t, reg.Host(), text))
	readRange(t, c.Blob(mustResolve(t, c, reg.Host()+"/app:1"), 0), 1, 10)
	for _, q := range reg.Requests() {
		if q.Header.Get("X-Test") != "secret" {
			t.Errorf("%s came without the header", q.Path)
		}
	}
	for _, q := range other.Requests() {
		if q.Header.Get("X-Test") != "" {
			t.Error("the other host got the header")
		}
	}
}

func TestCertificatesOfAHost(t *testing.T) {
	reg := fetchtest.NewTLSRegistry(t)
	ref := reg.Push(t, "app:1", smallImage(t))
	cert := certificatePEM(reg.Server.Certificate())
	toml := func(lines string) map[string]string {
		return map[string]string{"hosts.toml": "server = \"" + reg.Server.URL + "\"\n" + lines}
	}
	for name, c := range map[string]struct {
		files map[string]string
		good  bool
	}{
		"nothing":      {toml(""), false},
		"ca":           {merge(toml(`ca = "reg.crt"`), map[string]string{"reg.crt": cert}), true},
		"list of cas":  {merge(toml(`ca = ["reg.crt"]`), map[string]string{"reg.crt": cert}), true},
		"skip_verify":  {toml(`skip_verify = true`), true},
		"Docker's":     {map[string]string{"ca.crt": cert}, true},
		"ca is no pem": {merge(toml(`ca = "reg.crt"`), map[string]string{"reg.crt": "x"}), false},
		"ca is gone":   {toml(`ca = "reg.crt"`), false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range c.files {
				write(t, filepath.Join(dir, reg.Host(), file), text)
			}
			_, err := resolveTest(t, newTestClient(t, func(o *ClientOptions) { o.CertsDirs = []string{dir} }), ref)
			if (err == nil) != c.good {
				t.Errorf("got %v", err)
			}
		})
	}
}

func certificatePEM(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

func merge(a, b map[string]string) map[string]string {
	for k, v := range b {
		a[k] = v
	}
	return a
}

func TestHostsAreFound(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	server := func(s string) string { return fmt.Sprintf("server = \"https://%s\"", s) }
	write(t, filepath.Join(two, "registry:5000", "hosts.toml"), server("two"))
	write(t, filepath.Join(two, "other_5000_", "hosts.toml"), server("underscores"))
	write(t, filepath.Join(one, "named", "hosts.toml"), server("one"))
	write(t, filepath.Join(two, "named", "hosts.toml"), server("hidden"))
	dirs := []string{filepath.Join(one, "nosuch"), one, two}
	check := func(registry, want string) {
		t.Helper()
		hosts, err := findHosts(dirs, registry)
		if err != nil || len(hosts) != 1 || hosts[0].addr != want {
			t.Errorf("%s: %v, %v", registry, hosts, err)
		}
	}
	check("registry:5000", "two")
	check("other:5000", "underscores")
	check("named", "one")
	check("unknown", "unknown")
	check("docker.io", "index.docker.io")
	write(t, filepath.Join(two, "_default", "hosts.toml"), server("default"))
	check("unknown", "default")
	check("named", "one")
}

func TestHostsInOrder(t *testing.T) {
	hosts, err := parseHosts([]byte(`
server = "registry.example"
[host."https://c.example"]
[host."https://a.example:5000/x".header]
  k = "v"
[host."http://b.example"]
  capabilities = ["pull", "resolve"]
  dial_timeout = "3s"
  unknown = 1
[host."https://a.example:5000/x"]
  override_path = true
`), "/", "registry.example")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range hosts {
		got = append(got, h.scheme+"://"+h.addr+h.root)
	}
	if want := "https://c.example/v2 https://a.example:5000/x http://b.example/v2 https://registry.example/v2"; strings.Join(got, " ") != want {
		t.Errorf("got %q", got)
	}
}

func TestBadHostsFile(t *testing.T) {
	for _, text := range []string{
		"server = ", "server = 5", `server = "ftp://x"`, `server = "https://"`, "[host.\"\"]", "[host.\"https://\"]", "ca = 5", `ca = [5]`, `client = 5`,
		`client = [["a", "b", "c"]]`, `client = [[]]`, `client = "nosuch"`, `dial_timeout = "x"`, `dial_timeout = "-1s"`,
		"[header]\n\"a b\" = \"c\"", "[header]\na = \"b\\r\\nc: d\"", "[header]\na = 5", "capabilities = \"pull\"",
	} {
		if hosts, err := parseHosts([]byte(text), t.TempDir(), "registry"); err == nil {
			t.Errorf("%q: %v", text, hosts)
		}
	}
	_, err := resolveTest(t, newTestClient(t, withHosts(t, "registry.example", "server = 5")), "registry.example/app")
	if err == nil || !strings.Contains(err.Error(), "registry.example/hosts.toml") {
		t.Errorf("got %v", err)
	}
	file := t.TempDir()
	if _, err := findHosts([]string{file}, "registry"); err != nil {
		t.Errorf("an empty directory: %v", err)
	}
}

func TestProxyFromTheEnvironment(t *testing.T) {
	// Proxies are not used for loopback, so that the registry has a name that only the proxy knows.
	reg := newBlobTest(t, 1000)
	var asked []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		asked = append(asked, req.URL.Host)
		reg.Registry.ServeHTTP(w, req)
	}))
	defer proxy.Close()
	c := newTestClient(t, func(o *ClientOptions) { o.PlainHTTP = true })
	c.http.Proxy = func(req *http.Request) (*url.URL, error) { // what http.ProxyFromEnvironment does, which looks at the environment once
		return url.Parse(proxy.URL)
	}
	mustResolve(t, c, "registry.invalid/app:1")
	if len(asked) == 0 || asked[0] != "registry.invalid" {
		t.Errorf("the proxy was asked for %q", asked)
	}
}

func FuzzHosts(f *testing.F) {
	for _, seed := range []string{
		"server = \"https://a\"\n[host.\"http://b\"]\ncapabilities = [\"pull\"]\nskip_verify = true\n[host.\"http://b\".header]\nk = [\"v\"]",
		"ca = [\"a\", \"b\"]\nclient = [[\"c\", \"k\"]]\ndial_timeout = \"1s\"\noverride_path = true",
		"host = {\"https://x\" = {capabilities = []}}",
		"host.\"https://x\".skip_verify = true",
	} {
		f.Add(seed)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		hosts, err := parseHosts([]byte(text), dir, "registry:5000")
		if err != nil {
			return
		}
		if len(hosts) == 0 || len(hosts) > maxHosts+1 || hosts[len(hosts)-1].mirror {
			t.Errorf("%v", hosts)
		}
		for _, h := range hosts {
			if h.addr == "" || strings.HasSuffix(h.root, "/") || h.dial < 0 {
				t.Errorf("%+v", h)
			}
			if _, err := url.Parse("https://" + h.addr + h.root + "/app/manifests/1"); err != nil {
				t.Errorf("%+v: %v", h, err)
			}
			for _, values := range h.header {
				for _, v := range values {
					if strings.ContainsAny(v, "\r\n") {
						t.Errorf("%q", v)
					}
				}
			}
		}
	})
}

// A config that is redirected is no answer of a token server: it may be large.
func TestRedirectedConfig(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	reg.RequireToken("me", "secret")
	img := smallImage(t)
	img.Config.Labels = map[string]string{"large": strings.Repeat("x", 200_000)}
	ref := reg.Push(t, "app:1", img)
	reg.RedirectBlobs(t)
	got := mustResolve(t, newTestClient(t, withLogin("me", "secret")), ref)
	if len(got.Config.Config.Labels["large"]) != 200_000 {
		t.Error("the config is cut")
	}
}
