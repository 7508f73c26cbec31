// Package fileops times file operations on union file systems that stand on the same layers, side by side: kernel overlayfs,
// fuse-overlayfs, veneer, and the host's own directory.
//
// A round mounts every system anew, each with an empty writable layer on the same disk, and runs every row of the table on each in turn,
// so that what disturbs the machine disturbs all. The work is done by system calls of this process, the same code for every system; what is
// not timed (dropping caches, warming them, making the files that a row removes) happens before it. The result is the median of the rounds.
package fileops

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what to measure.
type Options struct {
	Veneer string  // the binary under test
	Dir    string  // where to work; "" is the directory for temporary files
	Rounds int     // measurements of each row on each system
	Scale  float64 // of the input; 1 is 20,000 files and 2 GiB

	Before string         // another veneer to measure beside it; "" for none
	Rows   *regexp.Regexp // only the rows whose names match, and nothing of images; nil for all

	Log *log.Logger
}

// Measure builds the input, measures, and removes everything that it made. The rows that could be measured are in the report, also when
// the error is not nil.
func Measure(ctx context.Context, o Options) (r *Report, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("not root: mounts need it")
	}
	dir, err := os.MkdirTemp(o.Dir, "vb-") // short: all layers must fit into overlayfs's 4 KiB of options
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	o.Log.Printf("build the input, 1/%.0f of its size, in %s", 1/o.Scale, dir)
	in, err := buildInput(filepath.Join(dir, "in"), sizesOf(o.Scale))
	if err != nil {
		return nil, err
	}
	b := &bench{Options: o, dir: dir, in: in, report: &Report{in: in}}
	if b.systems, err = b.available(); err != nil {
		return nil, err
	}
	for _, s := range b.systems {
		b.report.systems = append(b.report.systems, s.name)
	}
	b.report.rows = newResults(slices.DeleteFunc(rows(in), func(r row) bool { return o.Rows != nil && !o.Rows.MatchString(r.name) }))
	for n := range o.Rounds {
		if err := b.round(ctx, n); err != nil {
			return b.report, err
		}
		b.report.rounds++
	}
	if o.Rows != nil {
		return b.report, nil
	}
	return b.report, b.image(ctx)
}

// bench is one run of Measure.
type bench struct {
	Options
	dir     string
	in      *input
	systems []system
	report  *Report
}

// round mounts all systems, measures every row once on each, and unmounts them.
func (b *bench) round(ctx context.Context, n int) (err error) {
	var sites []*site
	defer func() {
		for _, s := range sites {
			err = errors.Join(err, s.close())
		}
	}()
	for _, sys := range b.systems {
		s, err := b.mount(ctx, sys, n)
		if err != nil {
			return fmt.Errorf("%s: %w", sys.name, err)
		}
		sites = append(sites, s)
	}
	// Who waits in a request of a mount is freed when the mount is cut off.
	stop := context.AfterFunc(ctx, func() {
		for _, s := range sites {
			s.abort()
		}
	})
	defer stop()
	for i := range b.report.rows {
		res := &b.report.rows[i]
		b.Log.Printf("round %d of %d: %s", n+1, b.Rounds, res.name)
		for j := range sites {
			s := sites[(n+j)%len(sites)] // nobody is always first
			if err := b.measure(s, res); err != nil {
				return fmt.Errorf("%s: %s: %w", s.name, res.name, err)
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	return nil
}

// measure runs one row on one system.
func (b *bench) measure(s *site, res *result) error {
	if res.before != nil {
		if err := res.before(s); err != nil {
			return err
		}
	}
	if res.settle || res.cold {
		if err := settle(b.dir); err != nil {
			return err
		}
	}
	if res.cold {
		if err := dropCaches(); err != nil {
			return err
		}
	} else if err := res.warm(s); err != nil {
		return err
	}
	asked, err := s.requests()
	if err != nil {
		return err
	}
	begun := time.Now()
	err = res.run(s)
	took := time.Since(begun)
	if err != nil && !errors.Is(err, unix.EXDEV) {
		return err
	}
	res.add(s.name, took, err)
	if err := res.count(s, asked); err != nil || res.after == nil {
		return err
	}
	return res.after(s)
}

// settle lets the disk finish what others began.
func settle(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// dropCaches empties the page cache and the caches of names and inodes.
func dropCaches() error { return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0) }
