package main

import (
	"errors"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/fs"
	"github.com/veneerfs/veneer/runtime/spawn"
)

// What the server is told, by a monitor or by mount, and what it answers.
type (
	toServer struct {
		Open  *serverJob `json:"open,omitempty"`
		Serve *serveJob  `json:"serve,omitempty"` // comes with the /dev/fuse descriptor; answered by Ready
		Guard bool       `json:"guard,omitempty"` // comes with a pidfd of the container's process
	}
	fromServer struct {
		Opened bool       `json:"opened,omitempty"` // what Open said
		Ready  *readySays `json:"ready,omitempty"`
		Closed bool       `json:"closed,omitempty"` // the mount is gone and everything is written; the last message
		Error  string     `json:"error,omitempty"`
	}
	// readySays is how a server serves.
	readySays struct {
		Session fs.Session `json:"session"`
		IO      string     `json:"io"` // the rung that it is on
	}
	// serverJob says what to serve.
	serverJob struct {
		Places    places
		Container string `json:"container,omitempty"` // ID; "" for a mount
		Remove    bool   `json:"remove,omitempty"`    // what was written need not be kept
		Dir       string `json:"dir,omitempty"`       // of a mount: where it is
		Record    string `json:"record,omitempty"`    // of a mount: its directory, which has the Dirs

		Image    string   `json:"image,omitempty"`
		Manifest string   `json:"manifest,omitempty"`
		Dirs     []string `json:"-"`               // layers in place of an image, bottom first; 500 of them are longer than a message
		State    string   `json:"state,omitempty"` // directory of the writable layer; "" serves read-only
		Storage  storage  `json:"storage,omitzero"`
		// Session of the writable layer that a server which takes over goes on with; 0 if none will.
		Session uint64 `json:"session,omitempty"`

		remote
		Command []string `json:"command,omitempty"` // of the container
		IO      string   `json:"io"`
		Latency string   `json:"latency,omitempty"`
		Stats   string   `json:"stats,omitempty"`
		Before  before   `json:"before"`
	}
	// before is what went before the server, for its statistics.
	before struct {
		Begun    time.Time     `json:"begun"`    // when the user asked for it
		Resolved time.Duration `json:"resolved"` // until image and tree were there
		Bytes    int64         `json:"bytes"`    // of layers, fetched by the command line
		Requests int64         `json:"requests"` // for layers
	}
	serveJob struct {
		Resume *fs.Session `json:"resume,omitempty"` // of the server that served before
		Device string      `json:"device"`           // MAJ:MIN of the mount
		Record string      `json:"record,omitempty"` // of a mount: the directory to remove at the end
	}
)

// The descriptors that a server inherits.
const (
	serverControl = 3 + iota
	serverLock    // of the container or the mount
	serverUser    // for warnings
)

// serverClient is a server as who started it sees it.
type serverClient struct {
	proc   *spawn.Process
	link   *link
	device string        // MAJ:MIN of the mount; "" before serve
	opened chan struct{} // closed when it has opened what it was told to
	says   readySays     // valid once serve has returned nil
	ready  chan error    // one result of serve, or of an open that went wrong
	closed chan struct{} // closed when it has closed what it served, or ended without
	died   chan struct{} // closed when it ended without
	ended  chan struct{} // closed when it ended
	err    error         // of closing; valid after closed
}

// newServer starts a server, which waits for its job. Messages go to log, warnings also to user if it is not nil.
func newServer(args []string, lock, log, user *os.File) (*serverClient, error) {
	near, far, err := newLink()
	if err != nil {
		return nil, err
	}
	defer far.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		near.Close()
		return nil, err
	}
	defer null.Close()
	if user == nil {
		user = null
	}
	s := &serverClient{link: near, opened: make(chan struct{}), ready: make(chan error, 1), closed: make(chan struct{}), died: make(chan struct{}), ended: make(chan struct{})}
	if s.proc, err = reexec(roleServer, args, []*os.File{null, null, log, far, lock, user}); err != nil {
		near.Close()
		return nil, err
	}
	go s.listen()
	return s, nil
}

func (s *serverClient) listen() {
	defer close(s.ended)
	done := false
	for {
		var msg fromServer
		if _, err := s.link.recv(&msg); err != nil {
			break
		}
		err := errIf(msg.Error)
		switch {
		case msg.Opened:
			close(s.opened)
		case msg.Closed:
			done, s.err = true, err
			close(s.closed)
		default:
			if msg.Ready != nil {
				s.says = *msg.Ready
			}
			s.ready <- err
		}
	}
	s.proc.Wait()
	if !done {
		s.err = errServerDied
		close(s.closed)
		close(s.died)
	}
}

var errServerDied = errors.New("the file server died")

func errIf(message string) error {
	if message == "" {
		return nil
	}
	return errors.New(message)
}

// open lets the server begin with what does not need the mount.
func (s *serverClient) open(j serverJob) error { return s.told(toServer{Open: &j}) }

// awaitOpen returns when the server has opened what it was told to. Who does not mind to mount what cannot be opened need not wait.
func (s *serverClient) awaitOpen() error {
	select {
	case <-s.opened:
		return nil
	case err := <-s.ready:
		return err
	case <-s.ended:
	}
	return s.await()
}

// serve hands the mount over and returns when it is answered for.
func (s *serverClient) serve(j serveJob, fuse *os.File) error {
	if err := s.told(toServer{Serve: &j}, fuse); err != nil {
		return err
	}
	s.device = j.Device
	return s.await()
}

func (s *serverClient) guard(pidfd *os.File) error { return s.told(toServer{Guard: true}, pidfd) }

// told sends msg. If the server is gone, why it went is worth more than that it did not listen.
func (s *serverClient) told(msg toServer, files ...*os.File) error {
	err := s.link.send(msg, files...)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return s.await()
	}
	return err
}

func (s *serverClient) await() error {
	select {
	case err := <-s.ready:
		return err
	case <-s.ended:
	}
	select {
	case err := <-s.ready: // its last message, which came just before the end
		return err
	default:
		return errServerDied
	}
}

// endLimit is how long a server may go on when its container has ended. Something outside must hold the mount then.
const endLimit = 10 * time.Second

// wait waits until the server has closed what it served: it ends then. A SIGTERM meanwhile ends it at once: what it answered is kept.
func (s *serverClient) wait(signals <-chan os.Signal) error {
	if s.device == "" {
		s.link.Close() // it still waits for a mount
	}
	late := time.NewTimer(endLimit)
	defer late.Stop()
	for {
		select {
		case <-s.closed:
			return s.err
		case <-late.C:
			abortConnection(s.device)
		case sig := <-signals:
			if sig == unix.SIGTERM {
				s.proc.Kill()
			}
		}
	}
}

// abortConnection ends a FUSE mount for all who still use it.
func abortConnection(device string) error {
	_, minor, _ := strings.Cut(device, ":")
	return os.WriteFile("/sys/fs/fuse/connections/"+minor+"/abort", []byte("1"), 0)
}
