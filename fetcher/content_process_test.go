package fetcher

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
	"golang.org/x/sys/unix"
)

// TestMain makes the test binary a second process when a test asks for one.
func TestMain(m *testing.M) {
	if args := os.Getenv("FETCHER_TEST_READER"); args != "" {
		if err := readerMain(strings.Split(args, " "), os.Stdin, os.Stdout); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// readerMain opens a store and an image and then reads as the lines of in say: PATH OFFSET LENGTH. It answers each with the sha256 of what
// it read, and "fetched N" when in ends.
func readerMain(args []string, in io.Reader, out io.Writer) error {
	ctx := context.Background()
	s, err := OpenStore(args[0])
	if err != nil {
		return err
	}
	defer s.Close()
	ref, err := ParseReference(args[1])
	if err != nil {
		return err
	}
	c := NewClient(ClientOptions{Connections: testConnections, ConnectionDir: s.ConnectionDir()})
	img, err := c.Resolve(ctx, ref, Platform{})
	if err != nil {
		return err
	}
	tree, err := s.Tree(ctx, c, img, nil)
	if err != nil {
		return err
	}
	defer tree.Close()
	x, err := s.Contents(c, img, tree, lazy)
	if err != nil {
		return err
	}
	defer x.Close()
	fmt.Fprintln(out, "ready")
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var path string
		var off int64
		var n int
		if _, err := fmt.Sscan(lines.Text(), &path, &off, &n); err != nil {
			return err
		}
		ino, _ := tree.Lookup(1, path)
		p := make([]byte, n)
		for done := 0; done < n; {
			got, err := x.ReadAt(ctx, ino, p[done:], off+int64(done))
			if err != nil || got == 0 {
				return fmt.Errorf("read %s: %d, %w", path, got, err)
			}
			done += got
		}
		fmt.Fprintf(out, "%x\n", sha256.Sum256(p))
	}
	fmt.Fprintln(out, "fetched", x.Stats().FetchedBytes)
	return nil
}

// reader is a process of readerMain.
type reader struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startReader(t *testing.T, root, ref string) *reader {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &reader{t: t, cmd: exec.CommandContext(t.Context(), exe)}
	r.cmd.Env = append(os.Environ(), "FETCHER_TEST_READER="+root+" "+ref)
	r.cmd.Stderr = os.Stderr
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.out = bufio.NewScanner(out)
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.cmd.Process.Kill()
		r.cmd.Wait()
	})
	r.expect("ready")
	return r
}

func (r *reader) ask(path string, off, n int) { fmt.Fprintln(r.in, path, off, n) }

func (r *reader) line() string {
	if !r.out.Scan() {
		return "end of output"
	}
	return r.out.Text()
}

func (r *reader) expect(want string) {
	r.t.Helper()
	if got := r.line(); got != want {
		r.t.Fatalf("a reader says %q and not %q", got, want)
	}
}

func (r *reader) expectBytes(b string) {
	r.t.Helper()
	r.expect(fmt.Sprintf("%x", sha256.Sum256([]byte(b))))
}

// finish ends the process and returns how many bytes it fetched.
func (r *reader) finish() int64 {
	r.t.Helper()
	r.in.Close()
	n, err := strconv.ParseInt(strings.TrimPrefix(r.line(), "fetched "), 10, 64)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.cmd.Wait(); err != nil {
		r.t.Fatal(err)
	}
	return n
}

func (r *reader) kill() {
	r.t.Helper()
	if err := r.cmd.Process.Signal(unix.SIGKILL); err != nil {
		r.t.Fatal(err)
	}
	r.cmd.Wait()
}

// waitBlocked waits until a process waits for a lock on a file that matches pattern.
func waitBlocked(t *testing.T, pattern string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) != 1 {
		t.Fatalf("%s: %v, %v", pattern, files, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(files[0], &st); err != nil {
		t.Fatal(err)
	}
	inode := fmt.Sprintf(":%d ", st.Ino)
	for {
		locks, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(locks)) {
			if strings.Contains(line, "->") && strings.Contains(line, inode) {
				return
			}
		}
		select {
		case <-t.Context().Done():
			t.Fatal("nobody waits for the lock")
		case <-time.After(time.Millisecond):
		}
	}
}

// chunked pushes an image of one file "a", cut into chunks of 10,000 bytes, in its only layer.
func chunked(t *testing.T, reg *fetchtest.Registry, size int) (ref, body string, img *fetchtest.Image) {
	t.Helper()
	body = noise(42, size)
	img = &fetchtest.Image{Layers: []fetchtest.Layer{
		fetchtest.NewLayer(t, fetchtest.EStargz().WithChunkSize(10_000), fetchtest.Reg("a", body), fetchtest.Reg("b", noise(43, 5000))),
	}}
	return reg.Push(t, "app:1", img), body, img
}

func ranged(r *http.Request) bool { return r.Header.Get("Range") != "" }

