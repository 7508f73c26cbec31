package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// oneWinner has all workers make the same name at once: one of them makes it.
func oneWinner(h *hunt) error {
	makers := []func(name string, w int) error{
		func(name string, w int) error { return unix.Mkdir(name, 0o700) },
		func(name string, w int) error { return unix.Symlink("x", name) },
		func(name string, w int) error { return unix.Mknod(name, unix.S_IFREG|0o600, 0) },
		func(name string, w int) error { return unix.Link(h.path("lower/%d", w%8), name) },
		func(name string, w int) error {
			fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
			if err == nil {
				unix.Close(fd)
			}
			return err
		},
		func(name string, w int) error {
			own := h.path("own%d", w)
			if err := but(unix.Mkdir(own, 0o700), unix.EEXIST); err != nil {
				return err
			}
			return unix.Renameat2(unix.AT_FDCWD, own, unix.AT_FDCWD, name, unix.RENAME_NOREPLACE)
		},
	}
	for round := 0; round < 30 || h.ctx.Err() == nil; round++ {
		name := h.path("won%d", round)
		var won atomic.Int32
		var wg sync.WaitGroup
		failed := make([]error, h.workers)
		for w := range h.workers {
			wg.Go(func() {
				err := makers[(w+round)%len(makers)](name, w)
				if err == nil {
					won.Add(1)
				}
				failed[w] = but(err, unix.EEXIST)
			})
		}
		wg.Wait()
		if err := errors.Join(failed...); err != nil {
			return err
		}
		if won.Load() != 1 {
			return fmt.Errorf("%d workers made %s", won.Load(), name)
		}
	}
	return nil
}

// replaceStorm renames whole new files over names that others read: they see one or the other, all of it, and never nothing.
func replaceStorm(h *hunt) error {
	const size = 20_000
	whole := func(n byte) []byte { return bytes.Repeat([]byte{n}, size) }
	for i := range 8 {
		if err := os.WriteFile(h.path("lower/%d", i), whole(1), 0o666); err != nil {
			return err
		}
	}
	return h.storm(func(w int, r *rand.Rand) error {
		name := h.path("lower/%d", r.IntN(8))
		if w%2 == 0 {
			tmp := h.path("tmp%d", w)
			return errors.Join(os.WriteFile(tmp, whole(byte(r.IntN(256))), 0o600), unix.Rename(tmp, name))
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if len(b) != size || !bytes.Equal(b, whole(b[0])) {
			return fmt.Errorf("%s: %d bytes, or not of one file", name, len(b))
		}
		return nil
	})
}

// unlinkedStorm works on files that have lost their names, through descriptors and mappings.
func unlinkedStorm(h *hunt) error {
	return h.storm(func(w int, r *rand.Rand) error {
		name := h.path("open%d", w)
		text := make([]byte, 10_000)
		fill(text, r.IntN(1000))
		if err := os.WriteFile(name, text, 0o600); err != nil {
			return err
		}
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		p, err := unix.Mmap(int(f.Fd()), 0, len(text), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		defer unix.Munmap(p)
		if err := errors.Join(os.Remove(name), os.WriteFile(name, []byte("another"), 0o600)); err != nil {
			return err
		}
		p[5000] = 'm'
		if _, err := f.WriteAt([]byte("w"), 9000); err != nil {
			return err
		}
		text[5000], text[9000] = 'm', 'w'
		if err := unix.Msync(p, unix.MS_SYNC); err != nil {
			return err
		}
		got := make([]byte, len(text))
		if _, err := f.ReadAt(got, 0); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return err
		}
		if !bytes.Equal(got, text) || !bytes.Equal(p, text) || st.Nlink != 0 {
			return fmt.Errorf("%s, unlinked: nlink %d, and its bytes are not what was written", name, st.Nlink)
		}
		return nil
	})
}

// listingStorm lists a directory, by pieces and from places that were noted before, while names come and go: those that stay are
// there once in every listing.
func listingStorm(h *hunt) error {
	const stay = 300
	for i := range stay {
		if err := os.WriteFile(h.path("stay%d", i), nil, 0o600); err != nil {
			return err
		}
	}
	return h.storm(func(w int, r *rand.Rand) error {
		if w%2 == 1 {
			name := h.path("come%d-%d", w, r.IntN(300))
			return but(errors.Join(os.WriteFile(name, nil, 0o600), unix.Rename(name, name+"x"), os.Remove(name+"x")), unix.ENOENT)
		}
		names, err := listByPieces(h.dir, r)
		if err != nil {
			return err
		}
		names = slices.DeleteFunc(names, func(s string) bool { return !strings.HasPrefix(s, "stay") })
		slices.Sort(names)
		if n := len(names); n != stay || len(slices.Compact(names)) != stay {
			return fmt.Errorf("%d names stay, and %d were listed, %d of them once", stay, n, len(slices.Compact(names)))
		}
		return nil
	})
}

// listByPieces reads a directory with small buffers, and goes back to where a piece has begun now and then.
func listByPieces(dir string, r *rand.Rand) (names []string, err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 2048)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil || n == 0 {
			return names, err
		}
		piece, offsets := parseDirents(buf[:n])
		keep := len(piece)
		if r.IntN(3) == 0 { // go on after an entry in the middle
			keep = 1 + r.IntN(len(piece))
			if _, err := unix.Seek(fd, offsets[keep-1], unix.SEEK_SET); err != nil {
				return nil, err
			}
		}
		names = append(names, piece[:keep]...)
	}
}

