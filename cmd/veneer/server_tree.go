package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/veneerfs/veneer/cow"
	"github.com/veneerfs/veneer/fetcher"
	"github.com/veneerfs/veneer/unionfs"
)

// servedTree is a tree with everything that it stands on.
type servedTree struct {
	*cow.FS
	tree     *unionfs.Tree
	image    *fetcher.Image  // nil for directories
	client   *fetcher.Client // nil for directories
	contents *fetcher.Contents
	dirs     []*os.File     // open layers; nil once contents has them
	closers  []func() error // last opened, last in the list
}

// openServed opens what a job says. Nothing is fetched for it.
func openServed(job serverJob, log *slog.Logger) (*servedTree, error) {
	if job.State == "" {
		return tryOpen(job, log)
	}
	return openState(job.Places, job.State, func() (*servedTree, error) { return tryOpen(job, log) })
}

func tryOpen(job serverJob, log *slog.Logger) (*servedTree, error) {
	t := new(servedTree)
	open := t.openImage
	if len(job.Dirs) > 0 {
		open = t.openDirs
	}
	if err := open(job, log); err != nil {
		t.close(true)
		return nil, err
	}
	return t, nil
}

// openImage opens an image, with what was changed over it.
func (t *servedTree) openImage(job serverJob, log *slog.Logger) error {
	if err := t.openLower(job, log); err != nil {
		return err
	}
	if job.State == "" {
		t.FS = cow.ReadOnly(t.tree, t.contents)
		return nil
	}
	var err error
	if t.FS, err = cow.Open(job.State, t.tree, t.contents, job.Storage.limit(cow.Options{Log: log, Session: job.Session})); err != nil {
		return err
	}
	if err := job.noteLower(); err != nil { // a full disk must not keep anybody from removing files
		log.Warn("diff, export and check will not find the image of the state directory", "err", err)
	}
	return nil
}

// openLower opens the image's tree and its contents.
func (t *servedTree) openLower(job serverJob, log *slog.Logger) error {
	store, err := fetcher.OpenStore(job.Places.Root)
	if err != nil {
		return err
	}
	t.closers = append(t.closers, store.Close)
	store.SetLog(log)
	if t.image, err = storedImage(store, job.Image, job.Manifest); err != nil {
		return err
	}
	t.client = job.client(store, log)
	if t.tree, err = store.Tree(context.Background(), t.client, t.image, nil); err != nil {
		return err
	}
	t.closers = append(t.closers, t.tree.Close)
	if t.contents, err = store.Contents(t.client, t.image, t.tree, job.contentsOptions(log)); err != nil {
		return err
	}
	t.closers = append(t.closers, t.contents.Close)
	return nil
}

// contentsOptions returns how the image is read, by a server or by a command that looks at what was written.
func (j *serverJob) contentsOptions(log *slog.Logger) fetcher.ContentsOptions {
	if j.Container == "" && j.Dir == "" {
		return j.contents(log)
	}
	return j.served(log, j.Command)
}

// close writes what has to be kept, unless drop says that nothing has.
func (t *servedTree) close(drop bool) error {
	var errs []error
	if t.FS != nil && !drop {
		if err := t.FS.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close the writable layer: %w", err))
		}
	}
	for _, dir := range t.dirs {
		dir.Close()
	}
	for i := len(t.closers) - 1; i >= 0; i-- {
		errs = append(errs, t.closers[i]())
	}
	return errors.Join(errs...)
}

// storedImage finds an image by the name that it was resolved by, even if that name means another manifest by now.
func storedImage(store *fetcher.Store, name, manifest string) (*fetcher.Image, error) {
	ref, err := fetcher.ParseReference(name)
	if err != nil {
		return nil, err
	}
	img, err := store.Image(ref, fetcher.Platform{})
	if err == nil && string(img.Manifest) == manifest {
		return img, nil
	}
	if ref, err = pinned(ref, manifest); err != nil {
		return nil, err
	}
	if img, err = store.Image(ref, fetcher.Platform{}); err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return img, nil
}
