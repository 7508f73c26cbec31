package fetcher

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// needTool skips a test on a machine without a program, but not in CI, which promises it.
func needTool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is missing: apt-get install %s", name, name)
	}
	t.Skipf("%s is missing: apt-get install %s", name, name)
	return ""
}

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// startDockerRegistry runs Debian's docker-registry until the test ends and returns its address.
func startDockerRegistry(t *testing.T, more ...string) string {
	t.Helper()
	config := filepath.Join(t.TempDir(), "config.yml")
	text := fmt.Sprintf("version: 0.1\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: \"127.0.0.1:0\"}\n%s\n", t.TempDir(), strings.Join(more, "\n"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(needTool(t, "docker-registry"), "serve", config)
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address := make(chan string, 1)
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		for lines := bufio.NewScanner(log); lines.Scan(); {
			if m := listening.FindSubmatch(lines.Bytes()); m != nil {
				address <- string(m[1])
			}
		}
		close(address)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-logged
		cmd.Wait() // killed, as it should be
	})
	addr, ok := <-address
	if !ok {
		t.Fatal("docker-registry ended before it listened")
	}
	return addr
}

func skopeo(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command(needTool(t, "skopeo"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo %q: %v\n%s", args, err, out)
	}
}

// TestDockerRegistry: images that skopeo pushes to a registry that is not ours are resolved and read.
func TestDockerRegistry(t *testing.T) {
	host := startDockerRegistry(t)
	dir := t.TempDir()
	var layers []fetchtest.Layer
	for _, f := range fetchtest.Formats() {
		layers = append(layers, fetchtest.NewLayer(t, f, fetchtest.Reg("file-"+f.String(), f.String())))
	}
	want := &fetchtest.Image{Layers: layers}
	fetchtest.WriteLayout(t, dir, map[string]*fetchtest.Image{"1": want})
	skopeo(t, "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", "oci:"+dir+":1", "docker://"+host+"/team/app:1")

	c := newTestClient(t)
	img := mustResolve(t, c, host+"/team/app:1")
	if img.Manifest != want.ManifestDigest(t) {
		t.Errorf("manifest %s", img.Manifest)
	}
	for i, l := range layers {
		b := c.Blob(img, i)
		if got := readRange(t, b, 3, 50); !bytes.Equal(got, l.Blob[3:53]) {
			t.Errorf("layer %d: wrong bytes", i)
		}
		if got, err := streamAll(t, b); err != nil || !bytes.Equal(got, l.Blob) {
			t.Errorf("layer %d: %d bytes, %v", i, len(got), err)
		}
	}
	for _, ref := range []string{host + "/team/app:2", host + "/other"} {
		_, err := resolveTest(t, c, ref)
		assertAs[*NotFoundError](t, err, "image not found: "+host)
	}
}

// TestPullThroughCache: docker-registry stands in front of another registry. It answers ranges of what it is still fetching with the whole; then
// the registry itself is asked.
func TestPullThroughCache(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	cache := startDockerRegistry(t, fmt.Sprintf("proxy: {remoteurl: %q}", reg.Server.URL))
	c := newTestClient(t, withHosts(t, reg.Host(), fmt.Sprintf("server = %q\n[host.\"http://%s\"]\n", reg.Server.URL, cache)))
	b := c.Blob(mustResolve(t, c, reg.Host()+"/app:1"), 0)
	if got, err := streamAll(t, b); err != nil || !bytes.Equal(got, reg.raw) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if len(reg.Requests()) == 0 {
		t.Error("nothing came through the cache")
	}
	for _, q := range reg.Requests() {
		if q.Header.Get("User-Agent") == "veneer" {
			t.Errorf("the registry itself was asked: %+v", q)
		}
	}
	if got := readRange(t, b, 1000, 5000); !bytes.Equal(got, reg.raw[1000:6000]) {
		t.Error("wrong bytes")
	}
}

// TestSkopeoAgrees: what skopeo writes we read, and what fetchtest makes skopeo reads, which checks every digest.
func TestSkopeoAgrees(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	want := smallImage(t)
	ref := reg.Push(t, "app:1", want)
	dir := t.TempDir()
	layout, archive := filepath.Join(dir, "layout"), filepath.Join(dir, "archive.tar")
	skopeo(t, "copy", "--quiet", "--preserve-digests", "--src-tls-verify=false", "docker://"+ref, "oci:"+layout+":v1")
	skopeo(t, "copy", "--quiet", "--preserve-digests", "oci:"+layout+":v1", "oci-archive:"+archive+":v1")
	skopeo(t, "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", "oci-archive:"+archive, "docker://"+reg.Host()+"/copy:2")
	docker := reg.Host() + "/docker:2"
	skopeo(t, "copy", "--quiet", "--format", "v2s2", "--dest-tls-verify=false", "oci:"+layout+":v1", "docker://"+docker)

	c := newTestClient(t)
	for _, s := range []string{"oci:" + layout, "oci:" + layout + ":v1", "oci-archive:" + archive + ":v1", reg.Host() + "/copy:2"} {
		if img := mustResolve(t, c, s); img.Manifest != want.ManifestDigest(t) {
			t.Errorf("%s is %s", s, img.Manifest)
		}
	}
	img := mustResolve(t, c, docker)
	for i, l := range want.Layers {
		if got, err := streamAll(t, c.Blob(img, i)); err != nil || !bytes.Equal(got, l.Blob) {
			t.Errorf("Docker's manifest, layer %d: %d bytes, %v", i, len(got), err)
		}
	}
}
