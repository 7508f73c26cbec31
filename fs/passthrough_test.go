package fs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// mountShared mounts, on the passthrough rung, a tree whose file f (and its second name f2) is shared content.
func mountShared(t *testing.T, content string) (m *testMount, f *fakeFS, shared string) {
	t.Helper()
	f = newFakeFS()
	f.objects = t.TempDir()
	shared = filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(shared, []byte(content), 0o444); err != nil {
		t.Fatal(err)
	}
	a, err := f.Mknod(unionfs.Root, "f", unix.S_IFREG|0o644, 0, unionfs.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Link(a.Ino, unionfs.Root, "f2"); err != nil {
		t.Fatal(err)
	}
	f.share(a.Ino, shared)
	m = mountTest(t, f, Options{IO: IOPassthrough})
	if m.server.wire.opens == nil {
		t.Fatal("this machine has no passthrough: its rung is not tested")
	}
	t.Cleanup(func() {
		if got, err := os.ReadFile(shared); err != nil || string(got) != content {
			t.Errorf("the shared content was written to: %.40q, %v", got, err)
		}
	})
	return m, f, shared
}

func TestSharedContentIsReadByTheKernel(t *testing.T) {
	m, _, _ := mountShared(t, "shared content")
	for range 3 {
		if got := mustRead(t, m.dir+"/f"); string(got) != "shared content" {
			t.Errorf("read %q", got)
		}
	}
	s := m.server.Stats()
	if s.OpensPassthrough != 3 || s.OpensCached != 0 || s.Requests["READ"] != 0 {
		t.Errorf("%+v", s)
	}
}

func TestNewFileIsWrittenByTheKernel(t *testing.T) {
	f := newFakeFS()
	f.objects = t.TempDir()
	m := mountTest(t, f, Options{IO: IOPassthrough})
	path := m.dir + "/new"
	err := withFile(path, unix.O_CREAT|unix.O_RDWR, func(fd int) error {
		if err := write("written")(fd); err != nil {
			return err
		}
		checkTree(t, m.dir, f) // size and times, while it is open
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := mustRead(t, path); string(got) != "written" {
		t.Errorf("read %q", got)
	}
	s := m.server.Stats()
	if s.OpensPassthrough != 2 || s.Requests["READ"]+s.Requests["WRITE"] != 0 {
		t.Errorf("%+v", s)
	}
	checkTree(t, m.dir, f)
}

// The ways to change a file while somebody reads it as shared content.
func TestChangeLeavesTheReadersOfSharedContent(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(path string) error
		want   string
	}{
		{"write", func(p string) error { return withFile(p, unix.O_WRONLY, write("SHARED")) }, "SHARED content"},
		{"append", func(p string) error { return withFile(p, unix.O_WRONLY|unix.O_APPEND, write("!")) }, "shared content!"},
		{"truncate", func(p string) error { return unix.Truncate(p, 6) }, "shared"},
		{"open to truncate", func(p string) error { return withFile(p, unix.O_RDWR|unix.O_TRUNC, write("new")) }, "new"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, f, _ := mountShared(t, "shared content")
			path := m.dir + "/f"
			old := mustOpen(t, path, unix.O_RDONLY, 0)
			defer unix.Close(old)
			checkTree(t, m.dir, f)
			ino := statIno(t, path)
			for range 2 { // the second time there is nobody left to leave
				if err := c.change(path); err != nil {
					t.Fatal(err)
				}
				if c.name == "append" {
					break
				}
			}
			checkTree(t, m.dir, f) // with the other name's old entry
			buf := make([]byte, 100)
			if n, err := unix.Pread(old, buf, 0); err != nil || string(buf[:n]) != "shared content" {
				t.Errorf("the old descriptor reads %q, %v", buf[:n], err)
			}
			for _, name := range []string{"/f", "/f2"} {
				if got := mustRead(t, m.dir+name); string(got) != c.want {
					t.Errorf("%s reads %q, want %q", name, got, c.want)
				}
				if got := statIno(t, m.dir+name); got != ino {
					t.Errorf("%s has inode %d, had %d", name, got, ino)
				}
			}
			checkTree(t, m.dir, f)
			// A change through the old descriptor shows under the names too.
			if err := unix.Fchmod(old, 0o600); err != nil {
				t.Error(err)
			}
			checkTree(t, m.dir, f)
		})
	}
}

func statIno(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// A file that was read through the page cache, written by the kernel, and is read through the page cache again.
func TestPageCacheIsDroppedAfterTheKernelWrote(t *testing.T) {
	f := newFakeFS()
	m := mountTest(t, f, Options{IO: IOPassthrough})
	path := m.dir + "/f"
	if err := withFile(path, unix.O_CREAT|unix.O_WRONLY, write("old bytes")); err != nil {
		t.Fatal(err)
	}
	if got := mustRead(t, path); string(got) != "old bytes" {
		t.Fatalf("read %q", got)
	}
	f.mu.Lock()
	f.objects = t.TempDir() // from now on there are data objects
	f.mu.Unlock()
	if err := withFile(path, unix.O_WRONLY, write("new")); err != nil {
		t.Fatal(err)
	}
	if got := mustRead(t, path); string(got) != "new bytes" {
		t.Errorf("the kernel reads %q", got)
	}
	awaitIdle(t, m.server.wire.opens)
	if err := unix.Chmod(path, 0o4755); err != nil { // no writing behind our back
		t.Fatal(err)
	}
	err := withFile(path, unix.O_RDWR, func(fd int) error {
		buf := make([]byte, 20)
		n, err := unix.Pread(fd, buf, 0)
		if string(buf[:n]) != "new bytes" {
			t.Errorf("the page cache has %q", buf[:n])
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// awaitIdle returns when every RELEASE has come; the kernel sends them after close(2) has returned.
func awaitIdle(t *testing.T, table *openTable) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		busy := 0
		for i := range table.shards {
			s := &table.shards[i]
			s.mu.Lock()
			busy += len(s.nodes)
			s.mu.Unlock()
		}
		if busy == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d nodes are still open", busy)
		}
		time.Sleep(time.Millisecond)
	}
}

// Readers and a writer of one file, under two names: no open fails, and every open sees what was there or what came after.
func TestOpensNeverFailWhileContentChanges(t *testing.T) {
	const rounds, readers = 100, 4
	m, _, _ := mountShared(t, string(version(0)))
	path := m.dir + "/f"
	ino := statIno(t, path)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	for r := range readers {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := withFile([]string{path, m.dir + "/f2"}[r%2], unix.O_RDONLY, readVersion); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range rounds {
		if err := withFile(path, unix.O_WRONLY, write(string(version(i)))); err != nil {
			t.Error(err)
			break
		}
		if got := mustRead(t, path); !bytes.Equal(got, version(i)) {
			t.Errorf("round %d: stale read %.10q", i, got)
		}
	}
	close(stop)
	wg.Wait()
	if got := statIno(t, path); got != ino {
		t.Errorf("inode %d became %d", ino, got)
	}
	awaitIdle(t, m.server.wire.opens)
}

func version(i int) []byte { return bytes.Repeat([]byte{byte('A' + i%26)}, 3000) }

// readVersion reads all of the file. A read that meets writes may see some bytes of each: the kernel does not order them on
// the host's file (mm/filemap.c filemap_read).
func readVersion(fd int) error {
	buf := make([]byte, 4096)
	n, err := unix.Pread(fd, buf, 0)
	if err != nil {
		return err
	}
	slices.Sort(buf[:n])
	if versions := slices.Compact(buf[:n]); n != 3000 || len(versions) > 3 {
		return fmt.Errorf("read %d bytes of the versions %q", n, versions)
	}
	return nil
}

func TestBackendWithoutFilesIsCached(t *testing.T) {
	type onlyBackend struct{ Backend }
	m := mountTest(t, onlyBackend{newFakeFS()}, Options{IO: IOPassthrough})
	if err := withFile(m.dir+"/f", unix.O_CREAT|unix.O_RDWR, write("x")); err != nil {
		t.Fatal(err)
	}
	if m.server.wire.opens != nil {
		t.Error("not on the cached rung")
	}
}
