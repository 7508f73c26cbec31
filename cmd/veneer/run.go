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

	"github.com/spf13/cobra"

	"github.com/veneerfs/veneer/runtime/spawn"
)

// runFlags are the flags of run as they were given.
type runFlags struct {
	interactive, tty, remove, detach, readOnly bool
	name, workDir, user, hostname, net         string
	entrypoint                                 string
	entrypointSet                              bool
	env, volumes                               []string
	stats, io, latency                         string
	storage                                    storage
	remote                                     remote
}

func newRunCmd(a *app) *cobra.Command {
	f := new(runFlags)
	c := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND [ARG...]]",
		Short: "Run a command in a new container",
		Long: `Run a command in a new container. Only what the command reads of IMAGE is fetched.

IMAGE is a registry reference as Docker writes it, oci:DIR[:TAG] or oci-archive:FILE.

The exit status is the command's; 128+n when signal n ended it; 125 when veneer failed; 126 when the command cannot be
executed; 127 when it was not found.`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			f.entrypointSet = c.Flags().Changed("entrypoint")
			err := a.run(c.Context(), f, args[0], args[1:])
			var ee *exitError
			if err == nil || errors.As(err, &ee) {
				return err
			}
			return &exitError{exitVeneer, err}
		},
	}
	f.add(c)
	return c
}

func (f *runFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.SetInterspersed(false) // flags after IMAGE are the command's
	fl.Bool("help", false, "print this help")
	fl.BoolVarP(&f.interactive, "interactive", "i", false, "keep standard input open")
	fl.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
	fl.BoolVar(&f.remove, "rm", false, "remove the container when it ends")
	fl.BoolVarP(&f.detach, "detach", "d", false, "run in the background and print the container's ID")
	fl.StringVar(&f.name, "name", "", "name of the container")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "set a variable: `K=V`, or K to take it from here")
	fl.StringVarP(&f.workDir, "workdir", "w", "", "working `directory` in the container")
	fl.StringVarP(&f.user, "user", "u", "", "`USER[:GROUP]`, names or numbers")
	fl.StringArrayVarP(&f.volumes, "volume", "v", nil, "show a host path in the container: `SRC:DST[:ro]`")
	fl.StringVarP(&f.hostname, "hostname", "h", "", "host name of the container")
	fl.StringVar(&f.entrypoint, "entrypoint", "", "replace the image's entrypoint and drop its command")
	fl.BoolVar(&f.readOnly, "read-only", false, "mount the container's root read-only")
	fl.StringVar(&f.net, "net", "host", "network: host (the machine's) or none (loopback only)")
	fl.StringVar(&f.stats, "stats", "", "write figures as JSON to `FILE` when the container ends")
	fl.StringVar(&f.io, "io", "auto", "how file content reaches the kernel: auto, passthrough or cached")
	fl.Var(&f.storage, "storage", storageUsage)
	fl.StringVar(&f.latency, "latency", "auto", latencyUsage)
	f.remote.add(fl)
	f.remote.addPolicy(fl)
	fl.StringVar(&f.net, "network", "host", "")
	fl.MarkHidden("network")
}

// run runs a container from beginning to end; with -d, until its process has started.
func (a *app) run(ctx context.Context, f *runFlags, image string, args []string) error {
	begun := time.Now()
	spawn.SlowSysmon()
	c, err := f.container(args)
	if err != nil {
		return &exitError{exitVeneer, err}
	}
	if err := a.needRoot("run containers"); err != nil {
		return err
	}
	if err := f.checkTerminal(a.stdin); err != nil {
		return err
	}
	if c.Stats, err = createStats(f.stats); err != nil {
		return err
	}
	at, err := a.attach(c)
	if err != nil {
		return err
	}
	defer at.restore()
	// The monitor starts up while we find out what it is for; nothing exists for others until publish.
	m, err := a.newMonitor(c, at)
	if err != nil {
		return err
	}
	job := monitorJob{Before: before{Begun: begun}}
	if err := a.fill(ctx, c, image, &job.Before); err != nil {
		m.abandon()
		return err
	}
	return m.follow(job)
}

