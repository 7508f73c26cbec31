package fetcher

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

func withLogin(user, password string) func(*ClientOptions) {
	return func(o *ClientOptions) { o.Keychain = logins{Username: user, Password: password} }
}

func TestLogin(t *testing.T) {
	for name, require := range map[string]func(*fetchtest.Registry, string, string){
		"basic":  (*fetchtest.Registry).RequireBasic,
		"bearer": (*fetchtest.Registry).RequireToken,
	} {
		t.Run(name, func(t *testing.T) {
			reg := fetchtest.NewRegistry(t)
			require(reg, "me", "secret")
			ref := reg.Push(t, "team/app:1", smallImage(t))
			mustResolve(t, newTestClient(t, withLogin("me", "secret")), ref)

			for _, c := range []*Client{newTestClient(t), newTestClient(t, withLogin("me", "wrong"))} {
				_, err := resolveTest(t, c, ref)
				assertAs[*AuthError](t, err, "access to "+reg.Host()+"/team/app is denied")
				assertAs[*AuthError](t, err, "docker login "+reg.Host())
				if Temporary(err) {
					t.Error("a refused login is temporary")
				}
			}
		})
	}
}

func TestExpiredTokenIsRenewed(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	reg.RequireToken("me", "secret")
	want := smallImage(t)
	c := newTestClient(t, withLogin("me", "secret"))
	img := mustResolve(t, c, reg.Push(t, "app:1", want))
	for range 2 {
		reg.ExpireTokens()
		if got := readRange(t, c.Blob(img, 0), 10, 20); !bytes.Equal(got, want.Layers[0].Blob[10:30]) {
			t.Error("wrong bytes")
		}
	}
}

// TestExpiredTokenIsRenewedOnce: those under way when it expires share the new one.
func TestExpiredTokenIsRenewedOnce(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	reg.RequireToken("me", "secret")
	c := newTestClient(t, withLogin("me", "secret"), func(o *ClientOptions) { o.Connections = 50 })
	b := c.Blob(mustResolve(t, c, reg.Push(t, "app:1", smallImage(t))), 0)
	for range 3 {
		reg.ExpireTokens()
		reg.ForgetRequests()
		all := fetchtest.NewGate(30)
		remove := reg.Use(fetchtest.OnlyBlobs(fetchtest.Next(30, all.Fault()))) // all 30 have been sent before one is answered
		var wg sync.WaitGroup
		for i := range int64(30) {
			wg.Go(func() {
				if err := rangeError(t, b, i, 10); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		remove()
		tokens := 0
		for _, q := range reg.Requests() {
			if q.Path == "/token" {
				tokens++
			}
		}
		if tokens != 1 {
			t.Errorf("%d requests for a token", tokens)
		}
	}
}

// TestTokenOutlivesWhoAskedForIt: the first of those who wait for a token goes away.
func TestTokenOutlivesWhoAskedForIt(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	reg.RequireToken("me", "secret")
	c := newTestClient(t, withLogin("me", "secret"))
	b := c.Blob(mustResolve(t, c, reg.Push(t, "app:1", smallImage(t))), 0)
	reg.ExpireTokens()
	asked, answer := make(chan struct{}, 2), make(chan struct{})
	reg.Use(fetchtest.Only(func(req *http.Request) bool { return req.URL.Path == "/token" }, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			asked <- struct{}{}
			<-answer
			next.ServeHTTP(w, req)
		})
	}))
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error)
	go func() {
		_, err := b.ReadRange(ctx, 0, 10)
		first <- err
	}()
	<-asked
	second := make(chan error)
	go func() { second <- rangeError(t, b, 1, 10) }()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the first got %v", err)
	}
	close(answer)
	if err := <-second; err != nil {
		t.Errorf("the second got %v", err)
	}
}

func TestForbidden(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	ref := reg.Push(t, "app:1", smallImage(t))
	reg.Use(fetchtest.OnlyManifests(fetchtest.Status(403)))
	_, err := resolveTest(t, newTestClient(t), ref)
	assertAs[*AuthError](t, err, "access to "+reg.Host()+"/app is forbidden")
}

