package unionfs

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// chunked makes a file of chunks with the given sizes, 1 MiB apart in the blob.
func chunked(name string, digest byte, sizes ...int64) Entry {
	c := Content{Digest: Digest{digest}}
	for i, n := range sizes {
		c.Chunks = append(c.Chunks, Chunk{Offset: c.Size, Size: n, Digest: Digest{digest, byte(i + 1)},
			BlobOff: int64(i) << 20, BlobSize: min(n, 1<<19), Inner: int64(i)})
		c.Size += n
	}
	return Entry{Name: name, Mode: unix.S_IFREG | 0644, Size: c.Size, Content: c}
}

// mergeLayer builds a tree of one layer.
func mergeLayer(t testing.TB, l Layer, entries ...Entry) (*Tree, error) {
	t.Helper()
	b := NewBuilder()
	if err := b.AddLayer(l); err != nil {
		return nil, err
	}
	for i := range entries {
		if err := b.Add(&entries[i]); err != nil {
			return nil, err
		}
	}
	return write(t, b)
}

var stargzLayer = Layer{Format: FormatEStargz, Digest: Digest{1}, DiffID: Digest{2}, Size: 100 << 20, MediaType: "some/type"}

func TestContentComesBackAsItWasAdded(t *testing.T) {
	files := []Entry{chunked("a", 1, 10, 20, 30), chunked("b", 2, 7), chunked("c", 3, 1, 1, 1, 1, math.MaxUint32)}
	whole := chunked("d", 4, 9)
	whole.Content.Chunks[0].Digest = whole.Content.Digest // the digest is kept once
	files = append(files, whole)
	tree, err := mergeLayer(t, stargzLayer, files...)
	if err != nil {
		t.Fatal(err)
	}
	if l := tree.Layers(); len(l) != 1 || l[0] != stargzLayer {
		t.Errorf("layers are %+v", l)
	}
	for _, f := range files {
		ino, _ := tree.Lookup(Root, f.Name)
		if got, ok := tree.Content(ino); !ok || !reflect.DeepEqual(got, f.Content) {
			t.Errorf("content of %s is %+v, %v, should be %+v", f.Name, got, ok, f.Content)
		}
	}
}

func TestContentChunkFindsTheChunkOfAnOffset(t *testing.T) {
	f := chunked("a", 1, 10, 1, 30, 5)
	tree, err := mergeLayer(t, stargzLayer, f)
	if err != nil {
		t.Fatal(err)
	}
	idx, _ := tree.ContentIndex(2)
	for off := range f.Size {
		want := slices.IndexFunc(f.Content.Chunks, func(c Chunk) bool { return off < c.Offset+c.Size })
		if c, i, ok := tree.ContentChunk(idx, off); !ok || i != want || c != f.Content.Chunks[want] {
			t.Errorf("byte %d is in chunk %d, %+v, %v, should be in %d", off, i, c, ok, want)
		}
	}
	for _, off := range []int64{-1, f.Size, math.MaxInt64, math.MinInt64} {
		if c, _, ok := tree.ContentChunk(idx, off); ok {
			t.Errorf("byte %d is in %+v", off, c)
		}
	}
	if _, ok := tree.ChunkAt(idx, 4); ok || tree.NumChunks(idx) != 4 || tree.NumChunks(idx+1) != 0 {
		t.Error("there are more than 4 chunks")
	}
}

func TestEqualContentsAreOne(t *testing.T) {
	b := NewBuilder()
	for range 2 {
		if err := b.AddLayer(stargzLayer); err != nil {
			t.Fatal(err)
		}
		n := len(b.layers)
		for i, f := range []Entry{chunked("a", 1, 10), chunked("b", 1, 10), chunked("c", 1, 11), chunked("d", 2, 10)} {
			f.Name = fmt.Sprintf("%d%d", n, i)
			if err := b.Add(&f); err != nil {
				t.Fatal(err)
			}
		}
	}
	tree, err := write(t, b)
	if err != nil {
		t.Fatal(err)
	}
	index := func(name string) uint32 {
		ino, _ := tree.Lookup(Root, name)
		idx, ok := tree.ContentIndex(ino)
		if !ok {
			t.Fatal(name)
		}
		return idx
	}
	if index("10") != index("11") || index("20") != index("21") {
		t.Error("files with the same digest and size don't share their content")
	}
	if n := tree.Totals(); n.Contents != 6 || n.ContentBytes != 2*(10+11+10) {
		t.Errorf("totals are %+v", n)
	}
}

