package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// worker is a shell script that looks at all it gets from the mount, until /ctl/stop is there. Its argument is its name.
const worker = `
fail() { echo "worker $w, round $i: $*"; exit 1; }
w=$1 i=0
mkdir /$w || fail mkdir of its own
cd /$w
exec 3<>held
rm held || fail rm of what is open
while [ ! -e /ctl/stop ]; do
	i=$((i + 1))
	echo "line $i" >> log || fail append
	mkdir d$i || fail mkdir
	mkdir d$i 2> /dev/null && fail mkdir of what is there
	rmdir missing 2> /dev/null && fail rmdir of what is not there
	echo "data $i" > d$i/f || fail create
	mv d$i/f d$i/g || fail rename
	[ -e d$i/f ] && fail the old name is there
	ln d$i/g d$i/h || fail link
	ln -s g d$i/s || fail symlink
	[ "$(cat d$i/s)" = "data $i" ] || fail wrong data
	[ "$(echo d$i/*)" = "d$i/g d$i/h d$i/s" ] || fail wrong names
	rm d$i/g d$i/h d$i/s || fail unlink
	rmdir d$i || fail rmdir
	echo "held $i" >&3 || fail write to an unlinked file
	echo $i > /ctl/$w
done
for file in log:line /proc/self/fd/3:held; do
	awk -v w=${file#*:} -v n=$i '$0 != w " " ++k { exit 2 } END { exit k != n }' ${file%:*} || fail wrong lines in $file
done
[ "$(echo *)" = log ] || fail wrong names at the end: *
`

