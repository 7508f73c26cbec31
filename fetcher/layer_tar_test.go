package fetcher

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/veneerfs/veneer/fetcher/fetchtest"
	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// maxIngested keeps what ingest does small.
const maxIngested = 12 << 20

// ingest reads a tar into a store.
func ingest(s *Store, tarball []byte) (map[string]*unionfs.Entry, error) {
	out := map[string]*unionfs.Entry{}
	r := newTarReader(s, bytes.NewReader(tarball))
	r.maxSize = maxIngested
	err := r.each(context.Background(), func(e *unionfs.Entry) error {
		out[e.Name] = e
		return nil
	})
	return out, err
}

func TestTarEntries(t *testing.T) {
	s := testStore(t)
	long, binary := strings.Repeat("d/", 150)+"file", "a\x00\xff\n=b"
	at := time.Date(1969, 12, 31, 23, 59, 58, 250_000_000, time.UTC)
	reg := fetchtest.Reg("reg", "hello")
	reg.ModTime, reg.Format = at, tar.FormatPAX
	owned := fetchtest.Reg("owned", "").WithOwner(3_000_000_000, 70_000)
	owned.Mode = 0o7755
	libarchive := fetchtest.Reg("libarchive", "")
	libarchive.Format = tar.FormatPAX
	libarchive.PAXRecords = map[string]string{paxLibarchive + "user.a%20b": strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(binary)), "=")}
	tarball := fetchtest.Tar(t,
		fetchtest.Dir("dir").WithMode(0o2755), reg, owned, libarchive,
		fetchtest.Symlink("sym", "../x"), fetchtest.Link("link", "reg"), fetchtest.FIFO("fifo"),
		fetchtest.Device("char", tar.TypeChar, 4095, 1048575), fetchtest.Device("block", tar.TypeBlock, 8, 1),
		fetchtest.Reg("xattr", "").WithXattr("user.bin", binary).WithXattr("security.capability", "\x01\x00\x00\x02\x00"),
		fetchtest.Reg(long, "long"), fetchtest.Reg("latin1-\xe4", "1"), fetchtest.Reg(strings.Repeat("\xe4", 120), "2"),
		fetchtest.Whiteout("gone"), fetchtest.Opaque("dir"),
	)
	got, err := ingest(s, tarball)
	if err != nil {
		t.Fatal(err)
	}
	hello := mustDigest("hello")
	mtime := unionfs.Time{Sec: fetchtest.ModTime.Unix()}
	for _, want := range []unionfs.Entry{
		{Name: "dir/", Mode: unix.S_IFDIR | 0o2755, Mtime: mtime},
		{Name: "reg", Mode: unix.S_IFREG | 0o644, Size: 5, Mtime: unionfs.Time{Sec: -2, Nsec: 250_000_000},
			Content: unionfs.Content{Digest: hello, Size: 5}},
		{Name: "owned", Mode: unix.S_IFREG | 0o7755, UID: 3_000_000_000, GID: 70_000, Mtime: mtime, Content: unionfs.Content{Digest: emptyDigest}},
		{Name: "libarchive", Mode: unix.S_IFREG | 0o644, Mtime: mtime, Xattrs: map[string]string{"user.a b": binary},
			Content: unionfs.Content{Digest: emptyDigest}},
		{Name: "sym", Mode: unix.S_IFLNK | 0o777, Symlink: "../x", Mtime: mtime},
		{Name: "link", Link: "reg"},
		{Name: "fifo", Mode: unix.S_IFIFO | 0o600, Mtime: mtime},
		{Name: "char", Mode: unix.S_IFCHR | 0o600, Rdev: unix.Mkdev(4095, 1048575), Mtime: mtime},
		{Name: "block", Mode: unix.S_IFBLK | 0o600, Rdev: unix.Mkdev(8, 1), Mtime: mtime},
		{Name: "xattr", Mode: unix.S_IFREG | 0o644, Mtime: mtime, Content: unionfs.Content{Digest: emptyDigest},
			Xattrs: map[string]string{"user.bin": binary, "security.capability": "\x01\x00\x00\x02\x00"}},
	} {
		e := got[want.Name]
		if e == nil {
			t.Errorf("no %s", want.Name)
		} else if got, want := fmt.Sprintf("%+v", *e), fmt.Sprintf("%+v", want); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	for name, body := range map[string]string{long: "long", "latin1-\xe4": "1", strings.Repeat("\xe4", 120): "2"} {
		if e := got[name]; e == nil || e.Content.Digest != mustDigest(body) {
			t.Errorf("%q: %+v", name, e)
		}
	}
	if got[".wh.gone"] == nil || got["dir/.wh..wh..opq"] == nil {
		t.Error("no whiteout")
	}
	if len(got) != 15 {
		t.Errorf("%d entries", len(got))
	}
	if b, err := os.ReadFile(s.contentPath(hello)); err != nil || string(b) != "hello" {
		t.Errorf("content: %q, %v", b, err)
	}
}

