package fetcher

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// filling is an image of two layers whose rest is being fetched. The clock runs when everything waits.
func filling(t *testing.T, o ContentsOptions) *opened {
	var files [2][]fetchtest.File
	for i := range 100 {
		files[i%2] = append(files[i%2], fetchtest.Reg(fmt.Sprintf("f%03d", i), noise(uint64(i), 10_000)))
	}
	sources, _ := sourcesOf(fetchtest.NewLayer(t, fetchtest.EStargz(), files[0]...), fetchtest.NewLayer(t, fetchtest.EStargz(), files[1]...))
	x := openSources(t, testStore(t), sources, o)
	x.work.Go(x.fill)
	return x
}

func TestRestIsFetchedWhenTheStartIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := filling(t, lazy)
		time.Sleep(fillAfter - time.Millisecond)
		if n := x.Stats().FetchedBytes; n != 0 {
			t.Errorf("%d bytes before the start was over", n)
		}
		time.Sleep(time.Minute)
		before := x.Stats().Requests
		for i := range 100 {
			if got := x.readAll(t, fmt.Sprintf("f%03d", i)); got != noise(uint64(i), 10_000) {
				t.Errorf("f%03d: other bytes", i)
			}
		}
		if got := x.Stats(); got.FillBytes < 1_000_000 || got.DemandBytes != 0 || got.Requests > before || got.Requests > 4 {
			t.Errorf("%+v", got)
		}
	})
}

func TestFillStandsBackWhileReadsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := filling(t, lazy)
		x.demand.enter()
		time.Sleep(time.Hour)
		if n := x.Stats().FetchedBytes; n != 0 {
			t.Errorf("%d bytes while a read waits", n)
		}
		x.demand.leave()
		time.Sleep(time.Minute)
		if n := x.Stats().FillBytes; n < 1_000_000 {
			t.Errorf("%d bytes after it", n)
		}
	})
}

func TestFillKeepsToItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := lazy
		o.FillRate = 10_000
		x := filling(t, o)
		time.Sleep(fillAfter + 20*time.Second)
		if n := x.Stats().FetchedBytes; n < 150_000 || n > 300_000 {
			t.Errorf("%d bytes in 20 s", n)
		}
		time.Sleep(2 * time.Minute)
		if n := x.Stats().FillBytes; n < 1_000_000 {
			t.Errorf("%d bytes at last", n)
		}
	})
}

// A fill that a read waits for goes at full speed.
func TestFillThatIsWaitedForDoesNotStandBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &Contents{life: t.Context()}
		x.opts.FillRate = 1
		x.demand.enter()
		fl := &flight{cause: causeFill}
		r := x.polite([]*flight{fl}, bytes.NewReader(make([]byte, 1<<20)))
		go func() {
			time.Sleep(time.Second)
			fl.wanted.Store(true)
		}()
		began := time.Now()
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took < time.Second || took > time.Second+fillPause {
			t.Errorf("it took %v", took)
		}
	})
}

func TestNearlyFullDiskIsNotFilled(t *testing.T) {
	s := fullStore(t, "4m")
	layer, _ := manyFiles(t, 100)
	sources, _ := sourcesOf(layer)
	x := openSources(t, s, sources, lazy)
	if !x.roomToFill() {
		t.Error("no room at first")
	}
	if err := s.putBytes(mustDigest(noise(1, 3_900_000)), []byte(noise(1, 3_900_000))); err != nil {
		t.Fatal(err)
	}
	if x.roomToFill() {
		t.Error("room on a disk that is nearly full")
	}
}
