package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// tree compares the whole tree through the mount with what umoci unpacks: names, types, modes, owners, sizes, times to
// the nanosecond, xattrs, hard links, devices, content. tar tells all of them, sorted by name.
func tree(ctx context.Context, l *lab) (s section, err error) {
	s = section{
		title: "The tree",
		about: "`tar c` of the image mounted by veneer, everything read through the mount, against `tar c` of what umoci unpacks: names, types, " +
			"modes, owners, sizes, times, xattrs, hard links, devices and content.",
		head: []string{"", "entries", "bytes of tar", "sha256 of tar"},
	}
	bundle, err := l.unpack(ctx)
	if err != nil {
		return s, err
	}
	dir := filepath.Join(l.dir, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return s, err
	}
	st := l.store("tree")
	if _, err := output(st.command(ctx, "mount", l.ref, dir)); err != nil {
		return s, err
	}
	defer func() {
		_, e := output(st.command(context.WithoutCancel(ctx), "umount", dir))
		err = errors.Join(err, e)
	}()
	ours, err := tarOf(ctx, dir)
	if err != nil {
		return s, err
	}
	theirs, err := tarOf(ctx, filepath.Join(bundle, "rootfs"))
	if err != nil {
		return s, err
	}
	s.rows = [][]string{ours.cells("mounted by veneer"), theirs.cells("unpacked by umoci")}
	if ours != theirs {
		err = errors.New("the trees differ")
		if diffs := compare(dir, filepath.Join(bundle, "rootfs")); len(diffs) > 0 {
			err = fmt.Errorf("the trees differ: %s", strings.Join(diffs, "; "))
		}
	}
	s.verdict = verdict("both are the same, byte for byte", err)
	return s, err
}

// tarSum is what a tar stream comes to.
type tarSum struct {
	entries int64
	bytes   int64
	sha256  [sha256.Size]byte
}

func (t tarSum) cells(what string) []string {
	return []string{what, fmt.Sprint(t.entries), fmt.Sprint(t.bytes), fmt.Sprintf("`%x…`", t.sha256[:8])}
}

// formatFiles are files that eStargz adds to a layer's tar. They are part of the format and not of the image's tree;
// who unpacks the layer as plain gzip finds them.
var formatFiles = []string{"stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark"}

// tarOf reads the whole tree below dir.
func tarOf(ctx context.Context, dir string) (sum tarSum, err error) {
	args := []string{"--create", "--directory", dir, "--sort=name", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls",
		"--format=posix", "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"}
	for _, f := range formatFiles {
		args = append(args, "--exclude=./"+f)
	}
	c := exec.CommandContext(ctx, "tar", append(args, "--verbose", "--index-file=/dev/fd/3", ".")...)
	index, writeIndex, err := os.Pipe()
	if err != nil {
		return sum, err
	}
	defer index.Close()
	c.ExtraFiles = []*os.File{writeIndex}
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.StdoutPipe()
	if err != nil {
		return sum, err
	}
	if err := c.Start(); err != nil {
		return sum, err
	}
	writeIndex.Close()
	lines := make(chan int64)
	go func() { lines <- countLines(index) }()
	h := sha256.New()
	if sum.bytes, err = io.Copy(h, out); err != nil {
		return sum, err
	}
	h.Sum(sum.sha256[:0])
	sum.entries = <-lines
	if err := c.Wait(); err != nil {
		return sum, fmt.Errorf("tar of %s: %w: %s", dir, err, stderr.String())
	}
	return sum, nil
}

func countLines(r io.Reader) (n int64) {
	buf := make([]byte, 64<<10)
	for {
		k, err := r.Read(buf)
		n += int64(strings.Count(string(buf[:k]), "\n"))
		if err != nil {
			return n
		}
	}
}
