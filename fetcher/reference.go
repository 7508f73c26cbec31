package fetcher

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

// Kind says where an image comes from.
type Kind uint8

// The kinds of references.
const (
	KindRegistry Kind = iota + 1 // python:3.12, 127.0.0.1:5000/app@sha256:…
	KindLayout                   // oci:DIR[:TAG]
	KindArchive                  // oci-archive:FILE[:TAG]
)

const (
	layoutPrefix  = "oci:"
	archivePrefix = "oci-archive:"
	defaultTag    = "latest"
	dockerHub     = "docker.io"
	hubLibrary    = "library/"
)

// Reference names an image. It is comparable; the zero Reference names nothing.
//
// A registry reference follows Docker's rules: docker.io and library/ are implied, as is the tag latest when there
// is neither tag nor digest. With both, the digest says which image it is and the tag is only shown.
//
// In oci:DIR[:TAG] and oci-archive:FILE[:TAG], what follows the last colon is the tag if it can be one (it has no
// slash); a colon at the very end says that there is no tag, for a path whose last part holds a colon. @sha256:… may
// be written instead of, or after, the tag. A relative path is made absolute.
type Reference struct {
	kind   Kind
	host   string // registry: "docker.io", "127.0.0.1:5000"
	repo   string // registry: "library/python"
	path   string // layout, archive: absolute
	tag    string // "" with a digest only, and where a layout or archive has to have one image
	digest digest.Digest
}

// The rules below are written out because each start of a container parses references in two processes: compiling three
// regular expressions took 0.7 ms of each.

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits = "0123456789"
)

func isOf(s, set string) bool { return strings.Trim(s, set) == "" }

// isTag is [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}.
func isTag(s string) bool {
	return s != "" && len(s) <= 128 && !strings.ContainsAny(s[:1], ".-") && isOf(s, lower+upper+digits+"_.-")
}

// isRepoPart is [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*.
func isRepoPart(s string) bool {
	if s == "" || !isOf(s[:1], lower+digits) || !isOf(s[len(s)-1:], lower+digits) || !isOf(s, lower+digits+"._-") {
		return false
	}
	separators := strings.FieldsFunc(s, func(r rune) bool { return !strings.ContainsRune("._-", r) })
	return !slices.ContainsFunc(separators, func(sep string) bool {
		return sep != "." && sep != "_" && sep != "__" && !isOf(sep, "-")
	})
}

// isHexDigest is [a-f0-9]{64}.
func isHexDigest(s string) bool { return len(s) == 64 && isOf(s, digits+"abcdef") }

// ParseReference reads a reference as a user writes it.
func ParseReference(s string) (Reference, error) {
	ref, err := parseReference(s)
	if err != nil {
		return Reference{}, fmt.Errorf("invalid image reference %q: %w", s, err)
	}
	return ref, nil
}

func parseReference(s string) (Reference, error) {
	switch {
	case s == "":
		return Reference{}, errors.New("it is empty")
	case strings.ContainsRune(s, 0):
		return Reference{}, errors.New("it holds a NUL byte")
	case strings.HasPrefix(s, layoutPrefix):
		return parseLocal(KindLayout, s[len(layoutPrefix):])
	case strings.HasPrefix(s, archivePrefix):
		return parseLocal(KindArchive, s[len(archivePrefix):])
	}
	return parseRegistry(s)
}

// parseLocal reads PATH[:TAG][@DIGEST].
func parseLocal(kind Kind, s string) (Reference, error) {
	ref := Reference{kind: kind}
	if at := strings.LastIndex(s, "@sha256:"); at >= 0 && isHexDigest(s[at+len("@sha256:"):]) {
		s, ref.digest = s[:at], digest.Digest(s[at+1:])
	}
	path := s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		if tag := s[i+1:]; tag == "" || isTag(tag) {
			path, ref.tag = s[:i], tag
		}
	}
	if path == "" {
		return Reference{}, errors.New("the path is missing")
	}
	var err error
	if ref.path, err = filepath.Abs(path); err != nil {
		return Reference{}, err
	}
	return ref, nil
}

