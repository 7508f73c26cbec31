package runtime

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// plan is what Create found out before it made anything.
type plan struct {
	id     string
	spec   *specs.Spec
	log    *slog.Logger
	cgroup string // path of the cgroup below each hierarchy's root, as configured; "" is none
	child  initConfig

	clone      uintptr // namespaces to make
	join       []specs.LinuxNamespace
	uids, gids []syscall.SysProcIDMap
	rlimits    []rlimit
}

type rlimit struct {
	resource int
	unix.Rlimit
}

// newPlan checks the whole configuration. All its errors are *ConfigError.
func newPlan(o CreateOptions) (*plan, error) {
	p := &plan{id: o.ID, log: o.Log}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if err := p.checkOptions(o); err != nil {
		return nil, err
	}
	spec := *o.Spec
	p.spec = &spec
	p.cgroup = spec.Linux.CgroupsPath
	if o.CgroupPath != "" {
		p.cgroup = o.CgroupPath
	}
	p.child = initConfig{ID: o.ID, Bundle: o.Bundle, Spec: newChildSpec(p.spec)}
	for _, check := range []func(CreateOptions) error{
		p.planRoot, p.planNamespaces, p.planProcess, p.planMounts, p.planLimits, p.planLSM, p.refuseUnsupported,
	} {
		if err := check(o); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func badConfig(field, format string, args ...any) error {
	return &ConfigError{Field: field, Err: fmt.Errorf(format, args...)}
}

func (p *plan) checkOptions(o CreateOptions) error {
	switch {
	case o.ID == "" || strings.ContainsAny(o.ID, "/\x00") || o.ID == "." || o.ID == "..":
		return badConfig("id", "%q is not a name", o.ID)
	case o.Spec == nil:
		return badConfig("config.json", "there is none")
	case !strings.HasPrefix(o.Spec.Version, "1."):
		return badConfig("ociVersion", "%q: %w", o.Spec.Version, ErrUnsupported)
	case o.Spec.Linux == nil:
		return badConfig("linux", "there is none")
	case o.Spec.Process == nil:
		return badConfig("process", "there is none")
	case o.Bundle != "" && !filepath.IsAbs(o.Bundle):
		return badConfig("bundle", "%q is not absolute", o.Bundle)
	}
	return nil
}

// planRoot finds the root. Its own path may lead over symlinks; they are the host's.
func (p *plan) planRoot(o CreateOptions) error {
	dir := o.Root
	if dir == "" {
		if p.spec.Root == nil || p.spec.Root.Path == "" {
			return badConfig("root.path", "there is none")
		}
		if dir = p.spec.Root.Path; !filepath.IsAbs(dir) {
			dir = filepath.Join(o.Bundle, dir)
		}
	}
	// Nothing is asked of the file system that is mounted there, which may be a FUSE server that is still starting.
	r, err := openRoot(dir)
	if err != nil {
		return &ConfigError{"root.path", err}
	}
	defer r.close()
	if r.path == "/" {
		return badConfig("root.path", "it is the host's root")
	}
	p.child.Root = r.path
	return nil
}

var namespaceFlags = map[specs.LinuxNamespaceType]uintptr{
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
	specs.UserNamespace:    unix.CLONE_NEWUSER,
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
}

func (p *plan) planNamespaces(CreateOptions) error {
	seen := make(map[specs.LinuxNamespaceType]bool)
	for _, ns := range p.spec.Linux.Namespaces {
		flag, ok := namespaceFlags[ns.Type]
		field := "linux.namespaces: " + string(ns.Type)
		switch {
		case !ok:
			return badConfig(field, "%w", ErrUnsupported)
		case seen[ns.Type]:
			return badConfig(field, "it is there twice")
		case ns.Path == "":
			p.clone |= flag
		case !filepath.IsAbs(ns.Path):
			return badConfig(field, "%q is not absolute", ns.Path)
		case flag == unix.CLONE_NEWUSER || flag == unix.CLONE_NEWNS:
			// setns(2) takes a user namespace only from a process with one thread; and without a mount namespace
			// of the container's own, its mounts would appear to all who share it.
			return badConfig(field, "joining one: %w", ErrUnsupported)
		default:
			p.join = append(p.join, ns)
		}
		seen[ns.Type] = true
	}
	if p.clone&unix.CLONE_NEWNS == 0 {
		return badConfig("linux.namespaces", "without a mount namespace: %w", ErrUnsupported)
	}
	if (p.spec.Hostname != "" || p.spec.Domainname != "") && !seen[specs.UTSNamespace] {
		return badConfig("hostname", "it needs a UTS namespace")
	}
	p.child.NewUser = p.clone&unix.CLONE_NEWUSER != 0
	p.child.NewNet = p.clone&unix.CLONE_NEWNET != 0
	// The cgroup namespace is made by the child, when it is in its cgroup: that becomes the namespace's root.
	p.child.NewCgroup = p.clone&unix.CLONE_NEWCGROUP != 0
	p.clone &^= unix.CLONE_NEWCGROUP
	if err := checkSysctls(p.spec.Linux.Sysctl, seen); err != nil {
		return err
	}
	return p.planMappings()
}

func (p *plan) planMappings() error {
	l := p.spec.Linux
	if !p.child.NewUser {
		if len(l.UIDMappings)+len(l.GIDMappings) > 0 {
			return badConfig("linux.uidMappings", "they need a user namespace")
		}
		return nil
	}
	if len(l.UIDMappings) == 0 || len(l.GIDMappings) == 0 {
		return badConfig("linux.uidMappings", "a user namespace needs mappings of users and groups")
	}
	p.uids, p.gids = idMaps(l.UIDMappings), idMaps(l.GIDMappings)
	// user_namespaces(7): without CAP_SETGID outside, a group map needs setgroups to be denied first.
	caps, err := ownCaps()
	p.child.KeepGroups = err != nil || caps&(1<<unix.CAP_SETGID) == 0
	return nil
}

func idMaps(in []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, m := range in {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return out
}

func (p *plan) planProcess(CreateOptions) error {
	pr := p.spec.Process
	if len(pr.Args) == 0 || pr.Args[0] == "" {
		return badConfig("process.args", "no command")
	}
	if !filepath.IsAbs(pr.Cwd) {
		return badConfig("process.cwd", "%q is not absolute", pr.Cwd)
	}
	for _, s := range append(pr.Args, pr.Env...) {
		if strings.IndexByte(s, 0) >= 0 {
			return badConfig("process", "%q has a NUL byte", s)
		}
	}
	for _, id := range append([]uint32{pr.User.UID, pr.User.GID}, pr.User.AdditionalGids...) {
		if id == math.MaxUint32 { // to setresuid(2), "leave it as it is"
			return badConfig("process.user", "ID %d", id)
		}
	}
	if u := pr.User.Umask; u != nil && *u > 0o777 {
		return badConfig("process.user.umask", "%#o", *u)
	}
	available := ^uint64(0)
	if !p.child.NewUser {
		var err error
		if available, err = ownCaps(); err != nil {
			return &ConfigError{"process.capabilities", err}
		}
	}
	p.child.Caps = newCapSet(pr.Capabilities, available, p.log)
	return nil
}

func (p *plan) planMounts(CreateOptions) error {
	for _, m := range p.spec.Mounts {
		field := "mounts: " + m.Destination
		o, err := parseMountOptions(m)
		if err != nil {
			return &ConfigError{field, err}
		}
		if m.Destination == "" {
			return badConfig(field, "no destination")
		}
		if !o.bind() && !o.remount() && m.Type == "" {
			return badConfig(field, "no type")
		}
		if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
			return badConfig(field, "ID mappings: %w", ErrUnsupported)
		}
	}
	if r := p.spec.Linux.RootfsPropagation; r != "" && (propagationFlags[r] == 0 || strings.HasPrefix(r, "r")) {
		return badConfig("linux.rootfsPropagation", "%q", r)
	}
	for _, d := range p.spec.Linux.Devices {
		if _, err := deviceMode(d); err != nil {
			return &ConfigError{"linux.devices: " + d.Path, err}
		}
	}
	return nil
}

var rlimitNumbers = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_STACK": unix.RLIMIT_STACK,
}

func (p *plan) planLimits(CreateOptions) error {
	seen := make(map[string]bool)
	for _, l := range p.spec.Process.Rlimits {
		n, ok := rlimitNumbers[l.Type]
		if !ok {
			return badConfig("process.rlimits", "type %q", l.Type)
		}
		if seen[l.Type] {
			return badConfig("process.rlimits", "%s is there twice", l.Type)
		}
		if l.Soft > l.Hard {
			return badConfig("process.rlimits", "%s: soft is above hard", l.Type)
		}
		seen[l.Type] = true
		p.rlimits = append(p.rlimits, rlimit{n, unix.Rlimit{Cur: l.Soft, Max: l.Hard}})
	}
	if s := p.spec.Process.OOMScoreAdj; s != nil && (*s < -1000 || *s > 1000) {
		return badConfig("process.oomScoreAdj", "%d", *s)
	}
	return nil
}

// planLSM takes the label that an active security module is to give. A label without its module has no meaning and is left out.
func (p *plan) planLSM(CreateOptions) error {
	pr := p.spec.Process
	if profile := pr.ApparmorProfile; profile != "" {
		enabled, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
		if strings.HasPrefix(string(enabled), "Y") {
			p.child.LSM, p.child.LSMFile = "exec "+profile, "apparmor/exec"
		} else {
			p.log.Warn("AppArmor is not enabled on this host; the profile is not applied", "profile", profile)
		}
	}
	if label := pr.SelinuxLabel; label != "" || p.spec.Linux.MountLabel != "" {
		switch _, err := os.Stat("/sys/fs/selinux/enforce"); {
		case err != nil:
			p.log.Warn("SELinux is not enabled on this host; the label is not applied", "label", label)
		case p.spec.Linux.MountLabel != "":
			return badConfig("linux.mountLabel", "%w", ErrUnsupported)
		default:
			p.child.LSM, p.child.LSMFile = label, "exec"
		}
	}
	return nil
}

// refuseUnsupported names what would otherwise be silently left out.
func (p *plan) refuseUnsupported(CreateOptions) error {
	l, pr := p.spec.Linux, p.spec.Process
	for _, x := range []struct {
		field string
		asked bool
	}{
		{"linux.seccomp", l.Seccomp != nil},
		{"linux.intelRdt", l.IntelRdt != nil},
		{"linux.memoryPolicy", l.MemoryPolicy != nil},
		{"linux.netDevices", len(l.NetDevices) > 0},
		{"linux.timeOffsets", len(l.TimeOffsets) > 0},
		{"process.scheduler", pr.Scheduler != nil},
		{"process.ioPriority", pr.IOPriority != nil},
	} {
		if x.asked {
			return &ConfigError{x.field, ErrUnsupported}
		}
	}
	if ps := l.Personality; ps != nil {
		if _, err := personality(ps); err != nil {
			return &ConfigError{"linux.personality", err}
		}
	}
	return nil
}

// nsSysctls are the sysctls that belong to a namespace, below /proc/sys: others are the host's.
var nsSysctls = []struct {
	path string // a directory if it ends in a slash
	ns   specs.LinuxNamespaceType
}{
	{"net/", specs.NetworkNamespace},
	{"fs/mqueue/", specs.IPCNamespace},
	{"kernel/msgmax", specs.IPCNamespace}, {"kernel/msgmnb", specs.IPCNamespace}, {"kernel/msgmni", specs.IPCNamespace},
	{"kernel/sem", specs.IPCNamespace}, {"kernel/shmall", specs.IPCNamespace}, {"kernel/shmmax", specs.IPCNamespace},
	{"kernel/shmmni", specs.IPCNamespace}, {"kernel/shm_rmid_forced", specs.IPCNamespace},
	{"kernel/hostname", specs.UTSNamespace}, {"kernel/domainname", specs.UTSNamespace},
}

// checkSysctls looks at the file that will be written, whatever way it is spelt.
func checkSysctls(sysctls map[string]string, namespaces map[specs.LinuxNamespaceType]bool) error {
	for name := range sysctls {
		file := strings.TrimPrefix(sysctlPath(name), procSys)
		ok := false
		for _, s := range nsSysctls {
			match := file == s.path || strings.HasSuffix(s.path, "/") && strings.HasPrefix(file, s.path)
			ok = ok || match && namespaces[s.ns]
		}
		if !ok || strings.ContainsRune(name, 0) {
			return badConfig("linux.sysctl", "%s is not of a namespace of the container", name)
		}
	}
	return nil
}

const procSys = "/proc/sys/"

// sysctlPath is the file of a sysctl. With dots as separators a slash stands for a dot in a component, as sysctl(8) has it.
func sysctlPath(name string) string {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		name = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, name)
	}
	return filepath.Join(procSys, name)
}

// personality(2) domains that config-linux.md names.
func personality(ps *specs.LinuxPersonality) (uintptr, error) {
	if len(ps.Flags) > 0 {
		return 0, errors.New("flags are not defined by the specification")
	}
	switch ps.Domain {
	case specs.PerLinux:
		return 0, nil
	case specs.PerLinux32:
		return 8, nil
	}
	return 0, fmt.Errorf("domain %q: %w", ps.Domain, ErrUnsupported)
}
