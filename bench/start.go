package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// start compares `veneer run IMAGE true` on a warm store with `runc run` of the same on the same files, unpacked,
// under kernel overlayfs. The rivals take turns, so that what disturbs the machine disturbs all.
func start(ctx context.Context, l *lab) (s section, err error) {
	s = section{
		title: "Warm start of `true`",
		about: fmt.Sprintf("%d starts each, taking turns in every order; process start to exit. `veneer run` resolves, makes the container, mounts and removes all "+
			"of it; `runc run` finds its bundle and, unless it says so, its mount ready.", l.runs),
		head: []string{"", "median", "minimum", "median / runc"},
	}
	bundle, err := l.unpack(ctx)
	if err != nil {
		return s, err
	}
	o, err := newOverlay(bundle, filepath.Join(l.dir, "overlay"), "true")
	if err != nil {
		return s, err
	}
	st := l.store("start")
	veneer := func() error {
		_, err := output(st.command(ctx, "run", "--rm", "--entrypoint", "", l.ref, "true"))
		return err
	}
	onMounted := func() error { return o.runc(ctx, "mounted") }
	withMount := func() error {
		if err := o.mount(); err != nil {
			return err
		}
		return errors.Join(o.runc(ctx, "with-mount"), o.unmount())
	}
	rivals := []struct {
		name          string
		before, after func() error
		run           func() error
		times         []time.Duration
	}{
		{name: "veneer run", run: veneer},
		{name: "runc run", before: o.mount, run: onMounted, after: o.unmount},
		{name: "mount overlayfs, runc run, unmount", run: withMount},
	}
	// Each comes after each of the others as often: what one leaves the kernel to do slows the next.
	orders := [][3]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}, {0, 2, 1}, {2, 0, 1}, {1, 0, 2}}
	for i := range l.runs + 1 {
		for _, j := range orders[i%len(orders)] {
			r := &rivals[j]
			took, err := timed(r.before, r.run, r.after)
			if err != nil {
				return s, fmt.Errorf("%s: %w", r.name, err)
			}
			if i > 0 { // the first warms caches and stores
				r.times = append(r.times, took)
			}
		}
	}
	s.about += fmt.Sprintf(" The machine's load average was %s when they were done: this comparison is one of CPU time when it is busy, for the processes wait "+
		"for each other in a queue.", loadAverage())
	runc := median(rivals[1].times)
	for _, r := range rivals {
		s.rows = append(s.rows, []string{r.name, ms(median(r.times)), ms(slices.Min(r.times)), fmt.Sprintf("%.2f", float64(median(r.times))/float64(runc))})
	}
	if v := median(rivals[0].times); v > runc {
		err = fmt.Errorf("veneer took %s and runc %s", ms(v), ms(runc))
	}
	s.verdict = verdict("`veneer run` is no slower than `runc run`", err)
	return s, err
}

// loadAverage is how many wanted a CPU during the last minute.
func loadAverage() string {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(load), " ")
	return one
}

// timed runs before, run and after, and returns how long run took. before and after may be nil.
func timed(before, run, after func() error) (took time.Duration, err error) {
	if before != nil {
		if err := before(); err != nil {
			return 0, err
		}
	}
	if after != nil {
		defer func() { err = errors.Join(err, after()) }()
	}
	begun := time.Now()
	err = run()
	return time.Since(begun), err
}
