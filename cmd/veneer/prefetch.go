package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/veneerfs/veneer/unionfs"
)

func newPrefetchCmd(a *app) *cobra.Command {
	r := new(remote)
	c := &cobra.Command{
		Use:   "prefetch [flags] IMAGE PATH...",
		Short: "Fetch files of an image before they are read",
		Long: `Fetch files of an image before they are read, and all below a PATH that is a directory.

IMAGE is a registry reference as Docker writes it, oci:DIR[:TAG] or oci-archive:FILE.`,
		Args: usageArgs(cobra.MinimumNArgs(2)),
		RunE: func(c *cobra.Command, args []string) error { return a.prefetch(c.Context(), r, args[0], args[1:]) },
	}
	r.add(c.Flags())
	return c
}

func (a *app) prefetch(ctx context.Context, r *remote, image string, paths []string) error {
	return a.openImage(ctx, image, *r, func(img *localImage) error {
		var files []unionfs.Ino
		for _, path := range paths {
			ino, ok := resolveInTree(img.tree, path)
			if !ok {
				return fmt.Errorf("%s: %w", img.Ref, errNoFile(path))
			}
			files = filesBelow(img.tree, ino, files)
		}
		contents, err := img.store.Contents(img.client, img.Image, img.tree, r.contents(a.log))
		if err != nil {
			return err
		}
		defer contents.Close()
		if err := contents.Fetch(ctx, files); err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "%d files, %s fetched\n", len(files), humanSize(contents.Stats().FetchedBytes))
		return nil
	})
}

// filesBelow adds the files of a directory and its directories to files, or the file.
func filesBelow(t *unionfs.Tree, ino unionfs.Ino, files []unionfs.Ino) []unionfs.Ino {
	attr, ok := t.Attr(ino)
	if ok && isRegular(attr) {
		return append(files, ino)
	}
	for i := range t.DirLen(ino) {
		_, child, _ := t.DirAt(ino, i)
		files = filesBelow(t, child, files)
	}
	return files
}
