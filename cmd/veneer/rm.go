package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newRmCmd(a *app) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "rm [flags] CONTAINER...",
		Short: "Remove containers with all that they wrote",
		Args:  usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			var errs []error
			for _, ref := range args {
				err := a.places().rm(ref, force)
				var none *errNoContainer
				switch {
				case err == nil:
					fmt.Fprintln(a.stdout, ref)
				case force && errors.As(err, &none): // as wished
				default:
					errs = append(errs, err)
				}
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "kill it first if it runs")
	return c
}

// rm removes a container.
func (p places) rm(ref string, force bool) error {
	c, err := p.find(ref)
	if err != nil {
		return err
	}
	lock, err := p.tryLock(c.ID)
	if err != nil {
		return err
	}
	if lock == nil {
		if !force {
			return fmt.Errorf("cannot remove container %q: it is running: end it first, or remove it with -f", c.Name)
		}
		if lock, err = p.stopNow(c); err != nil {
			return err
		}
	}
	defer lock.Close()
	if _, err := p.load(c.ID); err != nil {
		p.removeRun(c.ID)
		return nil // it was a --rm one, or another rm was faster
	}
	if _, err := p.endAll(c); err != nil {
		return err
	}
	if err := p.discard(c); err != nil {
		return fmt.Errorf("remove container %s: %w", c.Short(), err)
	}
	return nil
}

// stopNow has the monitor kill the container, and returns its lock when all is over.
func (p places) stopNow(c *container) (*os.File, error) {
	var monitor process
	if err := readJSON(p.runFile(c.ID, "lock"), &monitor); err == nil {
		monitor.signal(unix.SIGTERM)
	}
	return p.waitLock(c.ID)
}
