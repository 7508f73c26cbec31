package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The benchmarks compare the real program's mounts with the directory that they show:
//
//	go test -run - -bench . -benchtime 2000x ./fs

// onEachTree runs bench on a host directory and on a mount of it of each rung.
func onEachTree(b *testing.B, lower string, bench func(b *testing.B, dir string)) {
	veneer := filepath.Join(b.TempDir(), "veneer")
	output(b, "go", "build", "-o", veneer, "../cmd/veneer")
	b.Run("native", func(b *testing.B) { bench(b, lower) })
	for _, io := range []string{IOCached, IOPassthrough} {
		b.Run(io, func(b *testing.B) { bench(b, mountProgram(b, veneer, io, lower)) })
	}
}

func BenchmarkOpenReadClose(b *testing.B) {
	lower := b.TempDir()
	if err := os.WriteFile(lower+"/f", make([]byte, 4096), 0o644); err != nil {
		b.Fatal(err)
	}
	onEachTree(b, lower, func(b *testing.B, dir string) {
		buf := make([]byte, 4096)
		for b.Loop() {
			err := withFile(dir+"/f", unix.O_RDONLY, func(fd int) error {
				_, err := unix.Pread(fd, buf, 0)
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

const bigFile = 256 << 20

func makeBig(b *testing.B) (lower string) {
	lower = b.TempDir()
	if err := os.WriteFile(lower+"/big", make([]byte, bigFile), 0o644); err != nil {
		b.Fatal(err)
	}
	return lower
}

// BenchmarkReadWarm reads a file that the mount's page cache has, BenchmarkReadHostWarm one that only the host's has.
func BenchmarkReadWarm(b *testing.B) { benchmarkRead(b, false) }

// BenchmarkReadHostWarm: see BenchmarkReadWarm.
func BenchmarkReadHostWarm(b *testing.B) { benchmarkRead(b, true) }

func benchmarkRead(b *testing.B, drop bool) {
	lower := makeBig(b)
	onEachTree(b, lower, func(b *testing.B, dir string) {
		b.SetBytes(bigFile)
		buf := make([]byte, 1<<20)
		for b.Loop() {
			err := withFile(dir+"/big", unix.O_RDONLY, func(fd int) error {
				if drop && dir != lower {
					if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
						return err
					}
				}
				for {
					if n, err := unix.Read(fd, buf); err != nil || n == 0 {
						return err
					}
				}
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkWrite writes a new file of 256 MiB, a MiB at a time; BenchmarkAppend 4 KiB to the end of one.
func BenchmarkWrite(b *testing.B) {
	onEachTree(b, b.TempDir(), func(b *testing.B, dir string) {
		defer unix.Unlink(dir + "/new") // the next tree is made of this one
		b.SetBytes(bigFile)
		buf := make([]byte, 1<<20)
		for b.Loop() {
			err := withFile(dir+"/new", unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY, func(fd int) error {
				for range bigFile / len(buf) {
					if _, err := unix.Write(fd, buf); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkAppend: see BenchmarkWrite.
func BenchmarkAppend(b *testing.B) {
	onEachTree(b, b.TempDir(), func(b *testing.B, dir string) {
		defer unix.Unlink(dir + "/log")
		buf := make([]byte, 4096)
		err := withFile(dir+"/log", unix.O_CREAT|unix.O_WRONLY|unix.O_APPEND, func(fd int) error {
			for b.Loop() {
				if _, err := unix.Write(fd, buf); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkCreate makes a file of 4 KiB and takes it away.
func BenchmarkCreate(b *testing.B) {
	onEachTree(b, b.TempDir(), func(b *testing.B, dir string) {
		text := string(make([]byte, 4096))
		for b.Loop() {
			if err := withFile(dir+"/n", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, write(text)); err != nil {
				b.Fatal(err)
			}
			if err := unix.Unlink(dir + "/n"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// manyFiles makes dirs directories of files files each.
func manyFiles(b *testing.B, dirs, files int) string {
	lower := b.TempDir()
	for d := range dirs {
		dir := fmt.Sprintf("%s/%03d", lower, d)
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		for f := range files {
			if err := os.WriteFile(fmt.Sprintf("%s/%05d", dir, f), nil, 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	return lower
}

// BenchmarkStatWalk is find -ls of 21,000 inodes, after the first time.
func BenchmarkStatWalk(b *testing.B) {
	onEachTree(b, manyFiles(b, 1000, 20), func(b *testing.B, dir string) {
		for b.Loop() {
			walk(b, dir, true)
		}
	})
}

// BenchmarkList is ls -f of 20,000 names, after the first time.
func BenchmarkList(b *testing.B) {
	onEachTree(b, manyFiles(b, 1, 20000), func(b *testing.B, dir string) {
		for b.Loop() {
			walk(b, dir, false)
		}
	})
}

// BenchmarkFirstWalk and BenchmarkFirstList mount anew for every pass; b's time is that of the pass.
func BenchmarkFirstWalk(b *testing.B) { benchmarkFirst(b, manyFiles(b, 1000, 20), true) }

// BenchmarkFirstList: see BenchmarkFirstWalk.
func BenchmarkFirstList(b *testing.B) { benchmarkFirst(b, manyFiles(b, 1, 20000), false) }

func benchmarkFirst(b *testing.B, lower string, stat bool) {
	veneer := filepath.Join(b.TempDir(), "veneer")
	output(b, "go", "build", "-o", veneer, "../cmd/veneer")
	for b.Loop() {
		b.StopTimer()
		dir := mountProgram(b, veneer, IOCached, lower)
		b.StartTimer()
		walk(b, dir, stat)
	}
}

func walk(b *testing.B, dir string, stat bool) {
	err := withFile(dir, unix.O_RDONLY|unix.O_DIRECTORY, func(fd int) error {
		buf := make([]byte, 32768)
		var names []string
		for {
			n, err := unix.Getdents(fd, buf)
			if err != nil || n == 0 {
				break
			}
			_, _, names = unix.ParseDirent(buf[:n], -1, names)
		}
		for _, name := range names {
			var st unix.Stat_t
			if stat || len(name) == 3 {
				if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
					return err
				}
			}
			if len(name) == 3 {
				walk(b, dir+"/"+name, stat)
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
