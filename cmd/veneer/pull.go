package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/veneerfs/veneer/fetcher"
)

// pullFlags are the flags of pull.
type pullFlags struct {
	remote   remote
	quiet    bool
	lazy     bool
	platform string
}

func newPullCmd(a *app) *cobra.Command {
	f := new(pullFlags)
	c := &cobra.Command{
		Use:   "pull [flags] IMAGE",
		Short: "Fetch all of an image",
		Long: `Fetch all of an image, so that running it needs no registry any more. Layers are fetched at the same time; what is here
already is not fetched again.

IMAGE is a registry reference as Docker writes it, oci:DIR[:TAG] or oci-archive:FILE.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error { return a.pull(c.Context(), f, args[0]) },
	}
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print the image's name only")
	c.Flags().BoolVar(&f.lazy, "lazy", false, "fetch only what says which files there are, so that a start fetches what it reads")
	f.remote.add(c.Flags())
	c.Flags().StringVar(&f.platform, "platform", "", "`OS/ARCH[/VARIANT]` to pick from an image for several; this machine's without it")
	return c
}

// pull asks the registry what the name means now, and fetches all that is not here.
func (a *app) pull(ctx context.Context, f *pullFlags, image string) (err error) {
	ref, err := fetcher.ParseReference(image)
	if err != nil {
		return err
	}
	platform := fetcher.HostPlatform()
	if f.platform != "" {
		if platform, err = fetcher.ParsePlatform(f.platform); err != nil {
			return err
		}
	}
	store, err := fetcher.OpenStore(a.root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	store.SetLog(a.log)
	client := f.remote.client(store, a.log)
	defer client.Close()

	img, err := client.Resolve(ctx, ref, platform)
	if err != nil {
		return err
	}
	known := false
	if before, err := store.Image(ref, platform); err == nil {
		known = before.Manifest == img.Manifest
	}
	if err := a.pullLayers(ctx, f, store, client, img); err != nil {
		return err
	}
	if err := store.SaveImage(img); err != nil {
		return err
	}
	if _, err := store.Shrink(ctx); err != nil {
		return err
	}
	if f.quiet {
		fmt.Fprintln(a.stdout, ref)
		return nil
	}
	status := "Downloaded newer image for"
	if known && client.Traffic().LayerRequests == 0 {
		status = "Image is up to date for"
	}
	fmt.Fprintf(a.stdout, "Digest: %s\nStatus: %s %s\n%s\n", img.Manifest, status, image, ref)
	return nil
}

func (a *app) pullLayers(ctx context.Context, f *pullFlags, store *fetcher.Store, client *fetcher.Client, img *fetcher.Image) error {
	var shown fetcher.Progress
	if !f.quiet {
		p := newProgress(a.stderr)
		defer p.close()
		shown = p
	}
	if !f.lazy {
		return store.Pull(ctx, client, img, shown)
	}
	tree, err := store.Tree(ctx, client, img, shown)
	if err != nil {
		return err
	}
	return tree.Close()
}
