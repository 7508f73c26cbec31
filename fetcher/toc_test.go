package fetcher

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/veneerfs/veneer/fetcher/fetchtest"
	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// tocJSON writes a TOC of entries given as JSON.
func tocJSON(entries ...string) string {
	return `{"version":1,"entries":[` + strings.Join(entries, ",") + `]}`
}

// regJSON is a regular file of one chunk, "hello", at off of the blob; more is further members of the object.
func regJSON(name string, off int64, more string) string {
	d := digest.FromString("hello")
	return fmt.Sprintf(`{"name":%q,"type":"reg","size":5,"offset":%d,"digest":%q,"chunkDigest":%q%s}`, name, off, d, d, more)
}

func parseJSON(s string) ([]*unionfs.Entry, error) {
	entries, _, err := parseTOC(strings.NewReader(s), 1000)
	return entries, err
}

func TestLyingTOCs(t *testing.T) {
	d, other := digest.FromString("hello").String(), digest.FromString("other").String()
	for name, toc := range map[string]struct{ json, want string }{
		"not JSON":          {`{"version":1,"entries":[`, "not JSON"},
		"not an object":     {`[]`, "not what it should be"},
		"entries no list":   {`{"version":1,"entries":{}}`, "not what it should be"},
		"version":           {`{"version":2}`, "version 2"},
		"deep":              {`{"x":` + strings.Repeat("[", 100_000), "not JSON"},
		"deep in entry":     {tocJSON(`{"name":` + strings.Repeat("[", 100_000)), "entry 0"},
		"no name":           {tocJSON(`{"type":"dir"}`), "no name"},
		"unknown type":      {tocJSON(`{"name":"a","type":"door"}`), `unknown type "door"`},
		"dot dot":           {tocJSON(`{"name":"a/../../b","type":"dir"}`), "leaves the layer"},
		"dot dot link":      {tocJSON(`{"name":"a","type":"hardlink","linkName":"../b"}`), "leaves the layer"},
		"no link":           {tocJSON(`{"name":"a","type":"hardlink"}`), "no name"},
		"negative size":     {tocJSON(`{"name":"a","type":"reg","size":-1}`), "size -1"},
		"huge size":         {tocJSON(`{"name":"a","type":"reg","size":9000000000000000000}`), "is not allowed"},
		"size overflows":    {tocJSON(`{"name":"a","type":"reg","size":99999999999999999999}`), "cannot unmarshal"},
		"size is no number": {tocJSON(`{"name":"a","type":"reg","size":"5"}`), "cannot unmarshal"},
		"owner overflows":   {tocJSON(`{"name":"a","type":"dir","uid":4294967296}`), "overflows"},
		"owner negative":    {tocJSON(`{"name":"a","type":"dir","gid":-1}`), "overflows"},
		"device overflows":  {tocJSON(`{"name":"a","type":"char","devMajor":-1}`), "overflows"},
		"time":              {tocJSON(`{"name":"a","type":"dir","modtime":"yesterday"}`), "is no time"},
		"xattr no base64":   {tocJSON(`{"name":"a","type":"dir","xattrs":{"user.a":"*"}}`), "illegal base64"},
		"no digest":         {tocJSON(`{"name":"a","type":"reg","size":5,"chunkSize":2}`), "no sha256 digest"},
		"digest of another kind": {tocJSON(strings.ReplaceAll(regJSON("a", 0, ""), "sha256:", "sha512:")),
			"no sha256 digest"},
		"no chunks": {tocJSON(`{"name":"a","type":"reg","size":5,"digest":"` + d + `","chunkSize":2,"chunkDigest":"` + d + `"}`), "cover 2 of its 5"},
		"size lies, too large": {tocJSON(`{"name":"a","type":"reg","size":9,"digest":"`+d+`","chunkSize":5,"chunkDigest":"`+d+`"}`, regJSON("b", 100, "")),
			"cover 5 of its 9"},
		"size lies, too small": {tocJSON(`{"name":"a","type":"reg","size":4,"digest":"` + d + `","chunkSize":5,"chunkDigest":"` + d + `"}`), "a chunk of 5 bytes"},
		"chunk negative":       {tocJSON(regJSON("a", 0, `,"chunkSize":-5`)), "a chunk of -5 bytes"},
		"chunk offset":         {tocJSON(regJSON("a", 0, `,"chunkOffset":1`)), "a chunk at 1 where the next is at 0"},
		"chunk of nothing":     {tocJSON(`{"name":"a","type":"chunk","chunkSize":5}`), "does not follow its file"},
		"chunk of another":     {tocJSON(regJSON("a", 0, ""), `{"name":"b","type":"chunk"}`), "does not follow its file"},
		"chunk past the end":   {tocJSON(regJSON("a", 0, ""), `{"name":"a","type":"chunk","chunkOffset":5,"chunkSize":1}`), "past the end"},
		"chunks overlap in the file": {tocJSON(`{"name":"a","type":"reg","size":9,"digest":"`+d+`","chunkSize":5,"chunkDigest":"`+d+`"}`,
			`{"name":"a","type":"chunk","chunkOffset":4,"chunkSize":5,"offset":50,"chunkDigest":"`+d+`"}`), "a chunk at 4 where the next is at 5"},
		"chunk digest lies":       {tocJSON(`{"name":"a","type":"reg","size":5,"digest":"` + other + `","chunkDigest":"` + d + `"}`), "its only chunk has the digest"},
		"outside the blob":        {tocJSON(regJSON("a", 1000, "")), "of which only 1000 bytes can hold files"},
		"before the blob":         {tocJSON(regJSON("a", -1, "")), "of which only 1000 bytes can hold files"},
		"ends outside":            {tocJSON(regJSON("a", 10, `,"endOffset":1001`)), "of which only 1000 bytes can hold files"},
		"ends before it begins":   {tocJSON(regJSON("a", 10, `,"endOffset":9`)), "from 10 to 9"},
		"overlap in the blob":     {tocJSON(regJSON("a", 10, `,"endOffset":30`), regJSON("b", 20, "")), "overlap in the blob"},
		"two ends":                {tocJSON(regJSON("a", 10, `,"endOffset":30`), regJSON("b", 10, `,"innerOffset":5,"endOffset":20`)), "different ends"},
		"overlap in a member":     {tocJSON(regJSON("a", 10, ""), regJSON("b", 10, `,"innerOffset":4`)), "overlap at 10+4"},
		"inner offset negative":   {tocJSON(regJSON("a", 10, `,"innerOffset":-1`)), "inner offset"},
		"inner offset is a bomb":  {tocJSON(regJSON("a", 10, `,"innerOffset":1000000000000`)), "inner offset"},
		"inner offset overflows":  {tocJSON(regJSON("a", 10, `,"innerOffset":9223372036854775807`)), "inner offset"},
		"name cut in the message": {tocJSON(`{"name":"` + strings.Repeat("x", 10_000) + `","type":"door"}`), "…"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseJSON(toc.json)
			if e := (*TOCError)(nil); !errors.As(err, &e) || !strings.Contains(err.Error(), toc.want) {
				t.Errorf("got %v, want %q", err, toc.want)
			}
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("the message has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestHugeChunksAreStreamedInstead(t *testing.T) {
	d := digest.FromString("hello")
	_, err := parseJSON(tocJSON(fmt.Sprintf(`{"name":"a","type":"reg","size":%d,"digest":%q}`, maxChunkSize+1, d)))
	if !errors.Is(err, errStreamInstead) {
		t.Errorf("got %v", err)
	}
}

func TestTOCRecordsEveryType(t *testing.T) {
	entries, err := parseJSON(tocJSON(
		`{"name":"d/","type":"dir","mode":1005,"uid":1,"gid":4294967295,"modtime":"1969-12-31T23:59:58.25Z"}`,
		`{"name":"c","type":"char","mode":420,"devMajor":10,"devMinor":200,"xattrs":{"user.bin":"AAEC"}}`,
		`{"name":"b","type":"block","devMajor":8,"devMinor":1}`,
		`{"name":"p","type":"fifo"}`,
		`{"name":"s","type":"symlink","linkName":"../anywhere"}`,
		`{"name":"h","type":"hardlink","linkName":"r"}`,
		regJSON("r", 10, ""),
		regJSON("q", 10, `,"innerOffset":5`),
		`{"name":".prefetch.landmark","type":"reg","size":1,"offset":600}`,
		`{"name":"e","type":"reg"}`,
	))
	if err != nil {
		t.Fatal(err)
	}
	hello := unionfs.Digest(mustDigest("hello"))
	content := func(inner int64) unionfs.Content {
		return unionfs.Content{Digest: hello, Size: 5, Chunks: []unionfs.Chunk{{Size: 5, Digest: hello, BlobOff: 10, BlobSize: 990, Inner: inner}}}
	}
	want := []unionfs.Entry{
		{Name: "d/", Mode: unix.S_IFDIR | 0o1755, UID: 1, GID: 4294967295, Mtime: unionfs.Time{Sec: -2, Nsec: 250_000_000}},
		{Name: "c", Mode: unix.S_IFCHR | 0o644, Rdev: unix.Mkdev(10, 200), Xattrs: map[string]string{"user.bin": "\x00\x01\x02"}},
		{Name: "b", Mode: unix.S_IFBLK, Rdev: unix.Mkdev(8, 1)},
		{Name: "p", Mode: unix.S_IFIFO},
		{Name: "s", Mode: unix.S_IFLNK, Symlink: "../anywhere"},
		{Name: "h", Link: "r"},
		{Name: "r", Mode: unix.S_IFREG, Size: 5, Content: content(0)},
		{Name: "q", Mode: unix.S_IFREG, Size: 5, Content: content(5)},
		{Name: "e", Mode: unix.S_IFREG, Content: unionfs.Content{Digest: emptyDigest}},
	}
	if len(entries) != len(want) {
		t.Fatalf("got %d entries", len(entries))
	}
	for i := range want {
		if got, want := fmt.Sprintf("%+v", *entries[i]), fmt.Sprintf("%+v", want[i]); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestZerosOfZstdChunked(t *testing.T) {
	d := mustDigest("file")
	entries, _, err := parseTOC(strings.NewReader(tocJSON(
		fmt.Sprintf(`{"name":"a","type":"reg","size":%d,"digest":%q,"offset":10,"endOffset":20,"chunkSize":5,"chunkDigest":%q}`, 10+3*int64(maxZeros)/2, d, d),
		fmt.Sprintf(`{"name":"a","type":"chunk","chunkOffset":5,"chunkSize":%d,"chunkType":"zeros"}`, 3*int64(maxZeros)/2),
		fmt.Sprintf(`{"name":"a","type":"chunk","chunkOffset":%d,"offset":30,"endOffset":40,"chunkDigest":%q}`, 5+3*int64(maxZeros)/2, d),
	)), 1000)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range entries[0].Content.Chunks {
		got = append(got, fmt.Sprintf("%d+%d@%d+%d", c.Offset, c.Size, c.BlobOff, c.BlobSize))
	}
	want := []string{"0+5@10+10", fmt.Sprintf("5+%d@0+0", maxZeros), fmt.Sprintf("%d+%d@0+0", 5+maxZeros, maxZeros/2),
		fmt.Sprintf("%d+5@30+10", 5+3*maxZeros/2)}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// stargzBlob is a blob that is nothing but a TOC and a footer.
func stargzBlob(t testing.TB, name, toc string, legacy bool) []byte {
	t.Helper()
	var b bytes.Buffer
	b.WriteString(strings.Repeat("x", 100))
	off := b.Len()
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(toc))})
	if err == nil {
		_, err = io.WriteString(w, toc)
	}
	if err := errors.Join(err, w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	b.Write(footer(off, legacy))
	return b.Bytes()
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, err := z.Write(b)
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func footer(off int, legacy bool) []byte {
	field := fmt.Appendf(nil, "%016xSTARGZ", off)
	if !legacy {
		field = append([]byte{'S', 'G', byte(len(field)), 0}, field...)
	}
	b := []byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(field)))
	b = append(b, field...)
	b = append(b, 1, 0, 0, 0xff, 0xff)
	return append(b, make([]byte, 8)...)
}

func fetchFrom(t testing.TB, blob []byte, f unionfs.Format, annotations map[string]string) ([]*unionfs.Entry, error) {
	t.Helper()
	d := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob)), Annotations: annotations}
	entries, _, err := fetchTOC(t.Context(), &memBlob{data: blob}, &d, f, func(int64) {})
	return entries, err
}

