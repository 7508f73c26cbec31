package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestProcessIsPID1OfItsOwnNamespaces(t *testing.T) {
	root := newRootfs(t)
	out := runOK(t, root, sh("echo $$; hostname; cd /proc; echo [0-9]*; cat /proc/1/cmdline | tr '\\0' ' '"))
	if want := "1\nbox\n1\n/bin/sh"; !strings.HasPrefix(out, want) {
		t.Errorf("got %q, want it to start with %q", out, want)
	}
	out = runOK(t, root, sh("for n in mnt pid ipc uts cgroup net user; do readlink /proc/self/ns/$n; done"))
	for i, n := range []string{"mnt", "pid", "ipc", "uts", "cgroup", "net", "user"} {
		host, err := os.Readlink("/proc/self/ns/" + n)
		must(t, err)
		shared := n == "net" || n == "user"
		if inside := strings.Fields(out)[i]; (inside == host) != shared {
			t.Errorf("namespace %s: %s inside, %s on the host", n, inside, host)
		}
	}
}

// status returns the fields of /proc/self/status of a process that the container ran.
func status(text string) map[string]string {
	fields := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			fields[name] = strings.Join(strings.Fields(value), " ")
		}
	}
	return fields
}

func TestDefaultPrivilegesAreDockers(t *testing.T) {
	got := status(runOK(t, newRootfs(t), newSpec("/bin/cat", "/proc/self/status")))
	for name, want := range map[string]string{
		"CapBnd": "00000000a80425fb", "CapPrm": "00000000a80425fb", "CapEff": "00000000a80425fb",
		"CapInh": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Uid": "0 0 0 0", "Gid": "0 0 0 0", "Groups": "",
		"SigIgn": "0000000000000000", "SigBlk": "0000000000000000", "SigCgt": "0000000000000000",
		"Umask": "0022", "Threads": "1",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
}

func TestIgnoredSignalsOfTheCallerAreNotInherited(t *testing.T) {
	// A parent under nohup ignores SIGHUP; the Go runtime keeps that and so would execve.
	out := holder(t, "run", `trap "" HUP PIPE USR1; exec "$0"`, newRootfs(t), newSpec("/bin/cat", "/proc/self/status"))
	if got := status(out)["SigIgn"]; got != "0000000000000000" {
		t.Errorf("SigIgn is %s", got)
	}
}

func TestUserIsWithoutCapabilities(t *testing.T) {
	spec := newSpec("/bin/cat", "/proc/self/status")
	umask := uint32(0o027)
	spec.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 2000}, Umask: &umask}
	got := status(runOK(t, newRootfs(t), spec))
	for name, want := range map[string]string{
		"CapBnd": "00000000a80425fb", "CapEff": "0000000000000000", "Uid": "1000 1000 1000 1000",
		"Gid": "1001 1001 1001 1001", "Groups": "5 2000", "Umask": "0027",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
}

func TestAmbientCapabilitiesReachAUser(t *testing.T) {
	spec := newSpec("/bin/cat", "/proc/self/status")
	spec.Process.User.UID = 1000
	caps := []string{"CAP_NET_BIND_SERVICE"}
	spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: caps, Effective: caps, Permitted: caps, Inheritable: caps, Ambient: caps,
	}
	got := status(runOK(t, newRootfs(t), spec))
	for _, name := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if got[name] != "0000000000000400" {
			t.Errorf("%s is %s", name, got[name])
		}
	}
}

func TestImpossibleCapabilitiesAreLeftOut(t *testing.T) {
	spec := newSpec("/bin/cat", "/proc/self/status")
	kill, more := []string{"CAP_KILL", "CAP_NOT_YET"}, []string{"CAP_KILL", "CAP_CHOWN"}
	spec.Process.User.UID = 1000
	spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: kill, Permitted: kill, Effective: more, Inheritable: more, Ambient: more,
	}
	got := status(runOK(t, newRootfs(t), spec))
	for _, name := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if got[name] != "0000000000000020" {
			t.Errorf("%s is %s", name, got[name])
		}
	}
	// Ambient without inheritable, as "runc spec" writes it.
	spec.Process.Capabilities.Inheritable = nil
	if got := status(runOK(t, newRootfs(t), spec))["CapAmb"]; got != "0000000000000000" {
		t.Errorf("CapAmb is %s", got)
	}
}

