package runtime

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // the managers leave device rules out without it
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	cgroupRoot    = "/sys/fs/cgroup"
	defaultParent = "/veneer" // of cgroups for which the configuration has no path; it goes with the last of them
)

// cgroup is a container's cgroup: one directory with v2, one in each hierarchy with v1. A nil *cgroup is a container without one.
type cgroup struct {
	path      string // below each hierarchy's root; absolute
	manager   cgroups.Manager
	resources *cgroups.Resources
	joined    bool // by the first process, at its birth
}

// createCgroup makes the directories. Where that is not permitted and no limit was asked for, the container goes without: nil.
func createCgroup(p *plan) (*cgroup, error) {
	resources, err := newResources(p.spec.Linux)
	if err != nil {
		return nil, &ConfigError{"linux.resources", err}
	}
	name := p.cgroup
	if name == "" {
		name = path.Join(defaultParent, p.id)
	}
	c, err := newCgroup(name, resources)
	if err == nil {
		err = c.refuseInhabited()
	}
	if err == nil {
		err = c.mkdir()
	}
	if err == nil {
		return c, nil
	}
	if noCgroupPossible(err) && !limitsAsked(p.spec.Linux.Resources) {
		p.goWithoutCgroup(err)
		return nil, nil
	}
	return nil, &SetupError{"make the cgroup", err}
}

// goWithoutCgroup keeps the container from making device nodes that no device rules would guard.
func (p *plan) goWithoutCgroup(err error) {
	p.log.Warn("no cgroup can be made; the container runs without", "id", p.id, "err", err)
	if !p.child.NewUser {
		p.log.Warn("without device rules CAP_MKNOD is not given", "id", p.id)
		p.child.Caps.without(unix.CAP_MKNOD)
	}
}

func noCgroupPossible(err error) bool {
	return errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EROFS) || errors.Is(err, os.ErrNotExist) || cgroups.IsNotFound(err)
}

func limitsAsked(r *specs.LinuxResources) bool {
	return r != nil && (r.Memory != nil || r.CPU != nil || r.Pids != nil || r.BlockIO != nil || r.Network != nil ||
		len(r.HugepageLimits)+len(r.Rdma)+len(r.Unified) > 0)
}

// newCgroup finds the cgroup called name; it need not exist.
func newCgroup(name string, r *cgroups.Resources) (*cgroup, error) {
	if _, err := os.Stat(cgroupRoot); err != nil {
		return nil, err
	}
	c := &cgroup{path: filepath.Clean("/" + name), resources: r}
	if c.path == "/" {
		return nil, errors.New("the root is not a container's cgroup")
	}
	config := &cgroups.Cgroup{Path: c.path, Resources: r}
	var err error
	if cgroups.IsCgroup2UnifiedMode() {
		c.manager, err = fs2.NewManager(config, filepath.Join(cgroupRoot, c.path))
	} else {
		c.manager, err = fs.NewManager(config, nil)
	}
	return c, err
}

// refuseInhabited refuses a cgroup in which others live: destroy would kill them.
func (c *cgroup) refuseInhabited() error {
	pids, err := c.manager.GetAllPids()
	if err == nil && len(pids) > 0 {
		return fmt.Errorf("cgroup %s holds process %d: %w", c.path, pids[0], unix.EBUSY)
	}
	return nil // it is not there, as it should be
}

func (c *cgroup) mkdir() error {
	const nobody = -1 // joins yet
	err := c.manager.Apply(nobody)
	// A container that ends may remove a parent that we share just before we use it (destroy).
	for n := 0; errors.Is(err, unix.ENOENT) && isDir(cgroupRoot) && n < 100; n++ {
		err = c.manager.Apply(nobody)
	}
	if err != nil {
		return errors.Join(err, c.destroy())
	}
	return nil
}

func isDir(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.IsDir()
}

// join puts the process in, with all limits in force but that of processes.
func (c *cgroup) join(pid int) error {
	if c == nil {
		return nil
	}
	if !c.joined {
		if err := c.manager.Apply(pid); err != nil {
			return &SetupError{"join the cgroup", err}
		}
	}
	early := *c.resources
	early.PidsLimit = nil
	return c.set(&early)
}

