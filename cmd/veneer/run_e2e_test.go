package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

func TestRunPrintsAndExitsAsTheProcessDoes(t *testing.T) {
	l := newLab(t)
	image := l.image()
	for _, c := range []struct {
		name   string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"output", []string{image, "echo", "hello"}, 0, "hello\n", ""},
		{"default command", []string{image}, 0, "default command\n", ""},
		{"exit status", []string{image, "sh", "-c", "exit 7"}, 7, "", ""},
		{"signal", []string{image, "sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, 137, "", "Killed"},
		{"both streams", []string{image, "sh", "-c", "echo out; echo err >&2"}, 0, "out\n", "err\n"},
		{"flags after the image are the command's", []string{image, "echo", "--rm", "-d"}, 0, "--rm -d\n", ""},
		{"entrypoint drops the command", []string{"--entrypoint", "echo", image}, 0, "\n", ""},
		{"entrypoint with arguments", []string{"--entrypoint", "echo", image, "a", "b"}, 0, "a b\n", ""},
		{"stdin is empty without -i", []string{image, "cat"}, 0, "", ""},
		{"working directory", []string{"-w", "/tmp", image, "pwd"}, 0, "/tmp\n", ""},
		{"new working directory", []string{"-w", "/new/dir", image, "pwd"}, 0, "/new/dir\n", ""},
		{"hostname", []string{"--hostname", "ship", image, "sh", "-c", "hostname; cat /etc/hostname; echo $HOSTNAME"}, 0, "ship\nship\nship\n", ""},
		{"PID 1 is the process", []string{image, "sh", "-c", "echo $$"}, 0, "1\n", ""},
		{"image's environment", []string{image, "sh", "-c", "echo $FROM_IMAGE"}, 0, "1\n", ""},
		{"variable", []string{"-e", "A=b c", image, "sh", "-c", "echo $A"}, 0, "b c\n", ""},
		{"variable from here", []string{"-e", "FROM_HERE", image, "sh", "-c", "echo $FROM_HERE"}, 0, "here\n", ""},
		{"variable taken away", []string{"-e", "FROM_IMAGE", image, "sh", "-c", "echo ${FROM_IMAGE-none}"}, 0, "none\n", ""},
		{"user by name", []string{"-u", "ann", image, "sh", "-c", "id -u; id -g; id -G; echo $HOME"}, 0, "1001\n1002\n1002 1003\n/home/ann\n", ""},
		{"user by number", []string{"-u", "5:6", image, "sh", "-c", "id -u; id -g; echo $HOME"}, 0, "5\n6\n/\n", ""},
		{"user and group by name", []string{"-u", "ann:wheel", image, "id", "-g"}, 0, "1003\n", ""},
		{"root is writable", []string{image, "sh", "-c", "echo new > /etc/motd && cat /etc/motd"}, 0, "new\n", ""},
		{"read-only root", []string{"--read-only", image, "sh", "-c", "echo new > /etc/motd"}, 1, "", "Read-only file system"},
		{"no network", []string{"--net", "none", image, "ls", "/sys/class/net"}, 0, "lo\n", ""},
		{"not found", []string{image, "nosuch"}, 127, "", "veneer: exec nosuch: executable file not found in $PATH"},
		{"not found by path", []string{image, "/nosuch"}, 127, "", "no such file or directory"},
		{"not executable", []string{image, "/not-executable"}, 126, "", "permission denied"},
		{"not a program", []string{image, "/not-a-program"}, 126, "", "exec format error"},
		{"a directory", []string{image, "/etc"}, 126, "", "is a directory"},
		{"unknown user", []string{"-u", "nobody", image, "true"}, 125, "", "unable to find user nobody"},
		{"no command", []string{"--entrypoint", "", image}, 125, "", "no command specified"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("FROM_HERE", "here")
			r := l.veneer(append([]string{"run", "--rm"}, c.args...)...)
			r.check(t, c.code, c.stdout, c.stderr)
			if ids, _ := l.places.ids(); len(ids) != 0 {
				t.Errorf("left with --rm: %q", ids)
			}
		})
	}
}

func TestRunUsageErrors(t *testing.T) {
	l := newLab(t)
	image := "127.0.0.1:1/never:asked"
	for _, c := range []struct {
		args   []string
		stderr string
	}{
		{[]string{}, "requires at least 1 arg"},
		{[]string{"--bogus", image}, "unknown flag: --bogus\nSee 'veneer run --help'"},
		{[]string{"-w", "tmp", image}, "working directory"},
		{[]string{"--net", "bridge", image}, "want host or none"},
		{[]string{"--io", "fast", image}, "want auto, passthrough or cached"},
		{[]string{"--name", "a/b", image}, "invalid container name"},
		{[]string{"--hostname", "a b", image}, "invalid hostname"},
		{[]string{"-e", "=x", image}, "invalid environment variable"},
		{[]string{"-v", "/x", image}, "anonymous volumes are not supported"},
		{[]string{"-v", "data:/x", image}, "named volumes are not supported: for a directory here write ./data"},
		{[]string{"-v", "/x:y", image}, "must be absolute"},
		{[]string{"-v", "/x:/", image}, "can't be '/'"},
		{[]string{"-v", "/x:/y:z", image}, "want ro or rw"},
		{[]string{"-v", "/a:/y", "-v", "/b:/y/", image}, "duplicate mount point: /y"},
		{[]string{"--stats", "/nosuch/dir/stats", image}, "no such file or directory"},
		{[]string{"-it", image}, "the input device is not a TTY"},
		{[]string{"UPPER/case"}, "must be lower case"},
	} {
		l.veneer(append([]string{"run"}, c.args...)...).check(t, 125, "", c.stderr)
	}
	if ids, _ := l.places.ids(); len(ids) != 0 {
		t.Errorf("left: %q", ids)
	}
}

