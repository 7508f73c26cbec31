package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

var fioEngines = [][]string{
	{"--ioengine=mmap"}, {"--ioengine=libaio", "--iodepth=8", "--direct=1"}, {"--ioengine=psync"}, {"--ioengine=psync", "--direct=1"},
}

// fioTorture has fio write and verify, with every engine that goes another way through the kernel, a file of the lower layer and a new
// one; then the server is killed, and what was written is verified once more.
func fioTorture(r *rig) error {
	size, engines := 64<<20, fioEngines
	if r.brief() {
		size, engines = 4<<20, engines[:2]
	}
	runs := 0
	for seed := r.seed; seed == r.seed || r.goOn(); seed++ {
		for _, engine := range engines {
			if err := r.fioRound(seed, size, engine); err != nil {
				return fmt.Errorf("fio %q, seed %d: %w", engine, seed, err)
			}
			runs++
		}
	}
	r.say("%d runs over %d MiB, %d kills", runs, 2*size>>20, runs)
	return nil
}

func (r *rig) fioRound(seed uint64, size int, engine []string) error {
	lower, err := r.place("lower")
	if err != nil {
		return err
	}
	text := make([]byte, size)
	fill(text, int(seed))
	if err := os.WriteFile(filepath.Join(lower, "lower"), text, 0o644); err != nil {
		return err
	}
	state, err := r.place("state")
	if err != nil {
		return err
	}
	m, err := r.mount(lower, state)
	if err != nil {
		return err
	}
	fio := func(args ...string) error {
		args = append(args, engine...)
		for _, name := range []string{"lower", "new"} {
			args = append(args, "--name="+name, "--filename="+filepath.Join(m.dir, name), "--rw=randwrite", "--bsrange=4k-64k", fmt.Sprintf("--size=%d", size),
				fmt.Sprintf("--randseed=%d", seed), "--verify=crc32c", "--fallocate=none")
		}
		c := exec.Command("fio", args...)
		c.Dir = r.dir // for its state files
		_, err := output(c)
		return err
	}
	if err := fio("--do_verify=1", "--verify_state_save=0", "--end_fsync=1"); err != nil {
		return err
	}
	if err := m.kill(); err != nil {
		return err
	}
	if err := m.again(); err != nil {
		return err
	}
	if err := fio("--verify_only=1", "--verify_state_save=0"); err != nil {
		return fmt.Errorf("after a kill: %w", err)
	}
	return r.finish(m)
}
