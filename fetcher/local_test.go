package fetcher

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// local writes images as one kind of local source and returns its reference.
type local func(t *testing.T, images map[string]*fetchtest.Image) string

var locals = map[string]local{
	"oci": func(t *testing.T, images map[string]*fetchtest.Image) string {
		dir := filepath.Join(t.TempDir(), "layout")
		fetchtest.WriteLayout(t, dir, images)
		return "oci:" + dir
	},
	"oci-archive": func(t *testing.T, images map[string]*fetchtest.Image) string {
		file := filepath.Join(t.TempDir(), "archive.tar")
		fetchtest.WriteArchive(t, file, images)
		return "oci-archive:" + file
	},
}

func forLocals(t *testing.T, f func(*testing.T, local)) {
	for name, write := range locals {
		t.Run(name, func(t *testing.T) { f(t, write) })
	}
}

func TestLocalImage(t *testing.T) {
	forLocals(t, func(t *testing.T, write local) {
		want := smallImage(t)
		ref := write(t, map[string]*fetchtest.Image{"1.0": want})
		c := newTestClient(t)
		for _, s := range []string{ref, ref + ":1.0", ref + "@" + string(want.ManifestDigest(t))} {
			img := mustResolve(t, c, s)
			if img.Manifest != want.ManifestDigest(t) {
				t.Errorf("%s is %s", s, img.Manifest)
			}
			for i, l := range want.Layers {
				b := c.Blob(img, i)
				if got, err := streamAll(t, b); err != nil || !bytes.Equal(got, l.Blob) {
					t.Errorf("layer %d: %d bytes, %v", i, len(got), err)
				}
				if got := readRange(t, b, 5, 100); !bytes.Equal(got, l.Blob[5:105]) {
					t.Errorf("layer %d: wrong bytes", i)
				}
				readRange(t, b, 7, 0)
				readRange(t, b, 0, int64(len(l.Blob)))
				if err := rangeError(t, b, 5, int64(len(l.Blob))); err == nil {
					t.Error("read past the end")
				}
			}
		}
		if n := c.Traffic(); n != (Traffic{}) {
			t.Errorf("a local image made requests: %+v", n)
		}
	})
}

func TestLocalTags(t *testing.T) {
	forLocals(t, func(t *testing.T, write local) {
		c := newTestClient(t)
		one, two := smallImage(t), &fetchtest.Image{}
		ref := write(t, map[string]*fetchtest.Image{"one": one, "two": two})
		if img := mustResolve(t, c, ref+":two"); img.Manifest != two.ManifestDigest(t) {
			t.Errorf("two is %s", img.Manifest)
		}
		_, err := resolveTest(t, c, ref)
		assertAs[*ImageError](t, err, "holds 2 images: say which, by "+ref+":TAG; its tags are: one, two")
		_, err = resolveTest(t, c, ref+":three")
		assertAs[*NotFoundError](t, err, "image not found: "+ref+":three: its tags are: one, two")
		_, err = resolveTest(t, c, ref+"@"+someDigest)
		assertAs[*NotFoundError](t, err, "image not found")

		ref = write(t, map[string]*fetchtest.Image{"latest": one, "two": two})
		if img := mustResolve(t, c, ref); img.Manifest != one.ManifestDigest(t) {
			t.Errorf("latest is %s", img.Manifest)
		}
		ref = write(t, map[string]*fetchtest.Image{"": one})
		if img := mustResolve(t, c, ref); img.Manifest != one.ManifestDigest(t) {
			t.Errorf("the only one is %s", img.Manifest)
		}
	})
}

func TestLocalThatIsNotThere(t *testing.T) {
	c := newTestClient(t)
	_, err := resolveTest(t, c, "oci:"+t.TempDir())
	assertAs[*NotFoundError](t, err, "no OCI layout")
	_, err = resolveTest(t, c, "oci-archive:"+filepath.Join(t.TempDir(), "none.tar"))
	assertAs[*NotFoundError](t, err, "no OCI archive")
}

