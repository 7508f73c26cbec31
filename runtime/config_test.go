package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestWrongConfigurationIsRefusedBeforeAnythingIsMade(t *testing.T) {
	root := newRootfs(t)
	umask := uint32(0o1000)
	score := 2000
	for field, change := range map[string]func(*specs.Spec, *CreateOptions){
		"id":             func(_ *specs.Spec, o *CreateOptions) { o.ID = "../x" },
		"bundle":         func(_ *specs.Spec, o *CreateOptions) { o.Bundle = "relative" },
		"ociVersion":     func(s *specs.Spec, _ *CreateOptions) { s.Version = "0.9.0" },
		"process":        func(s *specs.Spec, _ *CreateOptions) { s.Process = nil },
		"linux":          func(s *specs.Spec, _ *CreateOptions) { s.Linux = nil },
		"process.args":   func(s *specs.Spec, _ *CreateOptions) { s.Process.Args = nil },
		"process.cwd":    func(s *specs.Spec, _ *CreateOptions) { s.Process.Cwd = "tmp" },
		"process.user":   func(s *specs.Spec, _ *CreateOptions) { s.Process.User.UID = 1<<32 - 1 },
		"root.path":      func(_ *specs.Spec, o *CreateOptions) { o.Root = "/not/there" },
		"linux.seccomp":  func(s *specs.Spec, _ *CreateOptions) { s.Linux.Seccomp = &specs.LinuxSeccomp{} },
		"linux.sysctl":   func(s *specs.Spec, _ *CreateOptions) { s.Linux.Sysctl = map[string]string{"vm.swappiness": "1"} },
		"linux.intelRdt": func(s *specs.Spec, _ *CreateOptions) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} },
		"process.rlimits": func(s *specs.Spec, _ *CreateOptions) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CHEESE"}}
		},
		"process.user.umask":  func(s *specs.Spec, _ *CreateOptions) { s.Process.User.Umask = &umask },
		"process.oomScoreAdj": func(s *specs.Spec, _ *CreateOptions) { s.Process.OOMScoreAdj = &score },
		"linux.rootfsPropagation": func(s *specs.Spec, _ *CreateOptions) {
			s.Linux.RootfsPropagation = "everywhere"
		},
		"hostname": func(s *specs.Spec, _ *CreateOptions) { s.Linux.Namespaces = s.Linux.Namespaces[:1] },
		"linux.namespaces: pid": func(s *specs.Spec, _ *CreateOptions) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "pid"})
		},
		"linux.namespaces: time": func(s *specs.Spec, _ *CreateOptions) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "time"})
		},
		"linux.namespaces": func(s *specs.Spec, _ *CreateOptions) { s.Hostname, s.Linux.Namespaces = "", nil },
		"linux.resources":  func(s *specs.Spec, _ *CreateOptions) { s.Linux.Resources.Devices[0].Access = "x" },
		"linux.devices: /dev/odd": func(s *specs.Spec, _ *CreateOptions) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/odd", Type: "z"}}
		},
		"mounts: /id": func(s *specs.Spec, _ *CreateOptions) {
			s.Mounts = append(s.Mounts, bind("/tmp", "/id", "idmap"))
		},
	} {
		spec := sh("true")
		o := CreateOptions{ID: testID(root), Spec: spec, Root: root, Bundle: filepath.Dir(root)}
		change(spec, &o)
		c, err := Create(context.Background(), o)
		var e *ConfigError
		if !errors.As(err, &e) || e.Field != field {
			t.Errorf("%s: %v", field, err)
		}
		if c != nil {
			must(t, c.Delete())
		}
	}
	if exists("/sys/fs/cgroup/pids/veneer/" + testID(root)) {
		t.Error("a cgroup was left")
	}
}

func TestOnlySysctlsOfTheContainersNamespaces(t *testing.T) {
	all := map[specs.LinuxNamespaceType]bool{specs.NetworkNamespace: true, specs.IPCNamespace: true, specs.UTSNamespace: true}
	for _, name := range []string{"net.core.somaxconn", "net/core/somaxconn", "kernel.shmmax", "net.ipv4.conf.eth0/1.forwarding"} {
		if err := checkSysctls(map[string]string{name: "1"}, all); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := checkSysctls(map[string]string{name: "1"}, nil); err == nil {
			t.Errorf("%s: accepted without its namespace", name)
		}
	}
	for _, name := range []string{
		"kernel.core_pattern", "net/../kernel/core_pattern", "net.//.kernel.core_pattern", "net", "", "../../etc/passwd", "kernel.sem2",
	} {
		if err := checkSysctls(map[string]string{name: "1"}, all); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if got := sysctlPath("net.ipv4.conf.eth0/1.forwarding"); got != "/proc/sys/net/ipv4/conf/eth0.1/forwarding" {
		t.Error(got)
	}
}

func TestRaisingALimitBeyondTheCallersIsAnError(t *testing.T) {
	var own unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &own))
	spec := sh("ulimit -Hn")
	spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 40, Hard: 1 << 40}} // above fs.nr_open
	wantSetupError(t, newRootfs(t), spec, "set resource limits")
}