// fill resolves the image, makes sure that its tree is here, and completes c by the image's configuration.
func (a *app) fill(ctx context.Context, c *container, image string, b *before) error {
	err := a.openImage(ctx, image, c.remote, func(img *localImage) (err error) {
		c.Shown, c.Image, c.Manifest = image, img.Ref.String(), string(img.Manifest)
		if err := c.applyImage(img.Config.Config); err != nil {
			return err
		}
		c.Account, err = lookUpUser(ctx, img, c.User)
		b.resolved(img)
		return err
	})
	if err != nil {
		return err
	}
	if err := makeVolumeSources(c.Volumes); err != nil {
		return err
	}
	return a.places().publish(c)
}

// container checks the flags and makes of them what does not need the image.
func (f *runFlags) container(args []string) (*container, error) {
	c := &container{
		Name: f.name, Args: args, User: f.user, WorkDir: f.workDir, Hostname: f.hostname, Net: f.net,
		ReadOnly: f.readOnly, TTY: f.tty, Stdin: f.interactive, Remove: f.remove, Detached: f.detach,
		IO: f.io, Latency: f.latency, Storage: f.storage, remote: f.remote,
	}
	if f.entrypointSet {
		c.Entrypoint = &f.entrypoint
	}
	if f.name != "" {
		if err := checkName(f.name); err != nil {
			return nil, err
		}
	}
	if f.workDir != "" && !filepath.IsAbs(f.workDir) {
		return nil, fmt.Errorf("the working directory %q is invalid, it needs to be an absolute path", f.workDir)
	}
	if !slices.Contains([]string{"host", "none"}, f.net) {
		return nil, fmt.Errorf("--net %q: want host or none", f.net)
	}
	if err := errors.Join(checkIO(f.io), checkLatency(f.latency)); err != nil {
		return nil, err
	}
	if err := checkHostname(f.hostname); err != nil {
		return nil, err
	}
	var err error
	if c.Env, err = parseEnv(f.env); err != nil {
		return nil, err
	}
	if c.Volumes, err = parseVolumes(f.volumes); err != nil {
		return nil, err
	}
	if f.user != "" && strings.ContainsAny(f.user, "\n\x00") {
		return nil, fmt.Errorf("invalid user %q", f.user)
	}
	return c, nil
}

func checkIO(mode string) error {
	if !slices.Contains([]string{"auto", "passthrough", "cached"}, mode) {
		return fmt.Errorf("--io %q: want auto, passthrough or cached", mode)
	}
	return nil
}

const latencyUsage = "keep idle CPUs awake while the file server is busy: auto (with many requests), on (with any) or off"

func checkLatency(mode string) error {
	if !slices.Contains([]string{"auto", "on", "off"}, mode) {
		return fmt.Errorf("--latency %q: want auto, on or off", mode)
	}
	return nil
}

// checkHostname keeps out what sethostname(2) would refuse or a shell prompt would trip over.
func checkHostname(name string) error {
	if len(name) > 64 {
		return fmt.Errorf("invalid hostname %q: longer than 64 bytes", name)
	}
	for _, r := range name {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.') {
			return fmt.Errorf("invalid hostname %q: want letters, digits, '-' and '.'", name)
		}
	}
	return nil
}

// parseEnv resolves the -e flags: K takes the variable from our own environment. If it is not there, K stays as it is, which takes
// the image's variable away.
func parseEnv(flags []string) ([]string, error) {
	var env []string
	for _, kv := range flags {
		k, _, isSet := strings.Cut(kv, "=")
		if k == "" || strings.ContainsRune(kv, 0) {
			return nil, fmt.Errorf("invalid environment variable: %q", kv)
		}
		if !isSet {
			if v, ok := os.LookupEnv(k); ok {
				kv = k + "=" + v
			}
		}
		env = append(env, kv)
	}
	return env, nil
}

func absIfSet(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	return filepath.Abs(path)
}

// needRoot says what is missing before anything is begun.
func (a *app) needRoot(todo string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("to %s, veneer must run as root (try: sudo veneer ...)", todo)
	}
	return nil
}
