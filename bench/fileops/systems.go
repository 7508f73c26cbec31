package fileops

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The names of the systems, as the report has them.
const (
	overlayfs     = "overlayfs"
	fuseOverlayfs = "fuse-overlayfs"
	veneer        = "veneer"
	native        = "native"
	passthrough   = "veneer, passthrough"
	before        = "veneer before"
)

// system is a way to show the input as one writable tree.
type system struct {
	name string
	// mount mounts the layers, bottom first, at dir, with what is written below state.
	mount func(ctx context.Context, b *bench, state, dir string) error
}

// available are the systems of this machine.
func (b *bench) available() ([]system, error) {
	if _, err := os.Stat(b.Veneer); err != nil {
		return nil, fmt.Errorf("%w: run make build", err)
	}
	all := []system{{overlayfs, mountOverlayfs}, {native, nil}}
	if _, err := exec.LookPath(fuseOverlayfs); err == nil {
		all = append(all, system{fuseOverlayfs, mountFuseOverlayfs})
	} else {
		b.report.note("fuse-overlayfs is not installed and was not measured.")
	}
	if b.Before != "" {
		all = append(all, system{before, mountVeneer(b.Before, "auto")})
	}
	return append(all, system{veneer, mountVeneer(b.Veneer, "auto")}, system{passthrough, mountVeneer(b.Veneer, "passthrough")}), nil
}

// site is a mounted system.
type site struct {
	name   string
	dir    string // the root of the tree
	state  string // removed at the end; "" for native
	in     *input
	buf    []byte
	server *server // of veneer; else nil
}

// mount mounts sys with an empty writable layer.
func (b *bench) mount(ctx context.Context, sys system, round int) (*site, error) {
	s := &site{name: sys.name, in: b.in, dir: b.in.plain, buf: make([]byte, 1<<20)}
	if sys.mount == nil {
		return s, nil
	}
	s.state = filepath.Join(b.dir, fmt.Sprintf("%c%d-%d", sys.name[0], len(sys.name), round))
	s.dir = filepath.Join(s.state, "m")
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	err := sys.mount(ctx, b, s.state, s.dir)
	if err == nil && strings.HasPrefix(sys.name, veneer) {
		s.server, err = findServer(s.state)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// close unmounts, waits until the server has written everything, and removes what was written.
func (s *site) close() error {
	if s.state == "" {
		return nil
	}
	minor, _ := deviceMinor(s.dir)
	err := unix.Unmount(s.dir, unix.UMOUNT_NOFOLLOW)
	if err == unix.EINVAL {
		err = nil // not mounted
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", s.dir, err)
	}
	// Somebody may have made a mount namespace meanwhile, in which the mount lives on.
	if s.server != nil && !s.server.wait(serverPatience) {
		abort(minor)
		s.server.wait(-1)
	}
	return os.RemoveAll(s.state)
}

// abort ends a FUSE mount for all who use it.
func (s *site) abort() {
	if minor, err := deviceMinor(s.dir); err == nil {
		abort(minor)
	}
}

// abort ends a FUSE connection; a device that is none has no such file.
func abort(minor uint32) {
	os.WriteFile(fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", minor), []byte("1"), 0)
}

// deviceMinor asks the mount table, for the mount may hang.
func deviceMinor(dir string) (minor uint32, err error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == dir {
			var major uint32
			_, err := fmt.Sscanf(f[2], "%d:%d", &major, &minor)
			return minor, err
		}
	}
	return 0, os.ErrNotExist
}

func topFirst(layers []string) string {
	l := slices.Clone(layers)
	slices.Reverse(l)
	return strings.Join(l, ":")
}

// upper makes the two directories that overlayfs wants, and returns its options.
func upper(b *bench, state string) (string, error) {
	up, work := filepath.Join(state, "u"), filepath.Join(state, "w")
	err := errors.Join(os.Mkdir(up, 0o755), os.Mkdir(work, 0o755))
	return fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", topFirst(b.in.layers), up, work), err
}

func mountOverlayfs(_ context.Context, b *bench, state, dir string) error {
	o, err := upper(b, state)
	if err != nil {
		return err
	}
	return unix.Mount("overlay", dir, "overlay", 0, o)
}

func mountFuseOverlayfs(ctx context.Context, b *bench, state, dir string) error {
	o, err := upper(b, state)
	if err != nil {
		return err
	}
	return command(ctx, fuseOverlayfs, "-o", o, dir)
}

func mountVeneer(binary, io string) func(context.Context, *bench, string, string) error {
	return func(ctx context.Context, b *bench, state, dir string) error {
		o := fmt.Sprintf("lowerdir=%s,upperdir=%s,stats=%s,io=%s", topFirst(b.in.layers), filepath.Join(state, "u"), filepath.Join(state, statsFile), io)
		return command(ctx, binary, append(veneerArgs(state), "overlay", "bench", dir, "-o", o)...)
	}
}

// veneerArgs give a veneer a root of its own below state.
func veneerArgs(state string) []string {
	return []string{"--root", filepath.Join(state, "root"), "--run-root", filepath.Join(state, "run")}
}

// command runs a command. It gets no pipe to write to: the server that it leaves behind would hold it open.
func command(ctx context.Context, name string, args ...string) error {
	errs, err := os.CreateTemp("", "vb-stderr-")
	if err != nil {
		return err
	}
	defer errs.Close()
	defer os.Remove(errs.Name())
	c := exec.CommandContext(ctx, name, args...)
	c.Stderr = errs
	if err := c.Run(); err != nil {
		text, _ := os.ReadFile(errs.Name())
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(text)))
	}
	return nil
}
