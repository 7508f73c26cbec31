package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/veneerfs/veneer/fetcher/embedded"
)

// serveImage serves an image of one eStargz layer of 1 MB, and returns its registry and its reference.
func serveImage(t *testing.T) (*httptest.Server, string) {
	t.Helper()
	r := embedded.NewRegistry(t.TempDir())
	data := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(data)
	l, err := r.AddLayer(gzip.NoCompression, func(w *tar.Writer) error {
		if err := w.WriteHeader(&tar.Header{Name: "data", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))}); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.AddImage("app", "1", []embedded.Layer{l},
		ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, ocispec.ImageConfig{}); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	return s, strings.TrimPrefix(s.URL, "http://") + "/app:1"
}

// veneerHere runs a command line in this process.
func veneerHere(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	a := &app{stdin: stdin, stdout: &out, stderr: &errOut}
	status = a.main(t.Context(), args)
	return status, out.String(), errOut.String()
}

func TestPullFetchesOnceAndSaysSo(t *testing.T) {
	server, image := serveImage(t)
	root := t.TempDir()
	status, out, log := veneerHere(t, "--root", root, "pull", image)
	if status != 0 || !strings.Contains(out, "Status: Downloaded newer image for "+image+"\n") || !strings.HasSuffix(out, "\n"+image+"\n") {
		t.Fatalf("first pull: %d, %q, %q", status, out, log)
	}
	if status, out, log = veneerHere(t, "--root", root, "pull", image); status != 0 || !strings.Contains(out, "Status: Image is up to date for "+image+"\n") {
		t.Errorf("second pull: %d, %q, %q", status, out, log)
	}
	if status, out, log = veneerHere(t, "--root", root, "pull", "--quiet", image); status != 0 || out != image+"\n" || log != "" {
		t.Errorf("quiet pull: %d, %q, %q", status, out, log)
	}
	server.Close()
	if status, _, log = veneerHere(t, "--root", root, "pull", image); status != exitFailed || !strings.HasPrefix(log, "veneer: ") {
		t.Errorf("pull without a registry: %d, %q", status, log)
	}
}

func TestPullExplainsWhatIsWrong(t *testing.T) {
	_, image := serveImage(t)
	for _, c := range []struct {
		name   string
		args   []string
		status int
		want   string // in the message
	}{
		{"unknown image", []string{"pull", strings.Replace(image, "/app:1", "/none", 1)}, exitFailed, "image not found"},
		{"unknown tag", []string{"pull", strings.Replace(image, ":1", ":2", 1)}, exitFailed, "image not found"},
		{"bad reference", []string{"pull", "UPPER"}, exitFailed, "invalid image reference"},
		{"other platform", []string{"pull", "--platform", "linux/s390x", image}, exitFailed, "platform"},
		{"no image", []string{"pull"}, exitVeneer, "veneer pull --help"},
		{"unknown flag", []string{"pull", "--nope", image}, exitVeneer, "veneer pull --help"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, out, log := veneerHere(t, append([]string{"--root", t.TempDir()}, c.args...)...)
			if status != c.status || !strings.Contains(log, c.want) || out != "" {
				t.Errorf("status %d, stdout %q, stderr %q; want %d and %q", status, out, log, c.status, c.want)
			}
		})
	}
}

func TestImagesListsWhatWasPulled(t *testing.T) {
	_, image := serveImage(t)
	repository := strings.TrimSuffix(image, ":1")
	root := t.TempDir()
	if status, out, _ := veneerHere(t, "--root", root, "images"); status != 0 || strings.Count(out, "\n") != 1 {
		t.Errorf("an empty store: %d, %q", status, out)
	}
	if status, _, log := veneerHere(t, "--root", root, "pull", "-q", image); status != 0 {
		t.Fatal(log)
	}
	_, out, _ := veneerHere(t, "--root", root, "images")
	_, line, _ := strings.Cut(out, "\n")
	if f := strings.Fields(line); len(f) < 6 || f[0] != repository || f[1] != "1" || len(f[2]) != 12 || !strings.HasSuffix(f[len(f)-1], "MB") {
		t.Errorf("list %q", out)
	}
	_, ids, _ := veneerHere(t, "--root", root, "images", "-q")
	if len(ids) != 13 || !strings.Contains(out, strings.TrimSpace(ids)) {
		t.Errorf("IDs %q", ids)
	}
	var l imageLine
	_, out, _ = veneerHere(t, "--root", root, "images", "--format", "json", image)
	if err := json.Unmarshal([]byte(out), &l); err != nil || l.Repository != repository || l.Size < 1<<20 {
		t.Errorf("JSON %q, %v", out, err)
	}
	if _, out, _ = veneerHere(t, "--root", root, "images", "-q", "other"); out != "" {
		t.Errorf("images of another name: %q", out)
	}
}

func TestAgoIsDockers(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "a moment ago", 90 * time.Second: "90 seconds ago", 119 * time.Minute: "119 minutes ago", 47 * time.Hour: "47 hours ago",
		13 * 24 * time.Hour: "13 days ago", 14 * 24 * time.Hour: "2 weeks ago", 400 * 24 * time.Hour: "13 months ago", 800 * 24 * time.Hour: "2 years ago",
	} {
		if got := ago(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
