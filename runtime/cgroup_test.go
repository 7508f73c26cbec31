package runtime

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// cgroupDirs are the directories of a container's cgroup on this host.
func cgroupDirs(t *testing.T, name string) []string {
	t.Helper()
	c, err := newCgroup(name, &cgroups.Resources{})
	must(t, err)
	var dirs []string
	for _, d := range c.manager.GetPaths() {
		dirs = append(dirs, d)
	}
	return dirs
}

func TestCgroupHoldsTheContainer(t *testing.T) {
	root := newRootfs(t)
	c, _ := create(t, root, newSpec("/bin/sleep", "1000"))
	name := c.CgroupPath()
	if want := "/veneer/" + testID(root); name != want {
		t.Errorf("cgroup %q, want %q", name, want)
	}
	dirs := cgroupDirs(t, name)
	for _, d := range dirs {
		procs, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		must(t, err)
		if got := strings.TrimSpace(string(procs)); got != strconv.Itoa(c.Pid()) {
			t.Errorf("%s holds %q, want %d", d, got, c.Pid())
		}
	}
	must(t, c.Delete())
	for _, d := range dirs {
		if exists(d) {
			t.Errorf("%s is left", d)
		}
	}
}

func TestCgroupNamespaceHidesTheHosts(t *testing.T) {
	out := runOK(t, newRootfs(t), sh("cut -d: -f3 /proc/self/cgroup | sort -u; cat /sys/fs/cgroup/pids/cgroup.procs 2>/dev/null | head -1"))
	want := "/\n1\n"
	if cgroups.IsCgroup2UnifiedMode() {
		want = "/\n"
	}
	if out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

func TestCgroupWithoutNamespaceShowsItsOwn(t *testing.T) {
	spec := sh("head -1 /sys/fs/cgroup/pids/cgroup.procs || head -1 /sys/fs/cgroup/cgroup.controllers | wc -l; mkdir /sys/fs/cgroup/x")
	spec.Linux.Namespaces = spec.Linux.Namespaces[:4]
	r := run(t, newRootfs(t), spec)
	if r.stdout != "1\n" || !strings.Contains(r.stderr, "Read-only") {
		t.Errorf("got %q, %q", r.stdout, r.stderr)
	}
}

func TestLimits(t *testing.T) {
	pids, memory, shares := int64(7), int64(64<<20), uint64(512)
	quota, period := int64(50000), uint64(100000)
	spec := sh("cd /sys/fs/cgroup; cat pids/pids.max memory/memory.limit_in_bytes cpu/cpu.shares cpu/cpu.cfs_quota_us")
	if cgroups.IsCgroup2UnifiedMode() {
		spec = sh("cd /sys/fs/cgroup; cat pids.max memory.max; echo 512; cut -d' ' -f1 cpu.max")
	}
	spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
	spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &memory}
	spec.Linux.Resources.CPU = &specs.LinuxCPU{Shares: &shares, Quota: &quota, Period: &period}
	if got, want := runOK(t, newRootfs(t), spec), "7\n67108864\n512\n50000\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestOneProcessIsAPossibleLimit(t *testing.T) {
	one := int64(1)
	spec := sh("echo alone; sleep 0 || true")
	spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &one}
	if r := run(t, newRootfs(t), spec); r.stdout != "alone\n" || !strings.Contains(r.stderr, "fork") {
		t.Errorf("got %q, %q", r.stdout, r.stderr)
	}
}

func TestMemoryLimitKills(t *testing.T) {
	memory := int64(16 << 20)
	spec := sh("x=$(head -c 64000000 /dev/zero | tr '\\0' x); echo survived")
	spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &memory, Swap: &memory}
	if r := run(t, newRootfs(t), spec); r.status.ExitCode() != 137 {
		t.Errorf("ended with %+v, %q", r.status, r.stdout)
	}
}

// Without a PID namespace the end of the first process does not end the others: the cgroup does.
func TestDeleteKillsWhatTheProcessLeft(t *testing.T) {
	spec := sh("sleep 1000 </dev/null >/dev/null 2>&1 & echo $!")
	spec.Linux.Namespaces = append(spec.Linux.Namespaces[:1:1], spec.Linux.Namespaces[2:]...)
	c, output := create(t, newRootfs(t), spec)
	must(t, c.Start())
	_, err := c.Wait()
	must(t, err)
	out, _ := output()
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	must(t, err)
	must(t, unix.Kill(pid, 0))
	must(t, c.Delete())
	awaitDeath(t, pid)
}