func TestOnlyStandardStreamsAreOpen(t *testing.T) {
	// An open descriptor of the caller's that is not close-on-exec, as a careless library leaves one.
	fd, err := unix.Open("/etc", unix.O_RDONLY, 0)
	must(t, err)
	defer unix.Close(fd)
	out := runOK(t, newRootfs(t), sh("ls /proc/1/fd; true"))
	if got := strings.Fields(out); !slices.Equal(got, []string{"0", "1", "2"}) {
		t.Errorf("descriptors %q", got)
	}
}

func TestEnvironmentIsExact(t *testing.T) {
	spec := newSpec("env")
	spec.Process.Env = []string{"PATH=/bin", "A=1", "EMPTY=", "B=x y"}
	if got, want := runOK(t, newRootfs(t), spec), "PATH=/bin\nA=1\nEMPTY=\nB=x y\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPATHIsTheContainers(t *testing.T) {
	root := newRootfs(t)
	must(t, os.MkdirAll(filepath.Join(root, "opt/tools"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "opt/tools/mine"), []byte("#!/bin/sh\necho found $0\n"), 0o755))
	spec := newSpec("mine")
	spec.Process.Env = []string{"PATH=/nowhere:/etc:/opt/tools"}
	if got := runOK(t, root, spec); got != "found /opt/tools/mine\n" {
		t.Errorf("got %q", got)
	}
}

func TestWorkingDirectory(t *testing.T) {
	root := newRootfs(t)
	spec := newSpec("/bin/pwd")
	spec.Process.Cwd = "/made/on/demand"
	if got := runOK(t, root, spec); got != "/made/on/demand\n" {
		t.Errorf("got %q", got)
	}
	// Docker and runc do not resolve what leads out of the root to the host's directory, nor may we.
	spec.Process.Cwd = "/../../../../" + filepath.Dir(root)
	if got := runOK(t, root, spec); got != filepath.Dir(root)+"\n" {
		t.Errorf("got %q", got)
	}
	if _, err := os.Stat(filepath.Join(root, filepath.Dir(root))); err != nil {
		t.Error("the directory was not made inside: ", err)
	}
}

func TestOpenFileLimit(t *testing.T) {
	root := newRootfs(t)
	var own unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &own))
	spec := sh("ulimit -Sn; ulimit -Hn; ulimit -c")
	spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE"}}
	if got := runOK(t, root, spec); got != "100\n200\n0\n" {
		t.Errorf("got %q", got)
	}
	// Without a limit of its own the process has its caller's, not the soft limit that the Go runtime raised for itself.
	want := holder(t, "run", `ulimit -Sn 123; exec "$0"`, root, sh("ulimit -Sn"))
	if want != "123\n" {
		t.Errorf("inherited %q, want 123", want)
	}
}

func TestOOMScoreAdj(t *testing.T) {
	spec := newSpec("/bin/cat", "/proc/self/oom_score_adj")
	score := 321
	spec.Process.OOMScoreAdj = &score
	if got := runOK(t, newRootfs(t), spec); got != "321\n" {
		t.Errorf("got %q", got)
	}
}

func TestSysctl(t *testing.T) {
	spec := sh("cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start; ip link show lo | head -1")
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	spec.Linux.Sysctl = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "77"}
	got := runOK(t, newRootfs(t), spec)
	if !strings.HasPrefix(got, "1\n77\n") || !strings.Contains(got, "LOOPBACK,UP") {
		t.Errorf("got %q", got)
	}
	host, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	must(t, err)
	if string(host) == "77\n" {
		t.Error("the host's sysctl was changed")
	}
}

func TestUserCanReopenStandardOutput(t *testing.T) {
	spec := sh("echo again > /dev/stdout")
	spec.Process.User.UID = 1000
	if got := runOK(t, newRootfs(t), spec); got != "again\n" {
		t.Errorf("got %q", got)
	}
}

func TestRegularFileOfTheCallerKeepsItsOwner(t *testing.T) {
	root := newRootfs(t)
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	must(t, err)
	defer out.Close()
	spec := newSpec("/bin/id", "-u")
	spec.Process.User.UID = 1000
	c, err := Create(context.Background(), CreateOptions{ID: testID(root), Spec: spec, Root: root, Stdout: out})
	must(t, err)
	defer c.Delete()
	must(t, c.Start())
	_, err = c.Wait()
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Fstat(int(out.Fd()), &st))
	text, err := os.ReadFile(out.Name())
	must(t, err)
	if st.Uid != 0 || string(text) != "1000\n" {
		t.Errorf("owner %d, text %q", st.Uid, text)
	}
}