func TestFooters(t *testing.T) {
	toc := tocJSON(`{"name":"a","type":"dir"}`)
	pin := map[string]string{annotationTOCDigest: digest.FromString(toc).String()}
	for name, c := range map[string]struct {
		blob []byte
		pin  map[string]string
		want string // "" when it is fine
	}{
		"current":      {stargzBlob(t, stargzTOCName, toc, false), pin, ""},
		"legacy":       {stargzBlob(t, stargzTOCName, toc, true), pin, ""},
		"no footer":    {bytes.Repeat([]byte("no footer "), 100), pin, "no eStargz footer"},
		"short blob":   {[]byte("short"), pin, "no footer"},
		"empty blob":   {nil, pin, "no footer"},
		"other digest": {stargzBlob(t, stargzTOCName, toc+" ", false), pin, "its digest should be"},
		"no digest":    {stargzBlob(t, stargzTOCName, toc, false), map[string]string{annotationTOCDigest: "sha256:12"}, "no sha256 digest"},
		"sha512": {stargzBlob(t, stargzTOCName, toc, false),
			map[string]string{annotationTOCDigest: digest.SHA512.FromString(toc).String()}, "no sha256 digest"},
		"other name":     {stargzBlob(t, "index.json", toc, false), pin, `named "index.json"`},
		"offset outside": {append(bytes.Repeat([]byte{0}, 100), footer(200, false)...), pin, "it should be at 200"},
		"offset at end":  {append(bytes.Repeat([]byte{0}, 100), footer(100, false)...), pin, "it should be at 100"},
		"offset 2^63":    {append(bytes.Repeat([]byte{0}, 100), footer(-1, false)...), pin, "no eStargz footer"},
		"not gzip":       {append(bytes.Repeat([]byte{0}, 100), footer(50, false)...), pin, "cannot decompress"},
	} {
		t.Run(name, func(t *testing.T) {
			entries, err := fetchFrom(t, c.blob, unionfs.FormatEStargz, c.pin)
			switch e := (*TOCError)(nil); {
			case c.want == "" && (err != nil || len(entries) != 1):
				t.Errorf("got %d entries, %v", len(entries), err)
			case c.want != "" && (!errors.As(err, &e) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestZstdChunkedTOCs(t *testing.T) {
	toc := tocJSON(`{"name":"a","type":"dir"}`)
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	raw := z.EncodeAll([]byte(toc), nil)
	blob := append(bytes.Repeat([]byte{0}, 100), raw...)
	var foot []byte
	for _, n := range []int{100, len(raw), len(toc), 1} {
		foot = binary.LittleEndian.AppendUint64(foot, uint64(n))
	}
	blob = append(append(blob, foot...), zstdFooterMagic...)
	at := func(off, size, rawSize, typ any) string { return fmt.Sprint(off, ":", size, ":", rawSize, ":", typ) }
	compressed, json := digest.FromBytes(raw).String(), digest.FromString(toc).String()
	for name, c := range map[string]struct{ position, compressed, json, want string }{
		"by position":        {at(100, len(raw), len(toc), 1), compressed, "", ""},
		"by footer":          {"", "", json, ""},
		"both digests":       {at(100, len(raw), len(toc), 1), compressed, json, ""},
		"checksum":           {at(100, len(raw), len(toc), 1), json, "", "its digest should be"},
		"json digest":        {at(100, len(raw), len(toc), 1), compressed, compressed, "its digest should be"},
		"size":               {at(100, len(raw), len(toc)+1, 1), compressed, "", "bytes of JSON and not"},
		"position outside":   {at(100, len(blob), len(toc), 1), compressed, "", "of a blob of"},
		"position negative":  {at(-1, len(raw), len(toc), 1), compressed, "", "is not four numbers"},
		"position overflows": {at("9223372036854775808", len(raw), len(toc), 1), compressed, "", "is not four numbers"},
		"sum overflows":      {at("9223372036854775807", len(raw), len(toc), 1), compressed, "", "of a blob of"},
		"three numbers":      {"1:2:3", compressed, "", "is not four numbers"},
		"type":               {at(100, len(raw), len(toc), 2), compressed, "", "of type 2"},
		"a bomb":             {at(100, len(raw), 1<<40, 1), compressed, "", "more than the"},
		"nothing pins it":    {at(100, len(raw), len(toc), 1), "", "", "no annotation pins"},
	} {
		t.Run(name, func(t *testing.T) {
			pin := map[string]string{annotationZstdPosition: c.position, annotationZstdChecksum: c.compressed, annotationTOCDigest: c.json}
			maps.DeleteFunc(pin, func(_, v string) bool { return v == "" })
			entries, err := fetchFrom(t, blob, unionfs.FormatZstdChunked, pin)
			switch e := (*TOCError)(nil); {
			case c.want == "" && (err != nil || len(entries) != 1):
				t.Errorf("got %d entries, %v", len(entries), err)
			case c.want != "" && (!errors.As(err, &e) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// Both are 1 GiB of blanks, which JSON may have anywhere.
func TestTOCBombs(t *testing.T) {
	const pieces = 1024
	blanks := bytes.Repeat([]byte(" "), 1<<20)

	var eStargz bytes.Buffer
	var head bytes.Buffer
	err := tar.NewWriter(&head).WriteHeader(&tar.Header{Name: stargzTOCName, Typeflag: tar.TypeReg, Size: pieces << 20})
	if err != nil {
		t.Fatal(err)
	}
	eStargz.Write(gzipped(t, head.Bytes()))
	eStargz.Write(bytes.Repeat(gzipped(t, blanks), pieces))
	eStargz.Write(footer(0, false))

	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	zstdChunked := bytes.Repeat(z.EncodeAll(blanks, nil), pieces)
	for name, c := range map[string]struct {
		blob []byte
		f    unionfs.Format
		pin  map[string]string
	}{
		"estargz": {eStargz.Bytes(), unionfs.FormatEStargz, map[string]string{annotationTOCDigest: digest.FromString("").String()}},
		"zstd:chunked": {zstdChunked, unionfs.FormatZstdChunked, map[string]string{
			annotationZstdPosition: fmt.Sprintf("0:%d:1000:1", len(zstdChunked)),
			annotationZstdChecksum: digest.FromBytes(zstdChunked).String()}},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := fetchFrom(t, c.blob, c.f, c.pin)
			runtime.ReadMemStats(&after)
			if e := (*TOCError)(nil); !errors.As(err, &e) || !strings.Contains(err.Error(), "allowed") {
				t.Errorf("got %v", err)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 32<<20 {
				t.Errorf("it took %d bytes of memory to say so", used)
			}
		})
	}
}

func TestAbsurdCountOfEntries(t *testing.T) {
	for n, want := range map[int]string{5: "", 6: "over 5 entries"} {
		p := &tocParser{end: 1000, limit: 5}
		toc := tocJSON(slices.Repeat([]string{`{"name":".prefetch.landmark","type":"dir"}`}, n)...)
		err := p.decode(json.NewDecoder(strings.NewReader(toc)))
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%d entries: got %v", n, err)
		}
	}
}

func TestHardLinkCycleIsRefused(t *testing.T) {
	toc := tocJSON(`{"name":"a","type":"hardlink","linkName":"b"}`, `{"name":"b","type":"hardlink","linkName":"a"}`)
	s := testStore(t)
	blob := stargzBlob(t, stargzTOCName, toc, false)
	l := fetchtest.RawLayer(ocispec.MediaTypeImageLayerGzip, blob)
	l.Descriptor.Annotations = map[string]string{annotationTOCDigest: digest.FromString(toc).String()}
	sources, blobs := sourcesOf(l)
	_, err := s.tree(t.Context(), sources, silent{})
	if err == nil || !strings.Contains(err.Error(), "leads back to itself") || !strings.Contains(err.Error(), "layer 0") {
		t.Errorf("got %v", err)
	}
	if blobs[0].whole > 0 {
		t.Error("the layer was streamed instead")
	}
}

func TestTailNeedsOneRequest(t *testing.T) {
	l := fetchtest.NewLayer(t, fetchtest.EStargz(), fetchtest.Reg("a", noise(1, 100_000)), fetchtest.Reg("b", noise(2, 100_000)))
	b := &memBlob{data: l.Blob}
	if _, _, err := fetchTOC(t.Context(), b, &l.Descriptor, unionfs.FormatEStargz, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	if len(b.ranges) != 1 {
		t.Errorf("requests: %v", b.ranges)
	}
}

func TestTailGrowsToTheFront(t *testing.T) {
	data := []byte(noise(3, 100_000))
	b := &memBlob{data: data}
	var got int64
	tail := tail{ctx: t.Context(), blob: b, size: int64(len(data)), got: func(n int64) { got += n }}
	for _, r := range [][2]int64{{99_990, 10}, {50_000, 100}, {60_000, 40_000}, {0, 100_000}} {
		p, err := tail.read(r[0], r[1])
		if err != nil || !bytes.Equal(p, data[r[0]:r[0]+r[1]]) {
			t.Errorf("%v: other bytes, %v", r, err)
		}
	}
	if got != int64(len(data)) || len(b.ranges) != 3 {
		t.Errorf("read %d bytes with %v", got, b.ranges)
	}
}
