package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// postgresKills is how often one cluster loses its server.
const postgresKills = 4

func postgresTorture(r *rig) error {
	acked, kills := 0, 0
	for seed := r.seed; seed == r.seed || r.goOn(); seed++ {
		n, err := r.postgresRound(seed)
		acked, kills = acked+n, kills+postgresKills
		if err != nil {
			return fmt.Errorf("seed %d: %w", seed, err)
		}
	}
	r.say("%d transactions acknowledged, %d kills", acked, kills)
	return nil
}

func (r *rig) postgresRound(seed uint64) (acked int, err error) {
	lower, err := r.place("lower")
	if err != nil {
		return 0, err
	}
	db, err := r.newPostgres()
	if err != nil {
		return 0, err
	}
	// The cluster is there before: it is changed block by block.
	if err := db.initdb(filepath.Join(lower, "pg")); err != nil {
		return 0, err
	}
	state, err := r.place("state")
	if err != nil {
		return 0, err
	}
	m, err := r.mount(lower, state)
	if err != nil {
		return 0, err
	}
	db.data = filepath.Join(m.dir, "pg")
	if err := db.start(); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.crash()) }() // of what a failure leaves
	writers, sql := newWriters(3, "BEGIN")
	setup := db.client()
	setup.Stdin = strings.NewReader(sql)
	if _, err := output(setup); err != nil {
		return 0, err
	}
	dice := rand.New(rand.NewPCG(seed, 4))
	for range postgresKills {
		n, err := tortureDatabase(db, writers, dice, m.killed())
		acked += n
		if err != nil {
			return acked, err
		}
	}
	return acked, errors.Join(db.stop(), r.finish(m))
}

// postgres is a cluster, with a socket in a directory and none on a network.
type postgres struct {
	bin, data, sockets string
	user               *syscall.Credential
	log                string
	postmaster         *exec.Cmd     // nil while it does not run
	quiet              chan struct{} // closed when it says no more
}

func (r *rig) newPostgres() (*postgres, error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("%w: run .ci/deps", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(bins) == 0 {
		return nil, errors.New("no PostgreSQL in /usr/lib/postgresql: run .ci/deps")
	}
	p := &postgres{bin: bins[len(bins)-1], user: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	if p.sockets, err = r.place("pg"); err != nil {
		return nil, err
	}
	p.log = filepath.Join(r.dir, "postgres.log")
	return p, os.Chown(p.sockets, int(uid), int(gid))
}

// command runs a program of the cluster as its user, in a directory that the user may enter.
func (p *postgres) command(name string, args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(p.bin, name), args...)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: p.user}
	c.Dir = "/"
	c.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "PGHOST=" + p.sockets, "PGUSER=postgres", "PGDATABASE=postgres"}
	return c
}

func (p *postgres) initdb(dir string) error {
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, int(p.user.Uid), int(p.user.Gid))); err != nil {
		return err
	}
	// With checksums, so that a page that is half old is found.
	_, err := output(p.command("initdb", "--no-sync", "--data-checksums", "-A", "trust", "-E", "UTF8", "--locale=C", "-D", dir))
	return err
}

// start returns when it has recovered and takes clients.
func (p *postgres) start() error {
	c := p.command("postgres", "-D", p.data, "-c", "listen_addresses=", "-c", "unix_socket_directories="+p.sockets,
		"-c", "dynamic_shared_memory_type=mmap", "-c", "shared_buffers=16MB", "-c", "max_connections=20")
	out, err := c.StderrPipe()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return errors.Join(err, log.Close())
	}
	said := bufio.NewReader(io.TeeReader(out, log))
	for {
		line, err := said.ReadString('\n')
		if err != nil {
			return errors.Join(fmt.Errorf("PostgreSQL does not start: %w (see %s)", err, p.log), c.Wait(), log.Close())
		}
		if strings.Contains(line, "ready to accept connections") {
			break
		}
	}
	p.postmaster, p.quiet = c, make(chan struct{})
	go func() {
		defer close(p.quiet)
		defer log.Close()
		io.Copy(io.Discard, said)
	}()
	return nil
}

// crash kills the postmaster and its children, and waits for all of them: what is left of one would keep the next from starting.
func (p *postgres) crash() error {
	if p.postmaster == nil {
		return nil
	}
	children, err := childrenOf(p.postmaster.Process.Pid)
	if err != nil {
		return err
	}
	p.postmaster.Process.Kill()
	for _, fd := range children {
		unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // or it has ended by itself
	}
	for _, fd := range children {
		err = errors.Join(err, awaitEnd(fd), unix.Close(fd))
	}
	return errors.Join(err, p.ended())
}

// ended waits for the postmaster, and takes no notice of how it ended.
func (p *postgres) ended() error {
	<-p.quiet
	err := p.postmaster.Wait()
	p.postmaster = nil
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// childrenOf opens the processes that pid has started.
func childrenOf(pid int) (fds []int, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, path := range stats {
		stat, _ := os.ReadFile(path) // it may have ended
		_, rest, _ := strings.Cut(string(stat), ") ")
		var state string
		var parent int
		if n, _ := fmt.Sscan(rest, &state, &parent); n != 2 || parent != pid {
			continue
		}
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		if fd, err := unix.PidfdOpen(child, 0); err == nil {
			fds = append(fds, fd)
		}
	}
	return fds, nil
}

func (p *postgres) client() *exec.Cmd {
	return p.command("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1")
}

func (p *postgres) look() (string, error) {
	c := p.client()
	c.Stdin = strings.NewReader(rows)
	return output(c)
}

// stop ends it in order.
func (p *postgres) stop() error {
	if err := p.postmaster.Process.Signal(unix.SIGINT); err != nil {
		return err
	}
	return p.ended()
}
