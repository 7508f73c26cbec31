package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fetcher/embedded"
	"github.com/veneerfs/veneer/fetcher/embedded/hostimage"
	"github.com/veneerfs/veneer/fetcher/embedded/slowlink"
)

// The demo's image and link.
const (
	demoParts    = 3
	demoPartSize = 104 << 20 // bytes
	demoRate     = 100e6     // bits per second
	demoRTT      = 20 * time.Millisecond
	demoSpace    = 1 << 30 // bytes: the image in the registry, and pulled whole once
)

// demoCommand says hello first and then reads a little of something big.
const demoCommand = `echo "hello from the image"; ls -l /data | tail -n 1; tail -c 65536 /data/part-2 | sha256sum`

func newDemoCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show on this machine what veneer does",
		Long: `Show on this machine what veneer does: build an image of 300 MB out of the machine's own programs, serve it from a
registry inside this process over a link of 100 Mbit/s and 20 ms, and run it. All traffic is on loopback, all files are below
one temporary directory (TMPDIR chooses where), and nothing of it is left in the end.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.needRoot("run containers"); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(c.Context(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
			defer stop()
			return a.demo(ctx)
		},
	}
}

// demo tells its story from beginning to end and removes what it made.
func (a *app) demo(ctx context.Context) (err error) {
	d, err := a.newDemo()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	for _, step := range []func(context.Context) error{
		d.build, d.runCold, d.runWarm, d.change, d.chown, d.pullWhole,
	} {
		if err := step(ctx); err != nil {
			if ctx.Err() != nil {
				return errors.New("demo: interrupted")
			}
			return fmt.Errorf("demo: %w", err)
		}
	}
	return d.table()
}

// demo is the machinery of a demo that runs.
type demo struct {
	out  io.Writer
	log  io.Writer // messages of our commands
	exe  string    // this binary
	dir  string    // everything is below it
	step int

	registry *embedded.Registry
	server   *http.Server
	link     *slowlink.Link
	image    string // reference, by way of the link
	built    hostimage.Built
	rows     []demoRow // of the table
}

// demoRow is a start that was measured.
type demoRow struct {
	what    string
	fetched int64         // bytes that came over the link
	first   time.Duration // until the first byte of output
}

// newDemo starts the registry and the link.
func (a *app) newDemo() (*demo, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	dir, err := os.MkdirTemp("", "veneer-demo-")
	if err != nil {
		return nil, err
	}
	d := &demo{out: a.stdout, log: a.stderr, exe: exe, dir: dir}
	if err := d.serve(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (d *demo) serve() error {
	var fs unix.Statfs_t
	if err := unix.Statfs(d.dir, &fs); err != nil {
		return fmt.Errorf("measure %s: %w", d.dir, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < demoSpace {
		return fmt.Errorf("%s has %d MB free and the demo needs %d MB: set TMPDIR to another directory",
			filepath.Dir(d.dir), free>>20, demoSpace>>20)
	}
	blobs := filepath.Join(d.dir, "registry")
	if err := os.Mkdir(blobs, 0o700); err != nil {
		return err
	}
	d.registry = embedded.NewRegistry(blobs)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("start the registry: %w", err)
	}
	d.server = &http.Server{Handler: d.registry}
	go d.server.Serve(ln) // until close
	if d.link, err = slowlink.New(ln.Addr().String(), demoRate, demoRTT); err != nil {
		return err
	}
	d.image = d.link.Addr() + "/demo"
	return nil
}

// close ends what runs and removes the demo's directory. It can be called at any point of the story.
func (d *demo) close() error {
	err := d.removeContainers()
	if d.link != nil {
		d.link.Close()
	}
	if d.server != nil {
		err = errors.Join(err, d.server.Close())
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

// removeContainers removes the containers that an interrupted story has left.
func (d *demo) removeContainers() error {
	root := filepath.Join(d.dir, "lazy")
	if _, err := os.Stat(root); err != nil {
		return nil // the story had not begun
	}
	ids, err := d.command(context.Background(), "lazy", "ps", "--all", "--quiet").Output()
	if err != nil || len(ids) == 0 {
		return err
	}
	return d.command(context.Background(), "lazy", append([]string{"rm", "--force"}, strings.Fields(string(ids))...)...).Run()
}

// build makes the image.
func (d *demo) build(context.Context) error {
	d.say("Build an image and put it into a registry on this machine.")
	begun := time.Now()
	var err error
	d.built, err = hostimage.Add(d.registry, "demo", "latest", hostimage.Ballast{Parts: demoParts, Size: demoPartSize}, func(layer string) {
		fmt.Fprintf(d.out, "   layer: %s\n", layer)
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "%s: %d layers, %s, eStargz, built in %s\n",
		d.image, d.built.Layers, megabytes(d.built.Compressed), seconds(time.Since(begun)))
	fmt.Fprintf(d.out, "The registry is behind a link of %.0f Mbit/s with a round trip of %d ms.\n", demoRate/1e6, demoRTT.Milliseconds())
	return nil
}

func (d *demo) runCold(ctx context.Context) error {
	d.say("Run it. Nothing of the image is here yet.")
	return d.measure(ctx, "run, nothing here", "lazy", demoCommand)
}

func (d *demo) runWarm(ctx context.Context) error {
	d.say("Run it again. What it read is here now, and nobody asks the registry.")
	return d.measure(ctx, "run again", "lazy", demoCommand)
}

// change shows the writable layer: one container changes a file, the next one sees the image's.
func (d *demo) change(ctx context.Context) error {
	d.say("Change a file of the image in a container. The image keeps its own.")
	changed, err := d.veneer(ctx, "lazy", nil, "run", "--rm", d.image, "sh", "-c", "echo changed in a container > /etc/motd; cat /etc/motd")
	if err != nil {
		return err
	}
	kept, err := d.veneer(ctx, "lazy", nil, "run", "--rm", d.image, "cat", "/etc/motd")
	if err != nil {
		return err
	}
	if changed != "changed in a container\n" || kept != hostimage.Motd {
		return fmt.Errorf("/etc/motd was %q in the container and %q in the next", changed, kept)
	}
	return nil
}

// chown shows that metadata changes fetch no content.
func (d *demo) chown(ctx context.Context) error {
	d.say("Give the big files to another user. That needs none of their bytes.")
	before := d.link.Received()
	if _, err := d.veneer(ctx, "lazy", nil, "run", "--rm", d.image, "sh", "-c", "chown -R 1000:1000 /data; ls -ln /data | tail -n 1"); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "   %s over the link\n", megabytes(d.link.Received()-before))
	return nil
}

// pullWhole starts the image as others do.
func (d *demo) pullWhole(ctx context.Context) error {
	d.say("For comparison, in another store: fetch all of the image, then run it.")
	before, begun := d.link.Received(), time.Now()
	if _, err := d.veneer(ctx, "whole", nil, "pull", "--quiet", d.image); err != nil {
		return err
	}
	pulled := time.Since(begun)
	if err := d.measure(ctx, "full pull, then run", "whole", demoCommand); err != nil {
		return err
	}
	row := &d.rows[len(d.rows)-1]
	row.fetched = d.link.Received() - before
	row.first += pulled
	return nil
}

// table sums the story up.
func (d *demo) table() error {
	d.say("What it took")
	w := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', tabwriter.AlignRight|tabwriter.Debug)
	fmt.Fprintf(w, "\tbytes in the image\tbytes fetched\ttime to first output\t\n")
	for _, r := range d.rows {
		fmt.Fprintf(w, "%s\t%s\t%s (%.1f %%)\t%s\t\n", r.what, megabytes(d.built.Compressed), megabytes(r.fetched),
			100*float64(r.fetched)/float64(d.built.Compressed), seconds(r.first))
	}
	return w.Flush()
}

// measure runs script in the image and keeps a row for the table.
func (d *demo) measure(ctx context.Context, what, store, script string) error {
	before, begun := d.link.Received(), time.Now()
	var first time.Duration
	out, err := d.veneer(ctx, store, func() { first = time.Since(begun) }, "run", "--rm", d.image, "sh", "-c", script)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(out, "hello from the image\n") {
		return fmt.Errorf("the container said %q", out)
	}
	fetched := d.link.Received() - before
	fmt.Fprintf(d.out, "   first output after %s, %s over the link\n", seconds(first), megabytes(fetched))
	d.rows = append(d.rows, demoRow{what, fetched, first})
	return nil
}

// say prints the title of the next step.
func (d *demo) say(title string) {
	d.step++
	fmt.Fprintf(d.out, "\n%d. %s\n", d.step, title)
}

func megabytes(n int64) string       { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
func seconds(t time.Duration) string { return fmt.Sprintf("%.2f s", t.Seconds()) }
