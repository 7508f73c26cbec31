package fileops

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Report is what was measured.
type Report struct {
	in      *input
	rounds  int      // that were finished
	systems []string // in the order of the columns
	notes   []string
	rows    []result
	image   []line
}

func (r *Report) note(text string) { r.notes = append(r.notes, text) }

// result is a row with what was measured.
type result struct {
	row
	times    map[string][]time.Duration // by system
	failed   map[string]error           // by system
	requests map[string]int64           // veneer's in the last round, by opcode
}

func newResults(rows []row) []result {
	var all []result
	for _, r := range rows {
		all = append(all, result{row: r, times: map[string][]time.Duration{}, failed: map[string]error{}})
	}
	return all
}

func (r *result) add(system string, took time.Duration, err error) {
	if err != nil {
		r.failed[system] = err
	}
	r.times[system] = append(r.times[system], took)
}

// count notes what the kernel asked veneer since before.
func (r *result) count(s *site, before map[string]int64) error {
	now, err := s.requests()
	if err != nil || s.name != veneer {
		return err
	}
	r.requests = map[string]int64{}
	for op, n := range now {
		// FORGET and RELEASE are answered by nobody, and nobody waits for them.
		if n -= before[op]; n > 0 && op != "FORGET" && op != "RELEASE" {
			r.requests[op] = n
		}
	}
	return nil
}

// holds reports whether the goal is reached; true for a row without one.
func (r *result) holds() bool {
	ours := median(r.times[veneer])
	switch {
	case r.failed[veneer] != nil:
		return false
	case r.goal.limit > 0:
		return ours <= r.goal.limit
	case r.goal.ratio > 0:
		return r.ratio(veneer) <= r.goal.ratio
	}
	return true
}

func (r *result) ratio(system string) float64 {
	return float64(median(r.times[system])) / float64(median(r.times[overlayfs]))
}

// line is a line of the second table.
type line struct {
	what, figure, goal string
	holds              bool
}

// Missed is an error that names the goals that are not reached.
func (r *Report) Missed() error {
	var missed []error
	for i := range r.rows {
		if res := &r.rows[i]; !res.holds() {
			missed = append(missed, fmt.Errorf("%s: %s, want %s", res.name, res.cell(veneer), res.goal))
		}
	}
	for _, l := range r.image {
		if !l.holds {
			missed = append(missed, fmt.Errorf("%s: %s, want %s", l.what, l.figure, l.goal))
		}
	}
	return errors.Join(missed...)
}

// Markdown draws the report; machine is a line that says where it was made, made the command.
func (r *Report) Markdown(machine, made string) string {
	var b strings.Builder
	in := r.in
	fmt.Fprintf(&b, "# File operations, side by side\n\nMade by `%s`.\n\n%s\n\n", made, machine)
	fmt.Fprintf(&b, "The same %d lower layers (%d files in %d entries, %.0f MB; a file of %d MiB, two of %d MiB) under every system, each with an empty writable "+
		"layer on the same disk; native is the host's directory with the same files, veneer what a mount is without options, and the last `--io passthrough`. Medians of %d rounds in which the systems take turns. Written: %d MiB; "+
		"operations on names: %d; small files read: %d; random reads: %d. Ratios are to overlayfs; FUSE requests are those of veneer that somebody waits for, for each operation.\n",
		len(in.layers), len(in.files), in.entries, float64(in.bytes)/1e6, in.big>>20, in.copyUp>>20, r.rounds, in.written>>20, in.ops, in.small, 10*in.ops)
	for _, n := range r.notes {
		fmt.Fprintf(&b, "\n%s\n", n)
	}
	fmt.Fprintf(&b, "\n| | %s | goal | | requests |\n|---%s|---|---|---|\n", strings.Join(r.systems, " | "), strings.Repeat("|---", len(r.systems)))
	for i := range r.rows {
		res := &r.rows[i]
		fmt.Fprintf(&b, "| %s |", res.name)
		for _, system := range r.systems {
			fmt.Fprintf(&b, " %s |", res.cell(system))
		}
		fmt.Fprintf(&b, " %s | %s | %s |\n", res.goal, mark(res.holds(), res.goal != goal{}), res.perOp())
	}
	if len(r.image) == 0 {
		return b.String()
	}
	fmt.Fprintf(&b, "\n| images | | goal | |\n|---|---|---|---|\n")
	for _, l := range r.image {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", l.what, l.figure, l.goal, mark(l.holds, l.goal != ""))
	}
	return b.String()
}

func mark(holds, asked bool) string {
	switch {
	case !asked:
		return ""
	case holds:
		return "holds"
	}
	return "**missed**"
}

func (g goal) String() string {
	switch {
	case g.limit > 0:
		return "≤ " + show(g.limit)
	case g.ratio > 0:
		return fmt.Sprintf("%g×", g.ratio)
	}
	return ""
}

// cell is a time, with its ratio where there is one.
func (r *result) cell(system string) string {
	t := r.times[system]
	switch {
	case len(t) == 0:
		return "–"
	case r.failed[system] != nil:
		return r.failed[system].Error()
	case system == overlayfs || r.failed[overlayfs] != nil:
		return show(median(t))
	}
	return fmt.Sprintf("%s, %s×", show(median(t)), digits(r.ratio(system)))
}

// perOp lists requests for each operation.
func (r *result) perOp() string {
	var parts []string
	for _, op := range slices.Sorted(maps.Keys(r.requests)) {
		if n := float64(r.requests[op]) / float64(r.ops); n >= 0.001 {
			parts = append(parts, fmt.Sprintf("%s %s", digits(n), op))
		}
	}
	if len(parts) == 0 {
		return "0"
	}
	return strings.Join(parts, ", ")
}

// digits shows two or three digits that matter.
func digits(x float64) string {
	switch {
	case x >= 10:
		return fmt.Sprintf("%.0f", x)
	case x >= 0.1:
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.2g", x)
}

func show(t time.Duration) string {
	switch {
	case t >= time.Second:
		return fmt.Sprintf("%.2f s", t.Seconds())
	case t >= time.Millisecond:
		return fmt.Sprintf("%.3g ms", float64(t)/1e6)
	}
	return fmt.Sprintf("%.3g µs", float64(t)/1e3)
}

// median of times; 0 of none.
func median(t []time.Duration) time.Duration {
	if len(t) == 0 {
		return 0
	}
	t = slices.Sorted(slices.Values(t))
	return t[len(t)/2]
}