func TestCancelledContextEndsCreate(t *testing.T) {
	root := newRootfs(t)
	spec := sh("true")
	ctx, cancel := context.WithCancel(context.Background())
	// The hook holds the set-up up until the context is cancelled.
	fifo := filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo > " + fifo + "; sleep 1000"}}}}
	go func() {
		os.ReadFile(fifo)
		cancel()
	}()
	_, err := Create(ctx, CreateOptions{ID: testID(root), Spec: spec, Root: root})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestDeathOfTheChildEndsCreate(t *testing.T) {
	spec := sh("true")
	spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{
		Path: "/bin/sh", Args: []string{"sh", "-c", "kill -9 $(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/')"},
	}}}
	if _, _, err := tryCreate(t, newRootfs(t), spec); err == nil || !strings.Contains(err.Error(), "died") {
		t.Errorf("error %v", err)
	}
}

func TestDeleteEndsAStartThatWaits(t *testing.T) {
	root := newRootfs(t)
	fifo := filepath.Join(filepath.Dir(root), "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	spec := sh("true")
	spec.Mounts = append(spec.Mounts, bind(fifo, "/fifo"))
	spec.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo > /fifo; sleep 1000"}}}}
	c, _ := create(t, root, spec)
	started := make(chan error)
	go func() { started <- c.Start() }()
	_, err := os.ReadFile(fifo)
	must(t, err)
	must(t, c.Delete())
	if err := <-started; err == nil {
		t.Error("Start succeeded")
	}
}

func TestHooks(t *testing.T) {
	root := newRootfs(t)
	log := filepath.Join(filepath.Dir(root), "log")
	hook := func(name string) []specs.Hook {
		script := `s=$(cat); status=${s#*\"status\":\"}; echo ` + name + ` ${status%%\"*} $(readlink /proc/self/ns/mnt) $X >> $0`
		h := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script, log}, Env: []string{"PATH=/bin", "X=env"}}
		if name == "startContainer" {
			h.Args[3] = "/log"
		}
		return []specs.Hook{h}
	}
	spec := sh("cat /log; readlink /proc/self/ns/mnt")
	spec.Mounts = append(spec.Mounts, bind(log, "/log"))
	must(t, os.WriteFile(log, nil, 0o666))
	spec.Hooks = &specs.Hooks{
		Prestart: hook("prestart"), CreateRuntime: hook("createRuntime"), CreateContainer: hook("createContainer"), //lint:ignore SA1019 still demanded
		StartContainer: hook("startContainer"), Poststart: hook("poststart"), Poststop: hook("poststop"),
	}
	c, output := create(t, root, spec)
	must(t, c.Start())
	_, err := c.Wait()
	must(t, err)
	must(t, c.Delete())
	stdout, _ := output()
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	inside := lines[len(lines)-1]
	host, err := os.Readlink("/proc/self/ns/mnt")
	must(t, err)
	text, err := os.ReadFile(log)
	must(t, err)
	want := "prestart creating " + host + " env\ncreateRuntime creating " + host + " env\ncreateContainer creating " + inside + " env\n" +
		"startContainer created " + inside + " env\npoststart running " + host + " env\npoststop stopped " + host + " env\n"
	if string(text) != want {
		t.Errorf("got\n%swant\n%s", text, want)
	}
}

func TestFailingHooks(t *testing.T) {
	root := newRootfs(t)
	one := 1
	fail := []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo because >&2; exit 3"}}}
	slow := []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "1000"}, Timeout: &one}}
	for name, hooks := range map[string]*specs.Hooks{
		"createRuntime": {CreateRuntime: fail}, "createContainer": {CreateContainer: fail},
		"startContainer": {StartContainer: fail}, "poststart": {Poststart: fail}, "longer than 1 s": {CreateRuntime: slow},
	} {
		spec := newSpec("/bin/sleep", "1000")
		after := filepath.Join(t.TempDir(), "after")
		hooks.Poststop = append(fail, specs.Hook{Path: "/bin/touch", Args: []string{"touch", after}})
		spec.Hooks = hooks
		c, _, err := tryCreate(t, root, spec)
		if err == nil {
			err = c.Start()
			if st := c.State().Status; st != specs.StateStopped {
				t.Errorf("%s: container is %s", name, st)
			}
			must(t, c.Delete())
		}
		if err == nil || !strings.Contains(err.Error(), name) || hooks.CreateRuntime == nil && !strings.Contains(err.Error(), "because") {
			t.Errorf("%s: %v", name, err)
		}
		if !exists(after) {
			t.Errorf("%s: the poststop hooks were not run", name)
		}
	}
}