func TestSignalReachesTheProcess(t *testing.T) {
	root := newRootfs(t)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	c, err := Create(context.Background(), CreateOptions{
		ID: testID(root), Root: root, Stdout: w,
		Spec: sh("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done"),
	})
	w.Close()
	must(t, err)
	defer c.Delete()
	must(t, c.Start())
	_, err = io.ReadFull(r, make([]byte, len("ready\n")))
	must(t, err)
	if s := c.State(); s.Status != specs.StateRunning || s.Pid != c.Pid() {
		t.Errorf("state %+v", s)
	}
	must(t, c.Signal(unix.SIGTERM))
	if st, _ := c.Wait(); st.ExitCode() != 7 {
		t.Errorf("ended with %+v", st)
	}
	if s := c.State(); s.Status != specs.StateStopped || s.Pid != 0 {
		t.Errorf("state %+v", s)
	}
	if err := c.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
}

func TestKillIs137(t *testing.T) {
	c, _ := create(t, newRootfs(t), newSpec("/bin/sleep", "1000"))
	must(t, c.Start())
	must(t, c.Signal(unix.SIGKILL))
	st, err := c.Wait()
	must(t, err)
	if st.Signal != unix.SIGKILL || st.ExitCode() != 137 {
		t.Errorf("ended with %+v", st)
	}
	must(t, c.Kill())
}

func TestCreatedContainerCanBeDeletedWithoutStart(t *testing.T) {
	c, _ := create(t, newRootfs(t), newSpec("/bin/true"))
	if s := c.State(); s.Status != specs.StateCreated || s.Pid == 0 {
		t.Errorf("state %+v", s)
	}
	must(t, c.Delete())
	must(t, c.Delete())
	if err := c.Start(); err == nil {
		t.Error("a deleted container was started")
	}
}

func TestProcessStartNamesTheProcess(t *testing.T) {
	own, err := ProcessStart(os.Getpid())
	must(t, err)
	again, err := ProcessStart(os.Getpid())
	must(t, err)
	if own == 0 || own != again {
		t.Errorf("start %d and %d", own, again)
	}
	if _, err := ProcessStart(1 << 30); !os.IsNotExist(err) {
		t.Errorf("of no process: %v", err)
	}
	odd := []byte("1 (a) b (c) S " + strings.Repeat("1 ", 18) + "4711 0 0")
	if n, err := parseProcessStart(odd); n != 4711 || err != nil {
		t.Errorf("with an odd name: %d, %v", n, err)
	}
}

func FuzzProcessStart(f *testing.F) {
	f.Add([]byte("1 (init) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12 0 0"))
	f.Fuzz(func(t *testing.T, stat []byte) {
		if n, err := parseProcessStart(stat); err == nil && !bytes.Contains(stat, []byte(strconv.FormatUint(n, 10))) && n != 0 {
			t.Errorf("%d is not in %q", n, stat)
		}
	})
}

// The container must not be able to write to this program's file (CVE-2019-5736): it runs from a read-only mount.
func TestOwnProgramIsReadOnlyForTheContainer(t *testing.T) {
	spec := newSpec("/proc/self/exe")
	spec.Process.Env = []string{"RUNTIME_TEST_ROLE=exeflag"}
	for _, dir := range []string{"/lib", "/lib64", "/usr/lib"} { // with -race the test program is linked dynamically
		if _, err := os.Stat(dir); err == nil {
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: dir, Source: dir, Options: []string{"bind", "ro"}})
		}
	}
	if got := runOK(t, newRootfs(t), spec); got != "read-only: true\n" {
		t.Errorf("got %q", got)
	}
	privateMounts(t) // as a monitor
	self, err := readOnlySelf(0)
	must(t, err)
	must(t, self.Close())
	mem, err := copySelf(0)
	must(t, err)
	defer mem.Close()
	if _, err := mem.WriteAt([]byte("x"), 0); err == nil {
		t.Error("the copy in memory can be written to")
	}
}

func exeFlagRole() int {
	var fs unix.Statfs_t
	if err := unix.Statfs("/proc/self/exe", &fs); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("read-only:", fs.Flags&unix.MS_RDONLY != 0)
	return 0
}

