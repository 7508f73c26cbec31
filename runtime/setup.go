package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/runtime/spawn"
)

// initArg is argv[0] of the set-up child, and childFD its end of the socket pair.
const (
	initArg = "veneer: container set-up"
	childFD = 3
)

func isChild() bool { return len(os.Args) == 1 && os.Args[0] == initArg }

func init() {
	if isChild() {
		// Namespaces, credentials, parent-death signal: all are of one thread, and it is this one that calls execve.
		runtime.LockOSThread()
	}
}

// Main is the set-up child's program. A program that uses this package calls it first thing in main; it returns unless this
// process is a set-up child. It must come before other work: it is on the way of every container's start.
func Main() {
	if !isChild() {
		return
	}
	spawn.SlowSysmon()
	c := &child{conn: conn{os.NewFile(childFD, "parent")}}
	f := c.run() // returns only if something failed
	// If the parent is gone there is nobody to tell.
	_ = c.conn.sendJSON(msgFailure, f)
	os.Exit(1)
}

// initConfig is what the parent sends: the configuration, and what it found out about the host.
type initConfig struct {
	ID     string
	Bundle string
	Root   string // absolute
	Spec   childSpec
	Caps   capSet

	NewUser    bool // in a user namespace of its own
	KeepGroups bool // setgroups is denied
	NewNet     bool
	NewCgroup  bool
	Cgroups    []cgroupMountpoint // v1 controllers as they are mounted on the host; empty with v2
	LSM        string             // exec attribute to write, e.g. "exec docker-default"; "" for none
	LSMFile    string             // below /proc/thread-self/attr
}

// childSpec is what the child needs of a specs.Spec, with the same names. Of that itself package json would learn eighty types, on both sides
// of every start.
type childSpec struct {
	Process     *specs.Process
	Root        *specs.Root
	Hostname    string
	Domainname  string
	Mounts      []specs.Mount
	Hooks       *specs.Hooks
	Annotations map[string]string
	Linux       childLinux
}

type childLinux struct {
	Sysctl            map[string]string
	Devices           []specs.LinuxDevice
	RootfsPropagation string
	MaskedPaths       []string
	ReadonlyPaths     []string
	Personality       *specs.LinuxPersonality
}

func newChildSpec(s *specs.Spec) childSpec {
	return childSpec{
		Process: s.Process, Root: s.Root, Hostname: s.Hostname, Domainname: s.Domainname, Mounts: s.Mounts, Hooks: s.Hooks,
		Annotations: s.Annotations,
		Linux: childLinux{
			Sysctl: s.Linux.Sysctl, Devices: s.Linux.Devices, RootfsPropagation: s.Linux.RootfsPropagation,
			MaskedPaths: s.Linux.MaskedPaths, ReadonlyPaths: s.Linux.ReadonlyPaths, Personality: s.Linux.Personality,
		},
	}
}

// child is the state of the set-up child.
type child struct {
	conn     conn
	config   initConfig
	root     *root
	terminal *os.File // the slave, with Process.Terminal
	lsm      *os.File // open for writing the label at the last moment; nil without one

	inCgroup     bool     // msgCgroup has been received
	lateReadOnly []string // tmpfs mounts that become read-only at the end
}

func (c *child) spec() *childSpec { return &c.config.Spec }

// step is one operation of the set-up. Their order is what makes them right; each says what it relies on.
type step struct {
	name string
	when func(*child) bool // nil is always
	do   func(*child) error
}