// TestDockerConfig: the default keychain is Docker's, with its file and its credential helpers.
func TestDockerConfig(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	reg.RequireBasic("me", "secret")
	ref := reg.Push(t, "app:1", smallImage(t))
	helper := "#!/bin/sh\necho '{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"secret\"}'\n"
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-fetchtest"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for name, config := range map[string]string{
		"auths":  fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, reg.Host(), base64.StdEncoding.EncodeToString([]byte("me:secret"))),
		"helper": fmt.Sprintf(`{"credHelpers":{%q:"fetchtest"}}`, reg.Host()),
		"store":  `{"credsStore":"fetchtest"}`,
	} {
		t.Run(name, func(t *testing.T) {
			docker := t.TempDir()
			if err := os.WriteFile(filepath.Join(docker, "config.json"), []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("DOCKER_CONFIG", docker)
			mustResolve(t, newTestClient(t, func(o *ClientOptions) { o.Keychain = nil }), ref)
		})
	}
}

func TestMissingCredentialHelperIsNamed(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	ref := reg.Push(t, "app:1", smallImage(t))
	reg.RequireBasic("me", "secret") // else nobody looks for credentials
	dir := t.TempDir()
	config := fmt.Sprintf(`{"credHelpers":{%q:"not-there-at-all"}}`, reg.Host())
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	_, err := resolveTest(t, newTestClient(t, func(o *ClientOptions) { o.Keychain = nil }), ref)
	if err == nil || !strings.Contains(err.Error(), "docker-credential-not-there-at-all") {
		t.Errorf("%v does not name the helper", err)
	}
}

// trust makes c trust the registry's certificate.
func trust(c *Client, certificate *x509.Certificate) {
	pool := x509.NewCertPool()
	pool.AddCert(certificate)
	c.http.TLSClientConfig = &tls.Config{RootCAs: pool}
}

// TestLoopbackRegistryWithTLS: plain HTTP is tried first there, and TLS when the registry wants it.
func TestLoopbackRegistryWithTLS(t *testing.T) {
	reg := fetchtest.NewTLSRegistry(t)
	want := smallImage(t)
	ref := reg.Push(t, "app:1", want)
	c := newTestClient(t)
	trust(c, reg.Server.Certificate())
	http2 := false
	reg.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			http2 = req.ProtoMajor == 2
			next.ServeHTTP(w, req)
		})
	})
	img := mustResolve(t, c, ref)
	if got := readRange(t, c.Blob(img, 0), 10, 20); !bytes.Equal(got, want.Layers[0].Blob[10:30]) {
		t.Error("wrong bytes")
	}
	if !http2 {
		t.Error("not by HTTP/2")
	}
	_, err := resolveTest(t, newTestClient(t), ref)
	assertAs[*CertificateError](t, err, "SSL_CERT_FILE")
	if Temporary(err) {
		t.Error("an unknown authority is temporary")
	}
}

// TestCutBodiesOverHTTP2 are continued too: there a stream is cut, not a connection.
func TestCutBodiesOverHTTP2(t *testing.T) {
	reg := fetchtest.NewTLSRegistry(t)
	want := smallImage(t)
	ref := reg.Push(t, "app:1", want)
	c := newTestClient(t)
	trust(c, reg.Server.Certificate())
	b := c.Blob(mustResolve(t, c, ref), 0)
	reg.Use(fetchtest.OnlyBlobs(fetchtest.TruncateNext(3, 20)))
	if got := readRange(t, b, 10, 200); !bytes.Equal(got, want.Layers[0].Blob[10:210]) {
		t.Error("wrong bytes")
	}
}

func TestPlainHTTPToATLSRegistry(t *testing.T) {
	reg := fetchtest.NewTLSRegistry(t)
	_, err := resolveTest(t, newTestClient(t, func(o *ClientOptions) { o.PlainHTTP = true }), reg.Host()+"/app")
	assertAs[*SchemeError](t, err, "speaks HTTPS but was asked by plain HTTP: leave out --plain-http")

	// Other servers answer it in other ways.
	for _, answer := range []string{"\x15\x03\x01\x00\x02\x02\x16", "HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n" +
		"<center>The plain HTTP request was sent to HTTPS port</center>"} {
		_, err := resolveTest(t, newTestClient(t, func(o *ClientOptions) { o.PlainHTTP = true }), rawServer(t, answer)+"/app")
		assertAs[*SchemeError](t, err, "speaks HTTPS")
	}
}