func TestGlobalHeadersAreNoEntries(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := errors.Join(w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}), w.Close())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ingest(testStore(t), b.Bytes()); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v", got, err)
	}
}

// The files in testdata hold "sparse", 10 MiB with "one" at 1 MiB and "two" at 5 MiB, and "holes", 300,000 bytes of nothing.
func TestSparseEntries(t *testing.T) {
	files, err := filepath.Glob("testdata/tar/sparse-*.tar")
	if err != nil || len(files) != 4 {
		t.Fatalf("testdata: %v, %v", files, err)
	}
	want := make([]byte, 10<<20)
	copy(want[1<<20:], "one")
	copy(want[5<<20:], "two")
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			tarball, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := testStore(t)
			got, err := ingest(s, tarball)
			if err != nil {
				t.Fatal(err)
			}
			for name, body := range map[string][]byte{"sparse": want, "holes": make([]byte, 300_000)} {
				e := got[name]
				if e == nil || e.Size != int64(len(body)) {
					t.Fatalf("%s: %+v", name, e)
				}
				b, err := os.ReadFile(s.contentPath(e.Content.Digest))
				if err != nil || !bytes.Equal(b, body) {
					t.Errorf("%s: other bytes, %v", name, err)
				}
				var st unix.Stat_t
				if err := unix.Stat(s.contentPath(e.Content.Digest), &st); err != nil || st.Blocks > 64 {
					t.Errorf("%s: %d blocks, %v", name, st.Blocks, err)
				}
			}
			if strings.Contains(file, "pax") {
				if m := got["sparse"].Mtime; m != (unionfs.Time{Sec: 1234567890, Nsec: 123456789}) {
					t.Errorf("mtime %v", m)
				}
				if m := got["holes"].Mtime; m != (unionfs.Time{Sec: -2, Nsec: 500_000_000}) {
					t.Errorf("mtime %v", m)
				}
			}
		})
	}
}

