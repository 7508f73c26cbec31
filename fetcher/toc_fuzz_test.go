package fetcher

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// checkTOCEntries holds what parseTOC lets pass against what the rest relies on.
func checkTOCEntries(entries []*unionfs.Entry, end int64) error {
	for _, e := range entries {
		if strings.Contains("/"+e.Name+"/", "/../") || strings.Contains("/"+e.Link+"/", "/../") {
			return fmt.Errorf("%q leads out", e.Name)
		}
		if e.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		if e.Size < 0 || e.Size != e.Content.Size {
			return fmt.Errorf("%q: sizes %d, %d", e.Name, e.Size, e.Content.Size)
		}
		at := int64(0)
		for _, c := range e.Content.Chunks {
			switch {
			case c.Offset != at || c.Size <= 0 || c.Size > e.Size-at:
				return fmt.Errorf("%q: chunk %+v at %d", e.Name, c, at)
			case isZeros(&c):
			case c.Size > maxChunkSize || c.BlobOff < 0 || c.BlobSize <= 0 || c.BlobOff > end-c.BlobSize || c.Inner < 0 || c.Inner > maxInner:
				return fmt.Errorf("%q: chunk %+v in %d", e.Name, c, end)
			}
			at += c.Size
		}
		if at != e.Size {
			return fmt.Errorf("%q: chunks cover %d of %d", e.Name, at, e.Size)
		}
	}
	return nil
}

func FuzzTOC(f *testing.F) {
	for _, s := range []string{
		tocJSON(`{"name":"d/","type":"dir","modtime":"2020-01-01T00:00:00Z","xattrs":{"user.a":"AA=="}}`, regJSON("d/a", 0, ""), regJSON("b", 0, `,"innerOffset":5`)),
		tocJSON(`{"name":"c","type":"char","devMajor":1}`, `{"name":"h","type":"hardlink","linkName":"c"}`, `{"name":"s","type":"symlink","linkName":"/"}`),
		tocJSON(strings.Replace(regJSON("a", 5, `,"chunkSize":2`), `"size":5`, `"size":9`, 1), `{"name":"a","type":"chunk","chunkOffset":2,"chunkType":"zeros"}`),
		tocJSON(regJSON("a", 5, `,"endOffset":10`)),
		`{"version":1,"x":[{}],"entries":null}`,
	} {
		f.Add([]byte(s), int64(1000))
	}
	f.Fuzz(func(t *testing.T, b []byte, end int64) {
		if end < 0 {
			return
		}
		entries, _, err := parseTOC(bytes.NewReader(b), end)
		if e := (*TOCError)(nil); err != nil && !errors.As(err, &e) && !errors.Is(err, errStreamInstead) {
			t.Errorf("an error of another kind: %v", err)
		}
		if err == nil {
			err = checkTOCEntries(entries, end)
			if err != nil {
				t.Error(err)
			}
		}
	})
}

func FuzzFooter(f *testing.F) {
	f.Add(footer(1234, false))
	f.Add(footer(1234, true))
	f.Add(append(bytes.Repeat([]byte{1, 0, 0, 0, 0, 0, 0, 0}, 4), zstdFooterMagic...))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, parse := range []func([]byte, *tocPlace) error{parseStargzFooter, parseLegacyFooter, parseZstdFooter} {
			p := tocPlace{rawSize: -1, json: "sha256:x"}
			if err := parse(b, &p); err == nil && (p.off < 0 || p.size < -1 || p.rawSize < -1) {
				t.Errorf("%x: %+v", b, p)
			}
		}
	})
}

func FuzzPosition(f *testing.F) {
	f.Add("1:2:3:1")
	f.Add("-1:2:3:1")
	f.Fuzz(func(t *testing.T, s string) {
		p := tocPlace{compressed: "sha256:x"}
		if p.parsePosition(s) == nil && fmt.Sprintf("%d:%d:%d:1", p.off, p.size, p.rawSize) != s && !strings.ContainsAny(s, "0") {
			t.Errorf("%q was read as %+v", s, p)
		}
	})
}

// A blob with its true digests pinned, whatever is in it, is an error or a tree.
func FuzzLazyBlob(f *testing.F) {
	files := []fetchtest.File{fetchtest.Dir("d"), fetchtest.Reg("d/a", "hello"), fetchtest.Reg("b", noise(1, 3000)), fetchtest.Link("c", "b")}
	f.Add(fetchtest.NewLayer(f, fetchtest.EStargz(), files...).Blob, false)
	f.Add(fetchtest.NewLayer(f, fetchtest.EStargz().WithMinChunkSize(5000), files...).Blob, false)
	f.Add(fetchtest.NewLayer(f, fetchtest.ZstdChunked().WithChunkSize(1000), files...).Blob, true)
	f.Fuzz(func(t *testing.T, blob []byte, zstd bool) {
		format := unionfs.FormatEStargz
		if zstd {
			format = unionfs.FormatZstdChunked
		}
		b := tail{ctx: t.Context(), blob: &memBlob{data: blob}, size: int64(len(blob)), got: func(int64) {}}
		for _, how := range []struct {
			size  int64
			parse func([]byte, *tocPlace) error
		}{{stargzFooterSize, parseStargzFooter}, {legacyFooterSize, parseLegacyFooter}, {zstdFooterSize, parseZstdFooter}} {
			p := &tocPlace{rawSize: -1, json: "sha256:x"}
			if findByFooter(&b, p, how.size, how.parse) != nil || p.check(int64(len(blob))) != nil {
				continue
			}
			raw, err := b.read(p.off, p.size)
			if err != nil {
				t.Fatal(err)
			}
			p.json = ""
			if verifyTOC(raw, p, format) != nil {
				continue
			}
			r, done, err := openTOC(raw, p, format)
			if err != nil {
				t.Fatalf("a verified TOC cannot be opened: %v", err)
			}
			entries, _, err := parseTOC(r, p.off)
			done()
			if err == nil {
				err = checkTOCEntries(entries, p.off)
				if err != nil {
					t.Error(err)
				}
			}
		}
	})
}
