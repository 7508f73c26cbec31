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
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fs"
)

// overlayFlags are those with which mount(8) calls its helpers, beside -o.
type overlayFlags struct {
	options                   []string
	fake, noMtab, sloppy      bool
	verbose, readOnly, rw     bool
	calledType, namespaceFile string
}

func newOverlayCmd(a *app) *cobra.Command {
	f := new(overlayFlags)
	c := &cobra.Command{
		Use:   "overlay SOURCE DIR -o lowerdir=TOP:...:BOTTOM[,upperdir=STATE][,OPTION...]",
		Short: "Merge host directories as overlayfs does, writable with a state directory",
		Long: `Merge host directories as overlayfs does: mount -t fuse.veneer is the same, when make install has set up the mount helper.

STATE is a directory of veneer's own; what is written is kept there, and seen again when it is mounted again over the same directories.
Without it the mount is read-only. It is served in the background until it is unmounted: umount DIR.

Options: lowerdir=, upperdir=, workdir= (ignored) as overlayfs has them, with its escapes \: \, \\; fsname=NAME is shown in place of SOURCE,
subtype=NAME makes the type fuse.NAME (default veneer; plain fuse when empty); io=, latency=, stats= and storage=SIZE as
veneer mount has them, inodes=N; ro, nosuid, nodev,
noexec, noatime and the other flags of mount(8); remount.`,
		Args: usageArgs(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			o, err := f.parse()
			if err != nil {
				return usageError(c, err)
			}
			if o.source == "" {
				o.source = args[0]
			}
			return a.overlay(c.Context(), o, args[1], f.fake)
		},
	}
	fl := c.Flags()
	fl.StringArrayVarP(&f.options, "options", "o", nil, "mount options, `OPTION[,OPTION...]`")
	fl.BoolVarP(&f.readOnly, "read-only", "r", false, "same as -o ro")
	fl.BoolVarP(&f.rw, "rw", "w", false, "same as -o rw")
	fl.BoolVarP(&f.fake, "fake", "f", false, "do everything but mount")
	fl.BoolVarP(&f.sloppy, "sloppy", "s", false, "pass over options that are not known")
	fl.BoolVarP(&f.noMtab, "no-mtab", "n", false, "of mount(8); changes nothing")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "of mount(8); changes nothing")
	fl.StringVarP(&f.calledType, "types", "t", "", "of mount(8): the `TYPE` that it was asked for; changes nothing")
	fl.StringVarP(&f.namespaceFile, "namespace", "N", "", "of mount(8); refused: enter it first (nsenter)")
	return c
}

func (f *overlayFlags) parse() (*overlayOptions, error) {
	if f.namespaceFile != "" {
		return nil, errors.New("-N is not supported: enter the namespace first (nsenter --mount=FILE)")
	}
	options := f.options
	if f.readOnly {
		options = append(options, "ro")
	}
	if f.rw {
		options = append(options, "rw")
	}
	return parseOverlayOptions(options, f.sloppy)
}

// overlay mounts, or changes the flags of a mount; fake checks only whether it could.
func (a *app) overlay(_ context.Context, o *overlayOptions, dir string, fake bool) error {
	if err := a.needRoot("mount"); err != nil {
		return err
	}
	if o.remount {
		return a.remount(o, dir, fake)
	}
	job := serverJob{Places: a.places(), IO: o.io, Latency: o.latency, Storage: o.storage, Before: before{Begun: time.Now()}}
	var err error
	if job.Dirs, job.State, err = overlayDirs(o); err != nil {
		return err
	}
	if job.Dir, err = a.mountPoint(dir); err != nil || fake {
		return err
	}
	if job.Stats, err = createStats(o.stats); err != nil {
		return err
	}
	return a.serveMount(job, fs.MountOptions{Source: o.source, Type: o.typ, Flags: o.flags})
}

// remount changes the flags of a mount. Like mount(2), it sets all of them: mount(8) adds those that are to stay.
func (a *app) remount(o *overlayOptions, dir string, fake bool) error {
	m, err := findMountOf(dir)
	if err != nil {
		return err
	}
	if m == nil || !a.isOurs(m) {
		return fmt.Errorf("remount %s: it is not a veneer mount", dir)
	}
	r := a.recordOf(m)
	readOnly := o.flags&unix.MS_RDONLY != 0
	if r != nil && r.State == "" && !readOnly {
		return fmt.Errorf("remount %s: it was mounted without a writable layer and stays read-only: %w", dir, unix.EROFS)
	}
	if fake {
		return nil
	}
	if err := unix.Mount("", m.dir, "", o.flags|unix.MS_REMOUNT, ""); err != nil {
		return fmt.Errorf("remount %s: %w", dir, err)
	}
	if r != nil && r.State != "" && readOnly {
		return syncState(r.State, m.dir)
	}
	return nil
}

// syncState puts what was written on the disk: whoever remounts read-only may be about to pull the plug.
func syncState(state, mounted string) error {
	if strings.HasPrefix(state+"/", mounted+"/") {
		unix.Sync() // the mount covers it
		return nil
	}
	f, err := os.Open(state)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", state, err)
	}
	return nil
}

// overlayDirs returns the layers, bottom first, and the state directory, all without symlinks. Like overlayfs it refuses a state directory
// that is part of a layer or has one in it.
func overlayDirs(o *overlayOptions) (layers []string, state string, err error) {
	for _, l := range slices.Backward(o.lowers) {
		if l, err = realDir(l); err != nil {
			return nil, "", fmt.Errorf("lowerdir: %w", err)
		}
		if isState(l) {
			return nil, "", fmt.Errorf("lowerdir %s is a state directory of veneer, which only upperdir= can show", l)
		}
		layers = append(layers, l)
	}
	if o.upper == "" {
		return layers, "", nil
	}
	if err := os.Mkdir(o.upper, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, "", fmt.Errorf("upperdir: %w", err)
	}
	if state, err = realDir(o.upper); err != nil {
		return nil, "", fmt.Errorf("upperdir: %w", err)
	}
	return layers, state, checkApart(layers, state)
}

// isState says whether dir has the files of package cow and our tree in it.
func isState(dir string) bool {
	for _, name := range []string{"lock", "data", treeName} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

func realDir(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", err
	}
	if st, err := os.Stat(real); err != nil {
		return "", err
	} else if !st.IsDir() {
		return "", fmt.Errorf("%s is not a directory", path)
	}
	return real, nil
}

// checkApart goes up from each directory to the root, by the identity of the directories: bind mounts give one several paths.
func checkApart(layers []string, state string) error {
	isUpper, err := sameDir(state)
	if err != nil {
		return err
	}
	for _, l := range layers {
		isLayer, err := sameDir(l)
		if err != nil {
			return err
		}
		if l == state {
			return fmt.Errorf("lowerdir and upperdir are the same directory, %s: they must be apart", l)
		}
		if upward(l, isUpper) {
			return fmt.Errorf("lowerdir %s is in upperdir %s: they must be apart", l, state)
		}
		if upward(state, isLayer) {
			return fmt.Errorf("upperdir %s is in lowerdir %s: they must be apart", state, l)
		}
	}
	return nil
}

func sameDir(dir string) (func(path string) bool, error) {
	st, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	return func(path string) bool {
		other, err := os.Stat(path)
		return err == nil && os.SameFile(st, other)
	}, nil
}

// upward says whether path or a directory above it is what is looked for.
func upward(path string, is func(string) bool) bool {
	for ; ; path = filepath.Dir(path) {
		if is(path) {
			return true
		}
		if path == "/" {
			return false
		}
	}
}
