package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stressors are those of stress-ng that work on files of one directory.
const stressors = `access aio aiol chattr chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify dup fallocate fanotify
	fcntl fiemap file-ioctl filename flock flushcache fpunch fsize fstat getdent handle hdd inode-flags inotify io iomix lease link
	locka lockf lockofd mknod mmapaddr mmapfork mmapmany msync open readahead rename revio seek sendfile splice symlink sync-file
	tee touch utime verity xattr`

// fewStressors run all at once, where there is no time for more.
const fewStressors = "dentry fpunch getdent iomix rename xattr"

// stress runs stress-ng with its checks on a mount, kills the server under it, and wants to remove all that it has left. The server must
// not grow.
func stress(r *rig) error {
	lower, err := r.place("lower")
	if err != nil {
		return err
	}
	state, err := r.place("state")
	if err != nil {
		return err
	}
	m, err := r.mount(lower, state)
	if err != nil {
		return err
	}
	begin, err := m.weigh()
	if err != nil {
		return err
	}
	ran := 0
	var first weight // after all stressors have run once; 256 data objects are kept open
	for pass := 0; pass < 2 || r.goOn(); pass++ {
		n, err := r.stressPass(m)
		ran += n
		if err != nil {
			return err
		}
		now, err := m.weigh()
		if err != nil {
			return err
		}
		if pass == 0 {
			first = now
		}
		if now.files > begin.files+300 || now.memory > first.memory+first.memory/2+(32<<20) {
			return fmt.Errorf("the server grows: %+v in the beginning, %+v after all stressors once, %+v after pass %d", begin, first, now, pass+1)
		}
	}
	if err := r.stressKilled(m); err != nil {
		return err
	}
	r.say("%d stressors, 1 kill", ran)
	return r.finish(m)
}

// weight is what a server takes.
type weight struct {
	files  int // open
	memory int // resident, bytes
}

func (m *mount) weigh() (w weight, err error) {
	proc := fmt.Sprintf("/proc/%d", m.pid)
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return w, err
	}
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		return w, err
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	_, err = fmt.Sscan(rest, &w.memory)
	return weight{len(fds), w.memory << 10}, err
}

// stressPass runs every stressor for a while, or few at once if there is no time.
func (r *rig) stressPass(m *mount) (ran int, err error) {
	runs := strings.Fields(stressors)
	seconds := max(1, int(r.time/time.Second)/len(runs)/2)
	if r.brief() {
		runs = []string{fewStressors}
	}
	for _, names := range runs {
		if err := stressCommand(m, names, seconds).Run(); err != nil {
			return ran, fmt.Errorf("stress-ng %s: %w", names, err)
		}
		ran += len(strings.Fields(names))
		if left, err := filepath.Glob(m.dir + "/*"); err != nil || len(left) > 0 {
			return ran, fmt.Errorf("stress-ng %s: it could not remove %q: %w", names, left, err)
		}
	}
	return ran, nil
}

func stressCommand(m *mount, names string, seconds int) *exec.Cmd {
	args := []string{"--temp-path", m.dir, "--verify", "--timeout", fmt.Sprint(seconds)}
	for name := range strings.FieldsSeq(names) {
		args = append(args, "--"+name, "2")
	}
	c := exec.Command("stress-ng", args...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return c
}

// stressKilled kills the server and then the stressors, and removes what they have left from a new mount.
func (r *rig) stressKilled(m *mount) error {
	c := stressCommand(m, fewStressors, 60)
	if err := c.Start(); err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond) // any moment is as good
	err := m.kill()
	unix.Kill(-c.Process.Pid, unix.SIGKILL)
	c.Wait() // it was killed
	if err := errors.Join(err, m.again()); err != nil {
		return err
	}
	left, err := filepath.Glob(m.dir + "/*")
	if err != nil || len(left) == 0 {
		return fmt.Errorf("the stressors had left nothing: %w", err)
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}
