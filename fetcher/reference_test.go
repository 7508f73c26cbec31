package fetcher

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseReference(t *testing.T) {
	for _, c := range []struct{ in, full, repository, tag, digest string }{
		{"python", "docker.io/library/python:latest", "python", "latest", ""},
		{"python:3.12", "docker.io/library/python:3.12", "python", "3.12", ""},
		{"docker.io/python", "docker.io/library/python:latest", "python", "latest", ""},
		{"index.docker.io/library/python", "docker.io/library/python:latest", "python", "latest", ""},
		{"bitnami/redis", "docker.io/bitnami/redis:latest", "bitnami/redis", "latest", ""},
		{"quay.io/a/b/c:1", "quay.io/a/b/c:1", "quay.io/a/b/c", "1", ""},
		{"localhost/app", "localhost/app:latest", "localhost/app", "latest", ""},
		{"localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app", "latest", ""},
		{"127.0.0.1:5000/app:x", "127.0.0.1:5000/app:x", "127.0.0.1:5000/app", "x", ""},
		{"[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app", "latest", ""},
		{"a@" + someDigest, "docker.io/library/a@" + someDigest, "a", "", someDigest},
		{"a:1@" + someDigest, "docker.io/library/a:1@" + someDigest, "a", "1", someDigest},
		{"a_b/c__d.e--f", "docker.io/a_b/c__d.e--f:latest", "a_b/c__d.e--f", "latest", ""},

		{"oci:/srv/app", "oci:/srv/app", "oci:/srv/app", "", ""},
		{"oci:/srv/app/", "oci:/srv/app", "oci:/srv/app", "", ""},
		{"oci:/srv/app:1.0", "oci:/srv/app:1.0", "oci:/srv/app", "1.0", ""},
		{"oci:/srv/a:b/app", "oci:/srv/a:b/app:", "oci:/srv/a:b/app", "", ""},
		{"oci:/srv/a:b/app:1", "oci:/srv/a:b/app:1", "oci:/srv/a:b/app", "1", ""},
		{"oci:/srv/a:b", "oci:/srv/a:b", "oci:/srv/a", "b", ""},
		{"oci:/srv/a:b:", "oci:/srv/a:b:", "oci:/srv/a:b", "", ""},
		{"oci:/srv/a:b:c", "oci:/srv/a:b:c", "oci:/srv/a:b", "c", ""},
		{"oci:/srv/a@" + someDigest, "oci:/srv/a@" + someDigest, "oci:/srv/a", "", someDigest},
		{"oci:/srv/a:1@" + someDigest, "oci:/srv/a:1@" + someDigest, "oci:/srv/a", "1", someDigest},
		{"oci-archive:/srv/a.tar", "oci-archive:/srv/a.tar", "oci-archive:/srv/a.tar", "", ""},
		{"oci-archive:/srv/a.tar:v1", "oci-archive:/srv/a.tar:v1", "oci-archive:/srv/a.tar", "v1", ""},
	} {
		ref, err := ParseReference(c.in)
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		if got := ref.String(); got != c.full {
			t.Errorf("%q: is %q, want %q", c.in, got, c.full)
		}
		if ref.Repository() != c.repository || ref.Tag() != c.tag || string(ref.Digest()) != c.digest {
			t.Errorf("%q: parts %q %q %q", c.in, ref.Repository(), ref.Tag(), ref.Digest())
		}
		if again, err := ParseReference(ref.String()); err != nil || again != ref {
			t.Errorf("%q: does not come back from %q: %v, %v", c.in, ref.String(), again, err)
		}
	}
}

func TestRelativePathBecomesAbsolute(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := ParseReference("oci:some/dir:tag")
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(wd, "some/dir"); ref.Path() != want || ref.Kind() != KindLayout {
		t.Errorf("path %q of kind %d, want %q", ref.Path(), ref.Kind(), want)
	}
}

func TestBadReferencesAreRefused(t *testing.T) {
	for _, c := range []struct{ in, says string }{
		{"", "empty"},
		{"Python", "lower case"},
		{"https://docker.io/python", "leave out https://"},
		{"python:", "tag"},
		{"python:a b", "tag"},
		{"python:-x", "tag"},
		{"python@sha256:12", "not a digest"},
		{"python@sha512:" + strings.Repeat("a", 128), "not a sha256"},
		{"python@" + strings.ToUpper(someDigest), "not a digest"},
		{"a//b", "cannot be part"},
		{"quay.io/../b", "cannot be part"},
		{"quay.io/a/.b", "cannot be part"},
		{"quay.io/a/b-", "cannot be part"},
		{strings.TrimPrefix(someDigest, "sha256:"), "an ID"},
		{"a\x00b", "NUL"},
		{"oci:", "path is missing"},
		{"oci::tag", "path is missing"},
		{"oci-archive:", "path is missing"},
	} {
		if ref, err := ParseReference(c.in); err == nil {
			t.Errorf("%q is taken for %v", c.in, ref)
		} else if !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: %q does not speak of %q", c.in, err, c.says)
		}
	}
}

// FuzzParseReference: a reference that is accepted comes back from its String, and can be put into a URL.
func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"python", "a:1@" + someDigest, "localhost:5000/a/b:c", "oci:/a:b:", "oci:a@" + someDigest,
		"oci-archive:/x.tar:t", "[::1]:1/a", "oci:/@sha256:", "a.b:80/c", "oci:/a:@" + someDigest} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(ref.String())
		if err != nil || again != ref {
			t.Errorf("%q is %#v, its String %q is %#v, %v", s, ref, ref.String(), again, err)
		}
		if ref.Kind() == KindRegistry && (strings.ContainsAny(ref.repo, "%?#\\ ") || strings.Contains(ref.repo, "..")) {
			t.Errorf("%q has the repository %q", s, ref.repo)
		}
	})
}
