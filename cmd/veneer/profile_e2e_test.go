package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// profileImage is busybox and a layer of 50 files that don't compress, of which "cat" below reads three.
func (l *lab) profileImage() (image string, data fetchtest.Layer) {
	l.t.Helper()
	var files []fetchtest.File
	for i := range 50 {
		body := make([]byte, 100_000)
		for j := range body {
			body[j] = byte((j*j + i*j) >> 5)
		}
		files = append(files, fetchtest.Reg(fmt.Sprintf("data/%02d", i), string(body)))
	}
	data = fetchtest.NewLayer(l.t, fetchtest.EStargz(), files...)
	img := busyboxImage(l.t, fetchtest.EStargz())
	img.Layers = append(img.Layers, data)
	return l.reg.Push(l.t, "box:1", img), data
}

var readThree = []string{"sh", "-c", "cat /data/40 /data/03 /data/22 | md5sum"}

// run runs a command with figures.
func (l *lab) stats(image string, command ...string) (s stats) {
	l.t.Helper()
	file := filepath.Join(l.dir, "stats")
	l.want(append([]string{"run", "--rm", "--stats", file, image}, command...)...)
	if err := readJSON(file, &s); err != nil {
		l.t.Fatal(err)
	}
	return s
}

func TestSecondColdStartIsReplayed(t *testing.T) {
	l := newLab(t)
	image, _ := l.profileImage()
	first := l.stats(image, readThree...)
	if first.BytesByCause.Profile != 0 || first.BytesByCause.Demand == 0 {
		t.Errorf("the first start: %+v", first.BytesByCause)
	}
	shown := l.want("profile", "show", image)
	for _, want := range []string{"/bin/", "/data/40", "/data/03", "/data/22", "md5sum", "of 1 runs"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the profile does not show %s:\n%s", want, shown)
		}
	}
	if strings.Contains(shown, "/data/10") {
		t.Errorf("it shows what nobody read:\n%s", shown)
	}
	text := l.want("profile", "export", image)
	if again := l.want(append([]string{"profile", "export", image}, readThree...)...); again != text {
		t.Error("exported by its command, it is another")
	}

	// On another machine, with the profile.
	other := places{filepath.Join(l.dir, "other"), filepath.Join(l.dir, "run")}
	l.places = other
	l.want("pull", "--lazy", "-q", image)
	importing := l.command("profile", "import", image)
	importing.Stdin = strings.NewReader(text)
	l.finish(importing).check(t, 0, "", "")
	second := l.stats(image, readThree...)
	if second.BytesByCause.Profile == 0 || second.BytesByCause.Profile > first.FetchedBytes {
		t.Errorf("the start with a profile: %+v, without: %+v", second.BytesByCause, first.BytesByCause)
	}
	if third := l.stats(image, readThree...); third.FetchedBytes != 0 {
		t.Errorf("a start with all that it needs fetched %d bytes", third.FetchedBytes)
	}
}

func TestProfileThatIsNone(t *testing.T) {
	l := newLab(t)
	image := l.image()
	l.veneer("profile", "show", image).check(t, 1, "", "is not in the store")
	l.want("pull", "--lazy", "-q", image)
	l.veneer("profile", "show", image).check(t, 1, "", "has no profile")
	l.veneer("profile", "export", image).check(t, 1, "", "has no such profile")
	importing := l.command("profile", "import", image)
	importing.Stdin = strings.NewReader("nonsense")
	l.finish(importing).check(t, 1, "", "profile, line 1")
	for _, bad := range []string{"0", "-1", "x", "1.5M", "99999999999G"} {
		l.veneer("run", "--fill-rate", bad, image, "true").check(t, 125, "", "--fill-rate")
	}
	var b byteCount
	if err := b.Set("2M"); err != nil || b != 2_000_000 {
		t.Errorf("2M is %d, %v", b, err)
	}
}

// A pull of the trees only fetches next to nothing, and a start afterwards asks for no manifest.
func TestPullLazy(t *testing.T) {
	l := newLab(t)
	image, data := l.profileImage()
	l.want("pull", "--lazy", "-q", image)
	var n int64
	for _, q := range l.reg.RequestsFor(data.Descriptor.Digest) {
		n += q.Bytes
	}
	if n > data.Descriptor.Size/4 {
		t.Errorf("%d of %d bytes", n, data.Descriptor.Size)
	}
	l.reg.Use(fetchtest.OnlyManifests(fetchtest.Status(500)))
	l.veneer("run", "--rm", image, "echo", "started").check(t, 0, "started\n", "")
}

// A server that is killed while it learns leaves the profile that was there, and the one that goes on does not learn.
func TestKilledServerKeepsTheProfile(t *testing.T) {
	l := newLab(t)
	image, _ := l.profileImage()
	l.want(append([]string{"run", "--rm", image}, readThree...)...)
	before := l.want("profile", "export", image)
	l.want("run", "-d", "--name", "learns", image, "sh", "-c", "cat /data/01 > /dev/null; sleep 1000")
	id := l.only()
	l.killServer(id, 1)
	l.want("rm", "-f", "learns")
	if after := l.want(append([]string{"profile", "export", image}, readThree...)...); after != before {
		t.Errorf("the profile is another:\n%s\n%s", before, after)
	}
	if left, _ := os.ReadDir(filepath.Join(l.places.Root, "tmp")); len(left) > 1 {
		t.Errorf("left: %v", left)
	}
}
