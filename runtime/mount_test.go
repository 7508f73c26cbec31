package runtime

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func bind(source, dest string, options ...string) specs.Mount {
	return specs.Mount{Type: "bind", Source: source, Destination: dest, Options: append([]string{"rbind", "rprivate"}, options...)}
}

// mountTable returns the mount points of /proc/self/mountinfo with type and per-mount options.
func mountTable(text string) map[string][]string {
	table := make(map[string][]string)
	for line := range strings.Lines(text) {
		left, right, ok := strings.Cut(line, " - ")
		if !ok {
			continue
		}
		l, r := strings.Fields(left), strings.Fields(right)
		table[l[4]] = append([]string{r[0]}, strings.Split(l[5], ",")...)
	}
	return table
}

func TestMountTable(t *testing.T) {
	text := runOK(t, newRootfs(t), newSpec("/bin/cat", "/proc/self/mountinfo"))
	got := mountTable(text)
	for point, want := range map[string][]string{
		"/proc":          {"proc", "rw", "nosuid", "nodev", "noexec"},
		"/dev":           {"tmpfs", "rw", "nosuid"},
		"/dev/pts":       {"devpts", "rw", "nosuid", "noexec"},
		"/dev/shm":       {"tmpfs", "rw", "nosuid", "nodev", "noexec"},
		"/dev/mqueue":    {"mqueue", "rw", "nosuid", "nodev", "noexec"},
		"/sys":           {"sysfs", "ro", "nosuid", "nodev", "noexec"},
		"/proc/sys":      {"proc", "ro", "nosuid", "nodev", "noexec"},
		"/proc/kcore":    {"devtmpfs", "rw"},
		"/sys/fs/cgroup": {"tmpfs", "ro", "nosuid", "nodev", "noexec"},
	} {
		if point == "/proc/kcore" && !exists("/proc/kcore") {
			continue
		}
		for _, w := range want {
			if !slices.Contains(got[point], w) {
				t.Errorf("%s is mounted as %q, want %q", point, got[point], want)
				break
			}
		}
	}
	for point := range got {
		if !slices.ContainsFunc([]string{"/proc", "/dev", "/sys"}, func(p string) bool { return strings.HasPrefix(point, p) }) && point != "/" {
			t.Errorf("%s is mounted, too", point)
		}
	}
	if strings.Contains(text, " shared:") || strings.Contains(text, " master:") && strings.Contains(text, "propagate_from") {
		t.Errorf("a mount propagates to the host:\n%s", text)
	}
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

func TestDevices(t *testing.T) {
	out := runOK(t, newRootfs(t), sh(`cd /dev
		for d in null zero full random urandom tty; do stat -c '%n %t:%T %a %u:%g' $d; done
		for l in fd stdin stdout stderr ptmx; do echo $l $(readlink $l); done
		echo x > null && head -c 3 /dev/zero | od -An -tx1 && stat -c %a shm`))
	want := `null 1:3 666 0:0
zero 1:5 666 0:0
full 1:7 666 0:0
random 1:8 666 0:0
urandom 1:9 666 0:0
tty 5:0 666 0:0
fd /proc/self/fd
stdin /proc/self/fd/0
stdout /proc/self/fd/1
stderr /proc/self/fd/2
ptmx pts/ptmx
 00 00 00
1777
`
	if out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}

func TestConfiguredDevice(t *testing.T) {
	spec := sh("stat -c '%F %t:%T %a %u:%g' /dev/fuse /run/pipe; : < /dev/fuse && echo readable")
	mode, uid := os.FileMode(0o640), uint32(7)
	spec.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: &mode, UID: &uid, GID: &uid},
		{Path: "/run/pipe", Type: "p", FileMode: &mode},
	}
	want := "character special file a:e5 640 7:7\nfifo 0:0 640 0:0\nreadable\n"
	if got := runOK(t, newRootfs(t), spec); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDevicesOutsideOfTheListAreDenied(t *testing.T) {
	spec := sh("mknod /tmp/fuse c 10 229 && head -c 0 /tmp/fuse 2>&1; mknod /tmp/null c 1 3 && echo x > /tmp/null && echo allowed")
	got := runOK(t, newRootfs(t), spec)
	if !strings.Contains(got, "not permitted") || !strings.HasSuffix(got, "allowed\n") {
		t.Errorf("got %q", got)
	}
}

