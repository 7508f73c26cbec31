package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
)

// database is one whose files are on a mount that dies under it.
type database interface {
	// start brings it up, and back from the dead.
	start() error
	// client is a program that takes statements on its standard input, and ends with the first that fails.
	client() *exec.Cmd
	// crash ends all of it at once.
	crash() error
	// look returns what has been written, sorted: lines WRITER|NUMBER, and lines "sum"|WRITER|COUNT. It checks all that it can.
	look() (string, error)
	stop() error
}

// schema has two tables that must agree.
const schema = `CREATE TABLE t (w INTEGER, i INTEGER, p TEXT, PRIMARY KEY (w, i));
CREATE TABLE sums (w INTEGER PRIMARY KEY, n INTEGER);`

// rows asks for what look returns.
const rows = `SELECT w, i FROM t ORDER BY w, i; SELECT 'sum', w, n FROM sums ORDER BY w;`

// writer commits transactions, one after the other, through a client of its own, and remembers which were acknowledged.
type writer struct {
	w      int
	begin  string // how it says that it is going to write
	acked  int
	sure   int // of those, the ones that must be there
	failed error
}

// transaction writes row i into both tables. Its last word is only said when it is committed.
func (w *writer) transaction(i, size int) string {
	return fmt.Sprintf("%s; INSERT INTO t VALUES (%d, %d, '%s'); UPDATE sums SET n = n + 1 WHERE w = %d; COMMIT; SELECT 'done', %d;\n",
		w.begin, w.w, i, strings.Repeat(string(rune('a'+i%26)), size), w.w, i)
}

// write commits until the client ends. acked tells whether what is acknowledged now must be there later.
func (w *writer) write(cmd *exec.Cmd, size func() int, acked func() bool) error {
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	stderr := new(strings.Builder)
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewReader(out)
	var ended error
	for ended == nil {
		if _, ended = io.WriteString(in, w.transaction(w.acked+1, size())); ended != nil {
			break
		}
		var line string
		if line, ended = lines.ReadString('\n'); ended == nil {
			if line != fmt.Sprintf("done|%d\n", w.acked+1) {
				ended = fmt.Errorf("it said %q", line)
				break
			}
			w.acked++
			if acked() {
				w.sure = w.acked
			}
		}
	}
	in.Close()
	_, err = io.Copy(io.Discard, out)
	return errors.Join(fmt.Errorf("the client of writer %d: %w: %s", w.w, ended, stderr), err, cmd.Wait())
}

// disaster takes the files of a database away, and brings them back.
type disaster struct {
	lose, back func() error
	doubtful   bool // what is acknowledged while lose runs need not be true (see syncer)
}

func (m *mount) killed() disaster { return disaster{lose: m.kill, back: m.again} }

// tortureDatabase has writers commit until a disaster comes, and then looks for what was acknowledged before.
func tortureDatabase(db database, writers []*writer, dice *rand.Rand, d disaster) (acked int, err error) {
	var total atomic.Int64
	var losing atomic.Bool
	after := int64(1 + dice.IntN(100))
	due, over := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	sizes := rand.New(rand.NewPCG(dice.Uint64(), 1))
	var mu sync.Mutex
	size := func() int { mu.Lock(); defer mu.Unlock(); return pickOf(sizes, 10, 500, 1+sizes.IntN(20_000)) }
	clients := make([]*exec.Cmd, len(writers))
	before := 0
	for i, w := range writers {
		clients[i] = db.client()
		before += w.acked
		wg.Go(func() {
			w.failed = w.write(clients[i], size, func() bool {
				if total.Add(1) == after {
					close(due)
				}
				return !d.doubtful || !losing.Load()
			})
		})
	}
	go func() { wg.Wait(); close(over) }()
	select {
	case <-due:
	case <-over:
		for _, w := range writers {
			err = errors.Join(err, w.failed)
		}
		return 0, fmt.Errorf("all clients ended, and nobody killed the server: %w", err)
	}
	losing.Store(true)
	if err := d.lose(); err != nil {
		return 0, err
	}
	for _, c := range clients {
		c.Process.Kill() // it may wait for a lock whose holder is gone
	}
	err = db.crash()
	<-over
	if err := errors.Join(err, d.back(), db.start()); err != nil {
		return 0, err
	}
	got, err := db.look()
	if err != nil {
		return 0, err
	}
	for _, w := range writers {
		acked += w.acked
	}
	return acked - before, checkRows(got, writers)
}

// checkRows wants all rows that were acknowledged, and of each writer perhaps the one that was under way.
func checkRows(got string, writers []*writer) error {
	last, sums := make(map[int]int), make(map[int]int)
	for line := range strings.Lines(got) {
		var w, i int
		if n, _ := fmt.Sscanf(line, "sum|%d|%d", &w, &i); n == 2 {
			sums[w] = i
			continue
		}
		if n, _ := fmt.Sscanf(line, "%d|%d", &w, &i); n != 2 {
			return fmt.Errorf("the database says %q", line)
		}
		if last[w]++; i != last[w] {
			return fmt.Errorf("row %d of writer %d is missing", last[w], w)
		}
	}
	for _, w := range writers {
		n := last[w.w]
		if n < w.sure || n > w.acked+1 {
			return fmt.Errorf("writer %d: %d transactions were acknowledged (%d for sure), %d are there", w.w, w.acked, w.sure, n)
		}
		if sums[w.w] != n {
			return fmt.Errorf("writer %d: %d rows, and the sum is %d", w.w, n, sums[w.w])
		}
		w.acked, w.sure = n, n
	}
	return nil
}

func newWriters(n int, begin string) (all []*writer, sql string) {
	for i := range n {
		all = append(all, &writer{w: i, begin: begin})
		sql += fmt.Sprintf("INSERT INTO sums VALUES (%d, 0);\n", i)
	}
	return all, schema + sql
}
