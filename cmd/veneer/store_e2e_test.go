package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// contents returns the files of content in the store.
func (l *lab) contents() []string {
	l.t.Helper()
	files, err := filepath.Glob(filepath.Join(l.places.Root, "contents/sha256/*/*"))
	if err != nil {
		l.t.Fatal(err)
	}
	return files
}

func TestDamagedStoreIsMended(t *testing.T) {
	l := newLab(t)
	image := l.image()
	l.want("run", "--rm", image, "cat", "/etc/motd")
	if out := l.want("store", "verify"); !strings.HasSuffix(out, " 0 damaged\n") {
		t.Errorf("a good store: %s", out)
	}
	for _, f := range l.contents() {
		os.Chmod(f, 0o600)
		if err := os.Truncate(f, 1); err != nil {
			t.Fatal(err)
		}
		os.Chmod(f, 0o444)
	}
	if out := l.want("store", "verify"); strings.Count(out, "dropped damaged content") == 0 || len(l.contents()) != 0 {
		t.Errorf("a damaged store: %s", out)
	}
	l.veneer("run", "--rm", image, "cat", "/etc/motd").check(t, 0, "welcome\n", "")
}

func TestLimitSparesRunningContainers(t *testing.T) {
	l := newLab(t)
	image, _ := l.profileImage()
	other := l.reg.Push(t, "other:1", &fetchtest.Image{Layers: []fetchtest.Layer{fetchtest.NewLayer(t, fetchtest.Gzip(), fetchtest.Reg("f", "another image\n"))}})
	l.want("pull", "-q", other)
	l.want("run", "-d", "--name", "runs", image, "sh", "-c", "cat /data/* > /dev/null; echo read; sleep 1000")
	l.want("prefetch", image, "/data", "/bin/sh")
	before := len(l.contents())
	if out := l.want("store", "limit"); out != "none\n" {
		t.Errorf("the limit is %s", out)
	}
	l.want("store", "limit", "1k")
	if out := l.want("store", "gc"); !strings.HasPrefix(out, "removed 1 files, ") {
		t.Errorf("gc: %s", out)
	}
	if n := len(l.contents()); n != before-1 {
		t.Errorf("%d of %d files are left", n, before)
	}
	df := l.want("system", "df")
	for _, want := range []string{"Images", "Containers      1", "NOT IN USE"} {
		if !strings.Contains(df, want) {
			t.Errorf("system df does not say %q:\n%s", want, df)
		}
	}
	l.want("rm", "-f", "runs")
	l.want("store", "gc")
	if n := len(l.contents()); n != 0 {
		t.Errorf("%d files are left beyond the limit", n)
	}
	// What was dropped is fetched again, also by one that can only be streamed.
	if s := l.stats(image, readThree...); s.FetchedBytes == 0 {
		t.Errorf("%+v", s)
	}
	dir := l.mkdir("mnt")
	l.want("mount", other, dir)
	checkFile(t, filepath.Join(dir, "f"), "another image\n")
	l.want("umount", dir)
	l.veneer("store", "limit", "much").check(t, 125, "", "want a number of bytes")
	l.want("store", "limit", "none")
}

func TestPrefetchedFilesNeedNoRegistry(t *testing.T) {
	l := newLab(t)
	image, data := l.profileImage()
	l.want("prefetch", image, "/bin", "/data/07", "/etc/passwd", "/etc/group")
	l.reg.DeleteBlob(data.Descriptor.Digest)
	l.reg.Server.Close()
	l.veneer("run", "--rm", image, "sh", "-c", "wc -c < /data/07").check(t, 0, "100000\n", "")
	l.veneer("prefetch", image, "/nosuch").check(t, 1, "", "/nosuch")
}
