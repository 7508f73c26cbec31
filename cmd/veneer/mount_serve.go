package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fs"
)

// A mount of the mount or overlay command has no monitor: the server serves it until it is gone, however that comes about. On disk:
//
//	RUNROOT/mounts/MAJ:MIN/    by the device number of the mount, which names it in every mount namespace
//	    lock                   flocked by the server; free: the server is dead
//	    mount.json
//	    log                    messages of the server
//
// Until it is mounted, the directory has a name that begins with ".new-". The kernel gives a number anew as soon as the mount is gone: if
// its server has not ended by then, its record becomes MAJ:MIN~PID. Names change, and records go, under a flock of RUNROOT/mounts.

// mountRecord is mount.json.
type mountRecord struct {
	Dir    string   `json:"dir"` // in the mount namespace of who mounted it
	Source string   `json:"source"`
	Type   string   `json:"type"`
	Image  string   `json:"image,omitempty"`
	Layers []string `json:"layers,omitempty"` // bottom first
	State  string   `json:"state,omitempty"`
	Server process  `json:"server"`
}

// serveMount starts a server, mounts the tree at job.Dir and hands it over. It returns when the mount is usable.
func (a *app) serveMount(job serverJob, o fs.MountOptions) error {
	mounts := filepath.Join(a.runRoot, "mounts")
	if err := os.MkdirAll(mounts, 0o711); err != nil {
		return err
	}
	// The server is started with the record under a name of its own; the mount's number comes with the mount.
	tmp, err := os.MkdirTemp(mounts, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // if it still has that name
	lock, err := lockNew(filepath.Join(tmp, "lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	log, err := os.OpenFile(filepath.Join(tmp, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s, err := newServer([]string{job.Dir, mounts, a.logLevel}, lock, log, nil)
	if err != nil {
		return err
	}
	job.Record = tmp
	record, err := handOver(s, &job, o)
	if err != nil {
		s.wait(nil)
		<-s.ended
		if record != "" {
			removeRecord(record, lock)
		}
		return err
	}
	if r, err := readMountRecord(record); err == nil {
		if err := noteMount(r); err != nil {
			a.log.Warn("umount(8) will not wait for the server", "err", err)
		}
	}
	return nil
}

// handOver lets the server open what is to be served before it mounts: a layer may be at the mount point, or around it. It returns the
// record's name, once it has one for good.
func handOver(s *serverClient, job *serverJob, o fs.MountOptions) (record string, err error) {
	if o.Source == "" {
		o.Source = "veneer"
	}
	if o.Type == "" {
		o.Type = "fuse.veneer"
	}
	id, err := identify(s.proc.Pid)
	if err != nil {
		return "", err
	}
	r := mountRecord{Dir: job.Dir, Source: o.Source, Type: o.Type, Image: job.Image, Layers: job.Dirs, State: job.State, Server: id}
	if err := writeJSON(filepath.Join(job.Record, "mount.json"), r); err != nil {
		return "", err
	}
	if err := s.open(*job); err != nil {
		return "", err
	}
	if err := s.awaitOpen(); err != nil {
		return "", err
	}
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP) // from here to the end takes no time
	fuse, err := fs.MountFD(job.Dir, o)
	if err != nil {
		return "", err
	}
	defer fuse.Close()
	record, err = serveAt(s, job, fuse)
	if err != nil {
		err = errors.Join(err, ignoreGone(unix.Unmount(job.Dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)))
	}
	return record, err
}

// serveAt gives the record its name and the server the mount.
func serveAt(s *serverClient, job *serverJob, fuse *os.File) (record string, err error) {
	device, err := fs.MountDevice(job.Dir)
	if err != nil {
		return "", err
	}
	record = filepath.Join(filepath.Dir(job.Record), device)
	if err := publishRecord(job.Record, record); err != nil {
		return "", err
	}
	return record, s.serve(serveJob{Device: device, Record: record}, fuse)
}

// publishRecord gives a record its name. What has that name is of a mount that is gone.
func publishRecord(tmp, record string) error {
	unlock, err := lockRecords(record)
	if err != nil {
		return err
	}
	defer unlock()
	if old, err := readMountRecord(record); err == nil && old.Server.alive() {
		if err := os.Rename(record, displaced(record, old.Server.PID)); err != nil {
			return err
		}
	} else if err := os.RemoveAll(record); err != nil {
		return err
	}
	return os.Rename(tmp, record)
}

func displaced(record string, pid int) string { return fmt.Sprintf("%s~%d", record, pid) }

// removeRecord removes the record with that lock, whichever name it has by now.
func removeRecord(record string, lock *os.File) error {
	unlock, err := lockRecords(record)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer unlock()
	paths, err := filepath.Glob(record + "*")
	for _, path := range paths {
		if same(lock, filepath.Join(path, "lock")) {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}
	return err
}

// lockRecords keeps others from giving record, or one beside it, a name or from removing it.
func lockRecords(record string) (unlock func(), err error) {
	f, err := os.Open(filepath.Dir(record))
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func ignoreGone(err error) error {
	if err == unix.EINVAL || err == unix.ENOENT {
		return nil
	}
	return err
}

// lockNew makes a lock file and holds it.
func lockNew(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func readMountRecord(dir string) (*mountRecord, error) {
	p, err := os.ReadFile(filepath.Join(dir, "mount.json"))
	if err != nil {
		return nil, err
	}
	r := new(mountRecord)
	return r, json.Unmarshal(p, r)
}

// recordOf returns the record of a mount, or nil if it is none of this --run-root's. The directory of the record of a mount that is gone
// may stay, and its number be given to a mount of somebody else.
func (a *app) recordOf(m *mountEntry) *mountRecord {
	r, err := readMountRecord(filepath.Join(a.runRoot, "mounts", m.device))
	if err != nil || r.Type != m.fstype || r.Source != m.source {
		return nil
	}
	return r
}

// isOurs says whether we mounted m, also with another --run-root if its type tells.
func (a *app) isOurs(m *mountEntry) bool {
	return m.fstype == "fuse.veneer" || strings.HasPrefix(m.fstype, "fuse") && a.recordOf(m) != nil
}
