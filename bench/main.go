// Command bench measures veneer against what it must hold against, and draws the report.
//
//	go run ./bench [flags] [coldstart] [start] [tree]     one or some; all without a name
//	go run ./bench [flags] fs                             file operations beside other union file systems (package fileops)
//
// It needs root and the Debian packages that `.ci/deps` installs. Without flags it measures an image that it
// builds from the programs of this machine. With CORPUS_DIR set it takes $CORPUS_DIR/estargz/NAME (an OCI layout, tag
// plain) and $CORPUS_DIR/hello/NAME.json, where -name says NAME; -image and -hello name any other image and task.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/bench/fileops"
)

// workload is one thing that bench measures.
type workload struct {
	name string
	run  func(context.Context, *lab) (section, error)
}

// workloads are what bench can measure. Each returns its part of the report; an error is a bound that does not hold,
// or a measurement that could not be made.
var workloads = []workload{
	{"coldstart", coldstart},
	{"start", start},
	{"tree", tree},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	o := options{}
	fs.StringVar(&o.veneer, "veneer", "bin/veneer", "the binary under test")
	fs.StringVar(&o.image, "image", "", "the image, as skopeo names it (oci:DIR:TAG, docker://REF)")
	fs.StringVar(&o.hello, "hello", "", "the task: a JSON `file` with args, env, cwd, ready")
	fs.StringVar(&o.name, "name", "python", "the image of CORPUS_DIR")
	fs.IntVar(&o.runs, "runs", 21, "starts of each runtime")
	fs.IntVar(&o.rounds, "rounds", 5, "fs: measurements of each operation on each system")
	fs.Float64Var(&o.scale, "scale", 1, "fs: size of the input; 1 is 20,000 files and 2 GiB")
	fs.StringVar(&o.dir, "dir", "", "fs: where to work; the `directory` decides the disk")
	fs.StringVar(&o.before, "before", "", "fs: another veneer, measured beside -veneer: the `binary` before a change")
	fs.StringVar(&o.rows, "rows", "", "fs: only the rows whose names match `regexp`")
	report := fs.String("o", "", "also write the report to `file`")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() == 1 && fs.Arg(0) == "fs" {
		return fileOperations(ctx, o, *report)
	}
	if err := known(fs.Args()); err != nil {
		return err
	}
	l, err := newLab(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()

	var sections []section
	var failed error
	for _, w := range workloads {
		if fs.NArg() > 0 && !slices.Contains(fs.Args(), w.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s\n", w.name)
		s, err := w.run(ctx, l)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", w.name, err))
			if s.verdict == "" {
				s.verdict = fmt.Sprintf("**Not measured**: %v.", err)
			}
		}
		sections = append(sections, s)
	}
	return errors.Join(failed, publish(render(l, sections), *report))
}

// publish prints a report, and writes it to file unless that is "".
func publish(text, file string) error {
	fmt.Print(text)
	if file == "" {
		return nil
	}
	return os.WriteFile(filepath.Clean(file), []byte(text), 0o644)
}

// fileOperations needs none of what a lab has.
func fileOperations(ctx context.Context, o options, report string) error {
	f := fileops.Options{Veneer: o.veneer, Before: o.before, Dir: o.dir, Rounds: o.rounds, Scale: o.scale, Log: log.New(os.Stderr, "bench: ", log.Ltime)}
	if o.rows != "" {
		var err error
		if f.Rows, err = regexp.Compile(o.rows); err != nil {
			return err
		}
	}
	r, err := fileops.Measure(ctx, f)
	if r == nil {
		return err
	}
	made := "make bench-fs"
	if o.scale != 1 || o.rounds != 5 || o.rows != "" {
		made = fmt.Sprintf("go run ./bench -rounds %d -scale %g -rows '%s' fs", o.rounds, o.scale, o.rows)
	}
	return errors.Join(err, publish(r.Markdown(machine(), made), report), r.Missed())
}

func known(names []string) error {
	for _, n := range names {
		if !slices.ContainsFunc(workloads, func(w workload) bool { return w.name == n }) {
			return fmt.Errorf("no workload %q", n)
		}
	}
	return nil
}
