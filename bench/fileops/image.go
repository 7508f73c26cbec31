package fileops

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// The goals for images.
const (
	memoryGoal = 20 << 20 // bytes
	mountGoal  = 50 * time.Millisecond
	// lookupGoal is how much longer a lookup may take with many layers than with one: what two runs of the same differ by.
	lookupGoal = 1.1
)

const filesInImageDir = 50

// image measures what does not depend on rivals: the memory of a server, and mounting an image of many files and layers. The files are
// empty: nothing here depends on what is in them.
func (b *bench) image(ctx context.Context) error {
	if err := b.weigh(ctx); err != nil {
		return fmt.Errorf("memory of the server: %w", err)
	}
	if err := b.mountMany(ctx); err != nil {
		return fmt.Errorf("mount of an image: %w", err)
	}
	return nil
}

// weigh walks an image and looks how much memory its server has then.
func (b *bench) weigh(ctx context.Context) error {
	b.Log.Printf("memory of a server of %d files", b.in.image)
	m, err := b.makeImage("weighed", b.in.image, 10)
	if err != nil {
		return err
	}
	s, _, err := m.mount(ctx)
	if err != nil {
		return err
	}
	err = walk(s.dir, func(dir int, name string, _ uint8) error {
		var st unix.Stat_t
		return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	var bytes int64
	if err == nil {
		bytes, err = s.server.privateMemory()
	}
	if err := errors.Join(err, s.close(), m.remove()); err != nil {
		return err
	}
	b.report.image = append(b.report.image, line{
		what:   fmt.Sprintf("private memory of the server, %d files walked", b.in.image),
		figure: fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)), goal: fmt.Sprintf("≤ %d MiB", memoryGoal>>20), holds: bytes <= memoryGoal,
	})
	return nil
}

// mountMany mounts an image of many layers that was used before, and looks files up in it that nobody has looked up; the same
// image of one layer takes turns.
func (b *bench) mountMany(ctx context.Context) error {
	b.Log.Printf("mount of %d files in %d layers", b.in.bigImage, b.in.manyLayers)
	type measured struct {
		image          *image
		mount, lookups []time.Duration
	}
	var all [2]measured
	for i, layers := range []int{1, b.in.manyLayers} {
		m, err := b.makeImage(fmt.Sprint("many", i), b.in.bigImage, layers)
		if err != nil {
			return err
		}
		all[i].image = m
	}
	for n := range b.Rounds + 1 {
		for i := range all {
			m := &all[i]
			s, took, err := m.image.mount(ctx)
			if err != nil {
				return err
			}
			lookups, err := lookupAll(s, b.in.bigImage, min(20_000, b.in.bigImage))
			if err := errors.Join(err, s.close()); err != nil {
				return err
			}
			if n > 0 { // the first use builds the tree
				m.mount, m.lookups = append(m.mount, took), append(m.lookups, lookups)
			}
		}
	}
	one, many := &all[0], &all[1]
	took, ratio := median(many.mount), float64(median(many.lookups))/float64(median(one.lookups))
	b.report.image = append(b.report.image, line{
		what:   fmt.Sprintf("`veneer mount` of %d files in %d layers, used before; in one layer: %s", b.in.bigImage, b.in.manyLayers, show(median(one.mount))),
		figure: show(took), goal: "≤ " + show(mountGoal), holds: took <= mountGoal,
	}, line{
		what:   fmt.Sprintf("first lookups in it: %s, against one layer: %s", show(median(many.lookups)), show(median(one.lookups))),
		figure: digits(ratio) + "×", goal: fmt.Sprintf("%g×", lookupGoal), holds: ratio <= lookupGoal,
	})
	return errors.Join(one.image.remove(), many.image.remove())
}

// lookupAll stats n of the files, far from each other.
func lookupAll(s *site, files, n int) (time.Duration, error) {
	runtime.GC() // not while the clock runs
	begun := time.Now()
	for i := range n {
		var st unix.Stat_t
		name := s.dir + "/" + imageFile(i*(files/n))
		if err := unix.Lstat(name, &st); err != nil {
			return 0, fmt.Errorf("stat %s: %w", name, err)
		}
	}
	return time.Since(begun), nil
}

