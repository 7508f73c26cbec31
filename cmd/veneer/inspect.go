package main

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/spf13/cobra"
)

func newInspectCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect CONTAINER...",
		Short: "Show containers and who serves them, as JSON",
		Args:  usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			list := []inspected{}
			var errs []error
			for _, ref := range args {
				i, err := a.places().inspect(ref)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				list = append(list, *i)
			}
			e := json.NewEncoder(a.stdout)
			e.SetIndent("", "    ")
			return errors.Join(append(errs, e.Encode(list))...)
		},
	}
}

// inspected is what inspect shows of a container. Names are Docker's where Docker has the same.
type inspected struct {
	ID      string `json:"Id"`
	Name    string
	Created time.Time
	Image   string
	Args    []string
	State   struct {
		Status     string
		Running    bool
		Pid        int // 0 if it does not run
		ExitCode   int
		Error      string
		StartedAt  time.Time
		FinishedAt time.Time
	}
	Mount struct {
		Monitor   int // PID; 0 if it does not run
		Server    int // PID; 0 if it does not run
		IO        string
		Transport string
		TakeOvers int // how often a server has gone on in the place of one that died
	}
}

func (p places) inspect(ref string) (*inspected, error) {
	c, err := p.find(ref)
	if err != nil {
		return nil, err
	}
	s, err := p.look(c)
	if err != nil {
		return nil, err
	}
	i := &inspected{ID: c.ID, Name: c.Name, Created: c.Created, Image: c.Shown, Args: c.Args}
	i.State.Status, i.State.Running, i.State.Pid = s.Status, s.Status == statusRunning, s.Process.PID
	i.State.ExitCode, i.State.Error, i.State.StartedAt, i.State.FinishedAt = s.ExitCode, s.Error, s.Started, s.Finished
	i.Mount.IO, i.Mount.Transport, i.Mount.TakeOvers = s.IO, "classic", s.TakeOver
	if s.Status != statusRunning {
		return i, nil
	}
	var monitor process
	if err := readJSON(p.runFile(c.ID, "lock"), &monitor); err == nil && monitor.alive() {
		i.Mount.Monitor = monitor.PID
	}
	if s.Server.alive() {
		i.Mount.Server = s.Server.PID
	}
	return i, nil
}
