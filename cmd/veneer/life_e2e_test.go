package main

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

func TestCommandLineKilledWhileItFetches(t *testing.T) {
	l := newLab(t)
	image := l.reg.Push(t, "box:1", busyboxImage(t, fetchtest.Gzip()))
	hold := fetchtest.NewHold(t, 1000)
	l.reg.Use(fetchtest.OnlyBlobs(hold.Fault()))
	cmd := l.command("run", "--name", "half", image, "true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-hold.Reached
	id := l.only()
	if ps := l.want("ps", "-a", "-q"); ps != "" {
		t.Errorf("ps shows a container that is not made: %q", ps)
	}
	l.veneer("run", "--name", "half", image, "true").check(t, 125, "", `the container name "half" is already in use`)
	cmd.Process.Kill()
	cmd.Process.Wait()
	l.awaitEnd(id)
	if ids, _ := l.places.ids(); len(ids) != 0 {
		t.Errorf("left: %q", ids)
	}
	l.checkNoLeaks(id)
}

func TestCommandLineAndMonitorKilledWhileItFetches(t *testing.T) {
	l := newLab(t)
	image := l.reg.Push(t, "box:1", busyboxImage(t, fetchtest.Gzip()))
	hold := fetchtest.NewHold(t, 1000)
	remove := l.reg.Use(fetchtest.OnlyBlobs(hold.Fault()))
	cmd := l.command("run", "--name", "half", image, "true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-hold.Reached
	id := l.only()
	monitor := l.monitor(id)
	cmd.Process.Signal(unix.SIGSTOP) // so that it does not hear of the monitor's end
	monitor.end()
	cmd.Process.Kill()
	cmd.Process.Wait()
	l.awaitEnd(id)
	hold.Release()
	remove()
	// What they left is nobody's: its name is free, and the next command removes it.
	l.veneer("run", "--name", "half", image, "echo", "made").check(t, 0, "made\n", "fetched")
	l.want("rm", "half")
	if ids, _ := l.places.ids(); len(ids) != 0 {
		t.Errorf("left: %q", ids)
	}
}

func TestInterruptedStart(t *testing.T) {
	l := newLab(t)
	image := l.image()
	l.want("mount", image, l.mkdir("mnt")) // now the tree is here, and little else
	l.want("umount", l.mkdir("mnt"))
	hold := fetchtest.NewHold(t, 0)
	l.reg.Use(fetchtest.OnlyBlobs(hold.Fault()))
	cmd := l.command("run", "--name", "slow", image, "true")
	stderr := new(strings.Builder)
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// The first thing that is fetched is /etc/passwd, by the command line itself.
	<-hold.Reached
	cmd.Process.Signal(unix.SIGINT)
	cmd.Wait()
	ids, _ := l.places.ids()
	for _, id := range ids { // the monitor clears up by itself
		l.awaitEnd(id)
	}
	if ids, _ := l.places.ids(); len(ids) != 0 {
		t.Errorf("left: %q, stderr %q", ids, stderr)
	}
	l.checkNoLeaks(ids...)
}

func TestInterruptedWhileTheProgramIsFetched(t *testing.T) {
	l := newLab(t)
	image := l.reg.Push(t, "box:1", busyboxImage(t, fetchtest.EStargz()))
	busybox := busyboxLayer(t, fetchtest.EStargz())
	l.want("mount", image, l.mkdir("mnt"))
	checkFile(t, l.mkdir("mnt")+"/etc/motd", "welcome\n") // with its small neighbours, the accounts
	os.ReadFile(l.mkdir("mnt") + "/etc/passwd")
	os.ReadFile(l.mkdir("mnt") + "/etc/group")
	l.want("umount", l.mkdir("mnt"))
	hold := fetchtest.NewHold(t, 0)
	l.reg.Use(fetchtest.OnlyFor(busybox.Descriptor.Digest, hold.Fault()))
	cmd := l.command("run", "--name", "slow", image, "true")
	stderr := new(strings.Builder)
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-hold.Reached
	cmd.Process.Signal(unix.SIGINT)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(stderr.String(), "ended by interrupt before it started") {
		t.Errorf("exit status %d, stderr %q; want 130", code, stderr)
	}
	if ps := l.want("ps", "-a"); !strings.Contains(ps, "Created") {
		t.Errorf("ps -a: %s", ps)
	}
	l.checkNoLeaks(l.only())
}

func TestRemoveWhileTheProgramIsFetched(t *testing.T) {
	l := newLab(t)
	image := l.reg.Push(t, "box:1", busyboxImage(t, fetchtest.EStargz()))
	busybox := busyboxLayer(t, fetchtest.EStargz())
	hold := fetchtest.NewHold(t, 0)
	l.want("mount", image, l.mkdir("mnt"))
	os.ReadFile(l.mkdir("mnt") + "/etc/passwd")
	os.ReadFile(l.mkdir("mnt") + "/etc/group")
	l.want("umount", l.mkdir("mnt"))
	l.reg.Use(fetchtest.OnlyFor(busybox.Descriptor.Digest, hold.Fault()))
	cmd := l.command("run", "--name", "slow", image, "true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-hold.Reached
	id := l.only()
	l.want("rm", "-f", "slow")
	cmd.Wait()
	l.checkNoLeaks(id)
}

func TestOneNameOneContainer(t *testing.T) {
	l := newLab(t)
	image := l.image()
	l.want("run", "--rm", image, "true")
	var wg sync.WaitGroup
	results := make([]result, 6)
	for i := range results {
		wg.Go(func() { results[i] = l.veneer("run", "-d", "--name", "same", image, "sleep", "1000") })
	}
	wg.Wait()
	made := 0
	for _, r := range results {
		switch {
		case r.code == 0:
			made++
		case !strings.Contains(r.stderr, `the container name "same" is already in use`):
			t.Errorf("%+v", r)
		}
	}
	if made != 1 {
		t.Errorf("%d containers of one name", made)
	}
	l.want("rm", "-f", "same")
	if ids, _ := l.places.ids(); len(ids) != 0 {
		t.Errorf("left: %q", ids)
	}
}

func TestManyContainersAtOnce(t *testing.T) {
	l := newLab(t)
	image := l.image()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if r := l.veneer("run", "--rm", image, "cat", "/etc/motd"); r.code != 0 || r.stdout != "welcome\n" {
				t.Errorf("%+v", r)
			}
		})
	}
	wg.Wait()
	l.checkNoLeaks()
}

func TestStatsOnSignal(t *testing.T) {
	l := newLab(t)
	file := filepath.Join(l.dir, "stats.json")
	fifo := filepath.Join(l.dir, "fifo")
	// A FIFO in place of the file tells when it is written.
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	keep, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer keep.Close()
	cmd := l.command("run", "--rm", "-i", "--stats", fifo, l.image(), "sh", "-c", "echo ready; cat; exit 0")
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("first output %q", line)
	}
	l.monitor(l.only()).signal(unix.SIGUSR1)
	first := readJSONObject(t, keep)
	in.Close()
	second := readJSONObject(t, keep)
	io.Copy(io.Discard, out)
	cmd.Wait()
	for _, text := range []string{first, second} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s := readStats(t, file); s.FilesOpened == 0 {
			t.Errorf("stats: %s", text)
		}
	}
}

// readJSONObject reads up to a line that is "}".
func readJSONObject(t *testing.T, r io.Reader) string {
	t.Helper()
	var text strings.Builder
	b := make([]byte, 1)
	for !strings.HasSuffix(text.String(), "\n}\n") {
		if _, err := r.Read(b); err != nil {
			t.Fatalf("read %q: %v", text.String(), err)
		}
		text.Write(b)
	}
	return text.String()
}
