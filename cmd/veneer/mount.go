package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/veneerfs/veneer/fs"
)

type mountFlags struct {
	remote                    remote
	rw                        bool
	state, stats, io, latency string
	storage                   storage
	layers                    []string
}

func newMountCmd(a *app) *cobra.Command {
	f := new(mountFlags)
	c := &cobra.Command{
		Use:   "mount [flags] IMAGE DIR\n  veneer mount [flags] --layer dir:PATH... DIR",
		Short: "Show an image, or directories merged like layers, as a directory",
		Long: `Show an image, or directories merged like layers, as a directory. Only what is read of it is fetched.

It is served in the background until it is unmounted: veneer umount DIR, or plain umount.`,
		RunE: func(c *cobra.Command, args []string) error {
			want := 2
			if len(f.layers) > 0 {
				want = 1
			}
			if err := usageArgs(cobra.ExactArgs(want))(c, args); err != nil {
				return err
			}
			image := ""
			if want == 2 {
				image = args[0]
			}
			if err := f.check(); err != nil {
				return usageError(c, err)
			}
			return a.mount(c.Context(), f, image, args[want-1])
		},
	}
	fl := c.Flags()
	fl.BoolVar(&f.rw, "rw", false, "make it writable; what is written goes to --state")
	fl.StringVar(&f.state, "state", "", "`DIR` that keeps what is written; may be mounted again")
	fl.Var(&f.storage, "storage", storageUsage+"; with --rw")
	fl.StringVar(&f.stats, "stats", "", "write figures as JSON to `FILE` when the mount ends")
	fl.StringVar(&f.io, "io", "auto", "how file content reaches the kernel: auto, passthrough or cached")
	fl.StringVar(&f.latency, "latency", "auto", latencyUsage)
	fl.StringArrayVar(&f.layers, "layer", nil, "merge host directories, bottom first: `dir:PATH`")
	f.remote.add(fl)
	f.remote.addPolicy(fl)
	return c
}

func (f *mountFlags) check() error {
	if f.rw != (f.state != "") {
		return errors.New("--rw and --state DIR go together")
	}
	if f.storage != (storage{}) && !f.rw {
		return errors.New("--storage is for a mount with --rw")
	}
	return errors.Join(checkIO(f.io), checkLatency(f.latency))
}

// mount mounts and returns when the mount is usable.
func (a *app) mount(ctx context.Context, f *mountFlags, image, dir string) (err error) {
	b := before{Begun: time.Now()}
	if err := a.needRoot("mount"); err != nil {
		return err
	}
	job, err := a.mountJob(f)
	if err != nil {
		return err
	}
	if dir, err = a.checkMountDir(dir); err != nil {
		return err
	}
	if image != "" {
		err := a.openImage(ctx, image, f.remote, func(img *localImage) error {
			job.Image, job.Manifest = img.Ref.String(), string(img.Manifest)
			b.resolved(img)
			return nil
		})
		if err != nil {
			return err
		}
	}
	job.Before, job.Dir = b, dir
	return a.serveMount(job, fs.MountOptions{Source: job.Image, ReadOnly: job.State == "", NoSuid: true, NoDev: true, MustBeBare: true})
}

// mountJob makes the job's part that the flags tell.
func (a *app) mountJob(f *mountFlags) (job serverJob, err error) {
	job = serverJob{Places: a.places(), remote: f.remote, IO: f.io, Latency: f.latency, Storage: f.storage}
	if job.State, err = absIfSet(f.state); err != nil {
		return job, err
	}
	for _, l := range f.layers {
		path, ok := strings.CutPrefix(l, "dir:")
		if !ok || path == "" {
			return job, &exitError{exitVeneer, fmt.Errorf("--layer %q: want dir:PATH", l)}
		}
		if path, err = filepath.Abs(path); err != nil {
			return job, err
		}
		if st, err := os.Stat(path); err != nil {
			return job, fmt.Errorf("--layer %s: %w", l, err)
		} else if !st.IsDir() {
			return job, fmt.Errorf("--layer %s: not a directory", l)
		}
		job.Dirs = append(job.Dirs, path)
	}
	job.Stats, err = createStats(f.stats)
	return job, err
}

// checkMountDir returns DIR as mountinfo will show it, if it is empty. fs.MountFD checks it again; this is before anything is fetched.
func (a *app) checkMountDir(dir string) (string, error) {
	real, err := a.mountPoint(dir)
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(real)
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	if len(entries) > 0 {
		return "", fmt.Errorf("mount point %s is not empty: it has %q in it", dir, entries[0].Name())
	}
	return real, nil
}

// mountPoint returns DIR as mountinfo will show it.
func (a *app) mountPoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	// Ask the mount table first: a mount whose server hangs would hang us too.
	if m, err := findMount(abs); err != nil {
		return "", err
	} else if m != nil && a.isOurs(m) {
		return "", fmt.Errorf("%s is a veneer mount already (veneer umount %s)", abs, dir)
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	return real, nil
}