func TestContentsThatAreHiddenAreLeftOut(t *testing.T) {
	tree := merge(t, "f a 1\n f b 2\n f c 3 user.a=1", "f a 22\n w c")
	if n := tree.Totals(); n.Contents != 2 || n.ContentBytes != 3 || len(tree.xattrSets) != 0 {
		t.Errorf("totals are %+v", n)
	}
}

func TestEmptyFilesHaveTheDigestOfNothing(t *testing.T) {
	empty := Entry{Name: "a", Mode: unix.S_IFREG}
	tree, err := mergeLayer(t, stargzLayer, empty)
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := tree.Content(2); !ok || c.Digest != emptyDigest || c.Size != 0 || c.Chunks != nil {
		t.Errorf("content is %+v, %v", c, ok)
	}
}

func TestRefusesContents(t *testing.T) {
	for name, change := range map[string]func(e *Entry){
		"size is not the content's":   func(e *Entry) { e.Size++ },
		"negative size":               func(e *Entry) { e.Size, e.Content.Size = -1, -1 },
		"absurd size":                 func(e *Entry) { e.Size, e.Content.Size = 1<<48, 1<<48 },
		"no digest":                   func(e *Entry) { e.Content.Digest = Digest{} },
		"empty with another digest":   func(e *Entry) { e.Size, e.Content.Size, e.Content.Chunks = 0, 0, nil },
		"a path":                      func(e *Entry) { e.Content.Path = "a" },
		"no chunks":                   func(e *Entry) { e.Content.Chunks = nil },
		"chunks end early":            func(e *Entry) { e.Content.Chunks = e.Content.Chunks[:2] },
		"chunks start late":           func(e *Entry) { e.Content.Chunks = e.Content.Chunks[1:] },
		"chunk out of order":          func(e *Entry) { c := e.Content.Chunks; c[0], c[1] = c[1], c[0] },
		"gap":                         func(e *Entry) { e.Content.Chunks[1].Offset++ },
		"overlap":                     func(e *Entry) { e.Content.Chunks[1].Offset-- },
		"negative offset":             func(e *Entry) { e.Content.Chunks[0].Offset = -1 },
		"empty chunk":                 func(e *Entry) { e.Content.Chunks[1].Size = 0 },
		"negative chunk":              func(e *Entry) { e.Content.Chunks[1].Size = -20 },
		"chunk too big":               func(e *Entry) { e.Content.Chunks[2].Size = math.MaxInt64 },
		"chunk without digest":        func(e *Entry) { e.Content.Chunks[1].Digest = Digest{} },
		"negative blob offset":        func(e *Entry) { e.Content.Chunks[1].BlobOff = -1 },
		"blob offset behind the blob": func(e *Entry) { e.Content.Chunks[1].BlobOff = 100<<20 + 1 },
		"member ends behind the blob": func(e *Entry) { e.Content.Chunks[1].BlobSize = 100 << 20 },
		"member size overflows":       func(e *Entry) { e.Content.Chunks[1].BlobSize = math.MaxInt64 },
		"negative member size":        func(e *Entry) { e.Content.Chunks[1].BlobSize = -1 },
		"negative inner":              func(e *Entry) { e.Content.Chunks[1].Inner = -1 },
		"absurd inner":                func(e *Entry) { e.Content.Chunks[1].Inner = math.MaxInt64 },
	} {
		t.Run(name, func(t *testing.T) {
			e := chunked("a", 1, 10, 20, 30)
			change(&e)
			_, err := mergeLayer(t, stargzLayer, e)
			wantEntryError(t, err, "a")
		})
	}
}

