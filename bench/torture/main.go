// Command torture makes mounts of the built binary do hard work, kills their servers in the middle, and holds what is
// found then against what was answered before.
//
//	go run ./bench/torture [flags] [WORKLOAD...]     all without a name
//
// It needs root, and a temporary directory on ext4: that is what a mount is compared with. The tests of this folder run
// the same workloads, but briefly.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// workload is one kind of torture. It goes on until the rig's time is over; an error is a promise that did not hold.
type workload struct {
	name  string
	what  string
	tools []string // programs that it takes, from the packages of .ci/deps
	run   func(*rig) error
}

var workloads = []workload{
	{"random", "random system calls, against the same on ext4", nil, randomCalls},
	{"killed", "random system calls, and a server that is killed", nil, killedCalls},
	{"file", "random I/O on single files, each byte known, between kills", nil, fileIO},
	{"hunts", "storms of calls on the same names, each with a rule", nil, huntAll},
	{"fio", "fio's verified writes, buffered, direct and mapped, and a server that is killed", []string{"fio"}, fioTorture},
	{"stress", "stress-ng's file system stressors", []string{"stress-ng"}, stress},
	{"power", "synced files and names, and a disk without power", []string{"mkfs.ext4", "mkfs.xfs", "sqlite3"}, powerCuts},
	{"sqlite", "SQLite under load, in each of its modes, and a server that is killed", []string{"sqlite3"}, sqliteTorture},
	{"postgres", "PostgreSQL under load, and a server that is killed", nil, postgresTorture},
}

func main() {
	if status, ok := goApart(); ok {
		os.Exit(status)
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "torture:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	fs := flag.NewFlagSet("torture", flag.ContinueOnError)
	o := options{ctx: ctx}
	fs.StringVar(&o.veneer, "veneer", "bin/veneer", "the binary under test")
	fs.DurationVar(&o.time, "time", time.Minute, "how long each workload runs, at least")
	fs.Uint64Var(&o.seed, "seed", 1, "what the first round is made of; the next round takes the next seed")
	fs.IntVar(&o.workers, "workers", 4, "processes or threads that work at once")
	replay := fs.String("replay", "", "only run the calls in `file`, which a failed round has left")
	io := fs.String("io", "", "cached or passthrough; both, if empty")
	if err := fs.Parse(args); err != nil {
		return err
	}
	for _, name := range fs.Args() {
		if !slices.ContainsFunc(workloads, func(w workload) bool { return w.name == name }) {
			return fmt.Errorf("no workload %q", name)
		}
	}
	ios := []string{"cached", "passthrough"}
	if *io != "" {
		ios = []string{*io}
	}
	var all error
	for _, o.io = range ios {
		if *replay != "" {
			all = errors.Join(all, torture(workload{name: "replay", run: func(r *rig) error { return replayCalls(r, *replay) }}, o))
			continue
		}
		for _, w := range workloads {
			if ctx.Err() == nil && (fs.NArg() == 0 || slices.Contains(fs.Args(), w.name)) {
				all = errors.Join(all, torture(w, o))
			}
		}
	}
	return all
}

// torture runs one workload in a directory of its own, which is kept when it fails.
func torture(w workload, o options) error {
	for _, tool := range w.tools {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s: %w: run .ci/deps", w.name, err)
		}
	}
	var err error
	if o.veneer, err = filepath.Abs(o.veneer); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "veneer-torture-")
	if err != nil {
		return err
	}
	r := newRig(o, dir, func(format string, a ...any) {
		fmt.Printf("%s, %s: %s\n", w.name, o.io, fmt.Sprintf(format, a...))
	})
	if err := errors.Join(w.run(r), r.close()); err != nil {
		return fmt.Errorf("%s, %s: %w (see %s)", w.name, o.io, err, dir)
	}
	return os.RemoveAll(dir)
}
