package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// dockerRegistry is a docker-registry that runs, and what its access log says that it sent.
type dockerRegistry struct {
	addr string
	cmd  *exec.Cmd
	done chan struct{} // closed when the log has ended

	mu  sync.Mutex
	log []access // guarded by mu
}

// access is one line of the access log.
type access struct {
	method, path string
	status       int
	bytes        int64 // of the body
}

// blob says whether the request was for a blob: a layer's, or an image's config.
func (a access) blob() bool {
	return a.method == http.MethodGet && strings.Contains(a.path, "/blobs/sha256:")
}

// accessLine is the combined log format.
var accessLine = regexp.MustCompile(`^\S+ - - \[[^]]+\] "(\S+) (\S+) HTTP/[0-9.]+" ([0-9]+) ([0-9]+) `)

// parseAccess reads a line of the access log; not ok for other lines.
func parseAccess(line string) (a access, ok bool) {
	m := accessLine.FindStringSubmatch(line)
	if m == nil {
		return a, false
	}
	a = access{method: m[1], path: m[2]}
	var errStatus, errBytes error
	a.status, errStatus = strconv.Atoi(m[3])
	a.bytes, errBytes = strconv.ParseInt(m[4], 10, 64)
	return a, errStatus == nil && errBytes == nil
}

// freePort returns an address of loopback that is free now: docker-registry cannot tell which one it took.
func freePort() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// startRegistry starts docker-registry on a free port of loopback, with its data below dir.
func startRegistry(ctx context.Context, dir string) (*dockerRegistry, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	addr, err := freePort()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(config, []byte(fmt.Sprintf(
		"version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n",
		filepath.Join(dir, "data"), addr)), 0o600); err != nil {
		return nil, err
	}
	r := &dockerRegistry{addr: addr, cmd: exec.Command("docker-registry", "serve", config), done: make(chan struct{})}
	r.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start docker-registry: %w", err)
	}
	go func() {
		defer close(r.done)
		for s := bufio.NewScanner(out); s.Scan(); {
			if a, ok := parseAccess(s.Text()); ok {
				r.mu.Lock()
				r.log = append(r.log, a)
				r.mu.Unlock()
			}
		}
	}()
	if err := r.awaitReady(ctx); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *dockerRegistry) close() {
	r.cmd.Process.Kill()
	<-r.done
	r.cmd.Wait()
}

func (r *dockerRegistry) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		resp, err := http.Get("http://" + r.addr + "/v2/")
		if err == nil {
			resp.Body.Close()
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("docker-registry does not answer: %w", err)
		case <-r.done:
			return fmt.Errorf("docker-registry has ended: %w", r.cmd.Wait())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// mark asks for something that nobody else does, waits for its line in the log, and returns what came before it since
// the last mark.
func (r *dockerRegistry) mark(ctx context.Context) ([]access, error) {
	path := fmt.Sprintf("/v2/mark-%d/tags/list", time.Now().UnixNano())
	resp, err := http.Get("http://" + r.addr + path)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	for {
		r.mu.Lock()
		for i, a := range r.log {
			if a.path == path {
				before := r.log[:i]
				r.log = r.log[i+1:]
				r.mu.Unlock()
				return before, nil
			}
		}
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-r.done:
			return nil, fmt.Errorf("docker-registry has ended")
		case <-time.After(time.Millisecond):
		}
	}
}
