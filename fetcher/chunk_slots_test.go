package fetcher

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// A layer that is never answered takes no more than its share: another layer is read meanwhile.
func TestSilentLayerHoldsUpItsOwnReadsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var files []fetchtest.File
		for i := range 40 {
			files = append(files, fetchtest.Reg(fmt.Sprint("silent", i), noise(uint64(i), 5000)))
		}
		silentLayer := fetchtest.NewLayer(t, fetchtest.EStargz(), files...)
		sources, blobs := sourcesOf(silentLayer, fetchtest.NewLayer(t, fetchtest.EStargz(), fetchtest.Reg("other", "other")))
		x := openSources(t, testStore(t), sources, lazy)
		release := make(chan struct{})
		var asked, most atomic.Int64
		blobs[0].before = func(int64, int64) {
			most.Store(max(most.Load(), asked.Add(1)))
			<-release
			asked.Add(-1)
		}
		for _, f := range files {
			go x.ReadAt(t.Context(), x.ino(t, f.Name), make([]byte, 1), 0)
		}
		synctest.Wait()
		if got := x.readAll(t, "other"); got != "other" {
			t.Errorf("got %q", got)
		}
		if n := most.Load(); n != 6 {
			t.Errorf("%d requests for the silent layer", n)
		}
		close(release)
		synctest.Wait()
		for _, f := range files {
			if got := x.readAll(t, f.Name); got != f.Body {
				t.Errorf("%s: other bytes", f.Name)
			}
		}
	})
}

func TestSlotGivenToOneWhoLeftIsPassedOn(t *testing.T) {
	s := newRequestSlots(1)
	if err := s.acquire(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() { left <- s.acquire(ctx, 0) }()
	cancel()
	if err := <-left; err == nil {
		t.Error("a slot where there was none")
	}
	s.release(0)
	if err := s.acquire(t.Context(), 1); err != nil {
		t.Error(err)
	}
	if s.free != 0 || len(s.waiting) != 0 {
		t.Errorf("%d free, %d waiting", s.free, len(s.waiting))
	}
}
