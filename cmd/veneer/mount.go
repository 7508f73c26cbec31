package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fs"
)

// A mount of the mount command has no monitor: the server serves it until it is gone, however that comes about. On disk:
//
//	RUNROOT/mounts/MAJ:MIN/    by the device number of the mount, which names it in every mount namespace
//	    lock                   flocked by the server; free: the server is dead
//	    mount.json
//	    log                    messages of the server

// mountRecord is mount.json.
type mountRecord struct {
	Dir    string   `json:"dir"` // in the mount namespace of who mounted it
	Image  string   `json:"image,omitempty"`
	Layers []string `json:"layers,omitempty"`
	State  string   `json:"state,omitempty"`
	Server process  `json:"server"`
}

type mountFlags struct {
	rw, plainHTTP    bool
	state, stats, io string
	layers           []string
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
	fl.StringVar(&f.stats, "stats", "", "write figures as JSON to `FILE` when the mount ends")
	fl.StringVar(&f.io, "io", "auto", "how file content reaches the kernel: auto, passthrough or cached")
	fl.StringArrayVar(&f.layers, "layer", nil, "merge host directories, bottom first: `dir:PATH`")
	fl.BoolVar(&f.plainHTTP, "plain-http", false, "speak plain HTTP to the registry")
	return c
}

func (f *mountFlags) check() error {
	if f.rw != (f.state != "") {
		return errors.New("--rw and --state DIR go together")
	}
	return checkIO(f.io)
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
		err := a.openImage(ctx, image, f.plainHTTP, func(img *localImage) error {
			job.Image, job.Manifest = img.Ref.String(), string(img.Manifest)
			b.resolved(img)
			return nil
		})
		if err != nil {
			return err
		}
	}
	job.Before, job.Dir = b, dir
	return a.serveMount(job)
}

// mountJob makes the job's part that the flags tell.
func (a *app) mountJob(f *mountFlags) (job serverJob, err error) {
	job = serverJob{Places: a.places(), PlainHTTP: f.plainHTTP, IO: f.io}
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

// checkMountDir returns DIR as mountinfo will show it. fs.MountFD checks it again; this is before anything is fetched.
func (a *app) checkMountDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	// Ask the mount table first: a mount whose server hangs would hang us too.
	if m, err := findMount(abs); err != nil {
		return "", err
	} else if m != nil && m.isOurs() {
		return "", fmt.Errorf("%s is a veneer mount already (veneer umount %s)", abs, dir)
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
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

// serveMount starts a server, mounts the tree at job.Dir and hands it over.
func (a *app) serveMount(job serverJob) error {
	mounts := filepath.Join(a.runRoot, "mounts")
	if err := os.MkdirAll(mounts, 0o711); err != nil {
		return err
	}
	// The server is started with the record under a name of its own; the mount's number comes with the mount.
	tmp, err := os.MkdirTemp(mounts, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // if it still has that name
	lock, err := lockNew(filepath.Join(tmp, "lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	log, err := os.OpenFile(filepath.Join(tmp, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s, err := newServer([]string{job.Dir, mounts, a.logLevel}, lock, log, nil)
	if err != nil {
		return err
	}
	if err := a.handOver(s, &job, tmp); err != nil {
		s.wait(nil)
		if job.Record != "" {
			os.RemoveAll(job.Record)
		}
		return err
	}
	return nil
}

func (a *app) handOver(s *serverClient, job *serverJob, tmp string) error {
	source := job.Image
	if source == "" {
		source = "veneer"
	}
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP) // from here to the end takes no time
	fuse, err := fs.MountFD(job.Dir, fs.MountOptions{
		Source: source, ReadOnly: job.State == "", NoSuid: true, NoDev: true, MustBeBare: true,
	})
	if err != nil {
		return err
	}
	defer fuse.Close()
	err = func() error {
		device, err := fs.MountDevice(job.Dir)
		if err != nil {
			return err
		}
		job.Record = filepath.Join(filepath.Dir(tmp), device)
		if err := a.recordMount(s, job, tmp); err != nil {
			return err
		}
		if err := s.open(*job); err != nil {
			return err
		}
		return s.serve(device, fuse)
	}()
	if err != nil {
		return errors.Join(err, ignoreGone(unix.Unmount(job.Dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)))
	}
	return nil
}

// recordMount gives the record its name. What has it already is of a mount that is gone: the number was given anew.
func (a *app) recordMount(s *serverClient, job *serverJob, tmp string) error {
	id, err := identify(s.proc.Pid)
	if err != nil {
		return err
	}
	r := mountRecord{Dir: job.Dir, Image: job.Image, Layers: job.Dirs, State: job.State, Server: id}
	if err := writeJSON(filepath.Join(tmp, "mount.json"), r); err != nil {
		return err
	}
	if err := os.RemoveAll(job.Record); err != nil {
		return err
	}
	return os.Rename(tmp, job.Record)
}

func ignoreGone(err error) error {
	if err == unix.EINVAL || err == unix.ENOENT {
		return nil
	}
	return err
}

// lockNew makes a lock file and holds it.
func lockNew(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func readMountRecord(dir string) (*mountRecord, error) {
	p, err := os.ReadFile(filepath.Join(dir, "mount.json"))
	if err != nil {
		return nil, err
	}
	r := new(mountRecord)
	return r, json.Unmarshal(p, r)
}
