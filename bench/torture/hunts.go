package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// hunt is a storm of calls that many make on the same names at once, with a rule that holds whatever order they come in.
type hunt struct {
	dir     string // its own, on the mount
	workers int
	ctx     context.Context // ends the storm
}

var hunts = []struct {
	name string
	run  func(*hunt) error
}{
	{"rename-cycles", renameCycles},
	{"exchange", exchangeStorm},
	{"hard-links", linkStorm},
	{"sticky", stickyStorm},
	{"one-winner", oneWinner},
	{"replace", replaceStorm},
	{"unlinked", unlinkedStorm},
	{"listing", listingStorm},
	{"append", appendStorm},
	{"ranges", rangeStorm},
	{"mapping", mappingStorm},
	{"locks", lockStorm},
}

// huntAll runs every hunt, and then kills the server: the tree must be there again, with the same inode numbers.
func huntAll(r *rig) error {
	lower, err := r.place("lower")
	if err != nil {
		return err
	}
	for _, h := range hunts { // files of the lower layer to begin with
		if err := huntLower(filepath.Join(lower, h.name)); err != nil {
			return err
		}
	}
	state, err := r.place("state")
	if err != nil {
		return err
	}
	m, err := r.mount(lower, state)
	if err != nil {
		return err
	}
	for _, h := range hunts {
		if err := r.hunt(m, h.name, h.run); err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
	}
	before, err := look(m.dir, ".")
	if err != nil {
		return err
	}
	if err := errors.Join(m.kill(), m.again()); err != nil {
		return err
	}
	after, err := look(m.dir, ".")
	if err != nil {
		return err
	}
	if err := diff(after, before, nil); err != nil {
		return fmt.Errorf("after a kill: %w", err)
	}
	for name, e := range before {
		if after[name].ino != e.ino {
			return fmt.Errorf("after a kill: inode %d of %s is now %d", e.ino, name, after[name].ino)
		}
	}
	r.say("%d storms, %d names in the end", len(hunts), len(before))
	return r.finish(m)
}

func huntLower(dir string) error {
	err := os.MkdirAll(filepath.Join(dir, "lower"), 0o777)
	for i := range 8 {
		name := filepath.Join(dir, "lower", fmt.Sprint(i))
		err = errors.Join(err, os.WriteFile(name, fmt.Appendf(nil, "%d", i), 0o666), os.Chmod(name, 0o666))
	}
	return errors.Join(err, os.Chmod(dir, 0o777), os.Chmod(filepath.Join(dir, "lower"), 0o777))
}

func (r *rig) hunt(m *mount, name string, run func(*hunt) error) error {
	ctx, cancel := context.WithTimeout(r.ctx, max(r.time/time.Duration(len(hunts)), 200*time.Millisecond))
	defer cancel()
	return run(&hunt{dir: filepath.Join(m.dir, name), workers: r.workers, ctx: ctx})
}

func (h *hunt) path(format string, a ...any) string {
	return filepath.Join(h.dir, fmt.Sprintf(format, a...))
}