func TestJoinedNamespaces(t *testing.T) {
	root := newRootfs(t)
	first := newSpec("/bin/sleep", "1000")
	first.Linux.Namespaces = append(first.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	pod, _ := create(t, root, first)
	must(t, pod.Start())
	spec := sh("for n in pid ipc uts net; do readlink /proc/self/ns/$n; done; hostname; pidof sleep")
	spec.Hostname = ""
	spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	var want string
	for _, n := range []specs.LinuxNamespaceType{"pid", "ipc", "uts", "network"} {
		path := filepath.Join("/proc", itoa(pod.Pid()), "ns", strings.Replace(string(n), "network", "net", 1))
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: n, Path: path})
		link, err := os.Readlink(path)
		must(t, err)
		want += link + "\n"
	}
	second := newRootfs(t)
	// In a monitor's mount namespace: the joining thread must see what the caller sees.
	privateMounts(t)
	visible := filepath.Join(filepath.Dir(second), "mounted")
	must(t, os.Mkdir(visible, 0o755))
	must(t, unix.Mount(second, visible, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(visible, 0)) })
	c, err := Create(context.Background(), CreateOptions{ID: "joined", Spec: spec, Root: visible, Stdout: os.Stderr})
	must(t, err)
	must(t, c.Delete())
	// No more threads than before are in the pod's namespaces, and our own are as they were.
	var own, now unix.Stat_t
	must(t, unix.Stat("/proc/self/ns/net", &own))
	must(t, unix.Stat("/proc/thread-self/ns/net", &now))
	if own.Ino != now.Ino {
		t.Error("the caller's thread changed its network namespace")
	}
	if got := runOK(t, second, spec); got != want+"box\n1\n" {
		t.Errorf("got %q, want %q", got, want+"box\n1\n")
	}
	spec.Linux.Namespaces[4].Path = "/proc/self/ns/uts"
	if _, _, err := tryCreate(t, second, spec); !errors.Is(err, unix.EINVAL) {
		t.Errorf("joining a namespace of another type: %v", err)
	}
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

func TestUserNamespace(t *testing.T) {
	root := newRootfs(t)
	const first = 100000
	must(t, filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		must(t, err)
		return os.Lchown(p, first, first)
	}))
	spec := sh(`cat /proc/self/uid_map; id -u; stat -c %u /bin/busybox; stat -c %t:%T /dev/null; echo x > /dev/null; touch /made
		for s in CapEff NoNewPrivs; do grep $s /proc/self/status; done; chown 5:6 /made && stat -c %u:%g /made; cat /proc/1/oom_score_adj; hostname`)
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace}, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: first, Size: 65536}}
	spec.Linux.GIDMappings = spec.Linux.UIDMappings
	spec.Process.User.AdditionalGids = []uint32{7}
	got := strings.Join(strings.Fields(runOK(t, root, spec)), " ")
	want := "0 100000 65536 0 0 1:3 CapEff: 00000000a80425fb NoNewPrivs: 1 5:6 0 box"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(root, "made"), &st))
	if st.Uid != first+5 {
		t.Errorf("owner on the host is %d", st.Uid)
	}
}

func TestRootless(t *testing.T) {
	root := newRootfs(t)
	const user = 12345
	must(t, filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		must(t, err)
		return os.Lchown(p, user, user)
	}))
	// The user cannot reach into go test's directory.
	exe, err := os.Executable()
	must(t, err)
	program, err := os.ReadFile(exe)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(filepath.Dir(root), "exe"), program, 0o755))
	script := "exec setpriv --reuid 12345 --regid 12345 --clear-groups " + filepath.Join(filepath.Dir(root), "exe")
	for _, network := range []bool{false, true} {
		spec := sh("id -u; touch /made; stat -c %u /made; echo x > /dev/null; ls /sys | head -1; tty; exit 6")
		Rootless(spec, user, user)
		if network {
			spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
		}
		if got := holder(t, "run", script, root, spec); got != "0\n0\nblock\nnot a tty\n" {
			t.Errorf("got %q", got)
		}
	}
}

