package fetcher

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sync/errgroup"
)

// How many layers are read at once: of tables of contents, and of whole bodies.
const (
	maxLazyLayers  = 16
	maxPlainLayers = 4
)

// Tree opens the image tree of img, and builds it when the store has none: from the TOCs of layers that can be fetched by range, and from
// the whole bodies of the others, whose files go into the store. One process builds a tree at a time; others wait and open it.
// Opening a tree that is there makes no request.
func (s *Store) Tree(ctx context.Context, c *Client, img *Image, p Progress) (*unionfs.Tree, error) {
	layers, err := layerSources(img, func(i int) Blob { return c.Blob(img, i) })
	if err != nil {
		return nil, err
	}
	return s.tree(ctx, layers, progressOrSilent(p))
}

// StoredTree opens the image tree of img; fs.ErrNotExist when the store has none.
func (s *Store) StoredTree(img *Image) (*unionfs.Tree, error) {
	layers, err := layerSources(img, func(int) Blob { return nil })
	if err != nil {
		return nil, err
	}
	return s.openTree(s.treePath(layers))
}

func (s *Store) tree(ctx context.Context, layers []layerSource, p Progress) (*unionfs.Tree, error) {
	path := s.treePath(layers)
	t, err := s.openTree(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return t, err
	}
	lock, err := lockFile(ctx, path+".lock")
	if err != nil {
		return nil, s.full(fmt.Errorf("build image tree: %w", err))
	}
	defer lock.unlock()
	// Another process may have built it while this one waited.
	if t, err = s.openTree(path); !errors.Is(err, fs.ErrNotExist) {
		return t, err
	}
	if err := s.buildTree(ctx, layers, path, p); err != nil {
		return nil, s.full(fmt.Errorf("build image tree: %w", err))
	}
	return s.openTree(path)
}

func (s *Store) openTree(path string) (*unionfs.Tree, error) {
	t, err := unionfs.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open image tree: %w", err)
	}
	return t, nil
}

// treeKeyVersion changes when the same layers begin to give another tree.
const treeKeyVersion = "veneer tree 1\n"

// treePath names the tree of layers by their diff IDs and by the digests of their blobs. The chain ID, which knows only
// the diff IDs, would not do: it is the same for two compressed forms, whose chunks are at different places.
func (s *Store) treePath(layers []layerSource) string {
	h := sha256.New()
	h.Write([]byte(treeKeyVersion))
	for i := range layers {
		l := &layers[i]
		fmt.Fprintf(h, "%s %s %d\n", l.diff, l.desc.Digest, lazyFormat(&l.desc))
	}
	return filepath.Join(s.root, "trees", hex.EncodeToString(h.Sum(nil)))
}

func (s *Store) buildTree(ctx context.Context, layers []layerSource, path string, p Progress) error {
	b := unionfs.NewBuilder()
	first, err := s.merge(ctx, b, layers, p)
	if err != nil {
		return err
	}
	// A tree whose plain layers are not in the store would be found wanting later: their files are made durable first.
	if err := s.flush(); err != nil {
		return err
	}
	if err := s.writeFirst(path, first); err != nil {
		return fmt.Errorf("write image tree: %w", err)
	}
	if err := b.WriteFile(path); err != nil {
		return fmt.Errorf("write image tree: %w", err)
	}
	return nil
}

// merge loads the layers at the same time and adds them to b in order. The entries of a layer are kept until it is
// their turn. It returns up to where each blob wants to be fetched first.
func (s *Store) merge(ctx context.Context, b *unionfs.Builder, layers []layerSource, p Progress) (first []int64, err error) {
	first = make([]int64, len(layers))
	group, ctx := errgroup.WithContext(ctx)
	ready := make([]chan *loaded, len(layers))
	for i := range ready {
		ready[i] = make(chan *loaded, 1)
	}
	group.Go(func() error {
		loaders, ctx := errgroup.WithContext(ctx)
		loaders.SetLimit(maxLazyLayers)
		plain := make(chan struct{}, maxPlainLayers)
		for i := range layers {
			loaders.Go(func() error {
				l, err := s.loadLayer(ctx, &layers[i], plain, p)
				if err == nil {
					ready[i] <- l
				}
				return err
			})
		}
		return loaders.Wait()
	})
	group.Go(func() error {
		for i := range ready {
			select {
			case l := <-ready[i]:
				first[i] = l.first
				if err := addLayer(b, l); err != nil {
					return &LayerError{Layer: i, Digest: l.layer.Digest, Err: err}
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	return first, group.Wait()
}

func addLayer(b *unionfs.Builder, l *loaded) error {
	if err := b.AddLayer(l.layer); err != nil {
		return err
	}
	for i, e := range l.entries {
		if err := b.Add(e); err != nil {
			return err
		}
		l.entries[i] = nil
	}
	return nil
}
