package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/cow"
)

func newExportCmd(a *app) *cobra.Command {
	var layer bool
	var output string
	c := &cobra.Command{
		Use:   "export [flags] CONTAINER|STATEDIR",
		Short: "Write a container's files, or what it changed as a layer, as a tar",
		Long: `Write the files of a container, or of a mount with a state directory, as a tar. With --layer only what differs from its image,
as an uncompressed OCI layer: the same bytes for the same changes.

The container may run: names and attributes are those of one moment. The content of files is as it is when it is read; a file that was
written meanwhile is named at the end, and the exit status is 1.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			return a.export(ctx, args[0], output, layer)
		},
	}
	c.Flags().BoolVar(&layer, "layer", false, "only what was changed, as an OCI layer")
	c.Flags().StringVarP(&output, "output", "o", "", "write to `FILE` instead of standard output")
	return c
}

func (a *app) export(ctx context.Context, ref, output string, layer bool) (err error) {
	w, err := a.openWritten(ref, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close(true)) }()
	s, err := w.snapshot(a)
	if err != nil {
		return err
	}
	defer s.Close()
	write := func(out io.Writer) error {
		var left []cow.LeftOut
		if layer {
			left, err = s.WriteLayer(ctx, out, w.mounts)
		} else {
			left, err = s.WriteTree(ctx, out)
		}
		for _, l := range left {
			a.log.Warn("left out", "path", l.Path, "reason", l.Reason)
		}
		return err
	}
	if output != "" {
		return writeOutput(output, write)
	}
	if out, ok := a.stdout.(*os.File); ok && isTerminal(out) {
		return errors.New("a tar is nothing for a terminal: name a file with -o, or redirect the output")
	}
	return buffered(a.stdout, write)
}

func buffered(out io.Writer, write func(io.Writer) error) error {
	b := bufio.NewWriterSize(out, 1<<20)
	return errors.Join(write(b), b.Flush())
}

// writeOutput makes the file appear when it is whole, also when some of what is in it changed while it was read.
func writeOutput(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // if it still has that name
	defer f.Close()
	err = buffered(f, write)
	var rewritten *cow.RewrittenError
	if err != nil && !errors.As(err, &rewritten) {
		return err
	}
	if e := f.Chmod(0o644); e != nil {
		return e
	}
	if e := os.Rename(f.Name(), path); e != nil {
		return e
	}
	return err
}
