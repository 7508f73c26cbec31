package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// maxFetched is how much of an image's compressed bytes its task may need with an empty store.
const maxFetched = 0.40

// figures are what veneer writes with --stats, as far as it matters here.
type figures struct {
	CompressedBytes int64 `json:"compressed_bytes"`
	FetchedBytes    int64 `json:"fetched_bytes"`
	Requests        int64 `json:"requests"`
}

// coldstart runs the task with an empty store and again, and holds what veneer says that it fetched against the
// registry's own log.
func coldstart(ctx context.Context, l *lab) (section, error) {
	s := section{
		title: "Cold start",
		about: "The task runs with an empty store, then again, then in a new store after a full pull. Bytes and requests are the " +
			"registry's (docker-registry on loopback), for blobs.",
		head: []string{"", "output", "time", "requests", "bytes", "of the image"},
	}
	lazy, whole := l.store("lazy"), l.store("whole")
	cold, size, errCold := l.runTask(ctx, lazy, "empty store")
	warm, _, errWarm := l.runTask(ctx, lazy, "again")
	pull, errPull := l.pullTask(ctx, whole)
	for _, r := range []started{cold, warm, pull} {
		s.rows = append(s.rows, r.cells(size))
	}
	err := errors.Join(errCold, errWarm, errPull)
	if err == nil && float64(cold.bytes) > maxFetched*float64(size) {
		err = fmt.Errorf("the first start fetched %s of %s, more than %.0f %%", mb(cold.bytes), mb(size), 100*maxFetched)
	}
	if err == nil && warm.requests > 0 {
		err = fmt.Errorf("the second start made %d requests for layer data", warm.requests)
	}
	s.verdict = verdict(fmt.Sprintf("the first start fetches at most %.0f %% of the image, the second makes no request for layer data",
		100*maxFetched), err)
	return s, err
}

func verdict(bound string, err error) string {
	if err != nil {
		return fmt.Sprintf("**Does not hold**: %s (%v).", bound, err)
	}
	return "Holds: " + bound + "."
}

// started is one start of the task.
type started struct {
	what     string
	ok       bool // it printed what it should
	took     time.Duration
	requests int
	bytes    int64
}

func (r started) cells(size int64) []string {
	out := "wrong"
	if r.ok {
		out = "as expected"
	}
	return []string{r.what, out, ms(r.took), fmt.Sprint(r.requests), mb(r.bytes), fmt.Sprintf("%.1f %%", 100*float64(r.bytes)/float64(max(size, 1)))}
}

// runTask runs the task once. size is the image's compressed size.
func (l *lab) runTask(ctx context.Context, s store, what string) (r started, size int64, err error) {
	r.what = what
	if _, err := l.registry.mark(ctx); err != nil {
		return r, 0, err
	}
	stats := filepath.Join(l.dir, "stats.json")
	begun := time.Now()
	out, err := output(s.command(ctx, l.taskArgs("--stats", stats)...))
	r.took = time.Since(begun)
	if err != nil {
		return r, 0, err
	}
	r.ok = strings.Contains(out, l.task.Ready)
	f, err := readFigures(stats)
	if err != nil {
		return r, 0, err
	}
	if err := r.count(ctx, l.registry); err != nil {
		return r, 0, err
	}
	if !r.ok {
		return r, f.CompressedBytes, fmt.Errorf("%s: the task printed %q, want %q in it", what, out, l.task.Ready)
	}
	return r, f.CompressedBytes, nil
}

// pullTask pulls the whole image and runs the task.
func (l *lab) pullTask(ctx context.Context, s store) (started, error) {
	if _, err := l.registry.mark(ctx); err != nil {
		return started{}, err
	}
	begun := time.Now()
	if _, err := output(s.command(ctx, "pull", "--quiet", l.ref)); err != nil {
		return started{what: "full pull"}, err
	}
	pull := started{took: time.Since(begun)}
	if err := pull.count(ctx, l.registry); err != nil {
		return pull, err
	}
	r, _, err := l.runTask(ctx, s, "full pull, then run")
	r.took += pull.took
	r.requests += pull.requests
	r.bytes += pull.bytes
	return r, err
}

// count adds what the registry has sent since the last mark.
func (r *started) count(ctx context.Context, reg *dockerRegistry) error {
	log, err := reg.mark(ctx)
	if err != nil {
		return err
	}
	for _, a := range log {
		if a.blob() {
			r.requests++
			r.bytes += a.bytes
		}
	}
	return nil
}

func readFigures(path string) (f figures, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return f, err
	}
	return f, json.Unmarshal(raw, &f)
}