// storm has all workers do something until the time is over, at least once.
func (h *hunt) storm(do func(worker int, r *rand.Rand) error) error {
	var wg sync.WaitGroup
	failed := make([]error, h.workers)
	for w := range h.workers {
		wg.Go(func() {
			runtime.LockOSThread() // some change their user
			defer runtime.UnlockOSThread()
			r := rand.New(rand.NewPCG(uint64(w), 5))
			for failed[w] == nil {
				failed[w] = do(w, r)
				if h.ctx.Err() != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(failed...)
}

// but returns err unless it is one of some.
func but(err error, some ...error) error {
	for _, e := range some {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}

// renameCycles moves directories into each other: what results must stay one tree, in which walkers get to an end.
func renameCycles(h *hunt) error {
	const dirs = 8
	for i := range dirs {
		if err := os.Mkdir(h.path("d%d", i), 0o755); err != nil {
			return err
		}
	}
	// where finds directory i, wherever it is.
	where := func(i int) (found string, err error) {
		err = filepath.WalkDir(h.dir, func(path string, _ os.DirEntry, err error) error {
			if filepath.Base(path) == fmt.Sprintf("d%d", i) {
				found = path
				return filepath.SkipAll
			}
			return but(err, unix.ENOENT) // it has just moved
		})
		return found, err
	}
	err := h.storm(func(w int, r *rand.Rand) error {
		i, j := r.IntN(dirs), r.IntN(dirs)
		from, err := where(i)
		if err != nil {
			return err
		}
		to, err := where(j)
		if err != nil || from == "" || to == "" {
			return err
		}
		if r.IntN(3) == 0 {
			return but(unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE), unix.ENOENT, unix.EINVAL, unix.ENOTEMPTY)
		}
		return but(unix.Rename(from, filepath.Join(to, fmt.Sprintf("d%d", i))), unix.ENOENT, unix.EINVAL, unix.ENOTEMPTY)
	})
	if err != nil {
		return err
	}
	seen := 0
	err = filepath.WalkDir(h.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && filepath.Base(path)[0] == 'd' {
			seen++
		}
		return checkLinks(path)
	})
	if err == nil && seen != dirs {
		err = fmt.Errorf("%d directories are in the tree, of %d", seen, dirs)
	}
	return err
}

// checkLinks holds a directory's nlink against its subdirectories.
func checkLinks(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	entries, err := os.ReadDir(path)
	want := 2
	for _, e := range entries {
		if e.IsDir() {
			want++
		}
	}
	if err == nil && int(st.Nlink) != want {
		err = fmt.Errorf("%s: nlink %d, and it should be %d", path, st.Nlink, want)
	}
	return err
}

// exchangeStorm swaps files: none may be lost or doubled.
func exchangeStorm(h *hunt) error {
	name := func(i int) string { return h.path("lower/%d", i) }
	err := h.storm(func(w int, r *rand.Rand) error {
		i, j := r.IntN(8), r.IntN(8)
		return unix.Renameat2(unix.AT_FDCWD, name(i), unix.AT_FDCWD, name(j), unix.RENAME_EXCHANGE)
	})
	seen := make(map[string]bool)
	for i := range 8 {
		b, e := os.ReadFile(name(i))
		err = errors.Join(err, e)
		seen[string(b)] = true
	}
	if len(seen) != 8 {
		err = errors.Join(err, fmt.Errorf("8 files were swapped, %d are left", len(seen)))
	}
	return err
}

// linkStorm gives inodes names and takes them away: in the end every nlink is the number of its names.
func linkStorm(h *hunt) error {
	err := h.storm(func(w int, r *rand.Rand) error {
		from, to := h.path("lower/%d", r.IntN(8)), h.path("l%d", r.IntN(40))
		switch r.IntN(4) {
		case 0:
			return but(unix.Unlink(to), unix.ENOENT)
		case 1:
			return but(unix.Rename(to, h.path("l%d", r.IntN(40))), unix.ENOENT)
		case 2:
			return but(unix.Rename(to, h.path("lower/l%d", r.IntN(10))), unix.ENOENT)
		}
		return but(unix.Link(from, to), unix.EEXIST)
	})
	names, nlink := make(map[uint64]uint64), make(map[uint64]uint64)
	walked := filepath.WalkDir(h.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var st unix.Stat_t
		err = unix.Lstat(path, &st)
		names[st.Ino]++
		nlink[st.Ino] = uint64(st.Nlink)
		return err
	})
	for ino, n := range names {
		if nlink[ino] != n {
			err = errors.Join(err, fmt.Errorf("inode %d has %d names, and nlink %d", ino, n, nlink[ino]))
		}
	}
	return errors.Join(err, walked)
}

// refused tells that a name of somebody else was not touched, or was not there.
func refused(err error) bool {
	return err != nil && but(err, unix.EPERM, unix.EACCES, unix.ENOENT) == nil
}

// stickyStorm has two users in one sticky directory: neither may take the other's names away, nor put his own over them.
func stickyStorm(h *hunt) error {
	if err := os.Chmod(h.dir, os.ModeSticky|0o777); err != nil {
		return err
	}
	const each = 5                                                       // names of a user; the first stays where it is
	mine := func(w, i int) string { return h.path("u%d-%d", w%2, i) }    // or at away
	away := func(w, i int) string { return h.path("away%d-%d", w%2, i) } // also his
	as := func(w int, do func() error) error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := become(somebody + w%2); err != nil {
			return err
		}
		return errors.Join(do(), become(0))
	}
	for i := range 2 * each {
		if err := as(i, func() error { return os.WriteFile(mine(i, i/2), []byte{byte('0' + i%2)}, 0o666) }); err != nil {
			return err
		}
	}
	err := h.storm(func(w int, r *rand.Rand) error {
		i := 1 + r.IntN(each-1)
		return as(w, func() error {
			if err := unix.Rename(mine(w+1, i), h.path("stolen%d", w)); !refused(err) {
				return fmt.Errorf("rename of another's file: %w", err)
			}
			if err := unix.Unlink(mine(w+1, i)); !refused(err) {
				return fmt.Errorf("unlink of another's file: %w", err)
			}
			if err := but(unix.Rename(mine(w, i), away(w, i)), unix.ENOENT); err != nil {
				return err
			}
			if err := unix.Rename(away(w, i), mine(w+1, 0)); !refused(err) {
				return fmt.Errorf("rename over another's file: %w", err)
			}
			return but(unix.Rename(away(w, i), mine(w, i)), unix.ENOENT)
		})
	})
	for w := range 2 {
		for i := range each {
			if b, e := os.ReadFile(mine(w, i)); e != nil || string(b) != fmt.Sprint(w) {
				err = errors.Join(err, fmt.Errorf("%s is %q, %w", mine(w, i), b, e))
			}
		}
	}
	return err
}
