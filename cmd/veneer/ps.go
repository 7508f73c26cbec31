package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func newPsCmd(a *app) *cobra.Command {
	var all, quiet, noTrunc, size bool
	c := &cobra.Command{
		Use:   "ps",
		Short: "List containers",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			list, err := a.places().list()
			if err != nil {
				return err
			}
			if !all {
				list = slices.DeleteFunc(list, func(l listed) bool { return l.state.Status != statusRunning })
			}
			if quiet {
				for _, l := range list {
					fmt.Fprintln(a.stdout, shortID(l.ID, noTrunc))
				}
				return nil
			}
			return a.printContainers(list, noTrunc, size)
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "also those that do not run")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "only IDs")
	c.Flags().BoolVar(&noTrunc, "no-trunc", false, "whole IDs and commands")
	c.Flags().BoolVarP(&size, "size", "s", false, "what each has written, and with its image (virtual)")
	return c
}

type listed struct {
	*container
	state *state
}

// list returns all containers, the newest first. On the way it settles those whose monitor died with its server, and removes what
// was never finished.
func (p places) list() ([]listed, error) {
	ids, err := p.ids()
	if err != nil {
		return nil, err
	}
	var list []listed
	for _, id := range ids {
		c, err := p.load(id)
		if errors.Is(err, fs.ErrNotExist) {
			if err := p.removeHalfMade(id); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		s, err := p.look(c)
		var none *errNoContainer
		if errors.As(err, &none) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, listed{c, s})
	}
	slices.SortStableFunc(list, func(a, b listed) int { return b.Created.Compare(a.Created) })
	return list, nil
}

// removeHalfMade removes a container that was never finished, unless somebody is about to. Its name is freed by who next
// wants it.
func (p places) removeHalfMade(id string) error {
	lock, err := p.tryLock(id)
	if lock == nil {
		return err
	}
	defer p.unlock(id, lock)
	// It may have been finished before we had the lock.
	if _, err := p.load(id); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return p.removeDirs(id)
}

func (a *app) printContainers(list []listed, noTrunc, size bool) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 3, ' ', 0)
	head := "CONTAINER ID\tIMAGE\tCOMMAND\tCREATED\tSTATUS\tNAMES"
	if size {
		head += "\tSIZE"
	}
	fmt.Fprintln(w, head)
	for _, l := range list {
		command := fmt.Sprintf("%q", strings.Join(l.Args, " "))
		if r := []rune(command); len(r) > 20 && !noTrunc {
			command = string(r[:19]) + "…"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s", shortID(l.ID, noTrunc), l.Shown, command,
			ago(time.Since(l.Created)), l.state.describe(), l.Name)
		if size {
			fmt.Fprint(w, "\t", a.sizeOf(l.container))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// sizeOf says what a container has written and what it has in all. It reads what is written, at the cost of that, also while it is written
// to.
func (a *app) sizeOf(c *container) string {
	used, all, err := a.usage(c.ID)
	if err != nil {
		a.log.Warn("no size of container "+c.Short(), "err", err)
		return "N/A"
	}
	return fmt.Sprintf("%s (virtual %s)", humanSize(used), humanSize(all))
}

func (a *app) usage(id string) (used, all int64, err error) {
	w, err := a.openWritten(id, false)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, w.close(true)) }()
	image := w.tree.Totals().ContentBytes
	s, err := w.snapshot(a)
	if errors.Is(err, fs.ErrNotExist) { // it was never started
		return 0, image, nil
	} else if err != nil {
		return 0, 0, err
	}
	used = s.Usage().Bytes
	return used, used + image, s.Close()
}

func (s *state) describe() string {
	switch s.Status {
	case statusRunning:
		return "Up " + strings.TrimSuffix(ago(time.Since(s.Started)), " ago")
	case statusExited:
		return fmt.Sprintf("Exited (%d) %s", s.ExitCode, ago(time.Since(s.Finished)))
	}
	return "Created"
}

func shortID(id string, whole bool) string {
	if whole {
		return id
	}
	return id[:12]
}
