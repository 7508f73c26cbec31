package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
)

// killedCalls has workers make random calls on a mount whose server is killed in the middle, again and again on the same state.
// After each kill the mount must be what the calls that were answered make of ext4; the one that was not answered may have
// happened or not.
func killedCalls(r *rig) error {
	total, kills := 0, 0
	for seed := r.seed; seed == r.seed || r.goOn(); seed++ {
		n, k, err := r.killedRounds(seed)
		total, kills = total+n, kills+k
		if err != nil {
			return fmt.Errorf("seed %d, kill %d: %w", seed, k, err)
		}
	}
	r.say("%d calls, %d kills", total, kills)
	return nil
}

// killsAState is how often the server of one state is killed.
const killsAState = 6

func (r *rig) killedRounds(seed uint64) (made, kills int, err error) {
	m, twin, err := r.mountAndTwin(r.names())
	if err != nil {
		return 0, 0, err
	}
	var victims []*victim
	for _, name := range r.names() {
		victims = append(victims, &victim{
			pair:  pair{name: name, mount: newSide(m.dir), twin: newSide(twin)},
			calls: r.newCalls(seed, name),
		})
	}
	dice := r.newCalls(seed, "kill").r
	for kills = 1; kills <= killsAState; kills++ {
		n, err := r.killedRound(m, victims, int64(1+dice.IntN(1500)))
		made += n
		if err != nil {
			return made, kills, err
		}
	}
	return made, killsAState, errors.Join(r.finish(m), os.RemoveAll(twin))
}

// killedRound kills the server after so many calls of all workers, mounts again, and compares.
func (r *rig) killedRound(m *mount, victims []*victim, after int64) (made int, err error) {
	var answered atomic.Int64
	due, over := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	for _, v := range victims {
		wg.Go(func() {
			v.failed = v.untilDead(func() bool {
				n := answered.Add(1)
				if n == after {
					close(due)
				}
				return n >= after
			})
		})
	}
	go func() { wg.Wait(); close(over) }()
	select {
	case <-due:
	case <-over: // something is wrong with all workers
	}
	err = m.kill()
	<-over
	for _, v := range victims {
		v.mount.closeAll()
		err = errors.Join(err, v.failed)
		made += len(v.answers)
	}
	if err != nil {
		return made, err
	}
	if err := m.again(); err != nil {
		return made, err
	}
	for _, v := range victims {
		if err := v.check(); err != nil {
			return made, errors.Join(fmt.Errorf("worker %s: %w", v.name, err), v.keep(r.dir))
		}
	}
	return made, nil
}

// victim is a worker whose server dies.
type victim struct {
	pair
	calls   *calls
	answers []string // to the calls of this round
	round   []call   // those, and the one that was not answered
}

// cutShort is the answer of a call that reads while the server dies: it may have got less than there was.
const cutShort = "?"

// untilDead makes calls on the mount until one is not answered.
func (v *victim) untilDead(answered func() (dying bool)) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	v.answers, v.round = nil, nil
	for {
		c := v.calls.next()
		v.round = append(v.round, c)
		answer, err := v.mount.do(&c)
		dying := err == errDeadAfter || err == nil && answered()
		switch {
		case dying && c.reads():
			answer = cutShort
		case dying && c.As != 0 && (answer == "EPERM" || answer == "EACCES"):
			return nil // nobody was there to tell the ACL
		}
		switch err {
		case nil:
			v.answers = append(v.answers, answer)
		case errDeadAfter:
			v.answers = append(v.answers, answer)
			v.round = append(v.round, v.calls.next()) // which was not even made
			return nil
		case errDead:
			return nil
		default:
			return err
		}
	}
}

// check makes the answered calls on ext4 and compares; then, if need be, with the unanswered one too.
func (v *victim) check() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	got, err := look(v.mount.root, v.name)
	if err != nil {
		return err
	}
	for i, answer := range v.answers {
		c := v.round[i]
		want, err := v.twin.do(&c)
		if err != nil {
			return err
		}
		// The last one's times may not have been seen any more.
		if answer != want && answer != cutShort && (i < len(v.answers)-1 || !strings.HasPrefix(want, answer)) {
			return fmt.Errorf("%s:\n\tthe mount answered %s\n\text4 answers       %s", c, answer, want)
		}
	}
	before, err := look(v.twin.root, v.name)
	if err != nil {
		return err
	}
	without := diff(got, before, nil)
	if without == nil {
		v.twin.closeAll()
		return nil
	}
	last := v.round[len(v.round)-1]
	if _, err := v.twin.do(&last); err != nil {
		return err
	}
	v.twin.closeAll()
	after, err := look(v.twin.root, v.name)
	if err != nil {
		return err
	}
	if diff(got, after, nil) == nil {
		return nil
	}
	// Of content that was being changed some bytes may be new and some old.
	if err := diff(got, after, before); err != nil && diff(got, before, after) != nil {
		return fmt.Errorf("after %d calls of this round and perhaps %s:\nwithout it: %w\nwith it: %w", len(v.answers), last, without, err)
	}
	return v.adopt(got, after)
}

// keep writes the calls of the round with their answers to a file, for people.
func (v *victim) keep(dir string) error {
	var b strings.Builder
	for i, c := range v.round {
		answer := "not answered"
		if i < len(v.answers) {
			answer = v.answers[i]
		}
		fmt.Fprintf(&b, "%s -> %s\n", c, answer)
	}
	return os.WriteFile(filepath.Join(dir, v.name+".round"), []byte(b.String()), 0o644)
}

// adopt gives the files on ext4 the bytes that the mount was left with.
func (v *victim) adopt(got, twin tree) error {
	for name, e := range got {
		if e.data == nil || twin[name] == nil || string(e.data) == string(twin[name].data) {
			continue
		}
		f, err := os.OpenFile(v.twin.path(name), os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		_, err = f.Write(e.data)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}
