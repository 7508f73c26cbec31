package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/veneerfs/veneer/fetcher"
)

// imageLine is what `veneer images` tells of an image.
type imageLine struct {
	Repository string
	Tag        string
	Digest     string // of the manifest
	Platform   string
	CreatedAt  time.Time `json:",omitzero"`
	Size       int64     // of the layers as they are in the registry, bytes
}

func newImagesCmd(a *app) *cobra.Command {
	var quiet, digests bool
	var format string
	c := &cobra.Command{
		Use:   "images [flags] [REPOSITORY[:TAG]]",
		Short: "List the images that were run, mounted or pulled",
		Long: `List the images that were run, mounted or pulled. IMAGE ID is the beginning of the manifest's digest; SIZE is that of the
layers as they are in the registry, not of what is here.`,
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if format != "" && format != "json" {
				return usageError(c, fmt.Errorf("--format %q: want json", format))
			}
			lines, err := a.imageLines(args)
			if err != nil {
				return err
			}
			switch {
			case format == "json":
				return a.printImagesJSON(lines)
			case quiet:
				return a.printImageIDs(lines)
			}
			return a.printImages(lines, digests)
		},
	}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print image IDs only")
	c.Flags().BoolVar(&digests, "digests", false, "show digests")
	c.Flags().StringVar(&format, "format", "", "json for one JSON object a line")
	return c
}

// imageLines lists the store's images, all or those that the argument names.
func (a *app) imageLines(args []string) (lines []imageLine, err error) {
	store, err := fetcher.OpenStore(a.root)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	store.SetLog(a.log)
	images, err := store.Images()
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		l := imageLine{
			Repository: img.Ref.Repository(), Tag: img.Ref.Tag(), Digest: img.Manifest.String(),
			Platform: img.Platform.String(), CreatedAt: img.Created, Size: img.Size,
		}
		if len(args) == 0 || args[0] == l.Repository || args[0] == l.Repository+":"+l.Tag {
			lines = append(lines, l)
		}
	}
	return lines, nil
}

func (a *app) printImages(lines []imageLine, digests bool) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 3, ' ', 0)
	column := func(digest string) string {
		if !digests {
			return ""
		}
		return digest + "\t"
	}
	fmt.Fprintf(w, "REPOSITORY\tTAG\t%sIMAGE ID\tCREATED\tSIZE\n", column("DIGEST"))
	for _, l := range lines {
		tag, created := l.Tag, "N/A"
		if tag == "" {
			tag = "<none>"
		}
		if !l.CreatedAt.IsZero() {
			created = ago(time.Since(l.CreatedAt))
		}
		fmt.Fprintf(w, "%s\t%s\t%s%s\t%s\t%s\n", l.Repository, tag, column(l.Digest), l.id(), created, humanSize(l.Size))
	}
	return w.Flush()
}

// printImageIDs prints each ID once, as Docker does.
func (a *app) printImageIDs(lines []imageLine) error {
	seen := make(map[string]bool)
	for _, l := range lines {
		if !seen[l.id()] {
			seen[l.id()] = true
			if _, err := fmt.Fprintln(a.stdout, l.id()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *app) printImagesJSON(lines []imageLine) error {
	e := json.NewEncoder(a.stdout)
	for _, l := range lines {
		if err := e.Encode(l); err != nil {
			return err
		}
	}
	return nil
}

func (l imageLine) id() string { return l.Digest[len("sha256:"):][:12] }

// ago writes how long something is past, as Docker does: "3 weeks ago".
func ago(d time.Duration) string {
	const day = 24 * time.Hour
	for _, u := range []struct {
		name string
		unit time.Duration
		from time.Duration // the smallest that this unit is used for
	}{
		{"year", 365 * day, 2 * 365 * day},
		{"month", 30 * day, 60 * day},
		{"week", 7 * day, 14 * day},
		{"day", day, 2 * day},
		{"hour", time.Hour, 2 * time.Hour},
		{"minute", time.Minute, 2 * time.Minute},
		{"second", time.Second, 2 * time.Second},
	} {
		if d >= u.from {
			return fmt.Sprintf("%d %ss ago", d/u.unit, u.name)
		}
	}
	return "a moment ago"
}