func TestBadTars(t *testing.T) {
	good := fetchtest.Tar(t, fetchtest.Reg("a", noise(1, 3000)), fetchtest.Reg("b", noise(2, 2<<20)))
	header := func(edit func(h []byte)) []byte {
		b := bytes.Clone(good)
		edit(b[:512])
		sum := 8 * 32
		for i, c := range b[:512] {
			if i < 148 || i >= 156 {
				sum += int(c)
			}
		}
		copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
		return b
	}
	for name, tarball := range map[string][]byte{
		"cut in a small file": good[:1000],
		"cut in a large file": good[:100_000],
		"cut in a header":     good[:700],
		"garbage":             bytes.Repeat([]byte("garbage "), 200),
		"unknown type":        header(func(h []byte) { h[156] = 'Z' }),
		"negative owner":      header(func(h []byte) { copy(h[108:], "\xff\xff\xff\xff\xff\xff\xff\xff") }),
		"huge owner":          header(func(h []byte) { copy(h[108:], "\x80\x00\x00\x01\x00\x00\x00\x00") }),
		"negative size":       header(func(h []byte) { copy(h[124:], bytes.Repeat([]byte{0xff}, 12)) }),
		"huge size":           header(func(h []byte) { copy(h[124:], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") }),
	} {
		t.Run(name, func(t *testing.T) {
			s := testStore(t)
			if got, err := ingest(s, tarball); err == nil {
				t.Errorf("got %v", got)
			}
			if left := temporaries(t, s); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestGzipOfManyMembersAndTrailingZeros(t *testing.T) {
	tarball := append(fetchtest.Tar(t, fetchtest.Reg("a", "one")), make([]byte, 20_000)...)
	l := fetchtest.LayerOfTar(t, fetchtest.Gzip(), tarball)
	var b bytes.Buffer
	for part := tarball; len(part) > 0; {
		n := min(len(part), 700)
		b.Write(gzipped(t, part[:n]))
		part = part[n:]
	}
	many := fetchtest.RawLayer(l.Descriptor.MediaType, b.Bytes())
	many.DiffID = l.DiffID
	sources, _ := sourcesOf(many)
	x := openSources(t, testStore(t), sources, lazy)
	if got := x.readAll(t, "a"); got != "one" {
		t.Errorf("got %q", got)
	}
}

// Media types are often wrong.
func TestCompressionIsToldByTheBytes(t *testing.T) {
	for _, f := range []fetchtest.Format{fetchtest.Plain(), fetchtest.Gzip(), fetchtest.Zstd()} {
		for _, mediaType := range []string{"application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar.gzip"} {
			l := fetchtest.NewLayer(t, f, fetchtest.Reg("a", "one"))
			l.Descriptor.MediaType = mediaType
			sources, _ := sourcesOf(l)
			x := openSources(t, testStore(t), sources, lazy)
			if got := x.readAll(t, "a"); got != "one" {
				t.Errorf("%v as %s: got %q", f, mediaType, got)
			}
		}
	}
}

// What is compressed well is no reason to fill memory or disk.
func TestTarBombNeedsNoRoom(t *testing.T) {
	const size = 128 << 20
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Size: size}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(w, zeros{}, size); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	plain, err := gzip.NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	s := testStore(t)
	var e *unionfs.Entry
	if err := newTarReader(s, plain).each(t.Context(), func(got *unionfs.Entry) error { e = got; return nil }); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(s.contentPath(e.Content.Digest), &st); err != nil || st.Size != size || st.Blocks > 8 {
		t.Errorf("%d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestLongSparseFileEndsWithTheContext(t *testing.T) {
	b, err := os.ReadFile("testdata/tar/sparse-pax-1.0.tar")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := newTarReader(testStore(t), bytes.NewReader(b))
	if err := r.each(ctx, func(*unionfs.Entry) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func FuzzTar(f *testing.F) {
	files, err := filepath.Glob("testdata/tar/*.tar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add(fetchtest.Tar(f, fetchtest.Dir("d"), fetchtest.Reg("d/a", "hello").WithXattr("user.a", "\x00"), fetchtest.Link("b", "d/a"), fetchtest.Whiteout("c")))
	dir := f.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := ingest(s, b)
		for _, e := range got {
			if e.Mode&unix.S_IFMT != unix.S_IFREG || isWhiteout(e.Name) || e.Size == 0 {
				continue
			}
			file, openErr := s.openContent(e.Content.Digest, e.Size)
			if openErr != nil {
				t.Fatalf("%q: %v (and %v)", e.Name, openErr, err)
			}
			d, hashErr := hashFile(file)
			file.Close()
			if hashErr != nil || d != e.Content.Digest {
				t.Errorf("%q: has %s, %v", e.Name, d, hashErr)
			}
		}
		if left := temporaries(t, s); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		filepath.WalkDir(filepath.Join(dir, "contents"), func(path string, d fs.DirEntry, _ error) error {
			if !d.IsDir() {
				os.Remove(path)
			}
			return nil
		})
	})
}
