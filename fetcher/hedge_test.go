package fetcher

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// sender answers requests as the test says: the nth after times[n], or never.
type sender struct {
	times []time.Duration
	errs  []error
	sent  atomic.Int64
}

func (s *sender) send(ctx context.Context) (*http.Response, error) {
	n := int(s.sent.Add(1)) - 1
	var answered <-chan time.Time
	if s.times[n] >= 0 {
		answered = time.After(s.times[n])
	}
	select {
	case <-answered:
		return &http.Response{StatusCode: 200 + n, Body: io.NopCloser(bytes.NewReader(nil))}, s.errs[n]
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestLateRequestIsSentOnceMore(t *testing.T) {
	broken := errors.New("broken")
	const never = -1
	for name, c := range map[string]struct {
		times  []time.Duration
		errs   []error
		took   time.Duration
		status int
		err    error
	}{
		"in time":             {[]time.Duration{time.Second}, []error{nil}, time.Second, 200, nil},
		"second is first":     {[]time.Duration{never, time.Second}, []error{nil, nil}, 3 * time.Second, 201, nil},
		"first is first":      {[]time.Duration{3 * time.Second, never}, []error{nil, nil}, 3 * time.Second, 200, nil},
		"first fails early":   {[]time.Duration{time.Second}, []error{broken}, time.Second, 0, broken},
		"first fails late":    {[]time.Duration{3 * time.Second, 2 * time.Second}, []error{broken, nil}, 4 * time.Second, 201, nil},
		"first, second fails": {[]time.Duration{3 * time.Second, 2 * time.Second}, []error{nil, broken}, 3 * time.Second, 200, nil},
		"second fails, then":  {[]time.Duration{9 * time.Second, 2 * time.Second}, []error{nil, broken}, 9 * time.Second, 200, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &sender{times: c.times, errs: c.errs}
				began := time.Now()
				resp, err := newHedger().do(t.Context(), 2*time.Second, s.send)
				if took := time.Since(began); took != c.took || !errors.Is(err, c.err) {
					t.Errorf("%v after %v", err, took)
				}
				if n := int(s.sent.Load()); n != len(c.times) {
					t.Errorf("sent %d times", n)
				}
				if c.err != nil {
					return
				}
				if resp.StatusCode != c.status {
					t.Errorf("the answer of try %d", resp.StatusCode-200)
				}
				resp.Body.Close()
				synctest.Wait() // the other try ends: else the test hangs
			})
		})
	}
}

func TestSecondRequestsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHedger()
		var sent atomic.Int64
		for range 100 {
			resp, err := h.do(t.Context(), time.Second, func(context.Context) (*http.Response, error) {
				sent.Add(1)
				time.Sleep(2 * time.Second)
				return &http.Response{Body: http.NoBody}, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			synctest.Wait()
		}
		if n := sent.Load(); n < 102 || n > 110 {
			t.Errorf("%d requests for 100", n)
		}
	})
}

func TestHedgerLearnsWhatIsLate(t *testing.T) {
	h := newHedger()
	if d := h.after(); d != firstHedge {
		t.Errorf("at first %v", d)
	}
	for range 100 {
		h.learn(100 * time.Millisecond)
	}
	h.learn(time.Hour)
	if d := h.after(); d != 400*time.Millisecond {
		t.Errorf("then %v", d)
	}
	for range 100 {
		h.learn(time.Millisecond)
	}
	if d := h.after(); d != minHedge {
		t.Errorf("of a fast registry %v", d)
	}
}

// A request that hangs is overtaken by the second one.
func TestStragglerIsOvertaken(t *testing.T) {
	reg := newBlobTest(t, 100_000)
	b := reg.open(t, func(o *ClientOptions) { o.HedgeAfter = time.Millisecond })
	reg.Use(fetchtest.OnlyBlobs(fetchtest.Next(1, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
	})))
	if got := readRange(t, b, 10, 50_000); !bytes.Equal(got, reg.raw[10:50_010]) {
		t.Error("wrong bytes")
	}
	if n := len(reg.LayerRequests(reg.image)); n != 2 {
		t.Errorf("%d requests", n)
	}
}
