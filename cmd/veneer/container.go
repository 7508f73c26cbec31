package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A container on disk:
//
//	ROOT/containers/ID/           kept until rm
//	    container.json            what it was made with; written once; without it the container is half made
//	    state.json                what became of it; replaced atomically (state.go)
//	    config.json               the OCI runtime spec of its last start
//	    delta/                    what it wrote (package cow)
//	    log                       with -d: its output, in Docker's json-file format
//	    veneer.log                messages of its monitor and server
//	ROOT/names/NAME -> ID         claims a name: made with symlink(2), removed under names/.lock
//	RUNROOT/ID/                   while it runs
//	    lock                      flocked by monitor and server: who gets the lock knows that both are dead; names the monitor
//	  and in its own mount namespace only, a tmpfs in this place with
//	    rootfs/                   where its tree is mounted
//	    hostname hosts resolv.conf
//
// The kernel drops the lock with the last process that has it, so nobody trusts a recorded PID.

// container is what a container was made with.
type container struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Created  time.Time `json:"created"`
	Shown    string    `json:"shown"`    // the image as the user called it
	Image    string    `json:"image"`    // the reference, in full
	Manifest string    `json:"manifest"` // digest of the image's manifest

	// The process, with the image's configuration and accounts already applied.
	Args       []string `json:"args"`
	Entrypoint *string  `json:"-"` // of the flag; nil without it
	Env        []string `json:"env"`
	User       string   `json:"user,omitempty"` // as the flag or the image says
	Account    *account `json:"account"`        // whom that means
	WorkDir    string   `json:"workDir,omitempty"`

	Hostname string   `json:"hostname"`
	Net      string   `json:"net"`
	Volumes  []volume `json:"volumes,omitempty"`
	ReadOnly bool     `json:"readOnly,omitempty"`
	TTY      bool     `json:"tty,omitempty"`
	Stdin    bool     `json:"stdin,omitempty"`
	Remove   bool     `json:"remove,omitempty"`
	Detached bool     `json:"detached,omitempty"`

	IO      string  `json:"io"`
	Storage storage `json:"storage,omitzero"`
	Latency string  `json:"latency,omitempty"`
	Stats   string  `json:"stats,omitempty"`
	remote
}

// volume is a host path in the container.
type volume struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	ReadOnly    bool   `json:"readOnly,omitempty"`
}

// Short is the part of the ID that people see.
func (c *container) Short() string { return c.ID[:12] }

// idLen is the length of a container's ID in hex digits.
const idLen = 64

// places knows where things are.
type places struct {
	Root, RunRoot string
}

func (a *app) places() places { return places{a.root, a.runRoot} }

func (p places) containers() string             { return filepath.Join(p.Root, "containers") }
func (p places) container(id string) string     { return filepath.Join(p.Root, "containers", id) }
func (p places) file(id, name string) string    { return filepath.Join(p.Root, "containers", id, name) }
func (p places) name(name string) string        { return filepath.Join(p.Root, "names", name) }
func (p places) run(id string) string           { return filepath.Join(p.RunRoot, id) }
func (p places) runFile(id, name string) string { return filepath.Join(p.RunRoot, id, name) }

// errNoContainer says that there is no such container.
type errNoContainer struct{ ref string }

func (e *errNoContainer) Error() string { return "no such container: " + e.ref }

// claim makes a new container's directories with its lock held, and reserves its name (a random one for ""). Nothing
// is visible to others until container.json is written.
func (p places) claim(name string) (c *container, lock *os.File, err error) {
	c = &container{ID: newID(), Name: name, Created: time.Now().UTC()}
	for _, dir := range []string{filepath.Join(p.Root, "names"), p.containers(), p.RunRoot} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, nil, err
		}
	}
	if lock, err = p.lock(c.ID); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			p.discard(c)
			lock.Close()
		}
	}()
	if err := os.Mkdir(p.container(c.ID), 0o711); err != nil {
		return nil, nil, err
	}
	return c, lock, p.claimName(c)
}

// claimName makes the link NAME -> ID. A name whose container is gone or was never finished is free.
func (p places) claimName(c *container) error {
	random := c.Name == ""
	for {
		if random {
			c.Name = randomName()
		}
		err := os.Symlink(c.ID, p.name(c.Name))
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		holder, err := p.freeName(c.Name)
		if err != nil {
			return err
		}
		if holder != "" && !random {
			return fmt.Errorf("conflict: the container name %q is already in use by container %s; "+
				"remove that container (veneer rm %s) to be able to reuse that name", c.Name, holder[:min(12, len(holder))], c.Name)
		}
	}
}

