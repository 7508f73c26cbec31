package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// powerCuts takes the power from the disk under the state directory while it is used: what was not written is lost. Then everything
// that was synced must be there, and of the names, in order, all that had happened up to some moment after the last sync.
func powerCuts(r *rig) error {
	total, cuts, each := 0, 0, cutsARound
	if r.brief() {
		each = 2
	}
	for seed := r.seed; seed == r.seed || r.goOn(); seed++ {
		for _, fs := range []string{"ext4", "xfs"} {
			n, err := r.powerRound(fs, seed, each)
			total, cuts = total+n, cuts+each+sqliteKills
			if err != nil {
				return fmt.Errorf("on %s, seed %d: %w", fs, seed, err)
			}
		}
	}
	r.say("%d syncs, %d cuts", total, cuts)
	return nil
}

// cutsARound is how often one disk loses its power.
const cutsARound = 4

// disk is a file system on a loop device.
type disk struct{ image, dir string }

func (r *rig) newDisk(fs string) (*disk, error) {
	dir, err := r.place("disk")
	if err != nil {
		return nil, err
	}
	d := &disk{image: dir + ".img", dir: dir}
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(d.image, 512<<20); err != nil {
		return nil, err
	}
	if _, err := output(exec.Command("mkfs."+fs, "-q", d.image)); err != nil {
		return nil, err
	}
	r.disks = append(r.disks, d)
	return d, d.mount()
}

func (d *disk) mount() error {
	_, err := output(exec.Command("mount", "-o", "loop", d.image, d.dir))
	return err
}

func (d *disk) unmount() error {
	if err := unix.Unmount(d.dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	return nil
}

// shutdown is FS_IOC_SHUTDOWN of ext4 and xfs; noLogFlush leaves what is in memory there.
const (
	shutdown   = 0x8004587d
	noLogFlush = 2
)

// cut stops all writing to the device, at once and in the middle of everything.
func (d *disk) cut() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
		return fmt.Errorf("shut %s down: %w", d.dir, err)
	}
	return nil
}

// bootID names the boot of the machine, for those in our mount namespace.
const bootID = "/proc/sys/kernel/random/boot_id"

// reboot gives the boot another name, as it has after a power loss.
func (r *rig) reboot() error {
	if err := r.rebooted(); err != nil {
		return err
	}
	file := filepath.Join(r.dir, "boot")
	if err := os.WriteFile(file, fmt.Appendf(nil, "%08x-0000-4000-8000-000000000000\n", rand.Uint32()), 0o444); err != nil {
		return err
	}
	if err := unix.Mount(file, bootID, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("another boot: %w", err)
	}
	r.lying = true
	return nil
}

// rebooted gives the boot its own name back.
func (r *rig) rebooted() error {
	if !r.lying {
		return nil
	}
	r.lying = false
	if err := unix.Unmount(bootID, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("the boot as it was: %w", err)
	}
	return nil
}

// syncer works on a mount and remembers what it has synced.
type syncer interface {
	// work goes on until the disk is dead. It asks synced after each sync whether that counts: one that was under way when the
	// power went may say that all is well, for ext4 has that race where a machine would just have stopped.
	work(dir string, synced func() bool) error
	check(dir string) error // what is there
}

func (r *rig) powerRound(fs string, seed uint64, cuts int) (syncs int, err error) {
	d, err := r.newDisk(fs)
	if err != nil {
		return 0, err
	}
	names := []string{"w0", "w1"}
	lower, err := r.place("lower")
	if err != nil {
		return 0, err
	}
	twin, err := r.place("twin")
	if err != nil {
		return 0, err
	}
	if err := errors.Join(makeLower(lower, append(names, "files")), copyTree(lower, twin)); err != nil {
		return 0, err
	}
	m, err := r.mount(lower, d.dir+"/state")
	if err != nil {
		return 0, err
	}
	hosts := r.io == "passthrough"
	all := []syncer{
		&replacer{name: "files/b"}, &replacer{name: "new"}, &appender{name: "files/d/b", hosts: hosts}, &appender{name: "log", hosts: hosts},
	}
	for _, name := range names {
		all = append(all, &namer{pair: pair{name: name, mount: newSide(m.dir), twin: newSide(twin)}, calls: r.newCalls(seed, name).namesOnly()})
	}
	dice := rand.New(rand.NewPCG(seed, 6))
	for cut := range cuts {
		n, err := r.powerCut(m, d, all, int64(10+dice.IntN(200)))
		syncs += n
		if err != nil {
			return syncs, fmt.Errorf("cut %d: %w", cut+1, err)
		}
	}
	n, err := r.powerDatabase(m, d, seed)
	syncs += n
	if err != nil {
		return syncs, fmt.Errorf("SQLite: %w", err)
	}
	return syncs, errors.Join(r.finish(m), r.rebooted(), d.unmount(), os.Remove(d.image))
}

// powerModes are SQLite's in which a power loss undoes nothing: without EXTRA it does not sync that it has deleted its journal.
var powerModes = []string{"WAL", "DELETE; PRAGMA synchronous = EXTRA", "TRUNCATE", "PERSIST"}

