package hostimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/veneerfs/veneer/fetcher/embedded"
)

// TestImageRunsOnThisMachine unpacks an image of small ballast and runs its shell in it, by chroot alone.
func TestImageRunsOnThisMachine(t *testing.T) {
	r := embedded.NewRegistry(t.TempDir())
	ballast := Ballast{Parts: 2, Size: 100_000}
	var reports []string
	built, err := Add(r, "app", "1", ballast, func(s string) { reports = append(reports, s) })
	if err != nil {
		t.Fatal(err)
	}
	if len(reports) != 3 || built.Layers != 3 {
		t.Errorf("%d layers, reports %q, want 3 of each", built.Layers, reports)
	}
	root := t.TempDir()
	config := unpack(t, r, "app", "1", root)

	cmd := exec.Command("/bin/sh", "-c", "cat /etc/motd && ls /data && wc -c < /data/part-2")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	cmd.Dir = "/"
	cmd.Env = config.Config.Env
	out, err := cmd.CombinedOutput()
	if want := Motd + "part-1\npart-2\n100000\n"; err != nil || string(out) != want {
		t.Errorf("it says %q, %v, want %q", out, err, want)
	}
	got, err := os.ReadFile(filepath.Join(root, "data/part-2"))
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := io.ReadAll(BallastReader(2, ballast.Size)); !bytes.Equal(got, want) {
		t.Error("the ballast is not what BallastReader reads")
	}
}

func TestShellIsNeeded(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := collect("sh"); err == nil {
		t.Error("no error without a shell")
	}
}

func TestWhatTheMachineLacksIsLeftOut(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "no-elf-program"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", os.Getenv("PATH")+":"+bin)
	p, err := collect("sh", "no-such-program", "no-elf-program")
	if err != nil {
		t.Fatal(err)
	}
	for name := range p.files {
		if strings.HasPrefix(name, "/bin/no-") {
			t.Errorf("%s is in the image", name)
		}
	}
}

func TestLoaderConfigFollowsIncludes(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"main.conf": "/a # one\n\n# none\ninclude sub/*.conf\n/d\n", "sub/1.conf": "/b\n", "sub/2.conf": "/c\ninclude ../main.conf\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := loaderConfig(filepath.Join(dir, "main.conf"), 0)
	if len(got) < 4 || got[0] != "/a" || got[1] != "/b" || got[2] != "/c" || got[len(got)-1] != "/d" {
		t.Errorf("got %q", got)
	}
}

// unpack writes the image's files below root: names, bytes, modes and hard links, which is all that it holds.
func unpack(t *testing.T, r *embedded.Registry, name, tag, root string) ocispec.Image {
	t.Helper()
	fetch := func(path string) []byte {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v2/"+name+path, nil))
		if w.Code != http.StatusOK {
			t.Fatalf("%s: %d", path, w.Code)
		}
		return w.Body.Bytes()
	}
	var m ocispec.Manifest
	var config ocispec.Image
	if err := json.Unmarshal(fetch("/manifests/"+tag), &m); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(fetch("/blobs/"+m.Config.Digest.String()), &config); err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		z, err := gzip.NewReader(bytes.NewReader(fetch("/blobs/" + l.Digest.String())))
		if err != nil {
			t.Fatal(err)
		}
		for tr := tar.NewReader(z); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if err := unpackEntry(root, h, tr); err != nil {
				t.Fatal(err)
			}
		}
	}
	return config
}

func unpackEntry(root string, h *tar.Header, content io.Reader) error {
	path := filepath.Join(root, h.Name)
	switch h.Typeflag {
	case tar.TypeDir:
		return os.MkdirAll(path, h.FileInfo().Mode())
	case tar.TypeLink:
		return os.Link(filepath.Join(root, h.Linkname), path)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, h.FileInfo().Mode())
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(f, content)
	return err
}