// limitPids sets what join left out: the set-up child's threads count as processes, and a limit of one is a reasonable wish.
func (c *cgroup) limitPids() error {
	if c == nil || c.resources.PidsLimit == nil {
		return nil
	}
	return c.set(c.resources)
}

func (c *cgroup) set(r *cgroups.Resources) error {
	if err := c.manager.Set(r); err != nil {
		return &SetupError{"set cgroup limits", err}
	}
	return nil
}

func (c *cgroup) name() string {
	if c == nil {
		return ""
	}
	return c.path
}

// kill sends SIGKILL to all processes of the cgroup and of those below.
func (c *cgroup) kill() error {
	if c == nil {
		return nil
	}
	paths := c.manager.GetPaths()
	if unified, ok := paths[""]; ok {
		// Linux 5.14: atomic, no fork escapes. Also in the hybrid layout, where the unified tree has no controllers.
		if err := os.WriteFile(filepath.Join(unified, "cgroup.kill"), []byte("1"), 0); err == nil {
			return nil
		}
	}
	return c.killEach()
}

// killEach goes on until a pass finds nobody: what was forked between reading the list and killing is in the next one.
func (c *cgroup) killEach() error {
	signalled := make(map[int]bool)
	for {
		pids, err := c.manager.GetAllPids()
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list processes of cgroup %s: %w", c.path, err)
		}
		fresh := false
		for _, pid := range pids {
			if signalled[pid] {
				continue // dying
			}
			if pid == os.Getpid() {
				continue // a thread of ours is there only to clone
			}
			fresh, signalled[pid] = true, true
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return fmt.Errorf("kill process %d of cgroup %s: %w", pid, c.path, err)
			}
		}
		if !fresh {
			return nil
		}
	}
}

// destroy kills what is left and removes the cgroup.
func (c *cgroup) destroy() error {
	if c == nil {
		return nil
	}
	if err := c.kill(); err != nil {
		return err
	}
	dirs := slices.Collect(maps.Values(c.manager.GetPaths())) // Destroy empties the map
	if err := c.manager.Destroy(); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", c.path, err)
	}
	if path.Dir(c.path) == defaultParent {
		for _, dir := range dirs {
			unix.Rmdir(filepath.Dir(dir)) // fails as long as it holds another container
		}
	}
	return nil
}

// DestroyCgroup kills all processes of a cgroup and removes it; name is what CgroupPath of its container returned. It is for who cleans up after
// the container's own process has died. A cgroup that does not exist is not an error.
func DestroyCgroup(name string) error {
	if name == "" {
		return nil
	}
	c, err := newCgroup(name, &cgroups.Resources{})
	if cgroups.IsNotFound(err) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find cgroup %s: %w", name, err)
	}
	return c.destroy()
}

// cgroupMountpoint is one v1 hierarchy.
type cgroupMountpoint struct {
	Controllers []string // e.g. cpu, cpuacct; or name=systemd
	Mountpoint  string   // on the host
	Path        string   // of the container's cgroup on the host
	root        string   // what of the hierarchy is mounted; "/" unless we are in a container ourselves
}

var cgroupSuperOptions = []string{
	"rw", "ro", "noprefix", "clone_children", "xattr", "cpuset_v2_mode", "none", "favordynmods",
}

// mountpoints lists the v1 hierarchies that the container's cgroup is in; none with v2.
func (c *cgroup) mountpoints(log *slog.Logger) []cgroupMountpoint {
	if _, err := os.Stat(cgroupRoot); err != nil || cgroups.IsCgroup2UnifiedMode() {
		return nil
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup"))
	if err != nil {
		log.Warn("list cgroup mounts", "err", err)
		return nil
	}
	var out []cgroupMountpoint
	for _, m := range mounts {
		if filepath.Dir(m.Mountpoint) != cgroupRoot {
			continue // mounted a second time elsewhere
		}
		// Of the super block's options, those that name the hierarchy are controllers and its own name.
		names := slices.DeleteFunc(strings.Split(m.VFSOptions, ","), func(o string) bool {
			return slices.Contains(cgroupSuperOptions, o) || strings.HasPrefix(o, "release_agent=")
		})
		h := cgroupMountpoint{Controllers: names, Mountpoint: m.Mountpoint, Path: m.Mountpoint, root: m.Root}
		if c != nil {
			h.Path = filepath.Join(m.Mountpoint, c.path)
		}
		out = append(out, h)
	}
	return out
}
