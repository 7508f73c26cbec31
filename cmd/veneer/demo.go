package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fetcher/embedded"
	"github.com/veneerfs/veneer/fetcher/embedded/hostimage"
	"github.com/veneerfs/veneer/fetcher/embedded/slowlink"
)

// demoScale is how big the demo's image and how slow its link is.
type demoScale struct {
	ballast hostimage.Ballast
	rate    float64 // bits per second
	rtt     time.Duration
}

// demoFull is what `veneer demo` shows.
var demoFull = demoScale{hostimage.Ballast{Parts: 3, Size: 104 << 20}, 100e6, 20 * time.Millisecond}

// demoCommand says hello first and then reads a little, demoTail bytes, of something big.
const (
	demoCommand = `echo "hello from the image"; ls -l /data | tail -n 1; tail -c 65536 /data/part-2 | sha256sum`
	demoTail    = 65536
)

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
			// Whoever reads our output may go away, and we still have to clean up: a write fails then and does not kill us.
			// (The signal alone says nothing: it comes for every connection that the other side has closed, too.)
			signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
			return a.demo(ctx, demoFull)
		},
	}
}

// demo tells its story from beginning to end and removes what it made.
func (a *app) demo(ctx context.Context, scale demoScale) (err error) {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	d, err := a.newDemo(exe, scale)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	d.out = &stopsWriting{a.stdout, stop}
	return d.tell(ctx)
}

// stopsWriting calls stop when nobody reads any more.
type stopsWriting struct {
	w    io.Writer
	stop func()
}

func (s *stopsWriting) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil {
		s.stop()
	}
	return n, err
}

// tell goes through the story.
func (d *demo) tell(ctx context.Context) error {
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
	demoScale
	out  io.Writer
	log  io.Writer // messages of our commands
	exe  string    // the veneer binary
	dir  string    // everything is below it
	step int

	registry *embedded.Registry
	server   *http.Server
	link     *slowlink.Link
	image    string // reference, by way of the link
	built    hostimage.Built
	tail     string    // sha256 of the bytes that the command reads
	rows     []demoRow // of the table
}

// demoRow is a start that was measured.
type demoRow struct {
	what    string
	fetched int64         // bytes that came over the link
	first   time.Duration // until the first byte of output
}

// newDemo starts the registry and the link.
func (a *app) newDemo(exe string, scale demoScale) (*demo, error) {
	dir, err := os.MkdirTemp("", "veneer-demo-")
	if err != nil {
		return nil, err
	}
	d := &demo{demoScale: scale, out: a.stdout, log: a.stderr, exe: exe, dir: dir}
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
	// In the registry, pulled whole once, and what else there is.
	need := 2*int64(d.ballast.Parts)*d.ballast.Size + 100<<20
	if free := int64(fs.Bavail) * fs.Bsize; free < need {
		return fmt.Errorf("%s has %s free and the demo needs %s: set TMPDIR to another directory",
			filepath.Dir(d.dir), megabytes(free), megabytes(need))
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
	if d.link, err = slowlink.New(ln.Addr().String(), d.rate, d.rtt); err != nil {
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
	for _, store := range []string{"lazy", "whole"} {
		if _, err := os.Stat(filepath.Join(d.dir, store)); err != nil {
			continue // the story did not get there
		}
		ctx := context.Background()
		ids, err := d.command(ctx, store, "ps", "--all", "--quiet").Output()
		if err != nil {
			return fmt.Errorf("list the demo's containers: %w", err)
		}
		if left := strings.Fields(string(ids)); len(left) > 0 {
			if err := d.command(ctx, store, append([]string{"rm", "--force"}, left...)...).Run(); err != nil {
				return fmt.Errorf("remove the demo's containers: %w", err)
			}
		}
	}
	return nil
}

// build makes the image.
func (d *demo) build(context.Context) error {
	d.say("Build an image and put it into a registry on this machine.")
	begun := time.Now()
	var err error
	d.built, err = hostimage.Add(d.registry, "demo", "latest", d.ballast, func(layer string) {
		fmt.Fprintf(d.out, "   layer: %s\n", layer)
	})
	if err != nil {
		return err
	}
	if d.tail, err = tailSum(hostimage.BallastReader(2, d.ballast.Size), d.ballast.Size-demoTail); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "%s: %d layers, %s, eStargz, built in %s\n",
		d.image, d.built.Layers, megabytes(d.built.Compressed), seconds(time.Since(begun)))
	fmt.Fprintf(d.out, "The registry is behind a link of %.0f Mbit/s with a round trip of %d ms.\n", d.rate/1e6, d.rtt.Milliseconds())
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
	fmt.Fprintf(d.out, "%-22s %14s %15s %8s %14s\n", "", "bytes in image", "bytes fetched", "", "first output")
	for _, r := range d.rows {
		fmt.Fprintf(d.out, "%-22s %14s %15s %6.1f %% %14s\n", r.what, megabytes(d.built.Compressed), megabytes(r.fetched),
			100*float64(r.fetched)/float64(d.built.Compressed), seconds(r.first))
	}
	return nil
}

// measure runs script in the image and keeps a row for the table.
func (d *demo) measure(ctx context.Context, what, store, script string) error {
	before, begun := d.link.Received(), time.Now()
	var first time.Duration
	out, err := d.veneer(ctx, store, func() { first = time.Since(begun) }, "run", "--rm", d.image, "sh", "-c", script)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(out, "hello from the image\n") || !strings.Contains(out, d.tail) {
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

// tailSum returns the sha256 of what r has after skip bytes.
func tailSum(r io.Reader, skip int64) (string, error) {
	h := sha256.New()
	if _, err := io.CopyN(io.Discard, r, skip); err != nil {
		return "", err
	}
	_, err := io.Copy(h, r)
	return hex.EncodeToString(h.Sum(nil)), err
}

func megabytes(n int64) string       { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
func seconds(t time.Duration) string { return fmt.Sprintf("%.2f s", t.Seconds()) }
