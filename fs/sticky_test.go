package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// In a sticky directory everybody changes his own names and nobody another's, however many do at the same time.
func TestStickyDirectoryUnderConcurrency(t *testing.T) {
	forEachRung(t, func(t *testing.T, veneer, io string) {
		mount := mountProgram(t, veneer, io, t.TempDir())
		if err := os.Chmod(filepath.Dir(mount), 0o755); err != nil { // for unprivileged
			t.Fatal(err)
		}
		dir := mount + "/sticky"
		if err := unix.Mkdir(dir, 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.Chmod(dir, 0o1777); err != nil {
			t.Fatal(err)
		}
		const rounds = 200
		var all sync.WaitGroup
		for w := range 4 {
			all.Go(func() {
				err := unprivileged(func() error {
					for i := range rounds {
						own, shared, foreign := fmt.Sprintf("%s/own%d", dir, w), fmt.Sprintf("%s/shared%d", dir, i%3), fmt.Sprintf("%s/root%d", dir, i%2)
						if err := withFile(own, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, write("x")); err != nil {
							return err
						}
						for what, err := range map[string]error{
							"unlink":      unix.Unlink(foreign),
							"rename":      unix.Rename(foreign, own+"stolen"),
							"rename over": unix.Renameat2(unix.AT_FDCWD, own, unix.AT_FDCWD, foreign, unix.RENAME_EXCHANGE),
						} {
							if err != unix.EPERM && err != unix.ENOENT {
								return fmt.Errorf("%s of another's: %v", what, err)
							}
						}
						if err := unix.Rename(own, shared); err != nil {
							return fmt.Errorf("rename: %w", err)
						}
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Go(func() {
			for i := range rounds {
				name, next := fmt.Sprintf("%s/root%d", dir, i%2), fmt.Sprintf("%s/root%d", dir, (i+1)%2)
				if err := withFile(name, unix.O_CREAT|unix.O_WRONLY, write("x")); err != nil {
					t.Error(err)
				}
				if err := unix.Rename(name, next); err != nil {
					t.Error(err)
				}
			}
		})
		all.Wait()
		if got := list(t, dir); len(got) != 4 { // three of the users', one of root's
			t.Errorf("left: %v", got)
		}
		output(t, "rm", "-r", dir)
	})
}
