package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// options are the flags.
type options struct {
	ctx        context.Context // its end is the end of the rounds
	veneer, io string
	time       time.Duration
	seed       uint64
	workers    int
}

// rig is where a workload runs: a directory, and the mounts that it has made.
type rig struct {
	options
	dir    string
	begun  time.Time
	say    func(format string, a ...any)
	mounts []*mount
	disks  []*disk
	lying  bool // about the boot of the machine
	n      int  // names given by place
}

func newRig(o options, dir string, say func(string, ...any)) *rig {
	return &rig{options: o, dir: dir, begun: time.Now(), say: say}
}

// goOn tells whether there is time left.
func (r *rig) goOn() bool { return time.Since(r.begun) < r.time && r.ctx.Err() == nil }

// brief says that there is no time at all: in a test.
func (r *rig) brief() bool { return r.time == 0 }

// place makes a new directory that anybody may enter.
func (r *rig) place(name string) (string, error) {
	r.n++
	dir := filepath.Join(r.dir, fmt.Sprintf("%s%d", name, r.n))
	err := os.Mkdir(dir, 0o755)
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.Chmod(r.dir, 0o755))
	}
	return dir, err
}

// close ends what a failed workload left.
func (r *rig) close() error {
	var all error
	for len(r.mounts) > 0 {
		m := r.mounts[0]
		if m.pidfd >= 0 {
			all = errors.Join(all, m.kill())
		}
		all = errors.Join(all, m.forget())
	}
	all = errors.Join(all, r.rebooted())
	for _, d := range r.disks {
		if err := d.unmount(); !errors.Is(err, unix.EINVAL) { // it is not mounted any more
			all = errors.Join(all, err)
		}
	}
	return all
}

// mount is a writable mount of one lower directory.
type mount struct {
	rig               *rig
	lower, state, dir string
	pid, pidfd        int      // the server; pidfd is -1 while there is none
	log               *os.File // what the server says
	cut               bool     // the disk under it is dead: it may say so
}

// mount mounts lower with the changes in state, at a new place.
func (r *rig) mount(lower, state string) (*mount, error) {
	dir, err := r.place("mnt")
	if err != nil {
		return nil, err
	}
	m := &mount{rig: r, lower: lower, state: state, dir: dir, pidfd: -1}
	r.mounts = append(r.mounts, m)
	return m, m.start()
}

func (r *rig) veneerArgs(args ...string) []string {
	return append([]string{"--root", filepath.Join(r.dir, "root"), "--run-root", filepath.Join(r.dir, "run")}, args...)
}

func (r *rig) command(args ...string) (string, error) {
	return output(exec.Command(r.veneer, r.veneerArgs(args...)...))
}

// output runs a command; its standard error becomes part of the error.
func output(c *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(c.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// start mounts and finds the server.
func (m *mount) start() error {
	m.cut = false
	if _, err := m.rig.command("mount", "--rw", "--state", m.state, "--io", m.rig.io, "--layer", "dir:"+m.lower, m.dir); err != nil {
		return err
	}
	record, err := m.record()
	if err != nil {
		return err
	}
	if m.log, err = os.Open(filepath.Join(record, "log")); err != nil {
		return err
	}
	p, err := os.ReadFile(filepath.Join(record, "mount.json"))
	if err != nil {
		return err
	}
	var j struct{ Server struct{ PID int } }
	if err := json.Unmarshal(p, &j); err != nil {
		return err
	}
	if m.pidfd, err = unix.PidfdOpen(j.Server.PID, 0); err != nil {
		return fmt.Errorf("find the server: %w", err)
	}
	m.pid = j.Server.PID
	return nil
}

// record is the directory below the run root that tells about the mount.
func (m *mount) record() (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(m.dir, &st); err != nil {
		return "", err
	}
	return filepath.Join(m.rig.dir, "run/mounts", fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))), nil
}

// kill takes the server away in the middle of whatever it does, and returns when it is gone.
func (m *mount) kill() error {
	if err := unix.PidfdSendSignal(m.pidfd, unix.SIGKILL, nil, 0); err != nil {
		return fmt.Errorf("kill the server: %w", err)
	}
	return m.ended()
}

// ended waits for the server's end, and looks at what it has said.
func (m *mount) ended() error {
	if err := awaitEnd(m.pidfd); err != nil {
		return err
	}
	unix.Close(m.pidfd)
	m.pidfd = -1
	defer m.log.Close()
	said, err := io.ReadAll(m.log)
	for _, bad := range []string{"DATA RACE", "panic", "fatal error", "level=ERROR", "fuse request"} {
		if m.cut && bad == "level=ERROR" {
			break
		}
		if bytes.Contains(said, []byte(bad)) {
			err = errors.Join(err, fmt.Errorf("the server said:\n%s", said))
			break
		}
	}
	return err
}

// awaitEnd waits for the end of a process.
func awaitEnd(pidfd int) error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1)
		if err != unix.EINTR {
			return err
		}
	}
}

// again mounts the same state after kill.
func (m *mount) again() error {
	if err := m.detach(); err != nil {
		return err
	}
	return m.start()
}

// detach takes the mount away though somebody may still hold files of it.
func (m *mount) detach() error {
	if err := unix.Unmount(m.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("detach %s: %w", m.dir, err)
	}
	return nil
}

// forget gives up a mount whose server is dead.
func (m *mount) forget() error {
	m.rig.mounts = m.rig.mounts[1:]
	err := m.detach()
	if errors.Is(err, unix.EINVAL) { // it never came up
		return nil
	}
	return err
}

// unmount ends it in order.
func (m *mount) unmount() error {
	if err := unix.Unmount(m.dir, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", m.dir, err)
	}
	for i, o := range m.rig.mounts {
		if o == m {
			m.rig.mounts = append(m.rig.mounts[:i], m.rig.mounts[i+1:]...)
			break
		}
	}
	return m.ended()
}