// freeName removes the claim of a name that no container has, and returns the ID of the container that has it, or "".
func (p places) freeName(name string) (holder string, err error) {
	unlock, err := p.lockNames()
	if err != nil {
		return "", err
	}
	defer unlock()
	// Look again under the lock: the claim may have been freed, and the name claimed anew, since symlink(2) failed.
	id, err := os.Readlink(p.name(name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	if _, err := os.Stat(p.container(id)); err == nil {
		if _, err := os.Stat(p.file(id, "container.json")); err == nil {
			return id, nil
		}
		lock, err := p.tryLock(id)
		if lock == nil {
			return id, err // still being made
		}
		defer lock.Close()
		if err := p.removeDirs(id); err != nil {
			return "", err
		}
	}
	return "", os.Remove(p.name(name))
}

func (p places) lockNames() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(p.Root, "names", ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// publish writes container.json: from here on the container exists.
func (p places) publish(c *container) error {
	return writeJSON(p.file(c.ID, "container.json"), c)
}

// discard removes all of a container. The caller holds its lock.
func (p places) discard(c *container) error {
	err := p.removeName(c)
	return errors.Join(err, p.removeDirs(c.ID))
}

func (p places) removeName(c *container) error {
	if c.Name == "" {
		return nil
	}
	unlock, err := p.lockNames()
	if err != nil {
		return err
	}
	defer unlock()
	if id, err := os.Readlink(p.name(c.Name)); err != nil || id != c.ID {
		return nil
	}
	return os.Remove(p.name(c.Name))
}

// removeDirs removes a container's directories; container.json goes first, so that what a crash leaves is half made.
func (p places) removeDirs(id string) error {
	if err := os.Remove(p.file(id, "container.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := os.RemoveAll(p.container(id))
	return errors.Join(err, p.removeRun(id))
}

// removeRun removes a container's run directory, name by name: were its tree ever mounted there for us too, we would not
// remove what is in it.
func (p places) removeRun(id string) error {
	for _, name := range []string{"lock", ""} {
		if err := os.Remove(p.runFile(id, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// lock makes a new container's run directory with its lock.
func (p places) lock(id string) (*os.File, error) {
	if err := os.Mkdir(p.run(id), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(p.runFile(id, "lock"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// tryLock takes the lock of a container that does not run; nil if it does.
func (p places) tryLock(id string) (*os.File, error) { return p.relock(id, unix.LOCK_EX|unix.LOCK_NB) }

// waitLock takes the lock of a container when it has ended.
func (p places) waitLock(id string) (*os.File, error) { return p.relock(id, unix.LOCK_EX) }

func (p places) relock(id string, how int) (*os.File, error) {
	for {
		if err := os.MkdirAll(p.run(id), 0o700); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(p.runFile(id, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its directory was removed in between
		} else if err != nil {
			return nil, err
		}
		if err := flock(f, how); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, nil
			}
			return nil, err
		}
		// The last holder removes the file when it ends: what we locked may be gone, and another one there by now.
		if same(f, p.runFile(id, "lock")) {
			return f, nil
		}
		f.Close()
	}
}

// unlock gives up a lock of a container that does not run.
func (p places) unlock(id string, lock *os.File) {
	p.removeRun(id)
	lock.Close()
}

func same(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

// load reads container.json.
func (p places) load(id string) (*container, error) {
	c := new(container)
	if err := readJSON(p.file(id, "container.json"), c); err != nil {
		return nil, err
	}
	if c.ID != id {
		return nil, fmt.Errorf("read %s: it is of container %q", p.file(id, "container.json"), c.ID)
	}
	return c, nil
}

// find finds a container by name, ID or unique beginning of an ID, in this order.
func (p places) find(ref string) (*container, error) {
	id, err := p.findID(ref)
	if err != nil {
		return nil, err
	}
	c, err := p.load(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &errNoContainer{ref}
	}
	return c, err
}

func (p places) findID(ref string) (string, error) {
	if validName(ref) {
		if id, err := os.Readlink(p.name(ref)); err == nil {
			return id, nil
		}
	}
	ids, err := p.ids()
	if err != nil {
		return "", err
	}
	ids = slices.DeleteFunc(ids, func(id string) bool { return ref == "" || !strings.HasPrefix(id, ref) })
	switch len(ids) {
	case 0:
		return "", &errNoContainer{ref}
	case 1:
		return ids[0], nil
	}
	return "", fmt.Errorf("several containers have an ID that begins with %s", ref)
}

// ids lists the containers' directories, finished or not.
func (p places) ids() ([]string, error) {
	entries, err := os.ReadDir(p.containers())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if isID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

func isID(s string) bool {
	return len(s) == idLen && strings.Trim(s, "0123456789abcdef") == ""
}

func newID() string {
	var b [idLen / 2]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// writeJSON replaces the file at path by v. It survives the death of any process, not of the machine: a file that is empty
// after a power cut is treated as missing.
func writeJSON(path string, v any) error {
	p, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return err
	}
	return writeFile(path, append(p, '\n'))
}

func writeFile(path string, p []byte) error {
	tmp := fmt.Sprintf("%s.%d.tmp", path, os.Getpid())
	if err := os.WriteFile(tmp, p, 0o644); err != nil {
		os.Remove(tmp)
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return err
	}
	return nil
}

func readJSON(path string, v any) error {
	p, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(p) == 0 {
		return &fs.PathError{Op: "read", Path: path, Err: syscall.ENOENT}
	}
	if err := json.Unmarshal(p, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
