package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAccessLogIsRead(t *testing.T) {
	for _, c := range []struct {
		line string
		ok   bool
		want access
		blob bool
	}{
		{`127.0.0.1 - - [24/Nov/2026:04:02:19 +0000] "GET /v2/a/blobs/sha256:12 HTTP/1.1" 206 4096 "" "veneer"`, true,
			access{"GET", "/v2/a/blobs/sha256:12", 206, 4096}, true},
		{`127.0.0.1 - - [24/Nov/2026:04:02:19 +0000] "HEAD /v2/a/blobs/sha256:12 HTTP/1.1" 200 0 "" "veneer"`, true,
			access{"HEAD", "/v2/a/blobs/sha256:12", 200, 0}, false},
		{`127.0.0.1 - - [24/Nov/2026:04:02:19 +0000] "GET /v2/a/manifests/1 HTTP/1.1" 404 96 "" "curl/7 \"x\""`, true,
			access{"GET", "/v2/a/manifests/1", 404, 96}, false},
		{`time="2026-11-24T04:02:19Z" level=error msg="GET /v2/"`, false, access{}, false},
	} {
		got, ok := parseAccess(c.line)
		if ok != c.ok || got != c.want || got.blob() != c.blob {
			t.Errorf("%s: %v, %v, blob %v", c.line, got, ok, got.blob())
		}
	}
}

// sampleTree makes a tree with one of each that can differ.
func sampleTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.Mkdir(path("d"), 0o755),
		os.WriteFile(path("d/file"), []byte("content"), 0o644),
		os.WriteFile(path("d/first"), []byte("linked"), 0o644),
		os.Link(path("d/first"), path("d/second")),
		os.Symlink("file", path("d/link")),
		unix.Mkfifo(path("d/fifo"), 0o600),
		unix.Setxattr(path("d/file"), "user.key", []byte("a\x00b"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"d/file", "d/first", "d/link", "d/fifo", "d", "."} {
		setTime(t, path(name), 1_600_000_000)
	}
	return dir
}

func setTime(t *testing.T, path string, nanoseconds int64) {
	t.Helper()
	ts := unix.NsecToTimespec(nanoseconds)
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		t.Fatal(err)
	}
}

// TestEveryDifferenceIsSeen changes one thing at a time: tar must see it, and compare must name it.
func TestEveryDifferenceIsSeen(t *testing.T) {
	same := sampleTree(t)
	want, err := tarOf(t.Context(), same)
	if err != nil {
		t.Fatal(err)
	}
	if want.entries != 7 {
		t.Errorf("tar tells of %d entries, want 7", want.entries)
	}
	file := func(dir string) string { return filepath.Join(dir, "d/file") }
	for name, change := range map[string]func(dir string) error{
		"":     func(string) error { return nil },
		"mode": func(dir string) error { return os.Chmod(file(dir), 0o600) },
		"owner": func(dir string) error {
			return os.Lchown(filepath.Join(dir, "d/link"), 7, 7)
		},
		"mtime": func(dir string) error { setTime(t, file(dir), 1_600_000_001); return nil },
		"content": func(dir string) error {
			defer setTime(t, file(dir), 1_600_000_000)
			return os.WriteFile(file(dir), []byte("CONTENT"), 0o644)
		},
		"xattr": func(dir string) error { return unix.Setxattr(file(dir), "user.key", []byte("a\x00c"), 0) },
		"link": func(dir string) error {
			defer setTime(t, filepath.Join(dir, "d"), 1_600_000_000)
			defer setTime(t, filepath.Join(dir, "d/second"), 1_600_000_000)
			if err := os.Remove(filepath.Join(dir, "d/second")); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "d/second"), []byte("linked"), 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			other := sampleTree(t)
			if err := change(other); err != nil {
				t.Fatal(err)
			}
			got, err := tarOf(t.Context(), other)
			if err != nil {
				t.Fatal(err)
			}
			if (got == want) != (name == "") {
				t.Errorf("tar sees a difference: %v", got != want)
			}
			diffs := strings.Join(compare(same, other), "\n")
			if (diffs == "") != (name == "") {
				t.Errorf("compare names %q", diffs)
			}
		})
	}
}

func TestMedian(t *testing.T) {
	if got := median([]time.Duration{5, 1, 9, 3, 7}); got != 5 {
		t.Errorf("median %v", got)
	}
}
