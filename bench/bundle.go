package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// unpack lets umoci unpack the image, once, and returns the bundle: rootfs and config.json.
func (l *lab) unpack(ctx context.Context) (bundle string, err error) {
	bundle = filepath.Join(l.dir, "bundle")
	if _, err := os.Stat(bundle); err == nil {
		return bundle, nil
	}
	layout := filepath.Join(l.dir, "layout") + ":latest"
	if _, err := output(exec.CommandContext(ctx, "skopeo", "copy", "--insecure-policy", "--preserve-digests", "--src-tls-verify=false",
		"docker://"+l.ref, "oci:"+layout)); err != nil {
		return "", err
	}
	_, err = output(exec.CommandContext(ctx, "umoci", "unpack", "--image", layout, bundle))
	return bundle, err
}

// overlay is a kernel overlayfs on top of an unpacked image, and a bundle for runc on it.
type overlay struct {
	lower, dir string
}

// newOverlay prepares what mount needs. The command of the bundle is args.
func newOverlay(bundle, dir string, args ...string) (overlay, error) {
	o := overlay{lower: filepath.Join(bundle, "rootfs"), dir: dir}
	if err := os.MkdirAll(o.merged(), 0o755); err != nil {
		return o, err
	}
	raw, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return o, err
	}
	var spec specs.Spec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return o, fmt.Errorf("read the bundle's config.json: %w", err)
	}
	spec.Root.Path = o.merged()
	spec.Process.Terminal = false
	spec.Process.Args = args
	if raw, err = json.Marshal(spec); err != nil {
		return o, err
	}
	return o, os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o644)
}

func (o overlay) merged() string { return filepath.Join(o.dir, "merged") }

// mount mounts it with a new, empty upper directory.
func (o overlay) mount() error {
	for _, d := range []string{"upper", "work"} {
		if err := os.RemoveAll(filepath.Join(o.dir, d)); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(o.dir, d), 0o755); err != nil {
			return err
		}
	}
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", o.lower, filepath.Join(o.dir, "upper"), filepath.Join(o.dir, "work"))
	if err := unix.Mount("overlay", o.merged(), "overlay", 0, opts); err != nil {
		return fmt.Errorf("mount overlayfs: %w", err)
	}
	return nil
}

func (o overlay) unmount() error { return unix.Unmount(o.merged(), unix.MNT_DETACH) }

// runc runs the bundle's command.
func (o overlay) runc(ctx context.Context, id string) error {
	_, err := output(exec.CommandContext(ctx, "runc", "--root", filepath.Join(o.dir, "runc"), "run", "--bundle", o.dir, id))
	return err
}
