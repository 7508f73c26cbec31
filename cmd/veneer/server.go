package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fs"
)

// server answers for one mount, of a container or of the mount command, until it is gone. It never touches it: it
// stays in the host's mount namespace and gets the mount as a /dev/fuse descriptor.
type server struct {
	log  *slog.Logger
	link *link
	lock *os.File // held until the process ends
	job  serverJob
	tree *servedTree
	fs   *fs.Server

	figures figures

	mu       sync.Mutex
	guarded  *os.File // pidfd of the container's process; guarded by mu
	orphaned bool     // the monitor is dead; guarded by mu
}

func serverMain(args []string) int {
	if len(args) != 3 {
		fmt.Fprintln(os.Stderr, "veneer: server: not for use by hand")
		return exitVeneer
	}
	unix.Umask(0o022)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE)
	s := &server{
		log:  newLog(args[2], "server", inherited(serverUser, "stderr")),
		lock: inherited(serverLock, "lock"),
	}
	var err error
	if s.link, err = openLink(serverControl); err != nil {
		s.log.Error("start", "err", err)
		return exitVeneer
	}
	if err := s.begin(); err != nil {
		if !errors.Is(err, io.EOF) {
			s.link.send(fromServer{Error: err.Error()})
		}
		s.close()
		return exitVeneer
	}
	s.link.send(fromServer{Ready: &readySays{Session: s.fs.Session(), IO: s.fs.IO()}})
	return s.serve()
}

// begin opens what is to be served and takes the mount over. The error is io.EOF if who started us needs us no more.
func (s *server) begin() error {
	var msg toServer
	if _, err := s.link.recv(&msg); err != nil {
		return err
	}
	if msg.Open == nil {
		return errors.New("a server without a job")
	}
	s.job = *msg.Open
	undo, err := s.prepareMount()
	if err != nil {
		return err
	}
	if s.tree, err = openServed(s.job, s.log); err != nil {
		return err
	}
	s.link.send(fromServer{Opened: true}) // if nobody is there to hear it, the next line tells
	files, err := s.link.recv(&msg)
	if err != nil {
		undo()
		return err
	}
	if msg.Serve == nil || len(files) != 1 {
		closeAll(files)
		return errors.New("a server without a mount")
	}
	s.fs, err = fs.NewServer(files[0], s.figures.watch(s.tree), fs.Options{
		IO: s.job.IO, Latency: s.job.Latency, Nested: s.job.Container != "", Log: s.log, Device: msg.Serve.Device, Resume: msg.Serve.Resume,
	})
	if err != nil {
		return err
	}
	s.job.Record = msg.Serve.Record
	s.figures.mounted(s.job.Before.Begun)
	return nil
}

// prepareMount reads the layers from the record of a mount. undo does what mount would have done, had it not been killed: what is mounted
// by then and was not before is mount's, and nobody has it open.
func (s *server) prepareMount() (undo func(), err error) {
	if s.job.Record == "" {
		return func() {}, nil
	}
	r, err := readMountRecord(s.job.Record)
	if err != nil {
		return nil, err
	}
	s.job.Dirs = r.Layers
	before, err := findMount(s.job.Dir)
	if err != nil {
		return nil, err
	}
	return func() {
		m, err := findMount(s.job.Dir)
		if err == nil && m != nil && (before == nil || m.id != before.id) && m.fstype == r.Type && m.source == r.Source {
			unix.Unmount(s.job.Dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			removeRecord(filepath.Join(filepath.Dir(s.job.Record), m.device), s.lock)
		}
		os.RemoveAll(s.job.Record)
	}, nil
}

// serve answers until the mount is gone, then leaves everything written and in order.
func (s *server) serve() int {
	heard := make(chan struct{})
	go s.listen(heard)
	usr1 := make(chan os.Signal, 1)
	signal.Notify(usr1, unix.SIGUSR1)
	go func() {
		for range usr1 {
			if err := s.writeStats(); err != nil {
				s.log.Warn(err.Error())
			}
		}
	}()
	err := s.fs.Serve()
	if e := s.writeStats(); err == nil {
		err = e
	}
	if e := s.close(); err == nil {
		err = e
	}
	if s.isOrphan() {
		s.settle()
	}
	if s.job.Record != "" {
		removeRecord(s.job.Record, s.lock)
	}
	msg := fromServer{Closed: true}
	if err != nil {
		s.log.Error("close", "err", err)
		msg.Error = err.Error()
	}
	s.link.send(msg)
	return 0
}

// close writes everything that has to be kept.
func (s *server) close() error {
	if s.tree == nil {
		return nil
	}
	return s.tree.close(s.job.Remove)
}

// listen hears what the monitor says beside the mount. Its end is the monitor's, unless nobody stays with us (mount).
func (s *server) listen(heard chan<- struct{}) {
	defer close(heard)
	for {
		var msg toServer
		files, err := s.link.recv(&msg)
		if err != nil {
			if s.job.Container != "" {
				s.orphan()
			}
			return
		}
		if msg.Guard && len(files) == 1 {
			s.mu.Lock()
			s.guarded = files[0]
			s.mu.Unlock()
			s.figures.armed()
		}
	}
}

// orphan ends the container, because its monitor is dead. Its mount goes with its last process, and serve returns.
// A monitor that ends in order stops talking only when the container is dead: this does no harm then.
func (s *server) orphan() {
	s.mu.Lock()
	s.orphaned = true
	pidfd := s.guarded
	s.mu.Unlock()
	if pidfd != nil {
		endPidfd(pidfd)
	}
}

func (s *server) isOrphan() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.orphaned
}

// settle does in the dead monitor's place what it would have done at the container's end.
func (s *server) settle() {
	p := s.job.Places
	c, err := p.load(s.job.Container)
	if err == nil {
		_, err = p.settle(c)
	}
	if err == nil && c.Remove {
		err = p.discard(c)
	}
	if err != nil {
		s.log.Error("clean up after the monitor", "err", err)
		return
	}
	if err := p.removeRun(c.ID); err != nil {
		s.log.Error("clean up after the monitor", "err", err)
	}
}
