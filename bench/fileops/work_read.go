package fileops

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// readSize is what the sequential readers ask for, bytes.
const readSize = 128 << 10

// statWalk is `find -ls`.
func statWalk(s *site) error {
	return walk(s.dir+"/tree", func(dir int, name string, typ uint8) error {
		var st unix.Stat_t
		return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// readTree is `tar c`, without the tar.
func readTree(s *site) error {
	return walk(s.dir+"/tree", func(dir int, name string, typ uint8) error {
		if typ != unix.DT_REG {
			return nil
		}
		return readFile(dir, name, s.buf)
	})
}

// readFile reads a file as cat does: until nothing comes.
func readFile(dir int, name string, buf []byte) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		if n == 0 {
			return nil
		}
	}
}

// readSmall opens small files by their paths, in no order.
func readSmall(s *site) error {
	buf := s.buf[:smallReadSize]
	for i := range s.in.small {
		if err := readFile(unix.AT_FDCWD, s.file(i), buf); err != nil {
			return err
		}
	}
	return nil
}

// file is the path of small file i, of which there are not infinitely many.
func (s *site) file(i int) string { return s.dir + "/" + s.in.files[i%len(s.in.files)] }

func openClose(s *site) error {
	for i := range s.in.files {
		fd, err := unix.Open(s.file(i), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		unix.Close(fd)
	}
	return nil
}

func statMissing(s *site) error {
	var st unix.Stat_t
	for i := range s.in.files {
		name := filepath.Dir(s.file(i)) + "/missing"
		if err := unix.Stat(name, &st); err != unix.ENOENT {
			return fmt.Errorf("stat %s: %v, want ENOENT", name, err)
		}
	}
	return nil
}

func readBig(s *site) error { return readFile(unix.AT_FDCWD, s.dir+"/big", s.buf[:readSize]) }

func readRandom(s *site) error {
	fd, err := unix.Open(s.dir+"/big", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	rng := rand.New(rand.NewPCG(3, 4))
	for range 10 * s.in.ops {
		if _, err := unix.Pread(fd, s.buf[:4096], rng.Int64N(s.in.big/4096)*4096); err != nil {
			return err
		}
	}
	return nil
}