// parseDirents takes struct linux_dirent64 apart: ino, off, reclen, type, name.
func parseDirents(p []byte) (names []string, offsets []int64) {
	for len(p) > 0 {
		size := binary.NativeEndian.Uint16(p[16:])
		name, _, _ := bytes.Cut(p[19:size], []byte{0})
		names = append(names, string(name))
		offsets = append(offsets, int64(binary.NativeEndian.Uint64(p[8:])))
		p = p[size:]
	}
	return names, offsets
}

// appendStorm has processes append lines to one file, of the lower layer and of different lengths: each line is there, whole.
func appendStorm(h *hunt) error {
	const lines = 400
	var cmds []*exec.Cmd
	for w := range h.workers {
		c := exec.Command("sh", "-c", `i=0; while [ $i -lt `+fmt.Sprint(lines)+` ]; do
			echo "$1 $i `+strings.Repeat("x", 37*w)+`" >> "$2"; i=$((i+1)); done`, "sh", fmt.Sprint(w), h.path("lower/0"))
		if err := c.Start(); err != nil {
			return err
		}
		cmds = append(cmds, c)
	}
	var err error
	for _, c := range cmds {
		err = errors.Join(err, c.Wait())
	}
	b, e := os.ReadFile(h.path("lower/0"))
	if err = errors.Join(err, e); err != nil {
		return err
	}
	next := make([]int, h.workers)
	for line := range strings.Lines(strings.TrimPrefix(string(b), "0")) { // "0" was in it
		var w, i int
		if n, _ := fmt.Sscanf(line, "%d %d", &w, &i); n != 2 || w >= h.workers || i != next[w] || len(line) != len(fmt.Sprintf("%d %d \n", w, i))+37*w {
			return fmt.Errorf("line %q, and writer %d has come to %d", line, w, next[w])
		}
		next[w]++
	}
	for w, n := range next {
		if n != lines {
			return fmt.Errorf("writer %d: %d lines of %d", w, n, lines)
		}
	}
	return nil
}

// rangeStorm has workers write ranges of their own of one file, which share pages and blocks, and read them back at once.
func rangeStorm(h *hunt) error {
	const piece = 1500
	path := h.path("lower/1")
	if err := os.Truncate(path, 64*piece); err != nil {
		return err
	}
	return h.storm(func(w int, r *rand.Rand) error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		off := int64(w+h.workers*r.IntN(64/h.workers)) * piece
		text, got := make([]byte, piece), make([]byte, piece)
		fill(text, r.IntN(1000))
		if _, err := f.WriteAt(text, off); err != nil {
			return err
		}
		if _, err := f.ReadAt(got, off); err != nil {
			return err
		}
		if !bytes.Equal(got, text) {
			return fmt.Errorf("what was written at %d is not there", off)
		}
		return nil
	})
}

// mappingStorm reads through a shared mapping of a lower file what others write: it is there when the write has returned.
func mappingStorm(h *hunt) error {
	path := h.path("lower/2")
	if err := os.Truncate(path, 64<<10); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := unix.Mmap(int(f.Fd()), 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(p)
	return h.storm(func(w int, r *rand.Rand) error {
		at := w + h.workers*r.IntN(1000)
		b := byte(r.IntN(256))
		if r.IntN(2) == 0 {
			if _, err := f.WriteAt([]byte{b}, int64(at)); err != nil {
				return err
			}
			if p[at] != b {
				return fmt.Errorf("byte %d was written, and the mapping has the old one", at)
			}
			return nil
		}
		p[at] = b
		got := make([]byte, 1)
		if _, err := f.ReadAt(got, int64(at)); err != nil {
			return err
		}
		if got[0] != b {
			return fmt.Errorf("byte %d was stored in the mapping, and a read gives the old one", at)
		}
		return nil
	})
}

// lockStorm counts up a number in a file under each kind of lock that holds between two opens of it.
func lockStorm(h *hunt) error {
	kinds := []func(fd int, on bool) error{
		func(fd int, on bool) error {
			if on {
				return unix.Flock(fd, unix.LOCK_EX)
			}
			return unix.Flock(fd, unix.LOCK_UN)
		},
		func(fd int, on bool) error {
			l := unix.Flock_t{Type: unix.F_UNLCK, Len: 1}
			if on {
				l.Type = unix.F_WRLCK
			}
			return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLKW, &l)
		},
	}
	var counts [2]atomic.Uint64
	err := h.storm(func(w int, r *rand.Rand) (err error) {
		k := r.IntN(len(kinds))
		fd, err := unix.Open(h.path("lower/%d", 3+k), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := kinds[k](fd, true); err != nil {
			return err
		}
		p := make([]byte, 8)
		_, err = unix.Pread(fd, p, 8)
		binary.LittleEndian.PutUint64(p, binary.LittleEndian.Uint64(p)+1)
		_, e := unix.Pwrite(fd, p, 8)
		counts[k].Add(1)
		return errors.Join(err, e, kinds[k](fd, false))
	})
	for k := range kinds {
		b, e := os.ReadFile(h.path("lower/%d", 3+k))
		if err = errors.Join(err, e); err == nil && len(b) == 16 && binary.LittleEndian.Uint64(b[8:]) != counts[k].Load() {
			err = fmt.Errorf("lock %d: counted to %d in %d steps", k, binary.LittleEndian.Uint64(b[8:]), counts[k].Load())
		}
	}
	return err
}
