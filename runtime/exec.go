package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// exec becomes the user's process. It returns only if that failed.
func (c *child) exec() error {
	p := c.spec().Process
	if err := resetSignals(); err != nil {
		return fmt.Errorf("reset signals: %w", err)
	}
	if err := c.closeDescriptors(); err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	if err := c.keepRlimit(); err != nil {
		return fmt.Errorf("set the limit of open files: %w", err)
	}
	if err := c.conn.send(msgExec, nil); err != nil {
		return err
	}
	return execPath(p.Args, p.Env)
}

// execPath is execvp(3) with the container's PATH, but for what it does with ENOEXEC: a file that is not a program is an error.
func execPath(args, env []string) error {
	name := args[0]
	if strings.Contains(name, "/") {
		return execError(name, syscall.Exec(name, args, env))
	}
	denied := error(nil)
	for dir := range strings.SplitSeq(searchPath(env), ":") {
		file := filepath.Join(dir, name)
		if dir == "" || dir == "." {
			file = "./" + name
		}
		switch err := syscall.Exec(file, args, env); err {
		case syscall.ENOENT, syscall.ENOTDIR, syscall.ENAMETOOLONG, syscall.ELOOP:
		case syscall.EACCES:
			denied = execError(file, err)
		default:
			return execError(file, err)
		}
	}
	if denied != nil {
		return denied
	}
	return &os.PathError{Op: "exec", Path: name, Err: errNotInPath}
}

// errNotInPath is ENOENT with the words that users know.
var errNotInPath error = notInPath{}

type notInPath struct{}

func (notInPath) Error() string { return "executable file not found in $PATH" }
func (notInPath) Unwrap() error { return unix.ENOENT }

// execError tells a directory, for which execve says EACCES, from a file without permission.
func execError(file string, err error) error {
	if st, serr := os.Stat(file); errors.Is(err, unix.EACCES) && serr == nil && st.IsDir() {
		err = unix.EISDIR
	}
	return &os.PathError{Op: "exec", Path: file, Err: err}
}

func searchPath(env []string) string {
	// The last one counts in a shell, the first one for getenv; as runc and execvpe do, the first.
	for _, e := range env {
		if p, ok := strings.CutPrefix(e, "PATH="); ok {
			return p
		}
	}
	return "/bin:/usr/bin" // confstr(3), _CS_PATH
}

// sigaction is the kernel's struct sigaction: handler, flags, restorer (where there is one) and mask are all zero for SIG_DFL.
type sigaction [4]uint64

// resetSignals gives all signals their default and unblocks them. execve does that for what has a handler; it keeps ignored
// signals (nohup, or SIGPIPE in some parents) and the mask.
func resetSignals() error {
	var deflt sigaction
	const size = 8 // of the kernel's sigset_t
	for sig := uintptr(1); sig <= 64; sig++ {
		if sig == uintptr(unix.SIGKILL) || sig == uintptr(unix.SIGSTOP) {
			continue
		}
		_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&deflt)), 0, size, 0, 0)
		if e != 0 {
			return e
		}
	}
	return unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil)
}

// closeDescriptors leaves 0, 1 and 2. The others are marked, not closed: the Go runtime and the conversation still need theirs.
func (c *child) closeDescriptors() error {
	err := unix.CloseRange(3, ^uint(0)>>1&0x7fffffff, unix.CLOSE_RANGE_CLOEXEC)
	if err != unix.ENOSYS && err != unix.EINVAL {
		return err
	}
	// Before Linux 5.11. /proc may be anything now, so the limit says how far to look.
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	for fd := 3; fd < int(min(lim.Cur, 1<<20)); fd++ {
		unix.CloseOnExec(fd)
	}
	return nil
}

// keepRlimit sets RLIMIT_NOFILE to what the parent gave us. The Go runtime raises the soft limit at its start and
// syscall.Exec puts the old value back, which may be from before the parent set it, unless the program has set the limit itself.
func (c *child) keepRlimit() error {
	for _, l := range c.spec().Process.Rlimits {
		if l.Type == "RLIMIT_NOFILE" {
			return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: l.Soft, Max: l.Hard})
		}
	}
	return nil
}