func TestProcessesFetchAChunkOnce(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	ref, body, img := chunked(t, reg, 40_000)
	small := noise(43, 5000)
	root := t.TempDir()
	one, two := startReader(t, root, ref), startReader(t, root, ref)
	reg.ForgetRequests()
	for _, c := range []struct {
		path   string
		off, n int
		want   string
	}{{"a", 10_000, 20_000, body[10_000:30_000]}, {"b", 0, 5000, small}} {
		hold := fetchtest.NewHold(t, 100)
		remove := reg.Use(fetchtest.Only(ranged, hold.Fault()))
		one.ask(c.path, c.off, c.n)
		<-hold.Reached
		two.ask(c.path, c.off, c.n)
		waitBlocked(t, filepath.Join(root, "partial/layers/*"))
		hold.Release()
		one.expectBytes(c.want)
		two.expectBytes(c.want)
		remove()
	}
	if n := len(reg.LayerRequests(img)); n != 2 {
		t.Errorf("%d requests by two processes for two reads", n)
	}
	if a, b := one.finish(), two.finish(); a < 25_000 || b != 0 {
		t.Errorf("fetched %d and %d bytes", a, b)
	}
}

// testConnections is how many connections the processes of readerMain share.
const testConnections = 4

func TestManyProcessesFetchOnceAndShareConnections(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	ref, body, img := chunked(t, reg, 100_000)
	root := t.TempDir()
	startReader(t, root, ref).finish() // the tree is made
	reg.ForgetRequests()
	var readers []*reader
	for range 20 {
		readers = append(readers, startReader(t, root, ref))
	}
	for i, r := range readers {
		for c := range 10 {
			off := (c + i) % 10 * 10_000
			r.ask("a", off, 10_000)
		}
	}
	var fetched int64
	for i, r := range readers {
		for c := range 10 {
			off := (c + i) % 10 * 10_000
			r.expectBytes(body[off : off+10_000])
		}
		fetched += r.finish()
	}
	if n := len(reg.LayerRequests(img)); n > 10 || fetched > 101_000 {
		t.Errorf("%d requests and %d bytes for 10 chunks of 10,000 bytes", n, fetched)
	}
	if n := reg.MostConnections(); n > testConnections {
		t.Errorf("%d connections at a time", n)
	}
}

func TestKilledFetcherLeavesTheRestToOthers(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	ref, body, _ := chunked(t, reg, 100_000)
	root := t.TempDir()
	victim := startReader(t, root, ref)
	victim.ask("a", 0, 20_000)
	victim.expectBytes(body[:20_000])
	// The rest is one request. It stops in its third chunk.
	hold := fetchtest.NewHold(t, 25_000)
	remove := reg.Use(fetchtest.Only(ranged, hold.Fault()))
	victim.ask("a", 0, 100_000)
	<-hold.Reached
	other := startReader(t, root, ref)
	remove()
	other.ask("a", 30_000, 70_000)
	waitBlocked(t, filepath.Join(root, "partial/layers/*"))
	victim.kill()
	other.expectBytes(body[30_000:])
	other.ask("a", 0, 100_000)
	other.expectBytes(body)
	if n := other.finish(); n > 82_000 {
		t.Errorf("fetched %d bytes, although 20,000 were here", n)
	}
	if st, err := os.Stat(filepath.Join(root, "contents/sha256", contentName(mustDigest(body)))); err != nil || st.Mode() != modeDurable {
		t.Errorf("the complete file: %v, %v", st, err)
	}
	if left, _ := filepath.Glob(filepath.Join(root, "partial/??/*")); len(left) > 0 {
		t.Errorf("left of the partial file: %v", left)
	}
}

// A process is killed at each of its requests in turn, and the next one goes on with what there is.
func TestKillAtEveryRequest(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	ref, body, _ := chunked(t, reg, 60_000)
	root := t.TempDir()
	for i := 0; i < 60_000; i += 10_000 {
		hold := fetchtest.NewHold(t, 5_000)
		victim := startReader(t, root, ref)
		if i > 0 {
			victim.ask("a", 0, i)
			victim.expectBytes(body[:i])
		}
		remove := reg.Use(fetchtest.Only(ranged, hold.Fault()))
		victim.ask("a", i, 10_000)
		<-hold.Reached
		victim.kill()
		remove()
		hold.Release()
		next := startReader(t, root, ref)
		next.ask("a", i, 10_000)
		next.expectBytes(body[i : i+10_000])
		next.finish()
	}
	s, err := OpenStore(root)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !s.hasContent(mustDigest(body), 60_000) {
		t.Error("the file is not whole, or not on the disk")
	}
}

func TestKilledTreeBuilderLeavesNothing(t *testing.T) {
	reg := fetchtest.NewRegistry(t)
	img := &fetchtest.Image{Layers: []fetchtest.Layer{
		fetchtest.NewLayer(t, fetchtest.Plain(), fetchtest.Reg("first", "1"), fetchtest.Reg("large", noise(1, 3<<20)), fetchtest.Reg("last", "2")),
	}}
	ref := reg.Push(t, "app:1", img)
	root := t.TempDir()
	hold := fetchtest.NewHold(t, 2<<20)
	remove := reg.Use(fetchtest.OnlyFor(img.Layers[0].Descriptor.Digest, hold.Fault()))
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	victim := exec.CommandContext(t.Context(), exe)
	victim.Env = append(os.Environ(), "FETCHER_TEST_READER="+root+" "+ref)
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	<-hold.Reached
	// The large file is being written now, or just about to be.
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	victim.Wait()
	remove()
	next := startReader(t, root, ref)
	next.ask("first", 0, 1)
	next.expectBytes("1")
	next.ask("last", 0, 1)
	next.expectBytes("2")
	next.finish()
	if left, _ := filepath.Glob(filepath.Join(root, "tmp/*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(root, "trees/*.lock")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
