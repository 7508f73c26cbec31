package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/veneerfs/veneer/fetcher"
)

// fetched is what the command line got of an image before a server took over.
type fetched struct {
	image    *fetcher.Image
	bytes    int64 // of layers
	requests int64 // for layers
}

// imageForRun finds an image in the store, or else where its name says, and makes sure that its tree is in the store. What has been
// resolved before is not asked for again, as with Docker: a newer image of the same tag comes with pull.
func (a *app) imageForRun(ctx context.Context, name string, plainHTTP bool) (*fetched, error) {
	ref, err := fetcher.ParseReference(name)
	if err != nil {
		return nil, err
	}
	store, err := fetcher.OpenStore(a.root)
	if err != nil {
		return nil, err
	}
	store.SetLog(a.log)
	got, err := a.imageFrom(ctx, store, ref, plainHTTP)
	return got, errors.Join(err, store.Close())
}

func (a *app) imageFrom(ctx context.Context, store *fetcher.Store, ref fetcher.Reference, plainHTTP bool) (*fetched, error) {
	client := fetcher.NewClient(fetcher.ClientOptions{PlainHTTP: plainHTTP, Log: a.log})
	defer client.Close()
	img, err := store.Image(ref, fetcher.Platform{})
	isNew := errors.Is(err, fetcher.ErrNotStored)
	if isNew {
		img, err = client.Resolve(ctx, ref, fetcher.Platform{})
	}
	if err != nil {
		return nil, err
	}
	if err := a.makeTree(ctx, store, client, img, isNew); err != nil {
		return nil, err
	}
	if isNew {
		if err := store.SaveImage(img); err != nil {
			return nil, err
		}
	}
	t := client.Traffic()
	return &fetched{image: img, bytes: t.LayerBytes, requests: t.LayerRequests}, nil
}

// makeTree makes sure that img's tree is in the store.
func (a *app) makeTree(ctx context.Context, store *fetcher.Store, client *fetcher.Client, img *fetcher.Image, isNew bool) error {
	var shown fetcher.Progress
	if isNew {
		p := newProgress(a.stderr)
		defer p.close()
		shown = p
	}
	tree, err := store.Tree(ctx, client, img, shown)
	if err != nil {
		return err
	}
	return tree.Close()
}

// pinned returns the reference to the one manifest that ref was resolved to.
func pinned(ref fetcher.Reference, manifest string) (fetcher.Reference, error) {
	name := ref.String()
	if d := ref.Digest(); d != "" {
		name = strings.TrimSuffix(name, "@"+string(d))
	}
	p, err := fetcher.ParseReference(name + "@" + manifest)
	if err != nil {
		return p, fmt.Errorf("pin %s to %s: %w", ref, manifest, err)
	}
	return p, nil
}