func TestParentDeathLeavesNoChild(t *testing.T) {
	root := newRootfs(t)
	t.Run("created", func(t *testing.T) {
		// The holder is killed when it has created the container and said so.
		pid, err := strconv.Atoi(strings.TrimSpace(holder(t, "create-and-die", `exec "$0"`, root, newSpec("/bin/true"))))
		must(t, err)
		awaitDeath(t, pid)
	})
	t.Run("during set-up", func(t *testing.T) {
		spec := newSpec("/bin/true")
		pidFile := filepath.Join(t.TempDir(), "pid")
		spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{
			Path: "/bin/sh", Args: []string{"sh", "-c", "sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/' > " + pidFile + "; kill -9 $PPID"},
		}}}
		holder(t, "run", `exec "$0"`, root, spec)
		text, err := os.ReadFile(pidFile)
		must(t, err)
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		must(t, err)
		awaitDeath(t, pid)
	})
	must(t, DestroyCgroup("/veneer/"+testID(root)))
}

// awaitDeath waits for the end of a process that may not be our child. A process that never ends hangs the test.
func awaitDeath(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return
	}
	must(t, err)
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("poll: %d, %v", n, err)
		}
		return
	}
}

// holder runs a container in a process of its own, started by the shell script with this program as $0, and returns what that wrote.
func holder(t *testing.T, mode, script, root string, spec *specs.Spec) string {
	t.Helper()
	config, err := json.Marshal(spec)
	must(t, err)
	exe, err := os.Executable()
	must(t, err)
	r, w, err := os.Pipe()
	must(t, err)
	p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", script, exe}, &os.ProcAttr{
		Env:   append(os.Environ(), "RUNTIME_TEST_ROLE=holder", "MODE="+mode, "ROOT="+root, "CONFIG="+string(config)),
		Files: []*os.File{nil, w, os.Stderr},
	})
	w.Close()
	must(t, err)
	text, err := io.ReadAll(r)
	must(t, err)
	_, err = p.Wait()
	must(t, err)
	return string(text)
}

func holderRole() int {
	var spec specs.Spec
	if err := json.Unmarshal([]byte(os.Getenv("CONFIG")), &spec); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	root := os.Getenv("ROOT")
	c, err := Create(context.Background(), CreateOptions{ID: testID(root), Spec: &spec, Root: root, Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if os.Getenv("MODE") == "create-and-die" {
		fmt.Println(c.Pid())
		unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	defer c.Delete()
	if err := c.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if os.Getenv("MODE") == "start-and-die" {
		fmt.Println(c.Pid())
		unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	st, err := c.Wait()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return st.ExitCode()
}

func TestManyAtOnceLeaveNothing(t *testing.T) {
	root := newRootfs(t)
	runOK(t, root, sh("true")) // package cgroups keeps a descriptor of the root
	before := openFiles(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for j := range 3 {
				spec := sh(fmt.Sprintf("exit %d", i))
				c, err := Create(context.Background(), CreateOptions{ID: fmt.Sprintf("many-%d-%d", i, j), Spec: spec, Root: root})
				if err != nil {
					t.Error(err)
					return
				}
				err = c.Start()
				st, werr := c.Wait()
				if err := errors.Join(err, werr, c.Delete()); err != nil || st.ExitCode() != i {
					t.Errorf("%d: %+v, %v", i, st, err)
				}
			}
		})
	}
	wg.Wait()
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	for _, d := range cgroupDirs(t, "/veneer") {
		left, err := filepath.Glob(d + "/many-*")
		must(t, err)
		if len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// Package syscall moves the child's files to numbers just above them, and would take our own program's.
func TestOwnProgramIsOutOfTheWay(t *testing.T) {
	null, err := os.Open("/dev/null")
	must(t, err)
	defer null.Close()
	fd, err := unix.FcntlInt(null.Fd(), unix.F_DUPFD_CLOEXEC, 200)
	must(t, err)
	high := os.NewFile(uintptr(fd), "high")
	defer high.Close()
	self, err := openSelf([]*os.File{null, high})
	must(t, err)
	defer self.Close()
	if got := int(self.Fd()); got < fd+aboveFiles {
		t.Errorf("it is at %d, and a file of the child at %d", got, fd)
	}
}
