package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fetcher"
	"github.com/veneerfs/veneer/unionfs"
)

func newProfileCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "profile",
		Short: "What starts read, and so is fetched first",
		Long: `What starts read, and so is fetched first.

Each run remembers what its command read of the image in the first minute. The next start of the same command, where that is not in the
store, fetches it in the same order ahead of the reads. A profile only orders what is fetched.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(&cobra.Command{
		Use: "show IMAGE", Short: "Print the profiles of an image, with paths", Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error { return a.showProfiles(args[0]) },
	}, &cobra.Command{
		Use: "export IMAGE [COMMAND [ARG...]]", Short: "Write the profile of a command, or the last one, to standard output",
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error { return a.exportProfile(args[0], args[1:]) },
	}, &cobra.Command{
		Use: "import IMAGE", Short: "Read a profile of an image from standard input", Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error { return a.importProfile(args[0]) },
	})
	for _, sub := range c.Commands() {
		sub.Flags().SetInterspersed(false)
	}
	return c
}

// withStored calls use with an image that the store knows.
func (a *app) withStored(name string, use func(*fetcher.Store, *fetcher.Image) error) (err error) {
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
	img, err := store.Image(ref, fetcher.Platform{})
	if errors.Is(err, fetcher.ErrNotStored) {
		return fmt.Errorf("%s: %w (veneer pull --lazy %s)", ref, err, name)
	}
	if err != nil {
		return err
	}
	return use(store, img)
}

// storedProfile returns the profile of a command, or without one the last that was written.
func storedProfile(store *fetcher.Store, img *fetcher.Image, command []string) (*fetcher.Profile, error) {
	all, err := store.Profiles(img.Manifest)
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if len(command) == 0 || strings.Join(command, "\x00") == strings.Join(p.Command, "\x00") {
			return p, nil
		}
	}
	return nil, fmt.Errorf("%s has no such profile: it comes with a run of the command", img.Ref)
}

func (a *app) exportProfile(image string, command []string) error {
	return a.withStored(image, func(store *fetcher.Store, img *fetcher.Image) error {
		p, err := storedProfile(store, img, command)
		if err != nil {
			return err
		}
		_, err = a.stdout.Write(p.Text())
		return err
	})
}

// importProfile keeps a profile for an image. It may be of another one: what they have in common counts.
func (a *app) importProfile(image string) error {
	return a.withStored(image, func(store *fetcher.Store, img *fetcher.Image) error {
		p, err := fetcher.ParseProfile(a.stdin)
		if err != nil {
			return err
		}
		if p.Image != img.Manifest {
			a.log.Info("the profile is of another image", "profile", p.Image, "image", img.Manifest)
		}
		p.Image = img.Manifest
		return store.SaveProfile(p)
	})
}

func (a *app) showProfiles(image string) error {
	return a.withStored(image, func(store *fetcher.Store, img *fetcher.Image) error {
		all, err := store.Profiles(img.Manifest)
		if err != nil {
			return err
		}
		if len(all) == 0 {
			return fmt.Errorf("%s has no profile: it comes with a run", img.Ref)
		}
		paths := map[unionfs.Digest]string{}
		if tree, err := store.StoredTree(img); err == nil {
			defer tree.Close()
			pathsOf(tree, unionfs.Root, "", paths)
		}
		for _, p := range all {
			if err := printProfile(a.stdout, p, paths); err != nil {
				return err
			}
		}
		return nil
	})
}

func printProfile(to io.Writer, p *fetcher.Profile, paths map[unionfs.Digest]string) error {
	fmt.Fprintf(to, "%q, of %d runs\n", p.Command, p.Runs)
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', tabwriter.AlignRight)
	for _, r := range p.Reads {
		path := paths[r.Content]
		if path == "" {
			path = r.Content.String()
		}
		fmt.Fprintf(w, "%v\t%d\t  %s\n", r.At, r.Offset, path)
	}
	return w.Flush()
}

// pathsOf finds a path for each content below a directory.
func pathsOf(t *unionfs.Tree, dir unionfs.Ino, at string, paths map[unionfs.Digest]string) {
	for i := range t.DirLen(dir) {
		name, ino, typ := t.DirAt(dir, i)
		switch typ {
		case unix.S_IFDIR:
			pathsOf(t, ino, at+"/"+name, paths)
		case unix.S_IFREG:
			if idx, ok := t.ContentIndex(ino); ok {
				if c, ok := t.ContentInfo(idx); ok && paths[c.Digest] == "" {
					paths[c.Digest] = at + "/" + name
				}
			}
		}
	}
}