func TestRefusesAttributes(t *testing.T) {
	long := strings.Repeat("n", 4096)
	many := map[string]string{}
	for i := range 300 {
		many[fmt.Sprintf("user.%0240d", i)] = ""
	}
	for name, e := range map[string]Entry{
		"no type":                   {Mode: 0644},
		"unknown type":              {Mode: 0030644},
		"unknown bits":              {Mode: unix.S_IFDIR | 1<<17},
		"type and hard link":        {Mode: unix.S_IFREG, Link: "b"},
		"no target":                 {Mode: unix.S_IFLNK},
		"target of 4096 bytes":      {Mode: unix.S_IFLNK, Symlink: long},
		"NUL in the target":         {Mode: unix.S_IFLNK, Symlink: "a\x00"},
		"NUL in the link's target":  {Link: "a\x00"},
		"negative size":             {Mode: unix.S_IFDIR, Size: -1},
		"too many nanoseconds":      {Mode: unix.S_IFDIR, Mtime: Time{Nsec: 1e9}},
		"major out of range":        {Mode: unix.S_IFCHR, Rdev: unix.Mkdev(1<<12, 0)},
		"minor out of range":        {Mode: unix.S_IFBLK, Rdev: unix.Mkdev(0, 1<<20)},
		"xattr without a name":      {Mode: unix.S_IFDIR, Xattrs: map[string]string{"": ""}},
		"xattr name of 256 bytes":   {Mode: unix.S_IFDIR, Xattrs: map[string]string{long[:256]: ""}},
		"NUL in an xattr's name":    {Mode: unix.S_IFDIR, Xattrs: map[string]string{"user.\x00": ""}},
		"xattr value over 64 KiB":   {Mode: unix.S_IFIFO, Xattrs: map[string]string{"user.a": strings.Repeat("v", 1<<16+1)}},
		"xattr names over 64 KiB":   {Mode: unix.S_IFIFO, Xattrs: many},
		"regular file with a chunk": {Mode: unix.S_IFREG, Size: 1, Content: chunked("a", 1, 1).Content},
	} {
		t.Run(name, func(t *testing.T) {
			e.Name = "a"
			_, err := mergeLayer(t, Layer{Format: FormatPlain}, e)
			wantEntryError(t, err, "a")
		})
	}
	_, err := mergeLayer(t, Layer{Format: FormatPlain}, Entry{Name: "a\x00b", Mode: unix.S_IFDIR})
	wantEntryError(t, err, "a\x00b", "NUL")
}

func TestXattrsUpToTheKernelsLimits(t *testing.T) {
	xattrs := map[string]string{"security.capability": "\x00\x01\xff", "user.empty": "",
		"trusted." + strings.Repeat("n", 247): strings.Repeat("\x80", 1<<16)}
	tree, err := mergeLayer(t, Layer{Format: FormatPlain},
		Entry{Name: "a", Mode: unix.S_IFDIR, Xattrs: xattrs},
		Entry{Name: "b", Mode: unix.S_IFIFO, Xattrs: xattrs},
		Entry{Name: "c", Mode: unix.S_IFIFO})
	if err != nil {
		t.Fatal(err)
	}
	for ino := Ino(2); ino <= 3; ino++ {
		if n := tree.Xattrs(ino); len(n) != 3 || !slices.IsSorted(n) {
			t.Errorf("xattrs are %q", n)
		}
		for k, want := range xattrs {
			if got, ok := tree.Xattr(ino, k); !ok || string(got) != want {
				t.Errorf("xattr %s has %d bytes, %v", k, len(got), ok)
			}
		}
	}
	if v, ok := tree.Xattr(2, "user.other"); ok || v != nil || tree.Xattrs(4) != nil {
		t.Error("there are xattrs that were not set")
	}
	if len(tree.xattrSets) != xattrSetSize {
		t.Error("equal sets of xattrs are not stored once")
	}
}

// Limits of the whole image, made small.
func TestRefusesTooMuch(t *testing.T) {
	dir := func(name string) Entry { return Entry{Name: name, Mode: unix.S_IFDIR} }
	for name, c := range map[string]struct {
		limit   func(l *limits)
		entries []Entry
	}{
		"entries":             {func(l *limits) { l.inodes = 4 }, []Entry{dir("a"), dir("b"), dir("c"), dir("d")}},
		"made-up directories": {func(l *limits) { l.inodes = 4 }, []Entry{dir("a/b/c/d/e")}},
		"replaced entries":    {func(l *limits) { l.inodes = 3 }, []Entry{chunked("a", 1, 1), chunked("a", 2, 1), chunked("a", 3, 1)}},
		"hard links":          {func(l *limits) { l.inodes = 3 }, []Entry{{Name: "a", Link: "x"}, {Name: "b", Link: "x"}, {Name: "c", Link: "x"}}},
		"xattrs": {func(l *limits) { l.xattrData = 40 }, []Entry{{Name: "a", Mode: unix.S_IFDIR, Xattrs: map[string]string{"user.a": strings.Repeat("x", 20)}},
			{Name: "b", Mode: unix.S_IFDIR, Xattrs: map[string]string{"user.b": strings.Repeat("y", 20)}}}},
		"chunks": {func(l *limits) { l.chunks = 4 }, []Entry{chunked("a", 1, 1, 2), chunked("b", 2, 1, 2, 3)}},
		"bytes":  {func(l *limits) { l.bytes = 20 }, []Entry{chunked("a", 1, 15), chunked("b", 2, 6)}},
	} {
		t.Run(name, func(t *testing.T) {
			b := NewBuilder()
			c.limit(&b.limits)
			if err := b.AddLayer(stargzLayer); err != nil {
				t.Fatal(err)
			}
			var err error
			for i := range c.entries {
				if err = b.Add(&c.entries[i]); err != nil {
					break
				}
			}
			wantEntryError(t, err, c.entries[len(c.entries)-1].Name, "more than")
			if again := b.WriteFile(t.TempDir() + "/tree"); again != err {
				t.Errorf("after the error, WriteFile says %v", again)
			}
		})
	}
}

