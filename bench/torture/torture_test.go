package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestMain(m *testing.M) {
	if status, ok := goApart(); ok {
		os.Exit(status)
	}
	os.Exit(m.Run())
}

// TestTorture runs one round of every workload, or what is left of one in no time.
func TestTorture(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIP: -short: the program is not built")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // some of it is done as another user
		t.Fatal(err)
	}
	veneer := filepath.Join(dir, "veneer")
	build := exec.Command("go", "build", "-o", veneer, "../../cmd/veneer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build veneer: %v\n%s", err, out)
	}
	for _, w := range workloads {
		for _, io := range []string{"cached", "passthrough"} {
			t.Run(w.name+"/"+io, func(t *testing.T) {
				if w.name != "power" { // which tells all that the machine was rebooted
					t.Parallel() // most of it waits for the disk
				}
				for _, tool := range w.tools {
					if _, err := exec.LookPath(tool); err != nil {
						t.Fatalf("%v: run .ci/deps", err)
					}
				}
				if _, err := os.Stat("/dev/loop-control"); err != nil && w.name == "power" {
					t.Skipf("SKIP: no loop devices here: %v", err)
				}
				work := filepath.Join(dir, w.name+"-"+io)
				if err := os.Mkdir(work, 0o755); err != nil {
					t.Fatal(err)
				}
				r := newRig(options{ctx: t.Context(), veneer: veneer, io: io, seed: 1, workers: 3}, work, t.Logf)
				t.Cleanup(func() {
					if err := r.close(); err != nil {
						t.Error(err)
					}
				})
				if err := w.run(r); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
