package cow

import (
	"fmt"
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

// flatImage is a directory of n small files.
func flatImage(n int) []unionfs.Entry {
	entries := []unionfs.Entry{subdir("tmp"), subdir("d")}
	for i := range n {
		entries = append(entries, reg(fmt.Sprintf("d/%07d", i), 0o644, 100))
	}
	return entries
}

// changeMany changes n inodes: it makes files, of which every one of withData has a byte, or gives files of the image away.
func (x *fixture) changeMany(n, withData int) {
	tmp := x.ino("tmp")
	for i := range n {
		ino := x.create(tmp, fmt.Sprintf("file-%07d", i), "")
		if withData > 0 && i%withData == 0 {
			x.write(ino, "x", 0)
		}
	}
}

func (x *fixture) chownAll() {
	must(x.t, x.ReadDir(x.ino("d"), 2, func(e unionfs.Dirent) bool {
		_, err := x.SetAttr(e.Ino, unionfs.SetAttr{Valid: unionfs.SetUID, UID: 7})
		return err == nil
	}))
}

// A changed inode takes at most 250 bytes of the server's memory: a new file with its entry and its slot, and one of the
// image that has another owner.
func TestMemoryOfAChangedInode(t *testing.T) {
	const n = 30_000
	for name, change := range map[string]func(x *fixture){
		"new files":     func(x *fixture) { x.changeMany(n, 10) },
		"another owner": func(x *fixture) { x.chownAll() },
	} {
		t.Run(name, func(t *testing.T) {
			x := newFixture(t, flatImage(n))
			for _, how := range []struct {
				name string
				do   func()
			}{
				{"live", func() { change(x) }},
				{"by the journal", func() { x.crash(); x.open() }}, // what was before stays, by Cleanup
				{"by the checkpoint", func() { must(t, x.Close()); x.open() }},
			} {
				before := heap()
				how.do()
				if each := float64(heap()-min(before, heap())) / n; each > 250 || each < 50 {
					t.Errorf("%s: %.0f bytes", how.name, each)
				}
			}
		})
	}
}

// The start of a server over a million changed inodes: by the journal, and by the checkpoint.
func BenchmarkRecover(b *testing.B) {
	const n = 1_000_000
	b.Run("new files", func(b *testing.B) {
		x := newFixture(b, smallImage())
		x.changeMany(n, 0)
		x.recoverTwice(n)
	})
	b.Run("another owner", func(b *testing.B) {
		x := newFixture(b, flatImage(n))
		x.chownAll()
		x.recoverTwice(n)
	})
}

func (x *fixture) recoverTwice(n float64) {
	b := x.t.(*testing.B)
	x.crash()
	x.FS = nil
	for _, how := range []string{"journal", "checkpoint"} {
		before, cpu, start := heap(), cpuTime(), time.Now()
		x.open()
		b.ReportMetric(time.Since(start).Seconds(), "s/"+how)
		b.ReportMetric((cpuTime() - cpu).Seconds(), "cpu-s/"+how)
		b.ReportMetric(float64(heap()-before)/n, "B/inode")
		must(b, x.Close())
		x.FS = nil
	}
}

// How long an operation waits while a checkpoint of many inodes is written: the longest of them, and the mean.
func BenchmarkOperationsDuringACheckpoint(b *testing.B) {
	const n = 500_000
	x := newFixture(b, smallImage())
	must(b, x.Close())
	x.opts.CheckpointBytes = 1 << 40
	x.open()
	x.changeMany(n, 0)
	tmp := x.ino("tmp")
	for b.Loop() {
		done := make(chan error, 1)
		go func() {
			must(b, x.commit())
			x.op.Lock()
			defer x.op.Unlock()
			done <- x.checkpointSlowly()
		}()
		var longest, all time.Duration
		ops := 0
		for running := true; running; ops++ {
			start := time.Now()
			_, err := x.SetAttr(tmp, unionfs.SetAttr{Valid: unionfs.SetUID, UID: uint32(ops)})
			must(b, err)
			took := time.Since(start)
			longest, all = max(longest, took), all+took
			select {
			case err := <-done:
				must(b, err)
				running = false
			default:
			}
		}
		b.ReportMetric(float64(longest.Microseconds())/1000, "longest-ms")
		b.ReportMetric(float64(all.Microseconds())/float64(ops), "mean-µs")
	}
}

// cpuTime is what this process has used: on a busy machine it says more than the clock.
func cpuTime() time.Duration {
	var ru unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
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