var steps = []step{
	// Until exec, others in a shared PID namespace must not reach this process's memory and descriptors (CVE-2016-9962).
	{"protect the process", nil, func(c *child) error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }},
	// Before anything takes long: whoever kills the parent also ends us.
	{"watch the parent", nil, (*child).watchParent},
	{"read the configuration", nil, (*child).readConfig},
	// The caller's terminal must not reach the container: TIOCSTI would type into the caller's shell (CVE-2016-2568).
	{"start a session", nil, func(*child) error { _, err := unix.Setsid(); return err }},
	{"bring up loopback", func(c *child) bool { return c.config.NewNet }, (*child).loopbackUp},
	{"set the host name", nil, (*child).setHostname},
	// Through the host's /proc: the image cannot redirect what is written (CVE-2025-52881). It shows our namespaces' values.
	{"set sysctls", nil, (*child).setSysctls},
	// Before the first mount: none may propagate to the host.
	{"set mount propagation", nil, (*child).isolateMounts},
	{"bind the root", nil, (*child).bindRoot},
	{"mount", nil, (*child).mountAll},
	{"make devices", nil, (*child).makeDevices},
	// Before hooks and before exec; the cgroup file system, if there is one, was mounted after it, too.
	{"enter the cgroup", nil, (*child).enterCgroup},
	{"allocate the terminal", (*child).hasTerminal, (*child).openConsole},
	// After devices and mounts, which make directories; before the paths in it become read-only.
	{"make the working directory", nil, (*child).makeCwd},
	// The root is complete and not yet pivoted: what config.md demands of these hooks.
	{"run hooks", (*child).hasMountedHooks, (*child).runMountedHooks},
	{"mask paths", nil, (*child).maskPaths},
	{"make paths read-only", nil, (*child).readOnlyPaths},
	// Last of what changes the tree.
	{"make the root read-only", nil, (*child).makeReadOnly},
	// While /proc is still the host's.
	{"open the security label", func(c *child) bool { return c.config.LSM != "" }, (*child).openLSM},
	{"pivot the root", nil, (*child).pivot},
	{"attach the terminal", (*child).hasTerminal, (*child).attachConsole},
	{"hand over standard streams", nil, (*child).chownStreams},
	// A session keyring of its own: keys of the caller's must not be readable, nor one container's by another.
	{"join a session keyring", nil, (*child).joinKeyring},
	{"set the umask", nil, (*child).setUmask},
	{"set the personality", nil, (*child).setPersonality},
	// Needs the descriptor from before the pivot, and no privilege; AppArmor refuses it after no_new_privs.
	{"set the security label", func(c *child) bool { return c.config.LSM != "" }, (*child).applyLSM},
	{"set no_new_privs", func(c *child) bool { return c.spec().Process.NoNewPrivileges }, func(*child) error {
		return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}},
	{"become the user", nil, (*child).becomeUser},
	// As the user: a directory that only root may enter is an error, as in a login.
	{"change to the working directory", nil, (*child).changeCwd},
	// From here on the end of the conversation is what ends us; the user's process must outlive its parent.
	{"let go of the parent", nil, func(*child) error { return unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0) }},
}

// run works through the steps, waits for start and becomes the user's process.
func (c *child) run() failure {
	for _, s := range steps {
		if s.when != nil && !s.when(c) {
			continue
		}
		if err := s.do(c); err != nil {
			return newFailure(s.name, err)
		}
	}
	if err := c.conn.send(msgReady, nil); err != nil {
		return newFailure("report", err)
	}
	if err := c.await(msgStart); err != nil {
		return newFailure("wait for start", err)
	}
	if err := c.runStartHooks(); err != nil {
		return newFailure("run startContainer hooks", err)
	}
	f := newFailure("exec", c.exec())
	f.Exec = true
	return f
}

// await reads the next message, which must be t.
func (c *child) await(t msgType) error {
	got, _, _, err := c.conn.receive()
	if err != nil {
		return fmt.Errorf("hear from the parent: %w", err)
	}
	if got != t {
		return fmt.Errorf("hear from the parent: message %d, not %d", got, t)
	}
	return nil
}

func (c *child) watchParent() error {
	unix.CloseOnExec(childFD)
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	// It may have died before; getppid does not tell in a PID namespace, the socket does.
	fds := []unix.PollFd{{Fd: childFD, Events: unix.POLLRDHUP}}
	if n, err := unix.Poll(fds, 0); err == nil && n > 0 && fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP) != 0 {
		return io.EOF
	}
	return nil
}

func (c *child) readConfig() error {
	t, body, _, err := c.conn.receive()
	if err != nil {
		return err
	}
	if t != msgConfig {
		return fmt.Errorf("message %d", t)
	}
	return json.Unmarshal(body, &c.config)
}

func (c *child) hasTerminal() bool { return c.spec().Process.Terminal }

func (c *child) setHostname() error {
	if h := c.spec().Hostname; h != "" {
		if err := unix.Sethostname([]byte(h)); err != nil {
			return err
		}
	}
	if d := c.spec().Domainname; d != "" {
		if err := unix.Setdomainname([]byte(d)); err != nil {
			return fmt.Errorf("domain name: %w", err)
		}
	}
	return nil
}

