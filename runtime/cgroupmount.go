package runtime

import (
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// cgroupMount shows the container its cgroup: with v2 the unified tree, with v1 a directory of all hierarchies.
func (c *child) cgroupMount(m specs.Mount, o mountOptions) error {
	if err := c.enterCgroup(); err != nil {
		return err
	}
	if len(c.config.Cgroups) == 0 {
		return c.cgroup2Mount(m, o)
	}
	if m.Type == "cgroup2" {
		return fmt.Errorf("the host has cgroup v1: %w", ErrUnsupported)
	}
	return c.cgroup1Mount(m, o)
}

func (c *child) cgroup2Mount(m specs.Mount, o mountOptions) error {
	m.Type = "cgroup2"
	o.data = "" // those of v1
	err := c.plainMount(m, o)
	if err != unix.EPERM && err != unix.EBUSY {
		return err
	}
	// In a user namespace without a cgroup namespace only the host's mount can be had.
	m.Source = cgroupRoot
	o.flags |= unix.MS_BIND | unix.MS_REC
	return c.bindMount(m, o)
}

// cgroup1Mount makes a tmpfs with one directory per hierarchy, and links for controllers that share one.
func (c *child) cgroup1Mount(m specs.Mount, o mountOptions) error {
	fd, err := c.openMountpoint(m)
	if err != nil {
		return err
	}
	err = unix.Mount("tmpfs", procFD(fd), "tmpfs", o.flags&^unix.MS_RDONLY, "mode=755")
	unix.Close(fd)
	if err != nil {
		return err
	}
	for _, h := range c.config.Cgroups {
		if err := c.mountHierarchy(m, o, h); err != nil {
			return fmt.Errorf("%s: %w", strings.Join(h.Controllers, ","), err)
		}
	}
	if o.ro() {
		return c.remountReadOnly(m.Destination)
	}
	return nil
}

func (c *child) mountHierarchy(m specs.Mount, o mountOptions, h cgroupMountpoint) error {
	name := path.Base(h.Mountpoint)
	sub := specs.Mount{Destination: path.Join(m.Destination, name), Type: "cgroup", Source: "cgroup"}
	var err error
	if c.config.NewCgroup {
		// The namespace's root is the container's cgroup: a mount of our own shows nothing else.
		o.data = strings.Join(h.Controllers, ",")
		err = c.plainMount(sub, o)
	} else {
		sub.Type, sub.Source = "bind", h.Path
		o.flags |= unix.MS_BIND | unix.MS_REC
		err = c.bindMount(sub, o)
	}
	if err != nil {
		return err
	}
	for _, controller := range h.Controllers {
		if controller == name || strings.HasPrefix(controller, "name=") {
			continue
		}
		if err := c.symlink(name, path.Join(m.Destination, controller)); err != nil {
			return err
		}
	}
	return nil
}
