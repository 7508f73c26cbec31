package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fs"
	"github.com/veneerfs/veneer/runtime"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// applyImage completes what the flags left open by the image's configuration, under Docker's rules.
func (c *container) applyImage(img imagespec.ImageConfig) error {
	if err := c.applyCommand(img); err != nil {
		return err
	}
	if c.User == "" {
		c.User = img.User
	}
	if c.WorkDir == "" {
		c.WorkDir = img.WorkingDir
	}
	c.WorkDir = path.Clean("/" + c.WorkDir)
	if err := c.applyHostname(); err != nil {
		return err
	}
	env := []string{"PATH=" + defaultPath, "HOSTNAME=" + c.Hostname}
	if c.TTY {
		env = append(env, "TERM=xterm")
	}
	c.Env = mergeEnv(mergeEnv(env, img.Env), c.Env)
	return nil
}

// applyCommand makes the process's arguments: entrypoint, then command. Giving an entrypoint, even an empty one, drops the
// image's command.
func (c *container) applyCommand(img imagespec.ImageConfig) error {
	entrypoint, cmd := img.Entrypoint, img.Cmd
	if c.Entrypoint != nil {
		entrypoint, cmd = nil, nil
		if *c.Entrypoint != "" {
			entrypoint = []string{*c.Entrypoint}
		}
	}
	if len(c.Args) > 0 {
		cmd = c.Args
	}
	c.Args = slices.Concat(entrypoint, cmd)
	if len(c.Args) == 0 {
		return errors.New("no command specified: the image has none, so name one after the image")
	}
	return nil
}

// applyHostname gives a container on the host's network the host's name, else its own short ID.
func (c *container) applyHostname() (err error) {
	switch {
	case c.Hostname != "":
	case c.Net == "host":
		c.Hostname, err = os.Hostname()
	default:
		c.Hostname = c.Short()
	}
	return err
}

// mergeEnv adds the variables of more to env: a later K=V replaces an earlier one in its place, a K alone removes it.
func mergeEnv(env, more []string) []string {
	env = slices.Clone(env)
	for _, kv := range more {
		k, _, set := strings.Cut(kv, "=")
		i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, k+"=") })
		switch {
		case set && i >= 0:
			env[i] = kv
		case set:
			env = append(env, kv)
		case i >= 0:
			env = slices.Delete(env, i, i+1)
		}
	}
	return env
}

// newSpec makes the OCI runtime spec of c.
func newSpec(p places, c *container, width, height uint16) *specs.Spec {
	s := runtime.DefaultSpec()
	s.Root = &specs.Root{Path: filepath.Join(p.runFile(c.ID, "rootfs"), fs.InnerRoot), Readonly: c.ReadOnly}
	s.Hostname = c.Hostname
	s.Process.Args = c.Args
	s.Process.Cwd = c.WorkDir
	s.Process.Env = c.Env
	s.Process.Terminal = c.TTY
	if c.TTY && width != 0 {
		s.Process.ConsoleSize = &specs.Box{Width: uint(width), Height: uint(height)}
	}
	s.Process.User = c.Account.spec()
	if !hasEnv(s.Process.Env, "HOME") {
		s.Process.Env = append(slices.Clone(s.Process.Env), "HOME="+c.Account.Home)
	}
	if c.Net == "host" {
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool {
			return n.Type == specs.NetworkNamespace
		})
	} else if !hasNamespace(s, specs.NetworkNamespace) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	s.Mounts = append(s.Mounts, fileMounts(p, c)...)
	for _, v := range c.Volumes {
		s.Mounts = append(s.Mounts, bindMount(v.Source, v.Destination, v.ReadOnly))
	}
	return s
}

func hasNamespace(s *specs.Spec, t specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t })
}

func hasEnv(env []string, k string) bool {
	return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, k+"=") })
}

// networkFiles are the files in /etc that we make for each container.
var networkFiles = []string{"resolv.conf", "hostname", "hosts"}

// fileMounts shows the files that writeNetworkFiles made, unless a volume is in their place.
func fileMounts(p places, c *container) []specs.Mount {
	var ms []specs.Mount
	for _, name := range networkFiles {
		dst := "/etc/" + name
		if !slices.ContainsFunc(c.Volumes, func(v volume) bool { return v.Destination == dst }) {
			ms = append(ms, bindMount(p.runFile(c.ID, name), dst, c.ReadOnly))
		}
	}
	return ms
}

func bindMount(src, dst string, readOnly bool) specs.Mount {
	m := specs.Mount{Type: "bind", Source: src, Destination: dst, Options: []string{"rbind", "rprivate"}}
	if readOnly {
		m.Options = append(m.Options, "ro")
	}
	return m
}

// writeNetworkFiles makes /etc/resolv.conf, hosts and hostname of c, on a thread of its mount namespace. On the host's network they say
// what the host's say.
func writeNetworkFiles(p places, c *container) error {
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	if c.Net == "host" {
		if b, err := os.ReadFile("/etc/hosts"); err == nil {
			hosts = string(b)
		}
	}
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("copy /etc/resolv.conf: %w", err)
	}
	for name, data := range map[string]string{
		"resolv.conf": string(resolv), "hosts": hosts, "hostname": c.Hostname + "\n",
	} {
		if err := os.WriteFile(p.runFile(c.ID, name), []byte(data), 0o644); err != nil {
			return err
		}
	}
	return nil
}