func TestDestroyCgroupAfterTheMonitorDied(t *testing.T) {
	root := newRootfs(t)
	spec := sh("exec sleep 1000 >/dev/null 2>&1") // the pipe must close with the monitor
	spec.Linux.Namespaces = append(spec.Linux.Namespaces[:1:1], spec.Linux.Namespaces[2:]...)
	pid, err := strconv.Atoi(strings.TrimSpace(holder(t, "start-and-die", `exec "$0"`, root, spec)))
	must(t, err)
	must(t, unix.Kill(pid, 0)) // the user's process outlives its monitor
	name := "/veneer/" + testID(root)
	dirs := cgroupDirs(t, name)
	must(t, DestroyCgroup(name))
	awaitDeath(t, pid)
	for _, d := range dirs {
		if exists(d) {
			t.Errorf("%s is left", d)
		}
	}
	must(t, DestroyCgroup(name))
	must(t, DestroyCgroup(""))
}

// What the manager does where there is no cgroup.kill.
func TestKillEach(t *testing.T) {
	root := newRootfs(t)
	spec := sh("for i in 1 2 3 4; do (while :; do sleep 0.001; done) & done; echo; wait")
	spec.Linux.Namespaces = append(spec.Linux.Namespaces[:1:1], spec.Linux.Namespaces[2:]...)
	c, _ := create(t, root, spec)
	must(t, c.Start())
	must(t, c.cgroup.killEach())
	_, err := c.Wait()
	must(t, err)
	must(t, c.Delete())
}

func TestCgroupOfOthersIsRefused(t *testing.T) {
	root := newRootfs(t)
	c, _ := create(t, root, newSpec("/bin/sleep", "1000"))
	_, _, err := tryCreate(t, root, newSpec("/bin/true"))
	if !errors.Is(err, unix.EBUSY) {
		t.Errorf("error %v", err)
	}
	if c.State().Status != specs.StateCreated {
		t.Error("the first container was ended")
	}
}

func TestParentsOfAConfiguredCgroupStay(t *testing.T) {
	root := newRootfs(t)
	spec := newSpec("/bin/true")
	spec.Linux.CgroupsPath = "/" + testID(root) + "/inner"
	dirs := cgroupDirs(t, spec.Linux.CgroupsPath)
	c, _ := create(t, root, spec)
	if c.CgroupPath() != spec.Linux.CgroupsPath {
		t.Errorf("cgroup %s", c.CgroupPath())
	}
	must(t, c.Delete())
	for _, d := range dirs {
		if exists(d) {
			t.Errorf("%s is left", d)
		}
		must(t, os.Remove(filepath.Dir(d)))
	}
}

func TestHostRootIsNotACgroupOfOurs(t *testing.T) {
	for _, name := range []string{"/", "..", "/a/../.."} {
		if err := DestroyCgroup(name); err == nil {
			t.Errorf("%q was destroyed", name)
		}
	}
}

// A read-only /sys/fs/cgroup, as in a container: without limits the container runs all the same, without CAP_MKNOD.
func TestReadOnlyCgroupFS(t *testing.T) {
	root := newRootfs(t)
	privateMounts(t)
	must(t, unix.MountSetattr(unix.AT_FDCWD, "/sys/fs/cgroup", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
	spec := newSpec("/bin/cat", "/proc/self/status")
	if got := status(runOK(t, root, spec))["CapEff"]; got != "00000000a00425fb" {
		t.Errorf("CapEff is %s", got)
	}
	limit := int64(5)
	spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &limit}
	wantSetupError(t, root, spec, "make the cgroup")
}

// The unified hierarchy alone, as hosts have it today; made of what a hybrid host has.
func TestCgroupV2(t *testing.T) {
	if !cgroups.IsCgroup2UnifiedMode() && !cgroups.IsCgroup2HybridMode() {
		t.Skip("the host has no cgroup v2")
	}
	root := newRootfs(t)
	spec := sh("cat /proc/self/cgroup | grep ^0; cat /sys/fs/cgroup/cgroup.procs | head -1; mkdir /sys/fs/cgroup/x; " +
		"mknod /tmp/fuse c 10 229 && : < /tmp/fuse")
	got := holder(t, "run", `exec unshare -m sh -c 'mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup && exec "$0" 2>&1' "$0"`, root, spec)
	if want := "0::/\n1\n"; !strings.HasPrefix(got, want) || !strings.Contains(got, "Read-only") || !strings.Contains(got, "not permitted") {
		t.Errorf("got %q", got)
	}
	if exists("/sys/fs/cgroup/unified/veneer/" + testID(root)) {
		t.Error("the cgroup is left")
	}
}
