package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// HookError says that a hook of the configuration failed.
type HookError struct {
	Kind string // e.g. "createRuntime"
	Path string
	Err  error
}

func (e *HookError) Error() string { return fmt.Sprintf("%s hook %s: %v", e.Kind, e.Path, e.Err) }

func (e *HookError) Unwrap() error { return e.Err }

// runHooks runs the hooks in their order, each with the container's state on its standard input, up to the first that fails.
func runHooks(kind string, hooks []specs.Hook, s specs.State) error {
	if len(hooks) == 0 {
		return nil
	}
	state, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	for _, h := range hooks {
		if err := runHook(h, state); err != nil {
			return &HookError{kind, h.Path, err}
		}
	}
	return nil
}

func runHook(h specs.Hook, state []byte) error {
	ctx := context.Background()
	if h.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = append([]string{}, h.Env...) // not nil, which would be ours
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(state), &output, &output
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("it took longer than %d s", *h.Timeout)
	}
	if err != nil && output.Len() > 0 {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(output.String()))
	}
	return err
}

func hooksOf(h *specs.Hooks) specs.Hooks {
	if h == nil {
		return specs.Hooks{}
	}
	return *h
}

// runCreateHooks runs what belongs between mounting and pivot_root in the caller's namespaces.
func (c *Container) runCreateHooks() error {
	h := hooksOf(c.spec.Hooks)
	s := c.stateAs(specs.StateCreating)
	//lint:ignore SA1019 deprecated by the specification, but demanded by it
	if err := runHooks("prestart", h.Prestart, s); err != nil {
		return err
	}
	return runHooks("createRuntime", h.CreateRuntime, s)
}

// runPoststop runs all of them: a failure is only logged.
func (c *Container) runPoststop() {
	for _, h := range hooksOf(c.spec.Hooks).Poststop {
		if err := runHooks("poststop", []specs.Hook{h}, c.stateAs(specs.StateStopped)); err != nil {
			c.log.Warn("poststop hook", "id", c.id, "err", err)
		}
	}
}

func (c *child) hasMountedHooks() bool {
	h := hooksOf(c.spec().Hooks)
	//lint:ignore SA1019 deprecated by the specification, but demanded by it
	return len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0
}

// runMountedHooks has the parent run its hooks and then runs those that belong into the container's namespaces.
func (c *child) runMountedHooks() error {
	if err := c.conn.send(msgMounted, nil); err != nil {
		return err
	}
	if err := c.await(msgHooks); err != nil {
		return err
	}
	return runHooks("createContainer", hooksOf(c.spec().Hooks).CreateContainer, c.state(specs.StateCreating))
}

func (c *child) runStartHooks() error {
	return runHooks("startContainer", hooksOf(c.spec().Hooks).StartContainer, c.state(specs.StateCreated))
}

func (c *child) state(status specs.ContainerState) specs.State {
	return specs.State{
		Version: specs.Version, ID: c.config.ID, Status: status, Pid: os.Getpid(), Bundle: c.config.Bundle,
		Annotations: c.spec().Annotations,
	}
}
