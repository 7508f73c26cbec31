package fetcher

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sync/errgroup"
)

// errNotInLayer means that a layer does not hold a file that its table of contents, or the tree, says it holds.
var errNotInLayer = errors.New("the layer does not hold it")

// Pull brings everything of img into the store: its tree, and the content of all its files. A layer of which anything is missing is
// streamed whole, which costs one request and verifies its diff ID as well. Afterwards everything is on the disk.
func (s *Store) Pull(ctx context.Context, c *Client, img *Image, p Progress) error {
	layers, err := layerSources(img, func(i int) Blob { return c.Blob(img, i) })
	if err != nil {
		return err
	}
	return s.pull(ctx, layers, progressOrSilent(p))
}

func (s *Store) pull(ctx context.Context, layers []layerSource, p Progress) error {
	t, err := s.tree(ctx, layers, p)
	if err != nil {
		return err
	}
	defer t.Close()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxPlainLayers)
	for i := range layers {
		group.Go(func() error {
			if _, err := s.fillLayer(ctx, &layers[i], t, p); err != nil {
				return s.full(&LayerError{Layer: i, Digest: t.Layers()[i].Digest, Err: err})
			}
			return nil
		})
	}
	return errors.Join(group.Wait(), s.flush())
}

// fillLayer streams a layer of t if any of its content is missing. One process at a time does so for a layer.
func (s *Store) fillLayer(ctx context.Context, src *layerSource, t *unionfs.Tree, p Progress) (streamed bool, err error) {
	if _, missing := s.missingContent(t, src.index); !missing {
		return false, nil
	}
	lock, err := lockFile(ctx, s.layerLockPath(t.Layers()[src.index].Digest)+".stream")
	if err != nil {
		return false, err
	}
	defer lock.unlock()
	// Another process may have streamed it while this one waited.
	if _, missing := s.missingContent(t, src.index); !missing {
		return false, nil
	}
	if err := s.stream(ctx, src, p, func(*unionfs.Entry) error { return nil }); err != nil {
		return true, err
	}
	if d, missing := s.missingContent(t, src.index); missing {
		return true, fmt.Errorf("file with content %s: %w", d, errNotInLayer)
	}
	return true, nil
}

// missingContent returns a content of a layer that is not in the store, if there is one.
func (s *Store) missingContent(t *unionfs.Tree, layer int) (unionfs.Digest, bool) {
	for idx := range uint32(t.Totals().Contents) {
		c, ok := t.ContentInfo(idx)
		if !ok || c.Layer != layer || c.Size == 0 || s.hasContent(c.Digest, c.Size) {
			continue
		}
		f, err := s.openContent(c.Digest, c.Size)
		if err != nil {
			return c.Digest, true
		}
		f.Close()
	}
	return unionfs.Digest{}, false
}

// layerLockPath names the file whose byte ranges are locked while those of a layer's blob are fetched. With ".stream" it is what is locked
// while the layer is streamed.
func (s *Store) layerLockPath(d unionfs.Digest) string {
	return filepath.Join(s.root, "partial/layers", fmt.Sprintf("%x", d[:]))
}