// rawServer answers every connection's first request with some bytes.
func rawServer(t *testing.T, answer string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(buf, answer)
		buf.Flush()
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// TestHTTPSToAPlainRegistry is what happens with a registry that is not on loopback; one on loopback that is configured so plays its part.
func TestHTTPSToAPlainRegistry(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	ref := reg.Push(t, "app:1", smallImage(t))
	_, err := resolveTest(t, newTestClient(t, withHosts(t, reg.Host(), "server = \"https://"+reg.Host()+"\"")), ref)
	assertAs[*SchemeError](t, err, "answered HTTP to an HTTPS request: use --plain-http")
	if Temporary(err) {
		t.Error("a wrong scheme is temporary")
	}
}

func TestLoopbackIsRecognised(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.0.0.1:5000": true, "127.1.2.3:80": true, "localhost": true, "localhost:5000": true,
		"[::1]:5000": true, "[::1]": true, "128.0.0.1": false, "localhost.example.org": false, "docker.io": false,
		"10.0.0.1:5000": false, "127.0.0.1.example.org": false, "[2001:db8::1]:5000": false,
	} {
		if got := isLoopback(host); got != want {
			t.Errorf("%s: %v", host, got)
		}
	}
}

// TestNonsenseIsAnError and neither a panic nor an endless wait.
func TestNonsenseIsAnError(t *testing.T) {
	for _, answer := range []string{"", "\n", "SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
		"HTTP/1.1 302 Found\r\nLocation: /v2/\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer x=y\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://169.254.169.254/\"\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"} {
		_, err := resolveTest(t, newTestClient(t), rawServer(t, answer)+"/app")
		if err == nil {
			t.Errorf("%q: no error", answer)
		}
		t.Logf("%q: %v", answer, err)
	}
}

// TestNetworkErrorsAreExplained in words, and are worth another try later.
func TestNetworkErrorsAreExplained(t *testing.T) {
	dial := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: err}
	}
	for _, c := range []struct {
		err   error
		says  string
		again bool // at once, by the client itself
	}{
		{dial(unix.ECONNREFUSED), "registry r.example: connection refused: nothing listens there", false},
		{dial(unix.ENETUNREACH), "there is no route to it: is the network up?", false},
		{dial(unix.EHOSTUNREACH), "there is no route to it", false},
		{dial(unix.ETIMEDOUT), "no answer in time", false},
		{dial(&net.DNSError{Err: "no such host", Name: "r.example", IsNotFound: true}), "there is no host of the name r.example", false},
		{dial(&net.DNSError{Err: "server misbehaving", Name: "r.example"}), "cannot look up r.example: server misbehaving", false},
		{&net.OpError{Op: "read", Err: os.NewSyscallError("read", unix.ECONNRESET)}, "it reset the connection", true},
		{io.ErrUnexpectedEOF, "it closed the connection in the middle of an answer", true},
	} {
		err := explainNetwork("r.example", c.err)
		assertAs[*NetworkError](t, err, c.says)
		if !Temporary(err) || !errors.Is(err, c.err) || transient(err) != c.again {
			t.Errorf("%v: temporary %v, tried again at once %v", err, Temporary(err), transient(err))
		}
	}
}

func TestErrorsOfRegistriesAreMadePrintable(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	reg.Use(fetchtest.OnlyManifests(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"errors":[{"message":"red \u001b[31m`+strings.Repeat("x", 5000)+`"}]}`)
		})
	}))
	_, err := resolveTest(t, newTestClient(t), reg.Host()+"/app")
	var missing *NotFoundError
	if !errors.As(err, &missing) || strings.ContainsRune(err.Error(), 0x1b) || len(err.Error()) > 1000 {
		t.Errorf("%q", err)
	}
}
