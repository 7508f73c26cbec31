package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// demoGrace is how long an interrupted command gets before it is killed: a container's first process often ignores
// signals, and is removed later.
const demoGrace = time.Second

// veneer runs one of our own commands with a store of the demo's, shows it and what it prints, and returns its standard
// output. first, if not nil, is called with the first byte of it.
func (d *demo) veneer(ctx context.Context, store string, first func(), args ...string) (string, error) {
	fmt.Fprintf(d.out, "$ veneer %s\n", shellWords(args))
	var stdout bytes.Buffer
	c := d.command(ctx, store, args...)
	c.Stdout = &firstByte{w: io.MultiWriter(d.out, &stdout), first: first}
	c.Stderr = d.log
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("veneer %s: %w", args[0], err)
	}
	return stdout.String(), nil
}

// command is one of our own commands. It has a process group of its own: a Ctrl-C reaches the demo alone, which then
// ends the command in order.
func (d *demo) command(ctx context.Context, store string, args ...string) *exec.Cmd {
	global := []string{"--root", filepath.Join(d.dir, store), "--run-root", filepath.Join(d.dir, store+".run")}
	c := exec.CommandContext(ctx, d.exe, append(global, args...)...)
	c.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return c.Process.Signal(unix.SIGTERM) }
	c.WaitDelay = demoGrace
	return c
}

// firstByte calls first before the first byte is passed on.
type firstByte struct {
	w     io.Writer
	first func() // nil after it was called
}

func (f *firstByte) Write(p []byte) (int, error) {
	if f.first != nil {
		f.first()
		f.first = nil
	}
	return f.w.Write(p)
}

// shellWords writes arguments so that a shell reads them back.
func shellWords(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		if words[i] = a; a == "" || strings.ContainsAny(a, " \t\n\"'\\$&|;<>()*?[]#~`!{}") {
			words[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}
