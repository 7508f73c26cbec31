package fetcher

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

var testImage = digest.FromString("an image")

func readOf(name string, at int) ProfileRead {
	return ProfileRead{At: time.Duration(at) * time.Millisecond, Content: mustDigest(name)}
}

func TestProfileIsReadAsItIsWritten(t *testing.T) {
	p := &Profile{Image: testImage, Command: []string{"sh", "-c", "echo \"ü\n\""}, Runs: 7, Reads: []ProfileRead{
		readOf("a", 0), {At: 12 * time.Millisecond, Missed: 2, Content: mustDigest("b"), Offset: 1 << 30},
	}}
	got, err := ParseProfile(bytes.NewReader(p.Text()))
	if err != nil || !reflect.DeepEqual(got, p) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestBadProfile(t *testing.T) {
	head := "veneer profile 1\nimage " + testImage.String() + "\n"
	read := "read 1 0 " + strings.Repeat("0", 64)
	for _, text := range []string{
		"", "veneer profile 2\n", head, head + "runs 0", head + "runs x", head + "runs 1\nnew 5", head + "runs 1\ncommand x",
		"veneer profile 1\nimage sha256:x\nruns 1", "veneer profile 1\nruns 1",
		head + "runs 1\n" + read, head + "runs 1\n" + read + " -1", head + "runs 1\n" + read + " 99999999999999999999",
		head + "runs 1\n" + read + " 1 2", head + "runs 1\nread 1 9 " + strings.Repeat("0", 64) + " 0", head + "runs 1\nread 1 0 zz 0",
		head + "runs 1\n" + strings.Repeat("x", maxProfileLine+1),
		head + "runs 1\n" + strings.Repeat(read+" 0\n", maxProfileReads+1),
	} {
		p, err := ParseProfile(strings.NewReader(text))
		if e := (*ProfileError)(nil); !errors.As(err, &e) {
			t.Errorf("%.60q: %v, %v", text, p, err)
		}
	}
}

func TestRunsAreMergedInTheOrderOfTheLast(t *testing.T) {
	p := &Profile{Image: testImage}
	order := func() string {
		var b strings.Builder
		for i := range p.Reads {
			for _, name := range []string{"a", "b", "c", "d", "e"} {
				if p.Reads[i].Content == mustDigest(name) {
					fmt.Fprintf(&b, "%s%d ", name, p.Reads[i].Missed)
				}
			}
		}
		return b.String()
	}
	for _, c := range []struct{ run, want string }{
		{"abcd", "a0 b0 c0 d0 "},
		{"bacd", "b0 a0 c0 d0 "},
		{"acd", "b1 a0 c0 d0 "}, // what is not read stays where it was
		{"cae", "b2 c0 d1 a0 e0 "},
		{"cae", "c0 d2 a0 e0 "}, // and is forgotten in time
		{"dcae", "d0 c0 a0 e0 "},
	} {
		var run []ProfileRead
		for i, name := range c.run {
			run = append(run, readOf(string(name), i))
		}
		p.merge(run)
		if got := order(); got != c.want {
			t.Errorf("after %s: %s, want %s", c.run, got, c.want)
		}
	}
	if p.Runs != 6 {
		t.Errorf("%d runs", p.Runs)
	}
}

func FuzzProfile(f *testing.F) {
	p := &Profile{Image: testImage, Command: []string{"a"}, Runs: 1, Reads: []ProfileRead{readOf("a", 5), readOf("b", 6)}}
	f.Add(p.Text())
	f.Add([]byte("veneer profile 1\nimage x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParseProfile(bytes.NewReader(text))
		if err != nil {
			return
		}
		again, err := ParseProfile(bytes.NewReader(p.Text()))
		if err != nil || !reflect.DeepEqual(again, p) {
			t.Errorf("%+v is read back as %+v, %v", p, again, err)
		}
		p.merge(p.Reads)
		if len(p.Reads) > maxProfileReads {
			t.Errorf("%d reads", len(p.Reads))
		}
	})
}

// start reads files of an image as a command does that then ends.
func start(t *testing.T, s *Store, ref string, o ContentsOptions, names ...string) *opened {
	t.Helper()
	o.Profile, o.Command = true, []string{"test", "command"}
	x := openImage(t, s, ref, o)
	for _, name := range names {
		x.readAll(t, name)
	}
	return x
}

// learned returns an image of 200 files in two layers, and a store with a profile of some of them and none of their content.
func learned(t *testing.T, reg *fetchtest.Registry, names []string) (string, *fetchtest.Image, *Store) {
	t.Helper()
	var files [2][]fetchtest.File
	for i := range 200 {
		files[i%2] = append(files[i%2], fetchtest.Reg(fmt.Sprintf("f%03d", i), noise(uint64(i), 10_000)))
	}
	large := fetchtest.Reg("large", noise(1000, 300_000))
	img := &fetchtest.Image{Layers: []fetchtest.Layer{fetchtest.NewLayer(t, fetchtest.EStargz().WithChunkSize(50_000), files[0]...),
		fetchtest.NewLayer(t, fetchtest.ZstdChunked().WithChunkSize(50_000), append(files[1], large)...)}}
	ref := reg.Push(t, "app:1", img)
	first := testStore(t)
	x := start(t, first, ref, lazy, names...)
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := first.Profile(x.img.Manifest, []string{"test", "command"})
	if err != nil {
		t.Fatal(err)
	}
	s := testStore(t)
	if err := s.SaveProfile(p); err != nil {
		t.Fatal(err)
	}
	return ref, img, s
}

func TestStartIsReplayed(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	names := []string{"f150", "f003", "large", "f004", "f007", "f180", "f000"}
	ref, img, s := learned(t, reg, names)
	reg.ForgetRequests()
	x := start(t, s, ref, ContentsOptions{})
	replayed(x)
	got := x.Stats()
	if got.DemandBytes+got.WindowBytes != 0 || got.ProfileBytes < 360_000 || got.ProfileBytes > 460_000 {
		t.Errorf("%+v", got)
	}
	before := len(reg.LayerRequests(img))
	for _, name := range names {
		x.readAll(t, name)
	}
	if n := len(reg.LayerRequests(img)) - before; n != 0 {
		t.Errorf("%d requests for what had been replayed", n)
	}
}

// replayed waits until x has fetched what its profile names.
func replayed(x *opened) {
	for range 2 { // the second sees what the first began
		x.replay(x.store.treePath(nil), x.img.Manifest, x.opts.Command)
		for key := range x.flightsNow() {
			x.waitFor(key.layer, []blobMember{{off: key.off}})
		}
	}
}

func (x *Contents) flightsNow() map[memberKey]*flight {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := map[memberKey]*flight{}
	for k, v := range x.flights {
		out[k] = v
	}
	return out
}

// What a profile says cannot change what is read, whatever it says.
func TestProfileOnlyOrdersFetching(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	ref, _, s := learned(t, reg, []string{"f000"})
	x := openImage(t, s, ref, lazy)
	lie := &Profile{Image: x.img.Manifest, Command: []string{"test", "command"}, Runs: 1, Reads: []ProfileRead{
		{Content: mustDigest("nowhere")}, {Content: mustDigest(noise(2, 10_000)), Offset: 1 << 35}, {Content: mustDigest(noise(4, 10_000)), Offset: 9_999},
		{Content: mustDigest(noise(1000, 300_000)), Offset: 299_999}, {}, {Content: mustDigest(noise(4, 10_000))},
	}}
	if err := s.SaveProfile(lie); err != nil {
		t.Fatal(err)
	}
	y := start(t, s, ref, lazy)
	replayed(y)
	if n := y.Stats().ChunksVerified; n != 2 {
		t.Errorf("%d chunks", n)
	}
	for i := range 200 {
		if got := y.readAll(t, fmt.Sprintf("f%03d", i)); got != noise(uint64(i), 10_000) {
			t.Errorf("f%03d: other bytes", i)
		}
	}
}

// A start that knows all and finds all neither looks nor learns any more.
func TestSettledStartsLearnNoMore(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	ref, _, s := learned(t, reg, []string{"f000", "large"})
	var img digest.Digest
	for i := 2; i <= settledRuns+2; i++ {
		x := start(t, s, ref, lazy, "f000", "large")
		img = x.img.Manifest
		if (x.recorder == nil) != (i > settledRuns) {
			t.Errorf("run %d: recorded %v", i, x.recorder != nil)
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
	}
	p, err := s.Profile(img, []string{"test", "command"})
	if err != nil || p.Runs != settledRuns || len(p.Reads) != 7 {
		t.Errorf("%+v, %v", p, err)
	}
	if err := s.unsettle(); err != nil || s.settled(img, p.Command) {
		t.Errorf("still settled, %v", err)
	}
}

func TestProfileOfTheSameProgramServes(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	ref, _, s := learned(t, reg, []string{"f000"})
	x := openImage(t, s, ref, lazy)
	for _, c := range []struct {
		command []string
		found   bool
	}{{[]string{"test", "other", "arguments"}, true}, {[]string{"other"}, false}, {nil, false}} {
		p, err := x.profileFor(x.img.Manifest, c.command)
		if err != nil || (p != nil) != c.found {
			t.Errorf("%q: %v, %v", c.command, p, err)
		}
	}
}

func TestDamagedProfileIsBegunAnew(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	ref, _, s := learned(t, reg, []string{"f000"})
	x := openImage(t, s, ref, lazy)
	path := s.profilePath(x.img.Manifest, []string{"test", "command"})
	if err := os.WriteFile(path, []byte("veneer profile 1\nimage"), 0o600); err != nil {
		t.Fatal(err)
	}
	y := start(t, s, ref, lazy, "f001")
	if err := y.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Profile(x.img.Manifest, []string{"test", "command"}); err != nil || p.Runs != 1 || len(p.Reads) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := s.Profile(x.img.Manifest, []string{"nosuch"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// Without a profile, what the layers want to be fetched first is.
func TestPrioritizedFilesComeFirst(t *testing.T) {
	for _, f := range []fetchtest.Format{fetchtest.EStargz(), fetchtest.ZstdChunked()} {
		t.Run(f.String(), func(t *testing.T) {
			reg := fetchtest.NewRegistry(t)
			var files []fetchtest.File
			for i := range 50 {
				files = append(files, fetchtest.Reg(fmt.Sprintf("f%02d", i), noise(uint64(i), 10_000)))
			}
			img := &fetchtest.Image{Layers: []fetchtest.Layer{
				fetchtest.NewLayer(t, f, fetchtest.Reg("other", noise(99, 10_000))), // all of it is no priority
				fetchtest.NewLayer(t, f.WithPrioritized("f40", "f13"), files...),
			}}
			x := start(t, testStore(t), reg.Push(t, "app:1", img), lazy)
			reg.ForgetRequests()
			x.work.Go(func() {}) // nothing is left to wait for but what was begun
			waitFlights(x)
			before := len(reg.LayerRequests(img))
			if got := x.readAll(t, "f40") + x.readAll(t, "f13"); got != files[40].Body+files[13].Body {
				t.Error("other bytes")
			}
			if n := len(reg.LayerRequests(img)) - before; n != 0 || x.Stats().ChunksVerified != 2 {
				t.Errorf("%d requests, %+v", n, x.Stats())
			}
		})
	}
}

func waitFlights(x *opened) {
	list := x.missingFirst(x.store.treePath(x.sources()))
	if len(list) > 0 {
		x.fetchInOrder(list)
	}
	for key := range x.flightsNow() {
		x.waitFor(key.layer, []blobMember{{off: key.off}})
	}
}

func (x *Contents) sources() []layerSource {
	out := make([]layerSource, len(x.layers))
	for i := range x.layers {
		out[i] = *x.layers[i].source
	}
	return out
}
