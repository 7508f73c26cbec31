package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/runtime/spawn"
)

// CreateOptions say what to create. ID, Spec and a root are needed.
type CreateOptions struct {
	ID     string
	Bundle string // absolute; relative paths of the configuration start here; it holds config.json
	Spec   *specs.Spec
	Root   string // overrides Spec.Root.Path; absolute

	// The process's standard streams; nil is /dev/null. Not used with Process.Terminal. They stay the caller's.
	Stdin, Stdout, Stderr *os.File

	CgroupPath string       // overrides Spec.Linux.CgroupsPath
	Log        *slog.Logger // what was left out, and why; nil is silence
}

// Container is a container from its creation by this process until Delete.
type Container struct {
	id      string
	bundle  string
	spec    *specs.Spec
	log     *slog.Logger
	process *spawn.Process
	cgroup  *cgroup
	console *os.File

	exited  chan struct{} // closed when the process has been reaped
	exit    Status        // valid after exited is closed
	exitErr error

	mu      sync.Mutex
	sync    conn                 // guarded by mu; closed by Start and Delete
	status  specs.ContainerState // guarded by mu; StateStopped is derived from exited
	hooked  bool                 // guarded by mu; poststop hooks are due: others may have been run
	deleted bool                 // guarded by mu
}

// Status is how the user's process ended: with a code, or by a signal.
type Status struct {
	Code     int         // valid if Signal is 0
	Signal   unix.Signal // 0 if it exited by itself
	CoreDump bool
}

// ExitCode is the status as a shell, and Docker, give it: the code, or 128 plus the signal's number.
func (s Status) ExitCode() int {
	if s.Signal != 0 {
		return 128 + int(s.Signal)
	}
	return s.Code
}

// Create makes the container and leaves its first process at the point before exec.
//
// It must be called on a thread in whose mount namespace the root is visible, locked with runtime.LockOSThread: the process is
// cloned from that thread. If the thread ends before Create returns, so does the process.
//
// Errors: *ConfigError before anything was made, *SetupError for a step of the set-up, *HookError. All that was made is
// removed again.
func Create(ctx context.Context, o CreateOptions) (_ *Container, err error) {
	p, err := newPlan(o)
	if err != nil {
		return nil, err
	}
	c := &Container{
		id: o.ID, bundle: o.Bundle, spec: p.spec, log: p.log,
		status: specs.StateCreating, exited: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Delete())
		}
	}()
	if c.cgroup, err = createCgroup(p); err != nil {
		return nil, err
	}
	p.child.Cgroups = c.cgroup.mountpoints(p.log)
	if err := c.clone(ctx, p, o); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.status, c.hooked = specs.StateCreated, true
	c.mu.Unlock()
	return c, nil
}

