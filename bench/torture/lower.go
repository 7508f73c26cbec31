package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// makeLower fills dir with a tree for every worker, and with the directories that all share.
func makeLower(dir string, workers []string) error {
	for _, name := range []string{"s0", "s1"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o777); err != nil {
			return err
		}
		if err := os.Chmod(filepath.Join(dir, name), 0o777); err != nil {
			return err
		}
	}
	for i, w := range workers {
		if err := makeWorkersLower(filepath.Join(dir, w), i*1000); err != nil {
			return fmt.Errorf("make the lower tree: %w", err)
		}
	}
	return nil
}

func makeWorkersLower(dir string, n int) error {
	var all error
	try := func(err error) { all = errors.Join(all, err) }
	path := func(name string) string { return filepath.Join(dir, name) }
	file := func(name string, size int, mode os.FileMode, uid int) {
		p := make([]byte, size)
		fill(p, n+size)
		try(os.WriteFile(path(name), p, mode))
		try(os.Chmod(path(name), mode))
		try(os.Lchown(path(name), uid, uid))
	}
	for _, name := range []string{"", "a", "a/b", "a/b/c", "d", "e"} {
		try(os.Mkdir(path(name), 0o777))
		try(os.Chmod(path(name), 0o777))
	}
	file("a/a", 0, 0o644, 0)
	file("a/c", 10, 0o600, somebody)
	file("a/b/a", 5000, 0o666, somebody)
	file("a/b/d", 70_000, 0o755, 0)
	file("b", 300_000, 0o644, somebody)
	file("a/b/c/e", 4096, 0o644, 0)
	file("d/a", 65_536, 0o6755, 0)
	file("d/b", 131_072, 0o644, 1002)
	try(os.Link(path("a/b/d"), path("a/d")))
	try(os.Link(path("a/b/d"), path("d/c")))
	try(os.Symlink("a/b", path("c")))
	try(os.Symlink("a", path("d/e")))
	try(unix.Mkfifo(path("e/a"), 0o644))
	try(os.Chmod(path("e"), os.ModeSticky|0o777))
	try(os.Lchown(path("a/b/c"), somebody, somebody))
	try(os.Chmod(path("a/b/c"), os.ModeSetgid|0o775))
	try(unix.Lsetxattr(path("d/b"), "user.a", []byte("lower"), 0))
	try(unix.Lsetxattr(path("d"), "trusted.t", []byte("lower\x00"), 0))
	// A file with a hole.
	try(os.WriteFile(path("e/b"), []byte("start"), 0o644))
	try(os.Truncate(path("e/b"), 200_000))
	return all
}

// copyTree copies a directory with everything that can be seen of it.
func copyTree(from, to string) error {
	_, err := output(exec.Command("cp", "-a", "--sparse=always", "--preserve=all", from+"/.", to))
	return err
}
