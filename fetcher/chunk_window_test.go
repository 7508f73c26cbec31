package fetcher

import (
	"fmt"
	"testing"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// manyFiles is a layer of n files of 10,000 bytes that don't compress.
func manyFiles(t *testing.T, n int) (fetchtest.Layer, []fetchtest.File) {
	t.Helper()
	files := make([]fetchtest.File, n)
	for i := range files {
		files[i] = fetchtest.Reg(fmt.Sprintf("f%04d", i), noise(uint64(i), 10_000))
	}
	return fetchtest.NewLayer(t, fetchtest.EStargz(), files...), files
}

func TestReaderOfManyFilesMakesFewRequests(t *testing.T) {
	layer, files := manyFiles(t, 1000)
	sources, blobs := sourcesOf(layer)
	x := openSources(t, testStore(t), sources, ContentsOptions{})
	before, waits := len(blobs[0].requests()), x.stats.waits.Load()
	for _, f := range files {
		if got := x.readAll(t, f.Name); got != f.Body {
			t.Fatalf("%s: other bytes", f.Name)
		}
		x.work.Wait() // as if the network were fast enough
	}
	if n := len(blobs[0].requests()) - before; n > 8 {
		t.Errorf("%d requests for 1000 files", n)
	}
	if n := x.stats.waits.Load() - waits; n != 1 {
		t.Errorf("%d reads waited", n)
	}
}

// A reader of a few files here and there does not pay for all.
func TestReaderOfFewFilesBringsLittle(t *testing.T) {
	layer, files := manyFiles(t, 1000)
	sources, _ := sourcesOf(layer)
	x := openSources(t, testStore(t), sources, ContentsOptions{})
	for i := 0; i < len(files); i += 40 {
		x.readAll(t, files[i*7%1000].Name)
		x.work.Wait()
	}
	// 25 misses, the first three of which bring 256, 128 and 64 KiB along.
	if got, most := x.Stats().FetchedBytes, int64(25*(10_000+minWindow)+300_000); got > most {
		t.Errorf("%d bytes for 25 files, want at most %d", got, most)
	}
}

func TestWindowGrowsByUseAndShrinksWithout(t *testing.T) {
	var w window
	bring := func(used bool) int64 {
		size := w.next(firstWindow, maxWindow)
		start := w.end
		w.bring(start, start+size)
		for off := start; used && off < start+size; off += size / 8 {
			w.use(&blobMember{off: off, size: size / 8})
		}
		return size
	}
	for i, want := range []int64{firstWindow, 2 * firstWindow, 4 * firstWindow, 8 * firstWindow, maxWindow, maxWindow} {
		if got := bring(true); got != want {
			t.Errorf("window %d has %d bytes", i, got)
		}
	}
	last := bring(false)
	for range 10 {
		size := bring(false)
		if size > last {
			t.Errorf("it grew from %d to %d", last, size)
		}
		last = size
	}
	if last != minWindow {
		t.Errorf("at last it has %d bytes", last)
	}
}

// The next part is brought when the middle of this one is read, once.
func TestNextPartIsBroughtBeforeItIsMissed(t *testing.T) {
	var w window
	w.bring(0, 1000)
	for _, c := range []struct {
		off  int64
		from int64
		ok   bool
	}{{100, 0, false}, {499, 0, false}, {600, 1000, true}, {700, 0, false}, {2000, 0, false}} {
		if from, ok := w.use(&blobMember{off: c.off, size: 10}); from != c.from || ok != c.ok {
			t.Errorf("at %d: from %d, %v", c.off, from, ok)
		}
	}
}

// What comes along does not delay what is asked for: the answer is here before the rest.
func TestWhatComesAlongDoesNotDelayTheAnswer(t *testing.T) {
	layer, files := manyFiles(t, 60)
	reg := fetchtest.NewRegistry(t)
	img := &fetchtest.Image{Layers: []fetchtest.Layer{layer}}
	x := openImage(t, testStore(t), reg.Push(t, "app:1", img), ContentsOptions{})
	reg.ForgetRequests()
	hold := fetchtest.NewHold(t, 50_000) // in the middle of what comes along
	reg.Use(fetchtest.OnlyBlobs(hold.Fault()))
	if got := x.readAll(t, files[0].Name); got != files[0].Body {
		t.Error("other bytes")
	}
	<-hold.Reached // it comes along, and has not come yet
	if n := len(reg.LayerRequests(img)); n != 1 {
		t.Errorf("%d requests", n)
	}
	hold.Release()
	if got := x.readAll(t, files[5].Name); got != files[5].Body {
		t.Error("other bytes")
	}
	if n := len(reg.LayerRequests(img)); n != 1 {
		t.Errorf("%d requests", n)
	}
}
