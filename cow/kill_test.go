package cow

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// The environment of the child that is killed.
const (
	childDir  = "COW_TEST_CHILD_DIR"
	childSeed = "COW_TEST_CHILD_SEED"
)

// TestChildOfKill is what the child runs: operations without end, each acknowledged on standard output.
func TestChildOfKill(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		return // not a child
	}
	seed, err := strconv.ParseUint(os.Getenv(childSeed), 10, 64)
	must(t, err)
	w := killWalker(t, dir, seed)
	out := os.NewFile(3, "acknowledged")
	for n := uint32(1); ; n++ {
		w.stepOrForget()
		_, err := out.Write(binary.LittleEndian.AppendUint32(nil, n))
		must(t, err)
	}
}

func killWalker(t testing.TB, dir string, seed uint64) *walker {
	w := newWalkerOn(t, newImage(t, smallImage()), seed)
	abandon(w.FS)
	w.dir = dir
	w.opts.CheckpointBytes = 8 << 10
	w.open()
	return w
}

func (w *walker) stepOrForget() {
	if w.r.IntN(10) == 0 {
		w.forget()
		return
	}
	w.step()
}

// A server is killed: the next one finds exactly what was answered, and perhaps the operation that was under way.
func TestKilledServerLosesNothingAnswered(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 4
	}
	for i := range rounds {
		seed := uint64(1000 + i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			dir := t.TempDir()
			acked := killAfter(t, dir, seed, 1+rand.N(uint32(1500)))
			shadow := killWalker(t, t.TempDir(), seed)
			for range acked {
				shadow.stepOrForget()
			}
			before := shadow.m.clone()
			shadow.stepOrForget()
			shadow.dir = dir
			shadow.crash()
			shadow.compareEither(before, fmt.Sprintf("the kill after operation %d", acked))
		})
	}
}

// killAfter runs a child until it has acknowledged n operations, kills it, and returns how many it acknowledged.
func killAfter(t *testing.T, dir string, seed uint64, n uint32) uint32 {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChildOfKill$", "-test.count=1")
	cmd.Env = append(os.Environ(), childDir+"="+dir, fmt.Sprintf("%s=%d", childSeed, seed))
	cmd.ExtraFiles = []*os.File{w}
	must(t, cmd.Start())
	w.Close()
	in := bufio.NewReader(r)
	var acked uint32
	var b [4]byte
	for acked < n {
		if _, err := io.ReadFull(in, b[:]); err != nil {
			t.Fatalf("the child ended: %v", cmd.Wait())
		}
		acked = binary.LittleEndian.Uint32(b[:])
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	for {
		if _, err := io.ReadFull(in, b[:]); err != nil {
			return acked
		}
		acked = binary.LittleEndian.Uint32(b[:])
	}
}