func (c *child) setSysctls() error {
	for name, value := range c.spec().Linux.Sysctl {
		if err := os.WriteFile(sysctlPath(name), []byte(value), 0); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// isolateMounts keeps mounts of the container in the container. With a shared root the configuration asks for the contrary.
func (c *child) isolateMounts() error {
	flags := uintptr(unix.MS_SLAVE | unix.MS_REC)
	if p := c.spec().Linux.RootfsPropagation; p != "" {
		flags = propagationFlags[p] | unix.MS_REC
	}
	if flags&unix.MS_UNBINDABLE != 0 {
		flags = unix.MS_PRIVATE | unix.MS_REC // the root itself has to be bound; it becomes unbindable after the pivot
	}
	return unix.Mount("", "/", "", flags, "")
}

// bindRoot makes the root a mount, as pivot_root(2) needs it.
func (c *child) bindRoot() error {
	if err := makeParentPrivate(c.config.Root); err != nil {
		return fmt.Errorf("make the mount below private: %w", err)
	}
	if err := unix.Mount(c.config.Root, c.config.Root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	r, err := openRoot(c.config.Root)
	c.root = r
	return err
}

// makeParentPrivate makes the mount that holds dir private: pivot_root refuses a shared one, and binding dir would propagate.
func makeParentPrivate(dir string) error {
	for {
		err := unix.Mount("", dir, "", unix.MS_PRIVATE, "")
		if err != unix.EINVAL { // EINVAL: not a mount point
			return err
		}
		if dir == "/" {
			return err
		}
		dir = dir[:max(1, strings.LastIndexByte(dir, '/'))]
	}
}

// enterCgroup waits until the parent has put us into our cgroup, and makes it the root of the cgroup namespace.
func (c *child) enterCgroup() error {
	if c.inCgroup {
		return nil
	}
	if err := c.await(msgCgroup); err != nil {
		return err
	}
	c.inCgroup = true
	if c.config.NewCgroup {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("unshare the cgroup namespace: %w", err)
		}
	}
	return nil
}

func (c *child) makeCwd() error {
	fd, err := c.root.openDir(c.spec().Process.Cwd)
	if err == nil {
		unix.Close(fd)
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EROFS) {
		return nil // changeCwd says what is wrong with it
	}
	return err
}

// pivot makes the root "/" and lets the host's tree go.
func (c *child) pivot() error {
	if err := unix.Fchdir(c.root.fd); err != nil {
		return err
	}
	// The old root is stacked on the new one: no directory is needed in the image to put it.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	// Slave, so that the unmounts below do not propagate to the host.
	if err := unix.Mount("", ".", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("isolate the old root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	c.root.close()
	if p := c.spec().Linux.RootfsPropagation; p != "" {
		return unix.Mount("", "/", "", propagationFlags[p], "")
	}
	return nil
}

// chownStreams lets a user that is not root open /dev/stdout and its like again. Only pipes and the container's terminal: other files
// are the caller's, and their owner is not ours to change.
func (c *child) chownStreams() error {
	uid := int(c.spec().Process.User.UID)
	for fd := range 3 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFIFO && c.terminal == nil || int(st.Uid) == uid {
			continue
		}
		// EPERM, EINVAL: the owner is not mapped in our user namespace.
		if err := unix.Fchown(fd, uid, -1); err != nil && err != unix.EPERM && err != unix.EINVAL {
			return err
		}
	}
	return nil
}

func (c *child) joinKeyring() error {
	_, err := unix.KeyctlJoinSessionKeyring("_ses." + c.config.ID)
	if err == unix.ENOSYS || err == unix.EPERM || err == unix.EDQUOT {
		return nil // keyrings are not there, forbidden, or used up: the container goes without
	}
	return err
}

func (c *child) setUmask() error {
	mask := 0o022
	if m := c.spec().Process.User.Umask; m != nil {
		mask = int(*m)
	}
	unix.Umask(mask)
	return nil
}

func (c *child) changeCwd() error {
	if err := unix.Chdir(c.spec().Process.Cwd); err != nil {
		return &os.PathError{Op: "chdir", Path: c.spec().Process.Cwd, Err: err}
	}
	// getcwd gives "(unreachable)…" when a directory outside of the root was entered through a leaked
	// descriptor (CVE-2024-21626).
	wd, err := unix.Getwd()
	if err != nil {
		return err
	}
	if !strings.HasPrefix(wd, "/") {
		return fmt.Errorf("%s is outside of the container", c.spec().Process.Cwd)
	}
	return nil
}
