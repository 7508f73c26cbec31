package runtime

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/cgroups"
)

func threadCgroups(t *testing.T) string {
	t.Helper()
	own, err := os.ReadFile("/proc/thread-self/cgroup")
	must(t, err)
	return string(own)
}

func TestFirstProcessIsBornInItsCgroup(t *testing.T) {
	root := newRootfs(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadCgroups(t)
	c, _ := create(t, root, newSpec("/bin/sleep", "1000"))
	if !c.cgroup.joined {
		t.Error("it had to be moved there, which takes milliseconds")
	}
	if after := threadCgroups(t); after != before {
		t.Errorf("the creating thread is now in\n%sand was in\n%s", after, before)
	}
}

// newTestCgroup makes a cgroup that the test may leave to be removed.
func newTestCgroup(t *testing.T) *cgroup {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	c, err := newCgroup("/veneer-test-"+strconv.Itoa(os.Getpid())+"-"+t.Name(), &cgroups.Resources{})
	must(t, err)
	must(t, c.mkdir())
	t.Cleanup(func() { must(t, c.destroy()) })
	return c
}

func TestThreadComesBackFromTheCgroup(t *testing.T) {
	c := newTestCgroup(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadCgroups(t)
	leave, err := c.enter(c.mountpoints(nil))
	must(t, err)
	if !cgroups.IsCgroup2UnifiedMode() && strings.Count(threadCgroups(t), c.path+"\n") == 0 {
		t.Errorf("the thread is in\n%snot in %s", threadCgroups(t), c.path)
	}
	must(t, c.killEach()) // must not take the thread for one of the container's
	must(t, leave())
	if after := threadCgroups(t); after != before {
		t.Errorf("the thread is now in\n%sand was in\n%s", after, before)
	}
}

// What cannot be born there is moved.
func TestProcessJoinsTheCgroup(t *testing.T) {
	c := newTestCgroup(t)
	p := exec.Command("sleep", "1000")
	must(t, p.Start())
	t.Cleanup(func() {
		p.Process.Kill()
		p.Wait()
	})
	must(t, c.join(p.Process.Pid))
	for _, dir := range c.manager.GetPaths() {
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		must(t, err)
		if got := strings.TrimSpace(string(procs)); got != strconv.Itoa(p.Process.Pid) {
			t.Errorf("%s holds %q, want %d", dir, got, p.Process.Pid)
		}
	}
}

// The Go runtime makes threads when it likes. They must not be made of the one that is in the cgroup: they would stay.
func TestThreadsMadeMeanwhileStayOut(t *testing.T) {
	c := newTestCgroup(t)
	if cgroups.IsCgroup2UnifiedMode() {
		t.Skip("with cgroup v2 no thread enters")
	}
	must(t, c.bear(c.mountpoints(nil), func(int) error {
		var held sync.WaitGroup
		release := make(chan struct{})
		for range 30 {
			held.Add(1)
			go func() {
				runtime.LockOSThread() // takes a thread away, so that there must be another
				defer runtime.UnlockOSThread()
				held.Done()
				<-release
			}()
			runtime.Gosched()
		}
		held.Wait()
		close(release)
		return nil
	}))
	for _, dir := range c.manager.GetPaths() {
		if tasks, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); err != nil || len(tasks) > 0 {
			t.Errorf("%s holds %q (%v)", dir, tasks, err)
		}
	}
}