func TestWrongFileInPlaceOfADevice(t *testing.T) {
	root := newRootfs(t)
	must(t, os.WriteFile(filepath.Join(root, "disk"), nil, 0o644))
	spec := sh("true")
	spec.Linux.Devices = []specs.LinuxDevice{{Path: "/disk", Type: "b", Major: 8, Minor: 0}}
	wantSetupError(t, root, spec, "make devices")
}

func wantSetupError(t *testing.T, root string, spec *specs.Spec, step string) {
	t.Helper()
	_, _, err := tryCreate(t, root, spec)
	var e *SetupError
	if !errors.As(err, &e) || e.Step != step {
		t.Errorf("error %v, want one of step %q", err, step)
	}
	if exists(filepath.Join("/sys/fs/cgroup/pids/veneer", testID(root))) {
		t.Error("the cgroup was left")
	}
}

func TestReadOnlyRoot(t *testing.T) {
	spec := sh("touch /x 2>&1; touch /bin/x 2>&1; echo y > /dev/shm/y && echo z > /work/z && cat /work/z")
	spec.Root.Readonly = true
	spec.Process.Cwd = "/work"
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/work", Type: "tmpfs", Source: "tmpfs"})
	got := runOK(t, newRootfs(t), spec)
	if strings.Count(got, "Read-only file system") != 2 || !strings.HasSuffix(got, "z\n") {
		t.Errorf("got %q", got)
	}
}

func TestReadOnlyTmpfsHoldsLaterMounts(t *testing.T) {
	spec := sh("touch /ro/x 2>&1; ls /ro; cat /ro/file")
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Destination: "/ro", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro"}},
		bind("/etc/hostname", "/ro/file"))
	host, err := os.ReadFile("/etc/hostname")
	must(t, err)
	if got := runOK(t, newRootfs(t), spec); !strings.Contains(got, "Read-only") || !strings.HasSuffix(got, "file\n"+string(host)) {
		t.Errorf("got %q", got)
	}
}

func TestMaskedAndReadOnlyPaths(t *testing.T) {
	root := newRootfs(t)
	must(t, os.MkdirAll(filepath.Join(root, "secret/dir"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "secret/file"), []byte("hidden"), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "secret/dir/f"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(root, "etc/fixed"), []byte("fixed\n"), 0o644))
	// An image's own /dev/null must not be what paths are hidden behind.
	must(t, os.Symlink("/etc/fixed", filepath.Join(root, "dev/null")))
	spec := sh(`wc -c < /secret/file; ls /secret/dir | wc -l; wc -c < /proc/timer_list; cat /etc/fixed
		touch /secret/dir/x; echo x >> /etc/fixed; echo 1 > /proc/sys/kernel/core_pattern`)
	spec.Linux.MaskedPaths = append(spec.Linux.MaskedPaths, "/secret/file", "/secret/dir", "/not/there")
	spec.Linux.ReadonlyPaths = append(spec.Linux.ReadonlyPaths, "/etc/fixed", "/not/there")
	r := run(t, root, spec)
	if r.stdout != "0\n0\n0\nfixed\n" {
		t.Errorf("got %q", r.stdout)
	}
	if strings.Count(r.stderr, "Read-only file system") != 3 {
		t.Errorf("stderr %q", r.stderr)
	}
}

