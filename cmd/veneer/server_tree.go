package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

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
	closers  []func() error // last opened, last in the list
}

// openServed opens what a job says. Nothing is fetched for it.
func openServed(job serverJob, log *slog.Logger) (t *servedTree, err error) {
	t = new(servedTree)
	defer func() {
		if err != nil {
			t.close(true)
		}
	}()
	contents, err := t.openLower(job, log)
	if err != nil {
		return nil, err
	}
	if job.State == "" {
		t.FS = cow.ReadOnly(t.tree, contents)
		return t, nil
	}
	t.FS, err = openState(job.Places, job.State, func() (*cow.FS, error) {
		return cow.Open(job.State, t.tree, contents, cow.Options{Log: log})
	})
	return t, err
}

func (t *servedTree) openLower(job serverJob, log *slog.Logger) (cow.Contents, error) {
	store, err := fetcher.OpenStore(job.Places.Root)
	if err != nil {
		return nil, err
	}
	t.closers = append(t.closers, store.Close)
	store.SetLog(log)
	if len(job.Dirs) > 0 {
		t.tree, err = mergeDirs(job.Dirs)
	} else {
		err = t.openImage(store, job, log)
	}
	if err != nil {
		return nil, err
	}
	t.closers = append(t.closers, t.tree.Close)
	if t.contents, err = store.Contents(t.client, t.image, t.tree, job.contents(log)); err != nil {
		return nil, err
	}
	t.closers = append(t.closers, t.contents.Close)
	return t.contents, nil
}

func (t *servedTree) openImage(store *fetcher.Store, job serverJob, log *slog.Logger) (err error) {
	if t.image, err = storedImage(store, job.Image, job.Manifest); err != nil {
		return err
	}
	t.client = job.client(store, log)
	t.tree, err = store.Tree(context.Background(), t.client, t.image, nil)
	return err
}

// mergeDirs makes a tree of host directories. Nobody needs its file once it is open.
func mergeDirs(dirs []string) (*unionfs.Tree, error) {
	tmp, err := os.MkdirTemp("", "veneer-tree-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	b := unionfs.NewBuilder()
	for _, dir := range dirs {
		if err := b.AddDir(dir); err != nil {
			return nil, fmt.Errorf("layer %s: %w", dir, err)
		}
	}
	path := filepath.Join(tmp, "tree")
	if err := b.WriteFile(path); err != nil {
		return nil, err
	}
	return unionfs.Open(path)
}

// close writes what has to be kept, unless drop says that nothing has.
func (t *servedTree) close(drop bool) error {
	var errs []error
	if t.FS != nil && !drop {
		if err := t.FS.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close the writable layer: %w", err))
		}
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
