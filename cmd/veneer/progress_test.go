package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/console"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// drawSome draws four layers: one done, one that failed, one of which only the table of contents is read, one that
// nobody ends.
func drawSome(p *progress) (done, failed, lazy, left string) {
	id := func(i int) ocispec.Descriptor {
		return ocispec.Descriptor{Digest: digest.FromString(strings.Repeat("x", i+1)), Size: 5_000_000}
	}
	var wg sync.WaitGroup
	for i, total := range []int64{5_000_000, 5_000_000, 40_000, 5_000_000} {
		wg.Go(func() {
			p.LayerStarted(i, id(i), total)
			for range 10 {
				p.LayerBytes(i, total/10)
			}
			switch i {
			case 0, 2:
				p.LayerDone(i, nil)
			case 1:
				p.LayerDone(i, errors.New("connection reset"))
			}
		})
	}
	wg.Wait()
	p.close()
	return shortDigest(id(0).Digest), shortDigest(id(1).Digest), shortDigest(id(2).Digest), shortDigest(id(3).Digest)
}

func TestProgressPrintsALineForEachLayerWithoutATerminal(t *testing.T) {
	var out bytes.Buffer
	done, _, _, _ := drawSome(newProgress(&out))
	if want := done + ": fetched 5MB\n"; out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
}

func TestProgressDrawsBarsOnATerminal(t *testing.T) {
	master, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := master.Resize(console.WinSize{Width: 120, Height: 24}); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	drawn := make(chan string)
	go func() {
		b, _ := io.ReadAll(master) // ends with EIO when the terminal is closed
		drawn <- string(b)
	}()
	done, failed, lazy, left := drawSome(newProgress(tty))
	tty.Close()
	out := <-drawn
	for _, want := range []string{done + ": complete", failed + ": stopped", left + ": stopped", "5MB/5MB"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in what was drawn: %q", want, out)
		}
	}
	if strings.Contains(out, lazy) {
		t.Errorf("a table of contents has a bar: %q", out)
	}
}

func TestHumanSizeIsDockers(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0B", 999: "999B", 1000: "1kB", 1234: "1.23kB", 999_499: "999kB", 999_500: "1MB", 63_300_000: "63.3MB", 1 << 40: "1.1TB",
		1<<63 - 1: "9.22EB",
	} {
		if got := humanSize(n); got != want {
			t.Errorf("%d bytes: %s, want %s", n, got, want)
		}
	}
}