// inspection prints what a container can see of itself, as far as it should not depend on the runtime. (Left out: old runc forgets the
// "ro" of a v1 cgroup mount under a cgroup namespace, and every runc hands on what its parent ignores: make ignores signal 32.)
const inspection = `
	for f in Cap NoNewPrivs Uid Gid Groups Sig Umask Seccomp Threads; do grep ^$f /proc/self/status; done | grep -v -e SigQ -e SigIgn
	for n in /dev/*; do stat -c '%n %F %t:%T %a %u:%g' $n; done
	for l in fd stdin stdout stderr ptmx; do echo $l $(readlink /dev/$l); done
	env | sort; pwd; hostname; id; ulimit -n; ulimit -c; umask
	sed 's/^[0-9]* [0-9]* [0-9]*:[0-9]* //; s/ - / /; s/ rw,.*//' /proc/self/mountinfo | grep -v -e ^/tmp -e ' /sys/fs/cgroup ' -e ' /sys/fs/cgroup$' | awk '{print $2, $3}' | sort
	for p in /proc/kcore /proc/timer_list; do head -c 5 $p 2>&1; done
	touch /proc/sys/x /sys/x /readonly 2>&1
	ls /proc/1/fd; cat /proc/1/oom_score_adj; echo $$; cat /proc/1/cgroup | cut -d: -f2-; ls /sys/fs/cgroup; ip -o link | cut -d: -f2; cat /proc/sys/kernel/domainname
	stat -c '%a %u' /tmpfs /work; cat /bound; echo x >> /bound; true`

// onlyIn returns the lines of a that are not in b.
func onlyIn(a, b string) (lines string) {
	for line := range strings.Lines(a) {
		if !strings.Contains("\n"+b, "\n"+line) {
			lines += line
		}
	}
	return lines
}

// TestSameAsRunc gives one configuration to runc and to us; the container must not see a difference.
func TestSameAsRunc(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("runc is not installed")
	}
	for name, change := range map[string]func(*specs.Spec){
		"default":  func(*specs.Spec) {},
		"readonly": func(s *specs.Spec) { s.Root.Readonly = true },
		"user": func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 6}}
			s.Process.Cwd = "/work"
		},
		"network": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
		},
		"privileged": func(s *specs.Spec) {
			s.Process.NoNewPrivileges = false
			s.Process.Capabilities.Inheritable = []string{"CAP_KILL"}
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := newRootfs(t)
			bundle := filepath.Dir(root)
			must(t, os.WriteFile(filepath.Join(bundle, "bound"), []byte("bound\n"), 0o644))
			must(t, os.Mkdir(filepath.Join(root, "work"), 0o711))
			spec := sh(inspection)
			spec.Version = "1.0.2" // what Debian's runc knows
			spec.Process.Env = append(spec.Process.Env, "HOME=/root", "A=b c")
			spec.Mounts = append(spec.Mounts, bind(filepath.Join(bundle, "bound"), "/bound", "ro"),
				specs.Mount{Destination: "/tmpfs", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=1750"}},
				specs.Mount{Destination: "/work", Type: "tmpfs", Source: "tmpfs", Options: []string{"nodev"}})
			change(spec)
			config, err := json.Marshal(spec)
			must(t, err)
			must(t, os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o644))
			cmd := exec.Command(runc, "--root", t.TempDir(), "run", "--bundle", bundle, "peer-"+testID(root))
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Run(); err != nil {
				t.Fatal("runc: ", err, stderr.String())
			}
			ours := run(t, root, spec)
			if ours.stdout != stdout.String() || ours.stderr != stderr.String() {
				t.Errorf("only in ours:\n%s%sonly in runc's:\n%s%s", onlyIn(ours.stdout, stdout.String()), onlyIn(ours.stderr, stderr.String()),
					onlyIn(stdout.String(), ours.stdout), onlyIn(stderr.String(), ours.stderr))
			}
		})
	}
}

// The file system of the root may be one that nobody answers for yet. Whoever starts its server waits for the plan to be made.
func TestPlanAsksNothingOfTheRoot(t *testing.T) {
	root := newRootfs(t)
	privateMounts(t)
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	must(t, unix.Mount("silent", root, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse)))
	late := time.AfterFunc(10*time.Second, func() {
		t.Error("it waits for an answer")
		unix.Close(fuse) // which is one
	})
	p, err := newPlan(CreateOptions{ID: "silent", Spec: newSpec("/bin/true"), Root: root})
	switch {
	case err != nil:
		t.Error(err)
	case p.child.Root != root:
		t.Errorf("root %q, want %q", p.child.Root, root)
	}
	if late.Stop() {
		unix.Close(fuse)
	}
	must(t, unix.Unmount(root, unix.MNT_DETACH))
}
