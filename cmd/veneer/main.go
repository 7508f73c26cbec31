// Command veneer runs container images of which only what is read is fetched.
//
// One binary plays four parts, told apart before anything else is built: the command line; the monitor, one per
// container, which holds its terminal, log and exit status; the server, which answers the container's file system;
// and the container's first process before its exec (package runtime).
//
// Exit status: 0; 1 when a command other than run could not do its work; 125 for bad usage and when run itself
// fails; else run's is the process's: its own, 126 cannot be executed, 127 not found, 128+n ended by signal n. Called by mount(8) or
// umount(8): 1 bad usage, 32 failed.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/veneerfs/veneer/runtime"
)

// Exit codes of our own; the rest are the container process's.
const (
	exitFailed = 1   // a command other than run could not do its work
	exitVeneer = 125 // bad usage, or run failed before or beside the process
)

// commands are the parts of the command line, one file each.
var commands = []func(*app) *cobra.Command{
	newRunCmd,
	newMountCmd,
	newOverlayCmd,
	newUmountCmd,
	newPsCmd,
	newInspectCmd,
	newRmCmd,
	newDiffCmd,
	newExportCmd,
	newCheckCmd,
	newPullCmd,
	newImagesCmd,
	newProfileCmd,
	newPrefetchCmd,
	newStoreCmd,
	newSystemCmd,
	newVersionCmd,
	newDemoCmd,
}

// app is what every command starts from.
type app struct {
	root     string // store and containers
	runRoot  string // what lives no longer than the machine is up
	logLevel string

	stdin  *os.File
	stdout io.Writer
	stderr io.Writer
	log    *slog.Logger // to stderr at logLevel
}

// exitError ends veneer with a code; a nil err ends it without a message.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func main() {
	runtime.Main() // in a container's first process this does not return
	playRole(os.Args)
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	if helper := mountHelper(os.Args[0]); helper != "" {
		os.Exit(helperStatus(a.main(context.Background(), append([]string{helper}, os.Args[1:]...))))
	}
	os.Exit(a.main(context.Background(), os.Args[1:]))
}

// main runs one command and returns the exit status.
func (a *app) main(ctx context.Context, args []string) int {
	root := a.rootCmd()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code, msg := exitFailed, err
	var ee *exitError
	if errors.As(err, &ee) {
		code, msg = ee.code, ee.err
	}
	if msg != nil {
		fmt.Fprintf(a.stderr, "veneer: %v\n", msg)
	}
	return code
}

func (a *app) rootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:           "veneer",
		Short:         "Run container images without downloading them first",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          usageArgs(cobra.NoArgs),
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return a.prepare()
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError(c, err)
	})
	f := root.PersistentFlags()
	f.StringVar(&a.root, "root", defaultRoot(), "directory of the store and the containers")
	f.StringVar(&a.runRoot, "run-root", defaultRunRoot(), "directory of what lives no longer than the machine is up")
	f.StringVar(&a.logLevel, "log-level", "warn", "what to log: debug, info, warn or error")
	for _, newCmd := range commands {
		root.AddCommand(newCmd(a))
	}
	return root
}

// prepare turns the global flags into what the commands use.
func (a *app) prepare() error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		return &exitError{exitVeneer, fmt.Errorf("--log-level %q: want debug, info, warn or error", a.logLevel)}
	}
	a.log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
	for _, dir := range []*string{&a.root, &a.runRoot} {
		if *dir == "" {
			return &exitError{exitVeneer, errors.New("--root and --run-root must not be empty")}
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return err
		}
		*dir = abs
	}
	return nil
}

// usageError is bad usage of c: status 125 and a hint.
func usageError(c *cobra.Command, err error) error {
	return &exitError{exitVeneer, fmt.Errorf("%w\nSee '%s --help'", err, c.CommandPath())}
}

// usageArgs makes what check finds a usage error. Every command's Args goes through it.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usageError(c, err)
		}
		return nil
	}
}

func defaultRoot() string {
	if dir := os.Getenv("VENEER_ROOT"); dir != "" {
		return dir
	}
	if os.Geteuid() == 0 {
		return "/var/lib/veneer"
	}
	if dir := os.Getenv("XDG_DATA_HOME"); dir != "" {
		return filepath.Join(dir, "veneer")
	}
	return filepath.Join(os.Getenv("HOME"), ".local/share/veneer")
}

func defaultRunRoot() string {
	if dir := os.Getenv("VENEER_RUN_ROOT"); dir != "" {
		return dir
	}
	if os.Geteuid() == 0 {
		return "/run/veneer"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "veneer")
	}
	return fmt.Sprintf("/tmp/veneer-%d", os.Geteuid())
}
