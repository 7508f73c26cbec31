package hostimage

import (
	"archive/tar"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/veneerfs/veneer/fetcher/embedded"
)

// small programs that an image gets as far as this machine has them; the shell comes first.
var small = []string{
	"sh", "cat", "ls", "echo", "uname", "head", "tail", "wc", "grep", "sed", "sort", "cut", "tr", "date", "sleep", "id", "env", "true",
	"false", "stat", "du", "df", "find", "cp", "mv", "rm", "mkdir", "rmdir", "ln", "touch", "chmod", "chown", "sha256sum", "dd",
}

// Ballast is how an image is made big: Parts layers with one file /data/part-N each, of Size incompressible bytes.
type Ballast struct {
	Parts int
	Size  int64 // bytes
}

// Built tells what an image has become.
type Built struct {
	Manifest   digest.Digest
	Layers     int
	Size       int64 // bytes of all files
	Compressed int64 // bytes of all layers' blobs
}

// Motd is the content of /etc/motd in the image.
const Motd = "as the image has it\n"

// Add builds an image as name:tag in r: a layer with the host's small programs, and the ballast's layers above it.
// report is called with a phrase for each layer that is done, one call at a time; it may be nil.
func Add(r *embedded.Registry, name, tag string, b Ballast, report func(string)) (Built, error) {
	p, err := collect(small...)
	if err != nil {
		return Built{}, fmt.Errorf("collect programs of this machine: %w", err)
	}
	size, err := p.size()
	if err != nil {
		return Built{}, fmt.Errorf("measure programs of this machine: %w", err)
	}
	layers, err := buildLayers(r, p, b, report)
	if err != nil {
		return Built{}, fmt.Errorf("build layers: %w", err)
	}
	built := Built{Layers: len(layers), Size: int64(b.Parts)*b.Size + size}
	for _, l := range layers {
		built.Compressed += l.Descriptor.Size
	}
	config := ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"/bin/sh"}}
	if dirs := p.libraryDirs(); len(dirs) > 0 {
		config.Env = append(config.Env, "LD_LIBRARY_PATH="+strings.Join(dirs, ":"))
	}
	built.Manifest, err = r.AddImage(name, tag, layers, ocispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}, config)
	return built, err
}

// buildLayers returns the base layer and the ballast's above it.
func buildLayers(r *embedded.Registry, p *programs, b Ballast, report func(string)) ([]embedded.Layer, error) {
	layers := make([]embedded.Layer, 1+b.Parts)
	var mu sync.Mutex // one report at a time
	build := func(i, level int, what string, write func(*tar.Writer) error) (err error) {
		if layers[i], err = r.AddLayer(level, write); err == nil && report != nil {
			mu.Lock()
			defer mu.Unlock()
			report(what)
		}
		return err
	}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0)) // compressing and hashing keep a processor busy
	g.Go(func() error {
		return build(0, gzip.BestSpeed, fmt.Sprintf("%d programs and libraries of this machine", len(p.files)), p.writeTar)
	})
	for part := 1; part <= b.Parts; part++ {
		g.Go(func() error {
			// Incompressible: gzip would only look for what is not there.
			return build(part, gzip.NoCompression, fmt.Sprintf("%d MB of ballast", b.Size/1e6),
				func(w *tar.Writer) error { return writeBallast(w, part, b.Size) })
		})
	}
	return layers, g.Wait()
}

// writeTar writes the base layer: directories, programs and libraries, accounts.
func (p *programs) writeTar(w *tar.Writer) error {
	dirs := map[string]bool{"/etc": true, "/root": true, "/data": true, "/proc": true, "/sys": true, "/dev": true}
	for in := range p.files {
		for dir := filepath.Dir(in); dir != "/"; dir = filepath.Dir(dir) {
			dirs[dir] = true
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		if err := writeHeader(w, tar.TypeDir, dir+"/", 0o755, 0); err != nil {
			return err
		}
	}
	if err := writeHeader(w, tar.TypeDir, "/tmp/", 0o1777, 0); err != nil {
		return err
	}
	for _, f := range [][2]string{
		{"/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"},
		{"/etc/group", "root:x:0:\n"},
		{"/etc/motd", Motd},
	} {
		if err := writeFile(w, f[0], 0o644, int64(len(f[1])), strings.NewReader(f[1])); err != nil {
			return err
		}
	}
	return p.writeFiles(w)
}

// writeFiles writes what the programs are made of.
func (p *programs) writeFiles(w *tar.Writer) error {
	entries, err := p.entries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.link != "" {
			err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: e.name[1:], Linkname: e.link[1:]})
		} else {
			err = copyFile(w, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entry is one file of the base layer.
type entry struct {
	name string // absolute, in the image
	from string // on the host
	link string // an earlier entry of which this is another name, or ""
	size int64
}

// entries returns the files sorted by name. Names of one file of the host (a busybox) are hard links.
func (p *programs) entries() ([]entry, error) {
	type inode struct{ dev, ino uint64 }
	first := make(map[inode]string)
	var list []entry
	for _, name := range slices.Sorted(maps.Keys(p.files)) {
		fi, err := os.Stat(p.files[name])
		if err != nil {
			return nil, err
		}
		st := fi.Sys().(*syscall.Stat_t)
		id := inode{uint64(st.Dev), st.Ino}
		e := entry{name: name, from: p.files[name], link: first[id]}
		if e.link == "" {
			first[id], e.size = name, fi.Size()
		}
		list = append(list, e)
	}
	return list, nil
}

func copyFile(w *tar.Writer, e entry) error {
	f, err := os.Open(e.from)
	if err != nil {
		return err
	}
	defer f.Close()
	return writeFile(w, e.name, 0o755, e.size, f)
}

// size returns the bytes of all files.
func (p *programs) size() (n int64, err error) {
	entries, err := p.entries()
	for _, e := range entries {
		n += e.size
	}
	return n, err
}

// libraryDirs are the image's directories with libraries: the image has no cache of the loader's.
func (p *programs) libraryDirs() []string {
	dirs := make(map[string]bool)
	for in := range p.files {
		if dir := filepath.Dir(in); dir != "/bin" {
			dirs[dir] = true
		}
	}
	return slices.Sorted(maps.Keys(dirs))
}

// writeBallast writes a layer with /data/part-N, the same bytes each time.
func writeBallast(w *tar.Writer, part int, size int64) error {
	return writeFile(w, fmt.Sprintf("/data/part-%d", part), 0o644, size, BallastReader(part, size))
}

// BallastReader returns the content of /data/part-N.
func BallastReader(part int, size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{byte(part), byte(part >> 8)}), size)
}

func writeFile(w *tar.Writer, name string, mode, size int64, content io.Reader) error {
	if err := writeHeader(w, tar.TypeReg, name, mode, size); err != nil {
		return err
	}
	if _, err := io.Copy(w, content); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func writeHeader(w *tar.Writer, typ byte, name string, mode, size int64) error {
	return w.WriteHeader(&tar.Header{
		Typeflag: typ, Name: strings.TrimPrefix(name, "/"), Mode: mode, Size: size, ModTime: time.Unix(1_700_000_000, 0),
	})
}
