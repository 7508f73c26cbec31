package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
)

// sqliteKills are how often one database loses its server.
const sqliteKills = 2

// sqliteModes are the ways in which SQLite makes a commit durable. Without synchronous a power loss may undo it, but not the
// death of a server.
var sqliteModes = []string{"WAL", "DELETE", "TRUNCATE", "PERSIST", "WAL; PRAGMA synchronous = OFF", "DELETE; PRAGMA synchronous = OFF"}

func sqliteTorture(r *rig) error {
	acked, kills := 0, 0
	modes := sqliteModes
	if r.brief() {
		modes = modes[:2]
	}
	for seed := r.seed; seed == r.seed || r.goOn(); seed++ {
		for _, mode := range modes {
			n, err := r.sqliteRound(mode, seed)
			acked, kills = acked+n, kills+sqliteKills
			if err != nil {
				return fmt.Errorf("journal_mode = %s, seed %d: %w", mode, seed, err)
			}
		}
	}
	r.say("%d transactions acknowledged, %d kills", acked, kills)
	return nil
}

func (r *rig) sqliteRound(mode string, seed uint64) (acked int, err error) {
	lower, err := r.place("lower")
	if err != nil {
		return 0, err
	}
	writers, sql := newWriters(2, "BEGIN IMMEDIATE")
	// The database is there before: it is changed block by block.
	if _, err := output(exec.Command("sqlite3", filepath.Join(lower, "db"), sql)); err != nil {
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
	acked, err = sqliteOn(m, mode, seed, writers, m.killed())
	if err != nil {
		return acked, err
	}
	return acked, r.finish(m)
}

// sqliteOn has disaster come over a database that is on a mount.
func sqliteOn(m *mount, mode string, seed uint64, writers []*writer, d disaster) (acked int, err error) {
	db := &sqlite{path: m.dir + "/db", mode: mode}
	dice := rand.New(rand.NewPCG(seed, 3))
	for range sqliteKills {
		n, err := tortureDatabase(db, writers, dice, d)
		acked += n
		if err != nil {
			return acked, err
		}
	}
	return acked, nil
}

// sqlite is a database without a server of its own.
type sqlite struct{ path, mode string }

func (s *sqlite) start() error { return nil }
func (s *sqlite) crash() error { return nil }
func (s *sqlite) stop() error  { return nil }

func (s *sqlite) client() *exec.Cmd {
	const quiet = ".output /dev/null" // the mode is printed
	return exec.Command("sqlite3", "-batch", "-bail", "-cmd", ".timeout 60000", "-cmd", quiet,
		"-cmd", "PRAGMA journal_mode = "+s.mode, "-cmd", ".output stdout", s.path)
}

func (s *sqlite) look() (string, error) {
	out, err := output(exec.Command("sqlite3", "-batch", "-bail", s.path, "PRAGMA integrity_check; "+rows))
	if err != nil {
		return "", err
	}
	out, ok := strings.CutPrefix(out, "ok\n")
	if !ok {
		return "", errors.New("integrity_check: " + out)
	}
	return out, nil
}