func TestRefusesTooLongStrings(t *testing.T) {
	for _, e := range []Entry{{Name: strings.Repeat("n", 200), Mode: unix.S_IFDIR}, {Name: "a", Mode: unix.S_IFLNK, Symlink: strings.Repeat("s", 200)}} {
		b := NewBuilder()
		b.limits.strings = 100
		if err := b.AddLayer(stargzLayer); err != nil {
			t.Fatal(err)
		}
		if err := b.Add(&e); err != nil {
			t.Fatal(err)
		}
		if err := b.WriteFile(t.TempDir() + "/tree"); err == nil {
			t.Errorf("%.10q was written", e.Name)
		}
	}
}

func TestRefusesLayers(t *testing.T) {
	for name, l := range map[string]Layer{
		"unknown format": {Format: 9}, "no format": {}, "negative size": {Format: FormatPlain, Size: -1},
		"long media type": {Format: FormatPlain, MediaType: strings.Repeat("m", 1025)},
	} {
		b := NewBuilder()
		if err := b.AddLayer(l); err == nil {
			t.Errorf("%s: the layer was taken", name)
		}
	}
	b := NewBuilder()
	b.limits.layers = 2
	for range 2 {
		if err := b.AddLayer(stargzLayer); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.AddLayer(stargzLayer); err == nil {
		t.Error("more layers than the limit were taken")
	}
	if err := NewBuilder().Add(&Entry{Name: "a", Mode: unix.S_IFDIR}); err == nil {
		t.Error("an entry was taken before any layer")
	}
}

func TestHousekeepingIsNotPartOfTheImage(t *testing.T) {
	toc, landmark, no := textFile("stargz.index.json"), textFile("./.prefetch.landmark"), textFile("/.no.prefetch.landmark")
	file := func(name string) Entry { e := chunked(name, 1, 1); return e }
	below := textFile("d/stargz.index.json")
	dir := Entry{Name: "stargz.index.json", Mode: unix.S_IFDIR}
	for name, c := range map[string]struct {
		format  Format
		entries []Entry
		want    []string
	}{
		"eStargz":          {FormatEStargz, []Entry{file("a"), file("stargz.index.json"), file(".prefetch.landmark"), file(".no.prefetch.landmark")}, []string{"a"}},
		"zstd:chunked":     {FormatZstdChunked, []Entry{file("a"), file("./.no.prefetch.landmark")}, []string{"a"}},
		"plain with TOC":   {FormatPlain, []Entry{landmark, textFile("a"), no, toc}, []string{"a"}},
		"plain":            {FormatPlain, []Entry{landmark, textFile("a"), no}, []string{".no.prefetch.landmark", ".prefetch.landmark", "a"}},
		"not at the root":  {FormatPlain, []Entry{landmark, below}, []string{".prefetch.landmark", "d"}},
		"a directory":      {FormatPlain, []Entry{landmark, dir}, []string{".prefetch.landmark", "stargz.index.json"}},
		"replaced by dir":  {FormatPlain, []Entry{landmark, toc, dir}, []string{".prefetch.landmark", "stargz.index.json"}},
		"twice":            {FormatPlain, []Entry{landmark, landmark}, []string{".prefetch.landmark"}},
		"linked elsewhere": {FormatPlain, []Entry{landmark, {Name: "a", Link: ".prefetch.landmark"}}, []string{".prefetch.landmark", "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			tree, err := mergeLayer(t, Layer{Format: c.format}, c.entries...)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for i := range tree.DirLen(Root) {
				n, _, _ := tree.DirAt(Root, i)
				got = append(got, n)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("the root has %q, should have %q", got, c.want)
			}
		})
	}
}

func textFile(name string) Entry {
	c := textContent("text")
	return Entry{Name: name, Mode: unix.S_IFREG | 0644, Size: c.Size, Content: c}
}