// parseRegistry reads [HOST/]REPOSITORY[:TAG][@DIGEST].
func parseRegistry(s string) (Reference, error) {
	if scheme, _, ok := strings.Cut(s, "://"); ok {
		return Reference{}, fmt.Errorf("it is a name, not a URL: leave out %s://", scheme)
	}
	base, dgst, hasDigest := strings.Cut(s, "@")
	ref := Reference{kind: KindRegistry}
	if hasDigest {
		ref.digest = digest.Digest(dgst)
		if err := checkDigest(ref.digest); err != nil {
			return Reference{}, err
		}
	}
	tag, err := name.NewTag(base, name.WithDefaultTag(""))
	if err != nil {
		return Reference{}, explainName(base, err)
	}
	ref.host, ref.repo, ref.tag = tag.RegistryStr(), tag.RepositoryStr(), tag.TagStr()
	if ref.host == name.DefaultRegistry {
		ref.host = dockerHub
	}
	if err := ref.checkRegistryName(); err != nil {
		return Reference{}, err
	}
	if ref.tag == "" && !hasDigest {
		ref.tag = defaultTag
	}
	return ref, nil
}

func explainName(base string, err error) error {
	if lower := strings.ToLower(base); lower != base {
		if _, e := name.NewTag(lower); e == nil {
			return errors.New("a repository's name must be lower case")
		}
	}
	return err
}

// checkRegistryName applies Docker's rules where the registry library is more lenient: a name that passes
// is safe in a URL's path.
func (r Reference) checkRegistryName() error {
	for part := range strings.SplitSeq(r.repo, "/") {
		if !isRepoPart(part) {
			return fmt.Errorf("%q cannot be part of a repository's name", part)
		}
	}
	if r.host == dockerHub && isHexDigest(strings.TrimPrefix(r.repo, hubLibrary)) {
		return errors.New("64 hexadecimal digits are an ID, not a repository's name")
	}
	if r.tag != "" && !isTag(r.tag) {
		return fmt.Errorf("%q cannot be a tag", r.tag)
	}
	return nil
}

// checkDigest accepts what everything here is addressed by.
func checkDigest(d digest.Digest) error {
	algorithm, hex, _ := strings.Cut(string(d), ":")
	switch {
	case algorithm != "sha256" && d.Validate() == nil:
		return fmt.Errorf("digest %s is not a sha256, the only kind that is supported", d)
	case algorithm != "sha256" || !isHexDigest(hex):
		return fmt.Errorf("%q is not a digest (sha256: and 64 hexadecimal digits)", string(d))
	}
	return nil
}

// String returns the whole reference; ParseReference of it returns an equal Reference.
func (r Reference) String() string {
	var b strings.Builder
	switch r.kind {
	case KindLayout:
		b.WriteString(layoutPrefix + r.path)
	case KindArchive:
		b.WriteString(archivePrefix + r.path)
	case KindRegistry:
		b.WriteString(r.host + "/" + r.repo)
	}
	if r.tag != "" {
		b.WriteString(":" + r.tag)
	} else if r.kind != KindRegistry && strings.Contains(r.path, ":") {
		b.WriteByte(':')
	}
	if r.digest != "" {
		b.WriteString("@" + string(r.digest))
	}
	return b.String()
}

// Kind says where the image comes from.
func (r Reference) Kind() Kind { return r.kind }

// Repository returns the name without tag and digest as Docker shows it: python, 127.0.0.1:5000/app, oci:/srv/app.
func (r Reference) Repository() string {
	switch {
	case r.kind == KindLayout:
		return layoutPrefix + r.path
	case r.kind == KindArchive:
		return archivePrefix + r.path
	case r.host != dockerHub:
		return r.host + "/" + r.repo
	}
	if short := strings.TrimPrefix(r.repo, hubLibrary); !strings.Contains(short, "/") {
		return short
	}
	return r.repo
}

// Tag returns the tag, or "" when the reference has none.
func (r Reference) Tag() string { return r.tag }

// Digest returns the digest that the reference asks for, or "".
func (r Reference) Digest() digest.Digest { return r.digest }

// WithDigest returns the reference to exactly the image with that manifest, or index, whatever the tag means later.
func (r Reference) WithDigest(d digest.Digest) Reference {
	r.digest = d
	return r
}

// Path returns the directory of a KindLayout, the file of a KindArchive, else "".
func (r Reference) Path() string { return r.path }
