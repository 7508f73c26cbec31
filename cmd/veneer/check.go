package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/cow"
)

func newCheckCmd(a *app) *cobra.Command {
	var salvage string
	c := &cobra.Command{
		Use:   "check [flags] CONTAINER|STATEDIR",
		Short: "Look for damage in what a container wrote",
		Long: `Look for damage in what a container, or a mount with a state directory, wrote: in the index of its image, in every record of its journal
and checkpoint, in the places and sizes of file content, in names, links and parents. Nothing is changed. It may run: then only what is found twice is reported.

The exit status is 1 if something is damaged. What a crash may leave, and needs nothing done, is printed as a note.

With --salvage what was added or changed is written to a new directory, as far as it can be read. What has lost its name is in lost+found.
Image content is read, and so fetched, where only parts of a file were written.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			if salvage != "" {
				return a.salvage(ctx, args[0], salvage)
			}
			return a.check(args[0])
		},
	}
	c.Flags().StringVar(&salvage, "salvage", "", "write what can be read to `DIR`, which is made or empty")
	return c
}

func (a *app) check(ref string) (err error) {
	w, err := a.openWritten(ref, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close(true)) }()
	if err := w.tree.Verify(); err != nil {
		return err
	}
	r, err := cow.Check(w.dir, w.tree, cow.Options{Log: a.log})
	if err != nil {
		return err
	}
	a.printProblems(r)
	if r.Damaged() {
		return fmt.Errorf("%s is damaged (veneer check --salvage DIR %s writes what can be read to DIR)", ref, ref)
	}
	fmt.Fprintf(a.stdout, "%s: no damage: %d records, %d changed inodes, %s of content, %d data objects\n",
		ref, r.Records, r.Inodes, humanSize(r.Bytes), r.Objects)
	return nil
}

func (a *app) printProblems(r *cow.Report) {
	for _, p := range r.Problems {
		if p.Harmless {
			fmt.Fprint(a.stdout, "note: ")
		}
		fmt.Fprintln(a.stdout, p)
	}
	if r.More > 0 {
		fmt.Fprintf(a.stdout, "... and %d more\n", r.More)
	}
}

// salvage ends with 0 when something was written, whatever is lost: that is printed.
func (a *app) salvage(ctx context.Context, ref, dir string) (err error) {
	w, err := a.openWritten(ref, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close(true)) }()
	r, err := cow.Salvage(ctx, w.dir, w.tree, w.contents, cow.Options{Log: a.log}, w.mounts, dir)
	if r != nil {
		a.printProblems(r)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "%s: %d files and %d directories, %s, written to %s\n", ref, r.Files, r.Dirs, humanSize(r.Written), dir)
	return nil
}
