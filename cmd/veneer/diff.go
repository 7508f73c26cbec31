package main

import (
	"bufio"
	"errors"

	"github.com/spf13/cobra"

	"github.com/veneerfs/veneer/cow"
)

func newDiffCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "diff CONTAINER|STATEDIR",
		Short: "Show what a container changed in its image",
		Long: `Show what a container, or a mount with a state directory, changed in its image, running or not:

  A PATH   was added
  C PATH   was changed, or something below it was
  D PATH   was deleted, with all below it

A directory comes before what is in it; names are in the order of their bytes.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error { return a.diff(args[0]) },
	}
}

func (a *app) diff(ref string) (err error) {
	w, err := a.openWritten(ref, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close(true)) }()
	s, err := w.snapshot(a)
	if err != nil {
		return err
	}
	defer s.Close()
	out := bufio.NewWriter(a.stdout)
	err = s.Changes(cow.ChangesOptions{Stat: true, Placeholders: w.mounts}, func(c cow.Change) error {
		_, err := out.WriteString(string(c.Kind) + " " + c.Path + "\n")
		return err
	})
	return errors.Join(err, out.Flush())
}
