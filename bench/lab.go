package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/veneerfs/veneer/fetcher/embedded"
	"github.com/veneerfs/veneer/fetcher/embedded/hostimage"
)

// options are the flags.
type options struct {
	veneer, image, hello, name string
	runs                       int

	dir    string // the rest is for fs: see fileops.Options
	rounds int
	scale  float64
	before string
	rows   string
}

// task is a command that shows that an image works.
type task struct {
	Args  []string `json:"args"`
	Env   []string `json:"env"`
	Cwd   string   `json:"cwd"`
	Ready string   `json:"ready"` // what it prints
}

// lab is where measurements are made: a directory, and the image under test in a real registry on loopback.
type lab struct {
	options
	dir      string
	made     string // the command that makes the report again
	what     string // the image, for the report
	task     task
	registry *dockerRegistry
	ref      string // the image in it
}

// newLab starts a docker-registry and copies the image into it.
func newLab(ctx context.Context, o options) (l *lab, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("not root: containers and mounts need it")
	}
	for _, tool := range []string{"docker-registry", "skopeo", "umoci", "runc", "tar"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%w: run .ci/deps", err)
		}
	}
	if o.veneer, err = filepath.Abs(o.veneer); err != nil {
		return nil, err
	}
	if _, err := os.Stat(o.veneer); err != nil {
		return nil, fmt.Errorf("%w: run make build", err)
	}
	dir, err := os.MkdirTemp("", "veneer-bench-")
	if err != nil {
		return nil, err
	}
	l = &lab{options: o, dir: dir}
	if err := l.prepare(ctx); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *lab) close() error {
	if l.registry != nil {
		l.registry.close()
	}
	return os.RemoveAll(l.dir)
}

func (l *lab) prepare(ctx context.Context) (err error) {
	if l.registry, err = startRegistry(ctx, filepath.Join(l.dir, "registry")); err != nil {
		return err
	}
	l.ref = l.registry.addr + "/bench/image:latest"
	corpus := os.Getenv("CORPUS_DIR")
	l.made = "make bench"
	switch {
	case l.image != "":
		l.made = "go run ./bench -image IMAGE -hello FILE"
		if l.hello == "" {
			return errors.New("-image needs -hello")
		}
	case corpus != "":
		l.made = "CORPUS_DIR=DIR make bench"
		l.image = "oci:" + filepath.Join(corpus, "estargz", l.name) + ":plain"
		l.hello = filepath.Join(corpus, "hello", l.name+".json")
	default:
		return l.ownImage(ctx)
	}
	l.what = "`" + filepath.Base(strings.TrimSuffix(l.image, ":plain")) + "`, eStargz"
	raw, err := os.ReadFile(l.hello)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &l.task); err != nil {
		return fmt.Errorf("read task %s: %w", l.hello, err)
	}
	return l.copyImage(ctx, l.image)
}

// ownImage builds an image and puts it into the registry by way of an embedded one.
func (l *lab) ownImage(ctx context.Context) error {
	blobs := filepath.Join(l.dir, "own")
	if err := os.Mkdir(blobs, 0o700); err != nil {
		return err
	}
	r := embedded.NewRegistry(blobs)
	built, err := hostimage.Add(r, "own", "latest", hostimage.Ballast{Parts: 3, Size: 32 << 20}, nil)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: r}
	defer server.Close()
	go server.Serve(ln)
	l.what = fmt.Sprintf("built from this machine's programs and ballast, %d layers, eStargz", built.Layers)
	l.task = task{
		Args:  []string{"sh", "-c", "ls /data; head -c 65536 /data/part-2 | wc -c; echo hello"},
		Ready: "part-1\npart-2\npart-3\n65536\nhello",
	}
	return l.copyImage(ctx, "docker://"+ln.Addr().String()+"/own:latest")
}

func (l *lab) copyImage(ctx context.Context, from string) error {
	_, err := output(exec.CommandContext(ctx, "skopeo", "copy", "--insecure-policy", "--preserve-digests", "--src-tls-verify=false",
		"--dest-tls-verify=false", from, "docker://"+l.ref))
	return err
}

// store is an empty place for a veneer.
func (l *lab) store(name string) store {
	return store{l: l, root: filepath.Join(l.dir, name), run: filepath.Join(l.dir, name+".run")}
}

// store is a veneer with a root of its own.
type store struct {
	l         *lab
	root, run string
}

func (s store) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, s.l.veneer, append([]string{"--root", s.root, "--run-root", s.run}, args...)...)
}

// taskArgs are the arguments of `veneer run` for the task, with more flags before them.
func (l *lab) taskArgs(flags ...string) []string {
	args := append([]string{"run", "--rm", "--entrypoint", ""}, flags...)
	for _, e := range l.task.Env {
		args = append(args, "-e", e)
	}
	if l.task.Cwd != "" {
		args = append(args, "-w", l.task.Cwd)
	}
	return append(append(args, l.ref), l.task.Args...)
}

// output runs a command; its standard error becomes part of the error.
func output(c *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(c.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