// TestDamagedLocalLayer: a stream tells, a blob of another size is refused before it is read.
func TestDamagedLocalLayer(t *testing.T) {
	dir := t.TempDir()
	want := smallImage(t)
	fetchtest.WriteLayout(t, dir, map[string]*fetchtest.Image{"": want})
	c := newTestClient(t)
	img := mustResolve(t, c, "oci:"+dir)
	path := filepath.Join(dir, "blobs/sha256", img.Layers[0].Digest.Encoded())
	raw := bytes.Clone(want.Layers[0].Blob)
	raw[50] ^= 1
	write := func(raw []byte) {
		t.Helper()
		if err := os.WriteFile(path, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(raw)
	_, err := streamAll(t, c.Blob(img, 0))
	assertAs[*DigestError](t, err, "damaged")
	write(raw[1:])
	_, err = streamAll(t, c.Blob(img, 0))
	assertAs[*ImageError](t, err, "bytes, not")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	_, err = streamAll(t, c.Blob(img, 0))
	assertAs[*NotFoundError](t, err, "image not found: blob sha256:")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err = streamAll(t, c.Blob(img, 0)); err == nil {
		t.Error("a directory is taken for a layer")
	}
}

func TestCancelEndsALocalRead(t *testing.T) {
	forLocals(t, func(t *testing.T, write local) {
		c := newTestClient(t)
		img := mustResolve(t, c, write(t, map[string]*fetchtest.Image{"": smallImage(t)}))
		ctx, cancel := context.WithCancel(t.Context())
		r, err := c.Blob(img, 0).ReadRange(ctx, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		cancel()
		if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

// archiveOf writes a tar with layout files of img first and others after them.
func archiveOf(t *testing.T, img *fetchtest.Image, more ...fetchtest.File) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "archive.tar")
	fetchtest.WriteArchive(t, file, map[string]*fetchtest.Image{"": img})
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	raw = append(raw[:len(raw)-1024], fetchtest.Tar(t, more...)...) // without the end mark of the first
	if err := os.WriteFile(file, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestHostileArchives: a member that pretends to be a blob is found out by its digest; links lead nowhere.
func TestHostileArchives(t *testing.T) {
	want := smallImage(t)
	layer := "blobs/sha256/" + want.Layers[0].Descriptor.Digest.Encoded()
	forged := strings.Repeat("x", len(want.Layers[0].Blob))
	c := newTestClient(t)

	file := archiveOf(t, want, fetchtest.Reg("./x/../"+layer, forged))
	_, err := streamAll(t, c.Blob(mustResolve(t, c, "oci-archive:"+file), 0))
	assertAs[*DigestError](t, err, "damaged")

	file = archiveOf(t, want, fetchtest.Symlink(layer, "/etc/passwd"), fetchtest.Link(layer, "../../../etc/passwd"), fetchtest.Dir(layer))
	if got, err := streamAll(t, c.Blob(mustResolve(t, c, "oci-archive:"+file), 0)); err != nil || !bytes.Equal(got, want.Layers[0].Blob) {
		t.Errorf("%d bytes, %v", len(got), err)
	}

	file = archiveOf(t, want, fetchtest.Reg("index.json", `{"schemaVersion":2,"manifests":[{"digest":"sha256:../../../../etc/passwd","size":1}]}`))
	_, err = resolveTest(t, c, "oci-archive:"+file)
	assertAs[*ImageError](t, err, "is not a digest")
}

func TestCutArchive(t *testing.T) {
	want := smallImage(t)
	file := archiveOf(t, want)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{100, 2048, len(raw) / 2} {
		if err := os.WriteFile(file, raw[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := resolveTest(t, newTestClient(t), "oci-archive:"+file); err == nil {
			t.Errorf("no error with %d bytes of %d", n, len(raw))
		}
	}
}

func TestCompressedArchiveIsNamed(t *testing.T) {
	file := archiveOf(t, smallImage(t))
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(raw)
	w.Close()
	if err := os.WriteFile(file, buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := resolveTest(t, newTestClient(t), "oci-archive:"+file); err == nil || !strings.Contains(err.Error(), "gunzip it first") {
		t.Errorf("%v does not say what to do", err)
	}
}

// TestReplacedArchiveIsReadAgain: where its members are is remembered only as long as it is the same file.
func TestReplacedArchiveIsReadAgain(t *testing.T) {
	file := archiveOf(t, smallImage(t))
	c := newTestClient(t)
	mustResolve(t, c, "oci-archive:"+file)
	other := &fetchtest.Image{Config: ocispec.ImageConfig{Cmd: []string{"/other"}}}
	if err := os.Rename(archiveOf(t, other), file); err != nil {
		t.Fatal(err)
	}
	if img := mustResolve(t, c, "oci-archive:"+file); img.Manifest != other.ManifestDigest(t) {
		t.Errorf("got %s", img.Manifest)
	}

	third := smallImage(t)
	raw, err := os.ReadFile(archiveOf(t, third))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, raw, 0o644); err != nil { // in place: the same inode
		t.Fatal(err)
	}
	if img := mustResolve(t, c, "oci-archive:"+file); img.Manifest != third.ManifestDigest(t) {
		t.Errorf("after a change in place: got %s", img.Manifest)
	}
}

// TestSparseMemberIsPassedOver: a member whose bytes in the tar are not its own is not taken for a blob.
func TestSparseMemberIsPassedOver(t *testing.T) {
	tool, err := exec.LookPath("tar")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	want := smallImage(t)
	fetchtest.WriteLayout(t, dir, map[string]*fetchtest.Image{"": want})
	hole := filepath.Join(dir, "blobs/sha256", digest.FromString("").Encoded())
	if err := os.WriteFile(hole, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(hole, 1<<20); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "pax"} {
		file := filepath.Join(t.TempDir(), "a.tar")
		out, err := exec.Command(tool, "-C", dir, "--sparse", "--format", format, "-cf", file, ".").CombinedOutput()
		if err != nil {
			t.Fatalf("tar: %v: %s", err, out)
		}
		c := newTestClient(t)
		img := mustResolve(t, c, "oci-archive:"+file)
		if got, err := streamAll(t, c.Blob(img, 0)); err != nil || !bytes.Equal(got, want.Layers[0].Blob) {
			t.Errorf("%s: %d bytes, %v", format, len(got), err)
		}
		img.Layers[0] = ocispec.Descriptor{Digest: digest.FromString(""), Size: 1 << 20}
		_, err = streamAll(t, c.Blob(img, 0))
		assertAs[*NotFoundError](t, err, "image not found: blob")
	}
}

// FuzzArchive: any file is an archive of some blobs within its bounds, or an error.
func FuzzArchive(f *testing.F) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	w.WriteHeader(&tar.Header{Name: "./index.json", Size: 2, Mode: 0o644, Format: tar.FormatPAX, PAXRecords: map[string]string{"x.y": "z"}})
	w.Write([]byte("{}"))
	w.Close()
	f.Add(buf.Bytes())
	f.Add(buf.Bytes()[:1500])
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		members, err := indexArchive(t.Context(), bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			return
		}
		for name, m := range members {
			if m.off < 0 || m.size < 0 || m.off+m.size > int64(len(raw)) || strings.HasPrefix(name, "/") || strings.HasPrefix(name, "../") {
				t.Errorf("%q is at %+v of %d bytes", name, m, len(raw))
			}
		}
	})
}
