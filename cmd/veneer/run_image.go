package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/veneerfs/veneer/fetcher"
	"github.com/veneerfs/veneer/unionfs"
)

// localImage is an image whose tree is in the store.
type localImage struct {
	*fetcher.Image
	tree   *unionfs.Tree
	store  *fetcher.Store
	client *fetcher.Client
	remote remote
}

// openImage finds an image in the store, or else where its name says, makes sure that its tree is in the store, and calls use.
// What has been resolved before is not asked for again, as with Docker: a newer image of the same tag comes with pull.
func (a *app) openImage(ctx context.Context, name string, r remote, use func(*localImage) error) (err error) {
	ref, err := fetcher.ParseReference(name)
	if err != nil {
		return err
	}
	store, err := fetcher.OpenStore(a.root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	store.SetLog(a.log)
	client := r.client(store, a.log)
	defer client.Close()
	img, err := store.Image(ref, fetcher.Platform{})
	isNew := errors.Is(err, fetcher.ErrNotStored)
	if isNew {
		img, err = client.Resolve(ctx, ref, fetcher.Platform{})
	}
	if err != nil {
		return err
	}
	tree, err := a.openTree(ctx, store, client, img, isNew)
	if err != nil {
		return err
	}
	defer tree.Close()
	if isNew {
		if err := store.SaveImage(img); err != nil {
			return err
		}
	}
	return use(&localImage{Image: img, tree: tree, store: store, client: client, remote: r})
}

// openTree opens img's tree, and shows how it is made for a new image.
func (a *app) openTree(ctx context.Context, store *fetcher.Store, client *fetcher.Client, img *fetcher.Image, isNew bool) (*unionfs.Tree, error) {
	var shown fetcher.Progress
	if isNew {
		p := newProgress(a.stderr)
		defer p.close()
		shown = p
	}
	return store.Tree(ctx, client, img, shown)
}

// readFile reads a file of the image, as the path of the container would lead to it. A missing one, or what is no regular file,
// is fs.ErrNotExist.
func (img *localImage) readFile(ctx context.Context, path string, limit int64) ([]byte, error) {
	ino, ok := resolveInTree(img.tree, path)
	if !ok {
		return nil, errNoFile(path)
	}
	attr, _ := img.tree.Attr(ino)
	if !isRegular(attr) {
		return nil, errNoFile(path)
	}
	contents, err := img.store.Contents(img.client, img.Image, img.tree, img.remote.contents(nil))
	if err != nil {
		return nil, err
	}
	defer contents.Close()
	p := make([]byte, min(attr.Size, limit))
	for n := 0; n < len(p); {
		k, err := contents.ReadAt(ctx, ino, p[n:], int64(n))
		if err != nil {
			return nil, fmt.Errorf("read the image's %s: %w", path, err)
		}
		if k == 0 {
			return p[:n], nil
		}
		n += k
	}
	return p, nil
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
