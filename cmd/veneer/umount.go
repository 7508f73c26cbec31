package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newUmountCmd(a *app) *cobra.Command {
	var lazy, force, idle bool
	var idleType string
	c := &cobra.Command{
		Use:     "umount [flags] DIR",
		Aliases: []string{"unmount"},
		Short:   "Unmount what veneer mount or overlay mounted",
		Long:    `Unmount what veneer mount or overlay mounted, and wait until its server has written everything and ended.`,
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			flags := unix.UMOUNT_NOFOLLOW
			if lazy {
				flags |= unix.MNT_DETACH
			}
			if force {
				flags |= unix.MNT_FORCE
			}
			return a.umount(ctx, args[0], flags)
		},
	}
	c.Flags().BoolVarP(&lazy, "lazy", "l", false, "let who still uses it finish; don't wait for that")
	c.Flags().BoolVarP(&force, "force", "f", false, "end what is under way with an error first")
	c.Flags().BoolVarP(&idle, "no-mtab", "n", false, "of umount(8); changes nothing")
	c.Flags().BoolVarP(&idle, "verbose", "v", false, "of umount(8); changes nothing")
	c.Flags().BoolVarP(&idle, "read-only", "r", false, "of umount(8); changes nothing: what is busy stays as it is")
	c.Flags().StringVarP(&idleType, "types", "t", "", "of umount(8): the mount's `TYPE`; changes nothing")
	return c
}

// umount works also when the server is dead.
func (a *app) umount(ctx context.Context, dir string, flags int) error {
	m, err := findMountOf(dir)
	if err != nil {
		return err
	}
	if m == nil {
		return fmt.Errorf("%s is not mounted", dir)
	}
	if !a.isOurs(m) {
		return fmt.Errorf("%s is not a veneer mount, but of type %s", dir, m.fstype)
	}
	if err := a.needRoot("unmount"); err != nil {
		return err
	}
	// Its lock, before its number may be another's.
	record := filepath.Join(a.runRoot, "mounts", m.device)
	lock, err := os.OpenFile(filepath.Join(record, "lock"), os.O_RDWR, 0)
	if err == nil {
		defer lock.Close()
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := unix.Unmount(m.dir, flags); err == unix.EBUSY {
		return fmt.Errorf("%s is busy: a process works in it or has a file of it open "+
			"(fuser -vm %s tells which; veneer umount -l %s unmounts it when they are done)", dir, m.dir, dir)
	} else if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	if err := forgetMount(m.dir); err != nil {
		a.log.Warn("umount(8) may still think that it is mounted", "err", err)
	}
	if flags&unix.MNT_DETACH != 0 || lock == nil { // it was mounted with another --run-root
		return nil
	}
	return waitServer(ctx, m, record, lock)
}

// elsewhereAfter is when to look for who else has the mount.
const elsewhereAfter = 2 * time.Second

// waitServer waits until the server of a mount that is gone has written everything, and removes the record if it could not.
func waitServer(ctx context.Context, m *mountEntry, record string, lock *os.File) error {
	ended := make(chan error, 1)
	go func() {
		err := flock(lock, unix.LOCK_EX)
		if err == nil {
			err = removeRecord(record, lock) // if the server died without doing it
		}
		ended <- err
	}()
	elsewhere := time.NewTimer(elsewhereAfter)
	defer elsewhere.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-elsewhere.C:
			if !same(lock, filepath.Join(record, "lock")) {
				continue // another mount has its number by now
			}
			if pid := otherUser(m); pid != 0 {
				return fmt.Errorf("%s is unmounted, but stays mounted in the mount namespace of process %d; its server goes on", m.dir, pid)
			}
		case <-ctx.Done():
			return fmt.Errorf("%s is unmounted, but its server is still writing", m.dir)
		}
	}
}

// otherUser returns a process in whose mount namespace a mount is that is gone from here; 0 if there is none.
func otherUser(gone *mountEntry) int {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		found := false
		scanMounts(fmt.Sprintf("/proc/%d/mountinfo", pid), func(m mountEntry) {
			found = found || m.device == gone.device && m.fstype == gone.fstype && m.source == gone.source
		})
		if found {
			return pid
		}
	}
	return 0
}

// mountEntry is a line of mountinfo.
type mountEntry struct {
	id, device, dir, fstype, source string
}

// findMountOf finds what is mounted on top at dir, which may be a path with symlinks in it; nil if nothing is.
func findMountOf(dir string) (*mountEntry, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	m, err := findMount(abs)
	if m != nil || err != nil {
		return m, err
	}
	// Perhaps by another name. Only now: asking a path below a dead mount is an error, below a hanging one no answer.
	if real, err := filepath.EvalSymlinks(abs); err == nil && real != abs {
		return findMount(real)
	}
	return nil, nil
}

// findMount returns what is mounted on top at dir; nil if nothing is. It touches no file system but /proc.
func findMount(dir string) (*mountEntry, error) {
	var found *mountEntry
	err := scanMounts("/proc/thread-self/mountinfo", func(m mountEntry) {
		if m.dir == dir {
			found = &m
		}
	})
	return found, err
}

func scanMounts(path string, visit func(mountEntry)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue (proc_pid_mountinfo(5))
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(rest) < 1 {
			continue
		}
		m := mountEntry{id: fields[0], device: fields[2], dir: unescape(fields[4]), fstype: rest[0]}
		if len(rest) > 2 { // else the source is empty
			m.source = unescape(rest[1])
		}
		visit(m)
	}
	return lines.Err()
}

// unescape undoes \040 and its like.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