func TestBindMounts(t *testing.T) {
	root, host := newRootfs(t), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(host, "d/sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(host, "f"), []byte("file\n"), 0o666))
	must(t, unix.Mount("tmpfs", filepath.Join(host, "d/sub"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""))
	t.Cleanup(func() { unix.Unmount(filepath.Join(host, "d/sub"), 0) })
	must(t, os.WriteFile(filepath.Join(host, "d/sub/below"), nil, 0o644))
	spec := sh(`cat /new/place/f; echo more >> /new/place/f; echo no >> /f-ro
		ls /rec/sub; touch /rec/made; touch /ro/x /ro/sub/y /rro/sub/z; ls /flat/sub; cat /proc/self/mountinfo >&2`)
	spec.Mounts = append(spec.Mounts,
		bind(filepath.Join(host, "f"), "/new/place/f"), bind(filepath.Join(host, "f"), "/f-ro", "ro"),
		bind(filepath.Join(host, "d"), "/rec"), bind(filepath.Join(host, "d"), "/ro", "ro"), bind(filepath.Join(host, "d"), "/rro", "rro"),
		specs.Mount{Destination: "/flat", Source: filepath.Join(host, "d"), Options: []string{"bind"}},
		bind(filepath.Join(host, "d/sub"), "/sub-ro", "ro"), bind(filepath.Join(host, "d/sub"), "/sub-dev", "dev", "suid"))
	r := run(t, root, spec)
	if want := "file\nbelow\n"; r.stdout != want {
		t.Errorf("got %q, want %q; stderr %s", r.stdout, want, r.stderr)
	}
	for _, denied := range []string{"/f-ro", "/ro/x", "/rro/sub/z"} {
		if !strings.Contains(r.stderr, denied) {
			t.Errorf("writing %s was possible; stderr %s", denied, r.stderr)
		}
	}
	if !exists(filepath.Join(host, "d/made")) || !exists(filepath.Join(host, "d/sub/y")) {
		t.Error("writing through rbind was not possible")
	}
	table := mountTable(r.stderr[strings.Index(r.stderr, "touch: /rro"):])
	if got := table["/sub-ro"]; !slices.Contains(got, "nosuid") || !slices.Contains(got, "ro") {
		t.Errorf("ro bind of a nosuid mount has %q", got)
	}
	if got := table["/sub-dev"]; slices.Contains(got, "nosuid") || slices.Contains(got, "nodev") {
		t.Errorf("bind with dev and suid has %q", got)
	}
}

func TestRelativeBindSourceIsTheBundles(t *testing.T) {
	root := newRootfs(t)
	must(t, os.WriteFile(filepath.Join(filepath.Dir(root), "note"), []byte("note\n"), 0o644))
	spec := newSpec("/bin/cat", "/note")
	spec.Mounts = append(spec.Mounts, bind("note", "/note"))
	if got := runOK(t, root, spec); got != "note\n" {
		t.Errorf("got %q", got)
	}
}

// A tree of symlinks that try to lead a mount out of the root.
func TestMountDestinationsStayInside(t *testing.T) {
	root := newRootfs(t)
	outside := filepath.Join(filepath.Dir(root), "outside")
	must(t, os.Mkdir(outside, 0o755))
	for name, target := range map[string]string{
		"up": "../../../../../../../../" + outside, "abs": outside, "loopy": "up/../../outside", "dangling": "/made/by/mount",
		"proclink": "/proc/self/attr",
	} {
		must(t, os.Symlink(target, filepath.Join(root, name)))
	}
	spec := sh("cat /up/a /abs/b /loopy/c /made/by/mount /rel/d")
	for i, dest := range []string{"/up/a", "/abs/b", "/loopy/c", "/dangling", "/../../../rel/d"} {
		source := filepath.Join(filepath.Dir(root), "source"+string(rune('0'+i)))
		must(t, os.WriteFile(source, []byte(dest+"\n"), 0o644))
		spec.Mounts = append(spec.Mounts, bind(source, dest))
	}
	want := "/up/a\n/abs/b\n/loopy/c\n/dangling\n/../../../rel/d\n"
	if got := runOK(t, root, spec); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if names, err := os.ReadDir(outside); err != nil || len(names) > 0 {
		t.Errorf("outside there is %v, %v", names, err)
	}
	if exists(filepath.Join(filepath.Dir(root), "rel")) {
		t.Error("a directory was made outside")
	}
	// The same without openat2(2).
	r, err := openRoot(root)
	must(t, err)
	defer r.close()
	for p, want := range map[string]string{
		"/up": "/" + strings.TrimPrefix(outside, "/"), "/bin/sh": "/bin/busybox", "/": "/", "/../..": "/", "/bin/../etc": "/etc",
	} {
		fd, err := r.openResolved(p, unix.O_PATH)
		must(t, err)
		if got, err := r.place(fd); got != want || err != nil {
			t.Errorf("%s leads to %s, %v; want %s", p, got, err, want)
		}
		unix.Close(fd)
	}
}

func TestProcAndSysAreNotMountedThroughSymlinks(t *testing.T) {
	for _, name := range []string{"proc", "sys"} {
		root := newRootfs(t)
		must(t, os.Remove(filepath.Join(root, name)))
		must(t, os.Symlink("tmp", filepath.Join(root, name)))
		wantSetupError(t, root, sh("true"), "mount")
	}
}

func TestNothingIsMountedOverProcThroughASymlink(t *testing.T) {
	root, host := newRootfs(t), t.TempDir()
	must(t, os.Symlink("/proc", filepath.Join(root, "data")))
	must(t, os.Symlink("/proc/self", filepath.Join(root, "self")))
	for _, dest := range []string{"/data", "/self/attr", "/proc/self/attr", "/proc"} {
		spec := sh("true")
		spec.Mounts = append(spec.Mounts, bind(host, dest))
		wantSetupError(t, root, spec, "mount")
	}
	must(t, os.WriteFile(filepath.Join(host, "cpuinfo"), []byte("mine\n"), 0o644))
	spec := newSpec("/bin/cat", "/proc/cpuinfo")
	spec.Mounts = append(spec.Mounts, bind(filepath.Join(host, "cpuinfo"), "/proc/cpuinfo"))
	if got := runOK(t, root, spec); got != "mine\n" {
		t.Errorf("got %q", got)
	}
}

func TestMissingBindSourceIsNamed(t *testing.T) {
	root := newRootfs(t)
	spec := sh("true")
	spec.Mounts = append(spec.Mounts, bind("/not/there", "/x"))
	_, _, err := tryCreate(t, root, spec)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/not/there") {
		t.Errorf("error %v", err)
	}
}

func TestRootPropagation(t *testing.T) {
	root := newRootfs(t)
	for _, c := range []struct{ propagation, want string }{
		{"private", ""}, {"unbindable", "unbindable"}, {"slave", ""}, {"shared", "shared:"},
	} {
		spec := sh("sed -n '1s/ - .*//p' /proc/self/mountinfo")
		spec.Linux.RootfsPropagation = c.propagation
		got := runOK(t, root, spec)
		if fields := strings.Fields(got); len(fields) < 6 || c.want == "" && len(fields) > 6 && !strings.HasPrefix(fields[6], "master:") ||
			c.want != "" && !strings.Contains(got, c.want) {
			t.Errorf("%s: root is %q", c.propagation, got)
		}
	}
}

func TestParseMountOptions(t *testing.T) {
	for _, c := range []struct {
		options string
		want    mountOptions
	}{
		{"ro nosuid rw", mountOptions{flags: unix.MS_NOSUID, cleared: unix.MS_RDONLY}},
		{"rw ro", mountOptions{flags: unix.MS_RDONLY}},
		{"size=1m noexec mode=700", mountOptions{flags: unix.MS_NOEXEC, data: "size=1m,mode=700"}},
		{"rbind rslave size=1", mountOptions{flags: unix.MS_BIND | unix.MS_REC, propagation: []uintptr{unix.MS_SLAVE | unix.MS_REC}}},
		{"bind rro rnosuid rsuid", mountOptions{flags: unix.MS_BIND, recSet: unix.MOUNT_ATTR_RDONLY, recClear: unix.MOUNT_ATTR_NOSUID}},
		{"rnoatime", mountOptions{recSet: unix.MOUNT_ATTR_NOATIME, recClear: unix.MOUNT_ATTR__ATIME}},
	} {
		got, err := parseMountOptions(specs.Mount{Options: strings.Fields(c.options)})
		must(t, err)
		if got.flags != c.want.flags || got.cleared != c.want.cleared || got.data != c.want.data || got.recSet != c.want.recSet ||
			got.recClear != c.want.recClear || !slices.Equal(got.propagation, c.want.propagation) {
			t.Errorf("%s: got %+v, want %+v", c.options, got, c.want)
		}
	}
	if _, err := parseMountOptions(specs.Mount{Options: []string{"idmap"}}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("idmap: %v", err)
	}
}
