package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/veneerfs/veneer/fetcher"
)

func newStoreCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "store", Short: "Look after the store of image content", Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(&cobra.Command{
		Use: "verify", Short: "Hash all that is in the store, and drop what is damaged: it is fetched again when it is read",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withStore(func(s *fetcher.Store) error { return a.verifyStore(c.Context(), s) })
		},
	}, &cobra.Command{
		Use: "gc", Short: "Remove what no image and no container needs, and what is beyond the limit", Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withStore(func(s *fetcher.Store) error { return a.collectGarbage(c.Context(), s) })
		},
	}, &cobra.Command{
		Use:   "limit [BYTES|none]",
		Short: "Print or set what image content may take of the disk",
		Long: `Print or set what image content may take of the disk: 20G for example.

When a container ends that fetched something, after a pull and by gc, what was not used for the longest time is removed until the rest is within
the limit. What a running container or a mount needs stays, even beyond it.`,
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withStore(func(s *fetcher.Store) error { return a.storeLimit(c, s, args) })
		},
	})
	return c
}

// withStore calls use with the store.
func (a *app) withStore(use func(*fetcher.Store) error) (err error) {
	store, err := fetcher.OpenStore(a.root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	store.SetLog(a.log)
	return use(store)
}

func (a *app) verifyStore(ctx context.Context, s *fetcher.Store) error {
	v, err := s.Verify(ctx)
	for _, d := range v.Damaged {
		fmt.Fprintf(a.stdout, "dropped damaged %s\n", d)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "verified %d files, %s; %d damaged\n", v.Files, humanSize(v.Bytes), len(v.Damaged))
	return nil
}

func (a *app) collectGarbage(ctx context.Context, s *fetcher.Store) error {
	keep, err := a.places().manifests()
	if err != nil {
		return err
	}
	r, err := s.GC(ctx, keep)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "removed %d files, %s\n", r.Files, humanSize(r.Bytes))
	return nil
}

// manifests returns those of the containers' images.
func (p places) manifests() ([]digest.Digest, error) {
	ids, err := p.ids()
	if err != nil {
		return nil, err
	}
	var out []digest.Digest
	for _, id := range ids {
		if c, err := p.load(id); err == nil && c.Manifest != "" { // else it is half made, or removed since
			out = append(out, digest.Digest(c.Manifest))
		}
	}
	return out, nil
}

func (a *app) storeLimit(c *cobra.Command, s *fetcher.Store, args []string) error {
	if len(args) == 0 {
		n, err := s.Limit()
		switch {
		case err != nil:
			return err
		case n == 0:
			fmt.Fprintln(a.stdout, "none")
		default:
			fmt.Fprintln(a.stdout, n)
		}
		return nil
	}
	var n byteCount
	if args[0] != "none" {
		if err := n.Set(args[0]); err != nil {
			return usageError(c, fmt.Errorf("limit %q: %w", args[0], err))
		}
	}
	return s.SetLimit(int64(n))
}

func newSystemCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "system", Short: "Look after veneer as a whole", Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(&cobra.Command{
		Use: "df", Short: "Print what is on the disk", Args: usageArgs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error { return a.withStore(a.diskUsage) },
	})
	return c
}

func (a *app) diskUsage(s *fetcher.Store) error {
	u, err := s.Usage()
	if err != nil {
		return err
	}
	ids, err := a.places().ids()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "TYPE\tCOUNT\tSIZE\tNOT IN USE\n")
	fmt.Fprintf(w, "Images\t%d\t%s\t\n", u.Images, humanSize(u.TreeBytes))
	fmt.Fprintf(w, "Files\t%d\t%s\t%s\n", u.Contents, humanSize(u.ContentBytes), humanSize(u.FreeableBytes))
	fmt.Fprintf(w, "Parts of files\t%d\t%s\t\n", u.Partials, humanSize(u.PartialBytes))
	fmt.Fprintf(w, "Containers\t%d\t\t\n", len(ids))
	return w.Flush()
}