// clone starts the set-up child, sends it what to do and waits until that is done.
func (c *Container) clone(ctx context.Context, p *plan, o CreateOptions) error {
	parentEnd, childEnd, err := socketpair()
	if err != nil {
		return err
	}
	c.sync = parentEnd
	release, err := c.startChild(p, o, childEnd)
	childEnd.Close()
	if err != nil {
		return err
	}
	defer release()
	stop := context.AfterFunc(ctx, func() { parentEnd.f.SetDeadline(time.Unix(1, 0)) })
	err = c.handshake(p)
	if !stop() && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

// handshake is the parent's part of the conversation in protocol.go, up to ready.
func (c *Container) handshake(p *plan) error {
	if err := c.sync.sendJSON(msgConfig, p.child); err != nil {
		return fmt.Errorf("send the configuration to the first process: %w", c.childDied(err))
	}
	// The child works meanwhile: joining the first cgroup takes the kernel milliseconds (an RCU grace period).
	err := c.cgroup.join(c.process.Pid)
	if err == nil {
		err = c.prepareChild(p)
	}
	if errors.Is(err, unix.ESRCH) {
		err = c.childDied(err)
	}
	if err != nil {
		return err
	}
	if err := c.sync.send(msgCgroup, nil); err != nil {
		return fmt.Errorf("continue the first process: %w", c.childDied(err))
	}
	for {
		t, body, file, err := c.sync.receive()
		if err != nil {
			return fmt.Errorf("wait for the first process: %w", c.childDied(err))
		}
		switch t {
		case msgMounted:
			c.mu.Lock()
			c.hooked = true
			c.mu.Unlock()
			if err := c.runCreateHooks(); err != nil {
				return err
			}
			if err := c.sync.send(msgHooks, nil); err != nil {
				return fmt.Errorf("continue the first process: %w", c.childDied(err))
			}
		case msgConsole:
			c.console = file
		case msgReady:
			return c.cgroup.limitPids()
		default:
			return childError(t, body)
		}
	}
}

// childDied explains a broken conversation. The cause that the child sent, if it could, is worth more than err.
func (c *Container) childDied(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	for {
		t, body, _, rerr := c.sync.receive()
		if rerr != nil {
			break
		}
		if t == msgFailure {
			return childError(t, body)
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return errors.New("it died")
	}
	return err
}

// Start lets the user's process begin. It returns an *ExecError if it could not be executed; then the container is stopped.
// Reading the program may take long; Kill and Delete end that.
func (c *Container) Start() error {
	if err := c.begin(); err != nil {
		return err
	}
	defer c.sync.f.Close()
	err := c.awaitExec()
	if err == nil {
		err = runHooks("poststart", hooksOf(c.spec.Hooks).Poststart, c.stateAs(specs.StateRunning))
	}
	if err != nil {
		c.process.Kill()
		<-c.exited
	}
	return err
}

// begin makes sure that there is one Start.
func (c *Container) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deleted || c.status != specs.StateCreated {
		return fmt.Errorf("start container %s: it is %s", c.id, c.status)
	}
	c.status = specs.StateRunning
	return nil
}

// awaitExec sends start and returns once execve has succeeded.
func (c *Container) awaitExec() error {
	if err := c.sync.send(msgStart, nil); err != nil {
		return fmt.Errorf("start container %s: %w", c.id, c.childDied(err))
	}
	announced := false
	for {
		t, body, _, err := c.sync.receive()
		switch {
		case err != nil && announced && (err == io.EOF || errors.Is(err, unix.ECONNRESET)):
			return nil
		case err != nil:
			return fmt.Errorf("start container %s: %w", c.id, c.childDied(err))
		case t == msgExec:
			announced = true
		default:
			return childError(t, body)
		}
	}
}

// Wait waits for the user's process to end. It may be called by many, and again.
func (c *Container) Wait() (Status, error) {
	<-c.exited
	return c.exit, c.exitErr
}

// reap waits for the child, whatever it runs, so that it never stays a zombie.
func (c *Container) reap() {
	defer close(c.exited)
	ws, err := c.process.Wait()
	if err != nil {
		c.exitErr = fmt.Errorf("wait for container %s: %w", c.id, err)
		return
	}
	if ws.Signaled() {
		c.exit = Status{Signal: ws.Signal(), CoreDump: ws.CoreDump()}
		return
	}
	c.exit = Status{Code: ws.ExitStatus()}
}

// Signal sends sig to the user's process, and to no other that got its number later.
// It returns os.ErrProcessDone if the process has ended.
func (c *Container) Signal(sig unix.Signal) error {
	if err := c.process.Signal(sig); err != nil {
		return fmt.Errorf("signal container %s: %w", c.id, err)
	}
	return nil
}

// Kill sends SIGKILL to every process of the container. It does not wait.
func (c *Container) Kill() error {
	err := c.process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	return errors.Join(err, c.cgroup.kill())
}

// Console returns the terminal's master, or nil without Process.Terminal. It is the container's: Delete closes it.
func (c *Container) Console() *os.File { return c.console }

// Resize sets the size of the terminal.
func (c *Container) Resize(rows, cols uint16) error {
	if c.console == nil {
		return fmt.Errorf("resize container %s: it has no terminal", c.id)
	}
	return setWinsize(c.console, rows, cols)
}

// Pid returns the number of the user's process in the caller's PID namespace.
func (c *Container) Pid() int { return c.process.Pid }

// CgroupPath returns the container's cgroup, to be kept for DestroyCgroup; "" if it has none.
func (c *Container) CgroupPath() string { return c.cgroup.name() }

// Delete ends what is left of the container: processes, cgroup, poststop hooks. It may be called again.
func (c *Container) Delete() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deleted {
		return nil
	}
	if c.sync.f != nil {
		c.sync.f.Close()
	}
	if c.process != nil {
		if err := c.Kill(); err != nil {
			c.log.Warn("kill container", "id", c.id, "err", err)
		}
		<-c.exited
	}
	if c.console != nil {
		c.console.Close()
	}
	if err := c.cgroup.destroy(); err != nil {
		return err
	}
	c.deleted = true
	if c.hooked {
		c.runPoststop()
	}
	return nil
}
