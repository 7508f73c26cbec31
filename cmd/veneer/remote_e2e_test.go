package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// remoteImage is busybox with a layer of one file, "data", whose registry the test takes away.
func (l *lab) remoteImage() (image, body string, data fetchtest.Layer) {
	l.t.Helper()
	body = strings.Repeat("bytes that come from far away\n", 1000)
	data = fetchtest.NewLayer(l.t, fetchtest.EStargz(), fetchtest.Reg("data", body))
	img := busyboxImage(l.t, fetchtest.EStargz())
	img.Layers = append(img.Layers, data)
	return l.reg.Push(l.t, "box:1", img), body, data
}

func TestRemoteFailIsAnErrorAfterItsTime(t *testing.T) {
	l := newLab(t)
	image, body, data := l.remoteImage()
	dir := l.mkdir("mnt")
	l.want("mount", "--remote", "fail=1s", image, dir)
	remove := l.reg.Use(fetchtest.OnlyFor(data.Descriptor.Digest, fetchtest.Reset(0)))
	if _, err := os.ReadFile(filepath.Join(dir, "data")); err == nil || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("got %v", err)
	}
	remove()
	checkFile(t, filepath.Join(dir, "data"), body) // an error is of its read and not of the file
	l.want("umount", dir)
}

func TestRemoteWaitGoesOnWhenTheRegistryIsBack(t *testing.T) {
	l := newLab(t)
	image, body, data := l.remoteImage()
	dir := l.mkdir("mnt")
	l.want("mount", image, dir)
	refused := make(chan struct{}, 100)
	remove := l.reg.Use(fetchtest.OnlyFor(data.Descriptor.Digest, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			refused <- struct{}{}
			fetchtest.Status(http.StatusServiceUnavailable)(next).ServeHTTP(w, req)
		})
	}))
	var out bytes.Buffer
	reader := exec.Command("cat", filepath.Join(dir, "data"))
	reader.Stdout = &out
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	for range 6 { // more than one request is tried, so that the read has begun to wait
		<-refused
	}
	remove()
	if err := reader.Wait(); err != nil || out.String() != body {
		t.Errorf("%d bytes, %v", out.Len(), err)
	}
	l.want("umount", dir)
}

// A process that waits for a registry that never answers dies at once, in a container and outside.
func TestKilledReaderDiesAtOnce(t *testing.T) {
	l := newLab(t)
	image, _, data := l.remoteImage()
	dir := l.mkdir("mnt")
	l.want("mount", image, dir)
	hold := fetchtest.NewHold(t, 100)
	l.reg.Use(fetchtest.OnlyFor(data.Descriptor.Digest, hold.Fault()))
	reader := exec.Command("cat", filepath.Join(dir, "data"))
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	<-hold.Reached
	if err := reader.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	reader.Wait() // without the kill's effect the test would end by its timeout
	if s := reader.ProcessState.String(); s != "signal: killed" {
		t.Errorf("it ended with %s", s)
	}
	l.want("umount", dir)

	l.want("run", "-d", "--name", "waits", image, "cat", "/data")
	<-hold.Reached
	l.want("rm", "-f", "waits")
}

func TestRemotePolicyIsChecked(t *testing.T) {
	l := newLab(t)
	for _, bad := range []string{"", "never", "fail=", "fail=0", "fail=-1s", "fail=1", "wait=1s"} {
		l.veneer("run", "--remote", bad, "nosuch", "true").check(t, 125, "", "--remote")
	}
	for _, bad := range []string{"0", "x", "1001"} {
		l.veneer("run", "--connections", bad, "nosuch", "true").check(t, 125, "", "--connections")
	}
	for s, want := range map[string]failAfter{"wait": 0, "fail": failAfter(defaultFailAfter), "fail=1m": failAfter(time.Minute)} {
		var f failAfter
		if err := f.Set(s); err != nil || f != want {
			t.Errorf("%s: %v, %v", s, f, err)
		}
	}
}

func TestMirrorOfTheCertsDir(t *testing.T) {
	l := newLab(t)
	img := busyboxImage(t, fetchtest.EStargz())
	mirror := fetchtest.NewRegistry(t)
	mirror.Push(t, "box:1", img)
	dir := l.mkdir("certs/registry.invalid:5000")
	config := fmt.Sprintf("[host.%q]\n", mirror.Server.URL)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, certs := range []string{"certs", filepath.Join(l.dir, "certs")} { // relative to where the command is, not the server
		l.veneer("run", "--rm", "--certs-dir", certs, "registry.invalid:5000/box:1", "echo", "mirrored").check(t, 0, "mirrored\n", "")
	}
	l.veneer("pull", "--certs-dir", "nosuch", "registry.invalid:5000/box:1").check(t, 125, "", "nosuch")
}
