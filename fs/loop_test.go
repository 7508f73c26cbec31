package fs

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// readAt has a process of its own read the first page of path, and returns how it ended.
func readAt(t *testing.T, path string) <-chan error {
	t.Helper()
	cmd := helper("read", path)
	ended := make(chan error, 1)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- cmd.Wait() }()
	return ended
}

// A reader that waits must not keep others from their answers, whether it says so (for the network, by its context) or is just slow.
func TestSlowReadsDelayNobody(t *testing.T) {
	for _, c := range []struct {
		name string
		wait func(ctx context.Context, answer <-chan struct{})
	}{
		{"announced", func(ctx context.Context, answer <-chan struct{}) {
			select {
			case <-ctx.Done():
			case <-answer:
			}
		}},
		{"unforeseen", func(_ context.Context, answer <-chan struct{}) { <-answer }},
	} {
		t.Run(c.name, func(t *testing.T) {
			const readers = 3 * maxParked
			f := newFakeFS()
			entered, answer := make(chan struct{}, readers), make(chan struct{})
			f.onRead = func(ctx context.Context, _ unionfs.Ino) error {
				entered <- struct{}{}
				c.wait(ctx, answer)
				return nil
			}
			m := mountTest(t, f, Options{})
			path := m.dir + "/f"
			if err := withFile(path, unix.O_CREAT|unix.O_WRONLY, write("hello")); err != nil {
				t.Fatal(err)
			}
			var ended []<-chan error
			for range readers {
				ended = append(ended, readAt(t, path))
			}
			for range readers {
				<-entered // all of them wait at once: so each gave up, or lost, its turn
			}
			if err := unix.Mkdir(m.dir+"/d", 0o755); err != nil {
				t.Error(err)
			}
			close(answer)
			for _, e := range ended {
				if err := <-e; err != nil {
					t.Error(err)
				}
			}
			if n := m.server.loop.count(); n > maxParked+1 {
				t.Errorf("%d readers are left", n)
			}
		})
	}
}

// count waits until all requests are answered, and returns how many readers there are then.
func (l *loop) count() int {
	for {
		l.mu.Lock()
		n, busy := len(l.all), 0
		for _, r := range l.all {
			if r.unique.Load() != 0 {
				busy++
			}
		}
		parked := len(l.parked)
		l.mu.Unlock()
		if busy == 0 && parked == n-1 {
			return n
		}
	}
}

// The connection ends while requests wait: Serve must return, and they must be told.
func TestUnmountEndsWaitingReads(t *testing.T) {
	f := newFakeFS()
	entered := make(chan struct{}, 1)
	f.onRead = func(ctx context.Context, _ unionfs.Ino) error {
		entered <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	m := mountTest(t, f, Options{})
	path := m.dir + "/f"
	if err := withFile(path, unix.O_CREAT|unix.O_WRONLY, write("hello")); err != nil {
		t.Fatal(err)
	}
	ended := readAt(t, path)
	<-entered
	// Ends the connection (fs/fuse/inode.c fuse_umount_begin), and does not unmount what is in use.
	if err := unix.Unmount(m.dir, unix.MNT_FORCE); err != unix.EBUSY {
		t.Errorf("forced unmount: %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("a read of an ended connection succeeded")
	}
}

// Many clients at once, with requests of all sizes: every answer is the right one's.
func TestManyClients(t *testing.T) {
	m := mountTest(t, newFakeFS(), Options{})
	var all sync.WaitGroup
	for c := range 8 {
		all.Go(func() {
			path := m.dir + "/" + string(rune('a'+c))
			text := string(make([]byte, 1+c*20000)) + path
			for range 50 {
				if err := withFile(path, unix.O_CREAT|unix.O_TRUNC|unix.O_RDWR, write(text)); err != nil {
					t.Error(err)
					return
				}
				var st unix.Stat_t
				if err := unix.Lstat(path, &st); err != nil || st.Size != int64(len(text)) {
					t.Errorf("%s: size %d, %v", path, st.Size, err)
				}
				if err := unix.Unlink(path); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

// testDispatcher answers requests from memory.
func testDispatcher(t testing.TB) (*dispatcher, *request) {
	r, err := newRequest()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.free)
	w := newWire(newFakeFS(), discard)
	w.dead = func() bool { return false }
	l := newLoop(-1, discard, newLatency(LatencyOff))
	l.turn.Store(1) // nobody has the turn, so nobody can give it up
	w.waits = l.waits
	return &dispatcher{wire: w, loop: l}, r
}

// put makes b the request in r.
func (r *request) put(b []byte) {
	clear(r.in[:len(b)+inHeaderSize])
	r.begin(copy(r.in, b))
}

func putArgs[T any](r *request, code uint32, in T, after string) {
	size := int(unsafe.Sizeof(in))
	*(*T)(unsafe.Pointer(&r.in[0])) = in
	n := size + copy(r.in[size:], after)
	r.header().Opcode, r.header().Length = code, uint32(n)
	r.begin(n)
}

func TestHotRequestsDoNotAllocate(t *testing.T) {
	d, r := testDispatcher(t)
	root := fuse.InHeader{NodeId: 1, Unique: 7}
	for _, c := range []struct {
		name string
		put  func()
	}{
		{"LOOKUP", func() { putArgs(r, codeLookup, root, "f\x00") }},
		{"GETATTR", func() { putArgs(r, codeGetattr, fuse.GetAttrIn{InHeader: root}, "") }},
		{"FORGET", func() { putArgs(r, codeForget, fuse.ForgetIn{InHeader: root, Nlookup: 1}, "") }},
		{"OPEN", func() { putArgs(r, codeOpen, fuse.OpenIn{InHeader: root}, "") }},
		{"RELEASE", func() { putArgs(r, codeRelease, fuse.ReleaseIn{InHeader: root}, "") }},
	} {
		if n := testing.AllocsPerRun(100, func() { c.put(); d.handle(r) }); n != 0 {
			t.Errorf("%s allocates %v times", c.name, n)
		}
	}
}

// FuzzDispatch: whatever comes in place of a request, the answer is whole and inside the buffer.
func FuzzDispatch(f *testing.F) {
	for code := range uint32(codeStatx + 2) {
		h := fuse.InHeader{Opcode: code, NodeId: 1, Unique: 9}
		p := unsafe.Slice((*byte)(unsafe.Pointer(&h)), inHeaderSize)
		f.Add(append(append([]byte{}, p...), make([]byte, 40)...))
		f.Add(append(append([]byte{}, p...), "\x01\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xfff\x00g\x00"...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4096 {
			return
		}
		d, r := testDispatcher(t)
		r.put(b)
		n := d.handle(r)
		if n == 0 {
			return
		}
		h := (*fuse.OutHeader)(unsafe.Pointer(&r.out[0]))
		if n < outHeaderSize || n > len(r.out) || int(h.Length) != n || h.Unique != r.header().Unique || h.Status > 0 {
			t.Errorf("%d bytes of reply %+v", n, *h)
		}
	})
}

var discard = slog.New(slog.DiscardHandler)
