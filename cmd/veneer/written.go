package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/veneerfs/veneer/cow"
	"github.com/veneerfs/veneer/runtime"
	"github.com/veneerfs/veneer/unionfs"
)

// lowerName is the file in a state directory that tells over which image it was written. One over host directories has their tree
// (server_dirs.go), and a container's is container.json.
const lowerName = "lower.json"

type lower struct {
	Image    string `json:"image"`
	Manifest string `json:"manifest"`
	remote
}

// noteLower writes lower.json for the mount of a state directory, if it does not say that already.
func (job *serverJob) noteLower() error {
	l, path := lower{job.Image, job.Manifest, job.remote}, filepath.Join(job.State, lowerName)
	var is lower
	if job.Container != "" || readJSON(path, &is) == nil && is == l {
		return nil
	}
	return writeJSON(path, l)
}

// written is what a container, or a mount with a state directory, has written; whether or not it runs.
type written struct {
	servedTree
	dir    string          // of the state
	mounts map[string]bool // where the runtime mounts, and their parents: what it made there is not the container's
}

// openWritten opens a container's state, or for a path that of a mount. Nothing is fetched for it. Without content files that are
// not of an image cannot be read, and their directories need not be there.
func (a *app) openWritten(ref string, content bool) (*written, error) {
	w := new(written)
	if err := w.open(a, ref, content); err != nil {
		return nil, errors.Join(err, w.close(true))
	}
	return w, nil
}

func (w *written) open(a *app, ref string, content bool) error {
	c, err := a.places().find(ref)
	var none *errNoContainer
	switch {
	case err == nil:
		w.dir, w.mounts = a.places().file(c.ID, "delta"), mountPoints()
		return w.openLower(serverJob{Places: a.places(), Image: c.Image, Manifest: c.Manifest, remote: c.remote}, a.log)
	case !errors.As(err, &none):
		return err
	}
	w.dir = ref
	if _, e := os.Stat(filepath.Join(ref, treeName)); e == nil {
		return w.openKept(a, content)
	}
	var l lower
	e := readJSON(filepath.Join(ref, lowerName), &l)
	switch {
	case errors.Is(e, fs.ErrNotExist) && !strings.Contains(ref, "/"):
		return err
	case e != nil:
		return fmt.Errorf("%s is neither a container nor a state directory that was mounted: %w", ref, e)
	}
	return w.openLower(serverJob{Places: a.places(), Image: l.Image, Manifest: l.Manifest, remote: l.remote}, a.log)
}

// openKept opens the tree of host directories in the state directory.
func (w *written) openKept(a *app, content bool) (err error) {
	if w.tree, err = unionfs.Open(filepath.Join(w.dir, treeName)); err != nil {
		return err
	}
	w.closers = append(w.closers, w.tree.Close)
	if !content {
		return nil
	}
	for _, l := range w.tree.Layers() {
		if err := w.openLayer(l.Path); err != nil {
			return err
		}
	}
	return w.openDirContents(a.log)
}

// snapshot returns the tree as it is now.
func (w *written) snapshot(a *app) (*cow.Snapshot, error) {
	return cow.OpenSnapshot(w.dir, w.tree, w.contents, cow.Options{Log: a.log})
}

// mountPoints are the places in a container where the runtime mounts on its own account, and the directories above them.
func mountPoints() map[string]bool {
	places := make(map[string]bool)
	add := func(p string) {
		for ; p != "/"; p = path.Dir(p) {
			places[p] = true
		}
	}
	for _, m := range runtime.DefaultSpec().Mounts {
		add(m.Destination)
	}
	for _, name := range networkFiles {
		add("/etc/" + name)
	}
	return places
}