func TestRunShowsHostDirectories(t *testing.T) {
	l := newLab(t)
	image := l.image()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l.veneer("run", "--rm", "-v", dir+":/host", image, "sh", "-c", "cat /host/file; echo made > /host/new").
		check(t, 0, "from the host\n", "")
	if b, _ := os.ReadFile(filepath.Join(dir, "new")); string(b) != "made\n" {
		t.Errorf("made in the container: %q", b)
	}
	l.veneer("run", "--rm", "-v", dir+":/host:ro", image, "touch", "/host/x").check(t, 1, "", "Read-only file system")
	l.veneer("run", "--rm", "-v", filepath.Join(dir, "file")+":/etc/motd", image, "cat", "/etc/motd").check(t, 0, "from the host\n", "")
	l.veneer("run", "--rm", "-v", "./made/here:/host", image, "touch", "/host/x").check(t, 0, "", "")
	if _, err := os.Stat(filepath.Join(l.dir, "made/here/x")); err != nil {
		t.Error(err)
	}
}

func TestRunReadsStdinWithI(t *testing.T) {
	l := newLab(t)
	cmd := l.command("run", "--rm", "-i", l.image(), "cat")
	cmd.Stdin = strings.NewReader("typed\n")
	l.finish(cmd).check(t, 0, "typed\n", "")
}

func TestContainerIsKeptUntilRm(t *testing.T) {
	l := newLab(t)
	l.veneer("run", "--name", "box", l.image(), "sh", "-c", "exit 3").check(t, 3, "", "")
	id := l.only()
	ps := l.want("ps", "-a")
	if !regexp.MustCompile(id[:12] + `.*box:1.*"sh -c exit 3".*Exited \(3\) a moment ago +box\n`).MatchString(ps) {
		t.Errorf("ps -a: %s", ps)
	}
	if ps := l.want("ps"); strings.Contains(ps, "box") {
		t.Errorf("ps shows what does not run: %s", ps)
	}
	l.veneer("run", "--name", "box", l.image(), "true").check(t, 125, "", `conflict: the container name "box" is already in use by container `+id[:12])
	l.veneer("rm", "nosuch").check(t, 1, "", "no such container: nosuch")
	l.veneer("rm", id[:6]).check(t, 0, id[:6]+"\n", "")
	l.veneer("run", "--name", "box", "--rm", l.image(), "true").check(t, 0, "", "")
}

func TestDetachedContainer(t *testing.T) {
	l := newLab(t)
	r := l.veneer("run", "-d", "--name", "bg", l.image(), "sh", "-c", "echo out; echo err >&2; read x </no/such/file; sleep 1000")
	id := strings.TrimSpace(r.stdout)
	r.check(t, 0, id+"\n", "")
	if !isID(id) {
		t.Fatalf("printed %q", r.stdout)
	}
	if ps := l.want("ps", "-q", "--no-trunc"); ps != id+"\n" {
		t.Errorf("ps: %q", ps)
	}
	l.veneer("rm", "bg").check(t, 1, "", `cannot remove container "bg": it is running`)
	l.veneer("rm", "-f", "bg").check(t, 0, "bg\n", "")
	l.checkNoLeaks(id)
	l.veneer("run", "-d", l.image(), "nosuch").check(t, 127, "", "not found")
}

func TestDetachedOutputIsLogged(t *testing.T) {
	l := newLab(t)
	id := strings.TrimSpace(l.want("run", "-d", l.image(), "sh", "-c", "echo out; echo err >&2; printf end"))
	l.awaitEnd(id)
	b, err := os.ReadFile(l.places.file(id, "log"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(b)) {
		var e struct{ Log, Stream, Time string }
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Time == "" {
			t.Fatalf("%q: %v", line, err)
		}
		got[e.Stream] += e.Log
	}
	if got["stdout"] != "out\nend" || got["stderr"] != "err\n" {
		t.Errorf("log: %q", got)
	}
}

func TestStats(t *testing.T) {
	l := newLab(t)
	file := filepath.Join(l.dir, "stats.json")
	img := busyboxImage(t, fetchtest.EStargz())
	image := l.reg.Push(t, "box:1", img)
	l.want("run", "--rm", "--stats", file, image, "cat", "/etc/motd")
	first := readStats(t, file)
	if first.FetchedBytes == 0 || first.Requests == 0 || first.ChunksVerified == 0 {
		t.Errorf("the first run fetched nothing: %+v", first)
	}
	if first.FilesOpened < 2 || first.SecondsToFirstRead == nil || first.SecondsToMount <= 0 {
		t.Errorf("first run: %+v", first)
	}
	l.reg.ForgetRequests()
	l.want("run", "--rm", "--stats", file, image, "cat", "/etc/motd")
	second := readStats(t, file)
	if n := len(l.reg.Requests()); n != 0 || second.FetchedBytes != 0 || second.Requests != 0 {
		t.Errorf("the second run made %d requests: %+v", n, second)
	}
}

func readStats(t *testing.T, file string) stats {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var s stats
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	return s
}
