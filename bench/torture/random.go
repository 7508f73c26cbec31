package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
)

// callsARound is how long a worker's sequence is.
const callsARound = 1500

// randomCalls has workers make random calls on a mount and on a plain copy of its lower directory. Every answer must be the
// same, and in the end both trees.
func randomCalls(r *rig) error {
	total := 0
	for seed := r.seed; seed == r.seed || r.goOn(); seed++ {
		workers, err := r.randomRound(seed)
		if err != nil {
			return fmt.Errorf("seed %d: %w", seed, errors.Join(err, r.keep(workers)))
		}
		total += len(workers) * callsARound
	}
	r.say("%d calls", total)
	return nil
}

// pair is a worker with the two directories that it works on.
type pair struct {
	name        string
	mount, twin *side
	made        []call // so far
	failed      error
}

func (r *rig) randomRound(seed uint64) ([]*pair, error) {
	m, twin, err := r.mountAndTwin(r.names())
	if err != nil {
		return nil, err
	}
	var workers []*pair
	for _, name := range r.names() {
		workers = append(workers, &pair{name: name, mount: newSide(m.dir), twin: newSide(twin)})
	}
	var wg sync.WaitGroup
	for _, w := range workers {
		wg.Go(func() { w.failed = w.run(r.newCalls(seed, w.name)) })
	}
	wg.Wait()
	var all error
	for _, w := range workers {
		all = errors.Join(all, w.failed)
	}
	if all != nil {
		return workers, all
	}
	return workers, errors.Join(r.finish(m), os.RemoveAll(twin))
}

// finish ends a mount in order, and removes what belongs to it.
func (r *rig) finish(m *mount) error {
	if err := m.unmount(); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(m.state), os.RemoveAll(m.lower), os.Remove(m.dir))
}

func (r *rig) names() []string {
	names := make([]string, r.workers)
	for i := range names {
		names[i] = fmt.Sprintf("w%d", i)
	}
	return names
}

// mountAndTwin makes a lower directory, mounts it, and copies it to a plain one.
func (r *rig) mountAndTwin(workers []string) (m *mount, twin string, err error) {
	lower, err := r.place("lower")
	if err != nil {
		return nil, "", err
	}
	if err := makeLower(lower, workers); err != nil {
		return nil, "", err
	}
	if twin, err = r.place("twin"); err != nil {
		return nil, "", err
	}
	if err := copyTree(lower, twin); err != nil {
		return nil, "", err
	}
	state, err := r.place("state")
	if err != nil {
		return nil, "", err
	}
	m, err = r.mount(lower, state)
	return m, twin, err
}

// run makes a whole sequence and compares the trees, now and then and in the end.
func (w *pair) run(g *calls) error {
	runtime.LockOSThread() // for setfsuid
	defer runtime.UnlockOSThread()
	for i := range callsARound {
		if err := w.step(g.next()); err != nil {
			return err
		}
		if i%500 == 499 {
			if err := w.compare(); err != nil {
				return err
			}
		}
	}
	w.mount.closeAll()
	w.twin.closeAll()
	return w.compare()
}

// step makes one call on both sides.
func (w *pair) step(c call) error {
	w.made = append(w.made, c)
	got, err := w.mount.do(&c)
	if err != nil {
		return err
	}
	want, err := w.twin.do(&c)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("worker %s: %s:\n\tthe mount answers %s\n\text4 answers      %s", w.name, c, got, want)
	}
	return nil
}

func (w *pair) compare() error {
	got, err := look(w.mount.root, w.name)
	if err != nil {
		return fmt.Errorf("worker %s: %w", w.name, err)
	}
	want, err := look(w.twin.root, w.name)
	if err != nil {
		return err
	}
	if err := diff(got, want, nil); err != nil {
		return fmt.Errorf("worker %s, after %d calls: the mount differs from ext4:\n%w", w.name, len(w.made), err)
	}
	return nil
}

// keep writes the calls of workers that failed to files for -replay, shortened as far as they still fail.
func (r *rig) keep(workers []*pair) error {
	var all error
	for _, w := range workers {
		if w.failed == nil {
			continue
		}
		made := r.shrink(w.made)
		path := filepath.Join(r.dir, w.name+".calls")
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		for _, c := range made {
			fmt.Fprintln(f, c)
		}
		all = errors.Join(all, f.Close(), fmt.Errorf("%d calls to replay are in %s", len(made), path))
	}
	return all
}

// shrink leaves out calls while the rest still fails, alone on a mount.
func (r *rig) shrink(made []call) []call {
	tries := 0
	fails := func(some []call) bool { tries++; return r.replay(some) != nil }
	if !fails(made) {
		return made // it takes the other workers
	}
	for size := len(made) / 2; size > 0; size /= 2 {
		for at := 0; at+size <= len(made) && tries < 400; {
			some := append(append([]call(nil), made[:at]...), made[at+size:]...)
			if fails(some) {
				made = some
			} else {
				at += size
			}
		}
	}
	return made
}

// replay makes calls of one worker on a new mount.
func (r *rig) replay(made []call) error {
	m, twin, err := r.mountAndTwin(r.names())
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w := &pair{name: workerOf(made), mount: newSide(m.dir), twin: newSide(twin)}
	err = func() error {
		for _, c := range made {
			if err := w.step(c); err != nil {
				return err
			}
		}
		w.mount.closeAll()
		w.twin.closeAll()
		return w.compare()
	}()
	w.mount.closeAll()
	w.twin.closeAll()
	return errors.Join(err, r.finish(m), os.RemoveAll(twin))
}

// workerOf is the worker whose paths calls name.
func workerOf(made []call) string {
	for _, c := range made {
		for _, p := range []string{c.P, c.Q} {
			var n int
			if _, err := fmt.Sscanf(p, "w%d/", &n); err == nil {
				return fmt.Sprintf("w%d", n)
			}
		}
	}
	return "w0"
}

func replayCalls(r *rig, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var made []call
	for in := bufio.NewScanner(f); in.Scan(); {
		var c call
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			return err
		}
		made = append(made, c)
	}
	if err := r.replay(made); err != nil {
		return errors.Join(err, r.keep([]*pair{{name: workerOf(made), made: made, failed: err}}))
	}
	return nil
}