// awaitRounds waits until a worker has done n rounds more. None ends before it is told to.
func (l *lab) awaitRounds(path string, n int, ended <-chan result) {
	l.t.Helper()
	round := func() int {
		b, _ := os.ReadFile(path)
		i, _ := strconv.Atoi(strings.TrimSpace(string(b))) // while it is written it is empty
		return i
	}
	for start, deadline := round(), time.Now().Add(time.Minute); round() < start+n; time.Sleep(time.Millisecond) {
		select {
		case r := <-ended:
			l.t.Fatalf("exit status %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
		default:
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("no %d rounds of %s in a minute", n, filepath.Base(path))
		}
	}
}

// killServer kills the container's server and waits for the next one, which is the nth.
func (l *lab) killServer(id string, nth int) {
	l.t.Helper()
	needResend(l.t)
	l.state(id).Server.signal(unix.SIGKILL)
	for deadline := time.Now().Add(time.Minute); l.state(id).TakeOver < nth; time.Sleep(time.Millisecond) {
		if s := l.state(id); s.Status != statusRunning || time.Now().After(deadline) {
			l.t.Fatalf("no take-over: %+v", s)
		}
	}
}

// descriptors returns what the monitor's are.
func (l *lab) descriptors(id string) (links []string) {
	l.t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", l.monitor(id).PID))
	if err != nil || len(fds) == 0 {
		l.t.Fatalf("descriptors of the monitor: %v, %v", fds, err)
	}
	for _, fd := range fds {
		link, _ := os.Readlink(fd) // it may be closed by now
		links = append(links, link)
	}
	return links
}

// needResend skips a test on kernels on which requests that are in flight fail.
func needResend(t *testing.T) {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	if major < 6 || major == 6 && minor < 9 {
		t.Skip("SKIP: no take-over was tested: this kernel cannot send requests again (Linux 6.9 can)")
	}
}

// A container does not notice that its server is killed, again and again.
func TestServerIsKilledUnderAContainer(t *testing.T) {
	l := newLab(t)
	image, ctl := l.image(), t.TempDir()
	kills := 20
	if testing.Short() {
		kills = 5
	}
	if err := os.WriteFile(filepath.Join(ctl, "worker"), []byte(worker), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := l.command("run", "-v", ctl+":/ctl", image, "sh", "-c",
		"for w in a b c; do sh /ctl/worker $w & pids=\"$pids $!\"; done; for p in $pids; do wait $p || exit 1; done; echo all well")
	ended := make(chan result, 1)
	go func() { ended <- finishQuietly(cmd) }()
	for _, w := range []string{"a", "b", "c"} {
		l.awaitRounds(filepath.Join(ctl, w), 1, ended)
	}
	id := l.only()
	descriptors := 0 // of the monitor, after the first take-over
	for n := 1; n <= kills; n++ {
		l.killServer(id, n)
		l.awaitRounds(filepath.Join(ctl, "a"), 8, ended)
		if n == 1 {
			descriptors = len(l.descriptors(id))
		}
		if n%(earlyDeaths/2) == 0 {
			time.Sleep(earlyDeath) // this one does not die early: the next may
		}
	}
	if now := len(l.descriptors(id)); now > descriptors {
		t.Errorf("the monitor has %d descriptors, and had %d after the first take-over: %q", now, descriptors, l.descriptors(id))
	}
	var shown []inspected
	if err := json.Unmarshal([]byte(l.want("inspect", id)), &shown); err != nil {
		t.Fatal(err)
	}
	if m := shown[0].Mount; m.TakeOvers != kills || m.Server != l.server(id).PID || m.Monitor != l.monitor(id).PID || m.IO != "cached" {
		t.Errorf("inspect: %+v", m)
	}
	if err := os.WriteFile(filepath.Join(ctl, "stop"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := <-ended
	if r.code != 0 || r.stdout != "all well\n" {
		t.Errorf("exit status %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
	if want := "veneer: the file server died: another one goes on in its place\n"; r.stderr != want { // the same is said once
		t.Errorf("stderr %q; want %q", r.stderr, want)
	}
	l.checkNoLeaks(id)
	if out := l.want("check", id); !strings.Contains(out, "no damage") {
		t.Errorf("check: %s", out)
	}
}

// finishQuietly is finish for another goroutine.
func finishQuietly(cmd *exec.Cmd) result {
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Run() // the exit status tells
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// The process ends while its server is dead: its status counts.
func TestServerIsKilledAtTheEnd(t *testing.T) {
	l := newLab(t)
	ctl := t.TempDir()
	fifo := filepath.Join(ctl, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	image := l.image()
	for i := range 5 {
		name := fmt.Sprintf("end%d", i)
		l.want("run", "-d", "--name", name, "-v", ctl+":/ctl", image, "sh", "-c", "echo kept > /kept; read line < /ctl/fifo; exit 7")
		id, err := l.places.findID(name)
		if err != nil {
			t.Fatal(err)
		}
		w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		l.state(id).Server.signal(unix.SIGKILL)
		fmt.Fprintln(w, "go")
		w.Close()
		l.awaitEnd(id)
		if s := l.state(id); s.Status != statusExited || s.ExitCode != 7 || s.Error != "" {
			t.Errorf("state %+v; want exited (7)", s)
		}
		if diff := l.want("diff", id); !strings.Contains(diff, "A /kept\n") {
			t.Errorf("diff: %q", diff)
		}
		l.checkNoLeaks(id)
	}
}

// A server that kills itself whenever it begins is not started for ever.
func TestServersThatDieAtOnceHaveNoHeirs(t *testing.T) {
	l := newLab(t)
	id := strings.TrimSpace(l.want("run", "-d", l.image(), "sleep", "1000"))
	for n := 1; ; n++ {
		s := l.state(id)
		if s.Status == statusExited {
			if s.ExitCode != 137 || !strings.Contains(s.Error, "file server died") {
				t.Errorf("state %+v", s)
			}
			break
		}
		if n > 100_000 {
			t.Fatal("the container still runs")
		}
		s.Server.signal(unix.SIGKILL)
	}
	l.awaitEnd(id)
	l.checkNoLeaks(id)
}

// A read that waits for the registry when its server is killed gets its bytes from the next one.
func TestServerIsKilledWhileItFetches(t *testing.T) {
	l := newLab(t)
	image, body, data := l.remoteImage()
	fifo := filepath.Join(l.dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := l.command("run", "--no-fill", "-v", fifo+":/fifo", image, "sh", "-c", "read line < /fifo; cat /data")
	ended := make(chan result, 1)
	go func() { ended <- finishQuietly(cmd) }()
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0) // it runs, and has fetched nothing of data yet
	if err != nil {
		t.Fatal(err)
	}
	hold := fetchtest.NewHold(t, 100)
	l.reg.Use(fetchtest.OnlyFor(data.Descriptor.Digest, hold.Fault()))
	fmt.Fprintln(w, "go")
	w.Close()
	<-hold.Reached
	id := l.only()
	for n := 1; n <= 2; n++ {
		l.killServer(id, n)
		<-hold.Reached // the new server was asked again
	}
	hold.Release()
	if r := <-ended; r.code != 0 || r.stdout != body {
		t.Errorf("exit status %d, %d bytes of %d, stderr %q", r.code, len(r.stdout), len(body), r.stderr)
	}
	l.checkNoLeaks(id)
}
