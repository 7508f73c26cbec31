package cow

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

func TestHotPathsDoNotAllocate(t *testing.T) {
	x := newFixture(t, smallImage())
	etc, passwd, sh := x.ino("etc"), x.ino("etc/passwd"), x.ino("bin/sh")
	x.write(sh, "x", 5)
	ours := x.create(etc, "ours", "content")
	p := make([]byte, 4096)
	ctx := t.Context()
	for what, do := range map[string]func(){
		"GetAttr of an image file":   func() { _, _ = x.GetAttr(passwd) },
		"GetAttr of a changed file":  func() { _, _ = x.GetAttr(sh) },
		"Lookup of an image file":    func() { _, _ = x.Lookup(etc, "passwd") },
		"Lookup of a new file":       func() { _, _ = x.Lookup(etc, "ours") },
		"Lookup of nothing":          func() { _, _ = x.Lookup(etc, "nothing") },
		"Read of an image file":      func() { _, _ = x.Read(ctx, passwd, p, 0) },
		"Read of a mixed file":       func() { _, _ = x.Read(ctx, sh, p, 0) },
		"Write":                      func() { _, _ = x.Write(ctx, ours, p[:10], 0, false) },
		"SetAttr":                    func() { _, _ = x.SetAttr(passwd, unionfs.SetAttr{Valid: unionfs.SetUID, UID: 5}) },
		"Rename there and back":      func() { _ = x.Rename(etc, "ours", etc, "ours2", 0); _ = x.Rename(etc, "ours2", etc, "ours", 0) },
		"ReadDir without its yields": func() { _ = x.ReadDir(etc, 0, func(unionfs.Dirent) bool { return false }) },
	} {
		most := map[string]float64{
			"Rename there and back": 5, // names that come and go
			"Read of a mixed file":  1, // an element of the list of idle objects
			"Write":                 1,
		}[what]
		if n := testing.AllocsPerRun(100, do); n > most {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
}

func TestNodesAreSmall(t *testing.T) {
	if n := unsafe.Sizeof(node{}); n > 104 {
		t.Errorf("a node is %d bytes", n)
	}
	if n := unsafe.Sizeof(ent{}); n > 32 {
		t.Errorf("an entry is %d bytes", n)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkRecoverNewFiles(b *testing.B) {
	const n = 1_000_000
	x := newFixture(b, smallImage())
	tmp := x.ino("tmp")
	for i := range n {
		if _, err := x.Mknod(tmp, fmt.Sprintf("file-%07d", i), unix.S_IFREG|0o644, 0, owner); err != nil {
			b.Fatal(err)
		}
	}
	b.Logf("journal %d bytes", x.JournalSize())
	measure := func(how string) {
		before := heap()
		start := time.Now()
		x.open()
		b.ReportMetric(time.Since(start).Seconds(), "s/"+how)
		b.ReportMetric(float64(heap()-before)/n, "B/inode")
	}
	x.crash()
	x.FS = nil
	measure("journal")
	start := time.Now()
	must(b, x.Close())
	b.ReportMetric(time.Since(start).Seconds(), "s/close")
	x.FS = nil
	st, err := os.Stat(x.dir + "/checkpoint")
	must(b, err)
	b.Logf("checkpoint %d bytes", st.Size())
	measure("checkpoint")
}

func BenchmarkOps(b *testing.B) {
	entries := []unionfs.Entry{subdir("d")}
	for i := range 10_000 {
		entries = append(entries, reg(fmt.Sprintf("d/%05d", i), 0o644, 100))
	}
	x := newFixture(b, entries)
	d := x.ino("d")
	names := make([]string, 10_000)
	for i := range names {
		names[i] = fmt.Sprintf("%05d", i)
	}
	ctx := b.Context()
	p := make([]byte, 4096)
	i := 0
	file := x.create(d, "append", "")
	next := func() string { i++; return names[i%len(names)] }
	for _, c := range []struct {
		name string
		do   func()
	}{
		{"lookup", func() { _, _ = x.Lookup(d, next()) }},
		{"getattr", func() { i++; _, _ = x.GetAttr(Ino(2 + i%10_000)) }},
		{"read100", func() { i++; _, _ = x.Read(ctx, Ino(3+i%9000), p, 0) }},
		{"chmod", func() {
			i++
			_, _ = x.SetAttr(Ino(3+i%9000), unionfs.SetAttr{Valid: unionfs.SetMode, Mode: uint32(i % 512)})
		}},
		{"append4K", func() { i++; _, _ = x.Write(ctx, file, p, int64(i%1000)*4096, false) }},
		{"create+unlink", func() {
			a, err := x.Mknod(d, "new", unix.S_IFREG|0o644, 0, owner)
			must(b, err)
			_ = x.Unlink(d, "new")
			x.Forget(a.Ino)
		}},
		{"create4K+unlink", func() {
			a, err := x.Mknod(d, "new", unix.S_IFREG|0o644, 0, owner)
			must(b, err)
			_, _ = x.Write(ctx, a.Ino, p, 0, false)
			_ = x.Unlink(d, "new")
			x.Forget(a.Ino)
		}},
		{"mkdir+rmdir", func() {
			a, err := x.Mkdir(d, "new", 0o755, owner)
			must(b, err)
			_ = x.Rmdir(d, "new")
			x.Forget(a.Ino)
		}},
		{"rename", func() {
			_ = x.Rename(d, "append", d, "append2", 0)
			_ = x.Rename(d, "append2", d, "append", 0)
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.do()
			}
		})
	}
}