// powerDatabase cuts the power of SQLite, which syncs what it acknowledges.
func (r *rig) powerDatabase(m *mount, d *disk, seed uint64) (acked int, err error) {
	writers, sql := newWriters(2, "BEGIN IMMEDIATE")
	if _, err := output(exec.Command("sqlite3", filepath.Join(m.dir, "db"), sql)); err != nil {
		return 0, err
	}
	lose := func() error { m.cut = true; return d.cut() }
	return sqliteOn(m, powerModes[seed%4], seed, writers, disaster{lose, func() error { return r.powerBack(m, d) }, true})
}

// powerBack brings everything back after a cut.
func (r *rig) powerBack(m *mount, d *disk) error {
	return errors.Join(m.kill(), m.detach(), d.unmount(), d.mount(), r.reboot(), m.start())
}

// powerCut lets all work, cuts the power after so many syncs, and brings everything back.
func (r *rig) powerCut(m *mount, d *disk, all []syncer, after int64) (syncs int, err error) {
	var n atomic.Int64
	var dark atomic.Bool
	due, over := make(chan struct{}), make(chan struct{})
	failed := make([]error, len(all))
	var wg sync.WaitGroup
	for i, s := range all {
		wg.Go(func() {
			failed[i] = s.work(m.dir, func() bool {
				if n.Add(1) == after {
					close(due)
				}
				return !dark.Load()
			})
		})
	}
	go func() { wg.Wait(); close(over) }()
	select {
	case <-due:
	case <-over: // something is wrong with all of them
	}
	m.cut = true
	dark.Store(true)
	if err := d.cut(); err != nil {
		return 0, err
	}
	<-over
	if err := errors.Join(failed...); err != nil {
		return 0, err
	}
	if err := r.powerBack(m, d); err != nil {
		return 0, err
	}
	for _, s := range all {
		err = errors.Join(err, s.check(m.dir))
	}
	return int(n.Load()), err
}

// replacer puts whole new files in the place of one, as editors do: write aside, sync, rename.
type replacer struct {
	name             string
	durable, renamed int // versions: that must be there, and that may be
}

func version(n int) []byte {
	p := fmt.Appendf(nil, "%d\n", n)
	text := make([]byte, 100+n%7*9000)
	fill(text, n)
	return append(p, text...)
}

func (p *replacer) work(dir string, synced func() bool) error {
	path := filepath.Join(dir, p.name)
	for n := p.renamed + 1; ; n++ {
		f, err := os.Create(path + ".new")
		if err == nil {
			_, err = f.Write(version(n))
			if err == nil {
				err = f.Sync()
			}
			f.Close()
		}
		if err != nil {
			return unlessDead(err)
		}
		if synced() {
			p.durable = p.renamed // a sync is one of all names before
		}
		p.renamed = n
		if err := os.Rename(path+".new", path); err != nil {
			return unlessDead(err)
		}
	}
}

func unlessDead(err error) error {
	if isDead(err) {
		return nil
	}
	return err
}

func (p *replacer) check(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, p.name))
	if p.durable == 0 { // what was there before, or nothing, may be there still
		if err != nil || len(b) == 300_000 {
			p.renamed = 0
			return nil
		}
	}
	if err != nil {
		return err
	}
	var n int
	if _, err := fmt.Sscan(string(b[:min(len(b), 12)]), &n); err != nil || string(b) != string(version(n)) {
		return fmt.Errorf("%s: %d bytes that are no whole version, after %d to %d", p.name, len(b), p.durable, p.renamed)
	}
	if n < p.durable || n > p.renamed {
		return fmt.Errorf("%s: version %d, and %d was synced of %d", p.name, n, p.durable, p.renamed)
	}
	p.durable, p.renamed = n, n
	return nil
}

// appender adds records to a file and syncs now and then.
type appender struct {
	name   string
	want   []byte // all that was written
	synced int    // bytes
	// hosts: what was not synced is as the host's file system leaves it, as on the passthrough rung: ext4 may have zeros there.
	hosts bool
}

func (p *appender) work(dir string, synced func() bool) error {
	f, err := os.OpenFile(filepath.Join(dir, p.name), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return unlessDead(err)
	}
	defer f.Close()
	if p.want == nil {
		if p.want, err = os.ReadFile(f.Name()); err != nil {
			return unlessDead(err)
		}
	}
	for n := len(p.want); ; n++ {
		record := make([]byte, 50+n%3000)
		fill(record, n)
		p.want = append(p.want, record...)
		if _, err := f.Write(record); err != nil {
			return unlessDead(err)
		}
		if n%3 == 0 {
			if err := f.Sync(); err != nil {
				return unlessDead(err)
			}
			if synced() {
				p.synced = len(p.want)
			}
		}
	}
}

func (p *appender) check(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, p.name))
	if p.synced == 0 && errors.Is(err, os.ErrNotExist) {
		p.want = nil
		return nil
	}
	if err != nil {
		return err
	}
	if len(b) < p.synced || len(b) > len(p.want) || string(b[:p.synced]) != string(p.want[:p.synced]) {
		return fmt.Errorf("%s: %d bytes; %d were synced, %d written", p.name, len(b), p.synced, len(p.want))
	}
	for i := p.synced; i < len(b); i++ {
		if b[i] != p.want[i] && (b[i] != 0 || !p.hosts) {
			return fmt.Errorf("%s: byte %d of %d is %#x, not %#x (synced %d)", p.name, i, len(b), b[i], p.want[i], p.synced)
		}
	}
	p.want, p.synced = b, len(b)
	return nil
}
