package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/veneerfs/veneer/fetcher"
)

// remote is how registries are reached, and what reads do while they are not.
type remote struct {
	PlainHTTP   bool          `json:"plainHTTP,omitempty"`
	Connections int           `json:"connections,omitempty"` // to one host; 0 is the fetcher's default
	CertsDir    string        `json:"certsDir,omitempty"`    // "": the fetcher's default
	FailAfter   time.Duration `json:"failAfter,omitempty"`   // 0: reads wait
	NoFill      bool          `json:"noFill,omitempty"`
	FillRate    int64         `json:"fillRate,omitempty"` // bytes a second; 0: no limit
}

// add adds the flags of every command that may ask a registry.
func (r *remote) add(fl *pflag.FlagSet) {
	fl.BoolVar(&r.PlainHTTP, "plain-http", false, "speak plain HTTP to the registry")
	fl.Var((*directory)(&r.CertsDir), "certs-dir", "`DIR` with a hosts.toml for each registry, as containerd has them (/etc/veneer/certs.d, /etc/containerd/certs.d)")
	fl.Var((*connections)(&r.Connections), "connections", "how many connections to one host all of veneer may have at a time (16)")
}

// addPolicy adds the flags of commands whose reads go on later.
func (r *remote) addPolicy(fl *pflag.FlagSet) {
	fl.BoolVar(&r.NoFill, "no-fill", false, "fetch only what is read, and what starts read, not the rest of the image when that is done")
	fl.Var((*byteCount)(&r.FillRate), "fill-rate", "how many `BYTES` a second of the rest of the image are fetched, 500k or 2M for example")
	fl.Var((*failAfter)(&r.FailAfter), "remote", "what a read does that its registry does not answer: wait, or fail[=`DURATION`]")
}

// client returns a client that shares its limits with all that use the store.
func (r *remote) client(store *fetcher.Store, log *slog.Logger) *fetcher.Client {
	o := fetcher.ClientOptions{
		PlainHTTP: r.PlainHTTP, Log: log, Connections: r.Connections, ConnectionDir: store.ConnectionDir(),
	}
	if r.CertsDir != "" {
		o.CertsDirs = []string{r.CertsDir}
	}
	return fetcher.NewClient(o)
}

// contents returns how image content is read.
func (r *remote) contents(log *slog.Logger) fetcher.ContentsOptions {
	return fetcher.ContentsOptions{Log: log, FailAfter: r.FailAfter, Requests: r.Connections}
}

// served returns how image content is read by a server: what a command's starts read is remembered, and the rest comes when they are over.
func (r *remote) served(log *slog.Logger, command []string) fetcher.ContentsOptions {
	o := r.contents(log)
	o.Profile, o.Command = len(command) > 0, command
	o.Fill, o.FillRate = !r.NoFill, r.FillRate
	return o
}

// defaultFailAfter is what fail means without a duration.
const defaultFailAfter = 30 * time.Second

// failAfter is the value of --remote.
type failAfter time.Duration

func (f *failAfter) String() string {
	if *f == 0 {
		return "wait"
	}
	return "fail=" + time.Duration(*f).String()
}

func (f *failAfter) Type() string { return "policy" }

func (f *failAfter) Set(s string) error {
	policy, after, isSet := strings.Cut(s, "=")
	switch {
	case s == "wait":
		*f = 0
		return nil
	case s == "fail":
		*f = failAfter(defaultFailAfter)
		return nil
	case policy != "fail" || !isSet:
		return errors.New("want wait, fail or fail=DURATION")
	}
	d, err := time.ParseDuration(after)
	if err != nil || d <= 0 {
		return fmt.Errorf("%q is no duration above zero, as 30s or 1m30s are", after)
	}
	*f = failAfter(d)
	return nil
}

// connections is the value of --connections.
type connections int

func (c *connections) String() string {
	if *c == 0 {
		return ""
	}
	return fmt.Sprint(int(*c))
}

func (c *connections) Type() string { return "N" }

func (c *connections) Set(s string) error {
	var n int
	if _, err := fmt.Sscanf(s, "%d", &n); err != nil || n < 1 || n > 1000 {
		return errors.New("want a number from 1 to 1000")
	}
	*c = connections(n)
	return nil
}

// directory is the value of a flag that names a directory, made absolute: other processes of ours use it.
type directory string

func (d *directory) String() string { return string(*d) }
func (d *directory) Type() string   { return "DIR" }

func (d *directory) Set(s string) error {
	st, err := os.Stat(s)
	switch {
	case err != nil:
		return err
	case !st.IsDir():
		return fmt.Errorf("%s is no directory", s)
	}
	s, err = filepath.Abs(s)
	*d = directory(s)
	return err
}

// byteCount is the value of a flag that counts bytes: a number, with k, M or G for 1000, its square and its cube.
type byteCount int64

func (b *byteCount) String() string {
	if *b == 0 {
		return ""
	}
	return fmt.Sprint(int64(*b))
}

func (b *byteCount) Type() string { return "BYTES" }

func (b *byteCount) Set(s string) error {
	factor := int64(1)
	number := s
	for i, unit := range []string{"k", "M", "G", "T"} {
		if n, ok := strings.CutSuffix(s, unit); ok {
			number, factor = n, int64(math.Pow10(3*(i+1)))
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64/factor {
		return errors.New("want a number of bytes above zero, with k, M, G or T behind it if you like")
	}
	*b = byteCount(n * factor)
	return nil
}