// image is an OCI layout, and a place for a veneer that uses it.
type image struct {
	b   *bench
	dir string
}

func (m *image) remove() error { return os.RemoveAll(m.dir) }

// mount mounts the image for reading, and tells how long the command took.
func (m *image) mount(ctx context.Context) (*site, time.Duration, error) {
	s := &site{name: veneer, state: filepath.Join(m.dir, "state"), in: m.b.in}
	s.dir = filepath.Join(s.state, "m")
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, 0, err
	}
	args := []string{"--root", filepath.Join(m.dir, "root"), "--run-root", filepath.Join(s.state, "run"), "mount",
		"--stats", filepath.Join(s.state, statsFile), "oci:" + filepath.Join(m.dir, "layout") + ":latest", s.dir}
	begun := time.Now()
	err := command(ctx, m.b.Veneer, args...)
	took := time.Since(begun)
	if err == nil {
		s.server, err = findServer(s.state)
	}
	if err != nil {
		return nil, 0, errors.Join(err, s.close())
	}
	return s, took, nil
}

// imageFile is the name of file i of an image.
func imageFile(i int) string {
	dir := i / filesInImageDir
	return fmt.Sprintf("usr/lib/pack%03d/dir%d/some_file_%d.py", dir/100, dir%100, i%filesInImageDir)
}

// makeImage writes an image of empty files, which its layers share out one by one.
func (b *bench) makeImage(name string, files, layers int) (*image, error) {
	m := &image{b: b, dir: filepath.Join(b.dir, name)}
	l := &layoutWriter{dir: filepath.Join(m.dir, "layout")}
	if err := os.MkdirAll(filepath.Join(l.dir, "blobs/sha256"), 0o755); err != nil {
		return nil, err
	}
	for i := range layers {
		err := l.layer(func(w *tar.Writer) error {
			for f := i; f < files; f += layers {
				h := &tar.Header{Typeflag: tar.TypeReg, Name: imageFile(f), Mode: 0o644, Format: tar.FormatUSTAR, ModTime: time.Unix(1_600_000_000, 0)}
				if err := w.WriteHeader(h); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return m, l.finish()
}

// layoutWriter writes an OCI layout of one image.
type layoutWriter struct {
	dir    string
	layers []ocispec.Descriptor
	diffs  []digest.Digest
}

// layer adds a gzipped layer of the tar that write writes.
func (l *layoutWriter) layer(write func(*tar.Writer) error) error {
	path := filepath.Join(l.dir, "blobs/sha256/new")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	packed, plain := sha256.New(), sha256.New()
	z, err := gzip.NewWriterLevel(io.MultiWriter(f, packed), gzip.BestSpeed)
	if err != nil {
		return err
	}
	w := tar.NewWriter(io.MultiWriter(z, plain))
	if err := write(w); err != nil {
		return err
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	d := sum(packed)
	l.layers = append(l.layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: size})
	l.diffs = append(l.diffs, sum(plain))
	return os.Rename(path, filepath.Join(l.dir, "blobs/sha256", d.Encoded()))
}

func sum(h hash.Hash) digest.Digest { return digest.NewDigest(digest.SHA256, h) }

// finish writes all but the layers.
func (l *layoutWriter) finish() error {
	config, err := l.blob(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: l.diffs},
	})
	if err != nil {
		return err
	}
	v := specs.Versioned{SchemaVersion: 2}
	manifest, err := l.blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: v, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: l.layers,
	})
	if err != nil {
		return err
	}
	manifest.Annotations = map[string]string{ocispec.AnnotationRefName: "latest"}
	index := ocispec.Index{Versioned: v, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{manifest}}
	return errors.Join(
		writeJSON(filepath.Join(l.dir, ocispec.ImageIndexFile), index),
		writeJSON(filepath.Join(l.dir, ocispec.ImageLayoutFile), ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}))
}

func (l *layoutWriter) blob(mediaType string, v any) (ocispec.Descriptor, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return d, os.WriteFile(filepath.Join(l.dir, "blobs/sha256", d.Digest.Encoded()), raw, 0o644)
}

func writeJSON(path string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o644)
}
