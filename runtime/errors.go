package runtime

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrUnsupported is in the chain of errors about what the configuration asks for and this package does not do.
var ErrUnsupported = errors.New("not supported")

// SetupError says at which step the container could not be made. Err has the errno, if there was one, in its chain.
type SetupError struct {
	Step string
	Err  error
}

func (e *SetupError) Error() string { return e.Step + ": " + e.Err.Error() }

func (e *SetupError) Unwrap() error { return e.Err }

// ConfigError says what in the configuration is wrong or not supported.
type ConfigError struct {
	Field string // as in config.json, e.g. "linux.seccomp"
	Err   error
}

func (e *ConfigError) Error() string { return fmt.Sprintf("config: %s: %v", e.Field, e.Err) }

func (e *ConfigError) Unwrap() error { return e.Err }

// ExecError says that the user's process could not be executed. The container is gone.
type ExecError struct{ Err error }

func (e *ExecError) Error() string { return e.Err.Error() }

func (e *ExecError) Unwrap() error { return e.Err }

// ExitCode is what a shell, and Docker, exit with: 127 if there is no such command, 126 if it cannot be executed.
func (e *ExecError) ExitCode() int {
	if errors.Is(e.Err, unix.ENOENT) {
		return 127
	}
	return 126
}
