package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// State is the container's state as the specification defines it.
func (c *Container) State() specs.State {
	c.mu.Lock()
	status := c.status
	c.mu.Unlock()
	select {
	case <-c.exited:
		status = specs.StateStopped
	default:
	}
	return c.stateAs(status)
}

func (c *Container) stateAs(status specs.ContainerState) specs.State {
	s := specs.State{
		Version: specs.Version, ID: c.id, Status: status, Bundle: c.bundle, Annotations: c.spec.Annotations,
	}
	if c.process != nil && status != specs.StateStopped {
		s.Pid = c.process.Pid
	}
	return s
}

// ProcessStart returns when process pid was started, in clock ticks since boot. With the pid it names a process for good: a later process
// with the same number has another start. The error is, or wraps, os.ErrNotExist if there is no such process.
func ProcessStart(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseProcessStart(stat)
}

// parseProcessStart takes field 22 of proc_pid_stat(5). The name, field 2, may hold blanks and parentheses.
func parseProcessStart(stat []byte) (uint64, error) {
	end := bytes.LastIndexByte(stat, ')')
	fields := bytes.Fields(stat[end+1:])
	const start = 22 - 3 // fields[0] is field 3
	if end < 0 || len(fields) <= start {
		return 0, errors.New("parse /proc/PID/stat: too few fields")
	}
	return strconv.ParseUint(string(fields[start]), 10, 64)
}
