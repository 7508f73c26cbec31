package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

func init() {
	helpers["read"] = func(args []string) error { return readHelper(args[0], unix.O_DIRECT) }
	helpers["readcached"] = func(args []string) error { return readHelper(args[0], 0) }
}

// readHelper reads a page of a file.
func readHelper(path string, flags int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|flags, 0)
	if err != nil {
		return err
	}
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	n, err := unix.Pread(fd, page, 0)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	os.Stdout.Write(page[:n])
	return nil
}

// slowRead makes f's reads wait; entered gets each one's context.
func slowRead(f *fakeFS, entered chan context.Context, answer func(ctx context.Context) error) {
	f.onRead = func(ctx context.Context, _ unionfs.Ino) error {
		entered <- ctx
		return answer(ctx)
	}
}

func TestKilledReaderDiesAtOnce(t *testing.T) {
	f := newFakeFS()
	entered := make(chan context.Context)
	slowRead(f, entered, func(ctx context.Context) error {
		<-ctx.Done() // nothing else ends it
		return ctx.Err()
	})
	m := mountTest(t, f, Options{})
	path := m.dir + "/f"
	if err := withFile(path, unix.O_CREAT|unix.O_WRONLY, write("hello")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"read", "readcached"} {
		cmd := helper(name, path)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-entered
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		err := cmd.Wait() // returns at all: the proof
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
			t.Errorf("%s ended with %v", name, err)
		}
	}
}

// A signal that the process handles must not make its read fail; its death after that must end it all the same.
func TestSignalDoesNotFailARead(t *testing.T) {
	for _, c := range []struct {
		name string
		kill bool
	}{{"answered later", false}, {"killed later", true}} {
		t.Run(c.name, func(t *testing.T) {
			f := newFakeFS()
			entered := make(chan context.Context)
			answer := make(chan struct{})
			slowRead(f, entered, func(ctx context.Context) error {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-answer:
					return nil
				}
			})
			m := mountTest(t, f, Options{})
			path := m.dir + "/f"
			if err := withFile(path, unix.O_CREAT|unix.O_WRONLY, write("hello")); err != nil {
				t.Fatal(err)
			}
			cmd := helper("read", path)
			var out strings.Builder
			cmd.Stdout = &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ctx := (<-entered).(*requestContext)
			// To the thread that reads; every Go program handles SIGURG.
			if err := unix.Tgkill(cmd.Process.Pid, int(ctx.pid), unix.SIGURG); err != nil {
				t.Fatal(err)
			}
			<-ctx.asked // the kernel has told us
			if c.kill {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				if err := cmd.Wait(); err == nil {
					t.Error("the reader was not killed")
				}
				return
			}
			close(answer)
			if err := cmd.Wait(); err != nil || out.String() != "hello" {
				t.Errorf("read %q, %v", out.String(), err)
			}
		})
	}
}

func TestErrorsReachTheCaller(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer func() error
		want   error
		logged string
	}{
		{"errno", func() error { return syscall.EDQUOT }, unix.EDQUOT, ""},
		{"wrapped errno", func() error { return fmt.Errorf("read chunk 3: %w", syscall.ENOSPC) }, unix.ENOSPC, ""},
		{"bad chunk", func() error { return fmt.Errorf("verify chunk 3: %w", syscall.EIO) }, unix.EIO, "verify chunk 3"},
		{"no errno", func() error { return errors.New("a bug of ours") }, unix.EIO, "a bug of ours"},
		{"end of file", func() error { return io.ErrUnexpectedEOF }, unix.EIO, "unexpected EOF"},
		{"deadline", func() error { return context.DeadlineExceeded }, unix.EINTR, ""},
		{"panic", func() error { panic("invariant broken") }, unix.EIO, "invariant broken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFakeFS()
			f.onRead = func(context.Context, unionfs.Ino) error { return c.answer() }
			f.onLookup = func(name string) error {
				if name == "bad" {
					return c.answer()
				}
				return nil
			}
			var log lockedBuilder
			m := mountTest(t, f, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
			if err := withFile(m.dir+"/f", unix.O_CREAT|unix.O_WRONLY, write("hello")); err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Stat(m.dir+"/bad", &st); err != c.want {
				t.Errorf("stat: %v, want %v", err, c.want)
			}
			if got := log.String(); (c.logged == "") != (got == "") || !strings.Contains(got, c.logged) {
				t.Errorf("log: %q, want %q", got, c.logged)
			}
			fd := mustOpen(t, m.dir+"/f", unix.O_RDONLY, 0)
			defer unix.Close(fd)
			if _, err := unix.Read(fd, make([]byte, 10)); err == nil {
				t.Error("read went well")
			}
			// The server goes on.
			if err := unix.Stat(m.dir+"/f", &st); err != nil {
				t.Error(err)
			}
		})
	}
}

type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// When the mount is aborted, a request that waits for the network must not keep the server.
func TestServeReturnsWhenTheConnectionIsAborted(t *testing.T) {
	f := newFakeFS()
	entered := make(chan context.Context, 1)
	slowRead(f, entered, func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	})
	m := mountTest(t, f, Options{})
	if err := withFile(m.dir+"/f", unix.O_CREAT|unix.O_WRONLY, write("hello")); err != nil {
		t.Fatal(err)
	}
	read := make(chan error)
	go func() {
		read <- withFile(m.dir+"/f", unix.O_RDONLY, func(fd int) error {
			_, err := unix.Read(fd, make([]byte, 10))
			return err
		})
	}()
	<-entered
	// MNT_FORCE aborts the connection; the mount itself is busy and stays (fs/fuse/inode.c fuse_umount_begin).
	if err := unix.Unmount(m.dir, unix.MNT_FORCE); err != unix.EBUSY {
		t.Errorf("forced unmount: %v", err)
	}
	if err := <-read; err == nil {
		t.Error("read went well")
	}
	// mountTest's cleanup waits for Serve.
}
