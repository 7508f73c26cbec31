package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// section is one workload's part of the report.
type section struct {
	title   string
	about   string // what was done
	head    []string
	rows    [][]string
	verdict string // the bounds, and whether they hold
}

// render draws the report in Markdown.
func render(l *lab, sections []section) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# veneer: what it shows\n\nMade by `%s`. Image: %s.\n\n%s\n", l.made, l.what, machine())
	for _, s := range sections {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n", s.title, s.about)
		if len(s.rows) > 0 {
			row(&b, s.head)
			row(&b, slices.Repeat([]string{"---"}, len(s.head)))
			for _, r := range s.rows {
				row(&b, r)
			}
			b.WriteByte('\n')
		}
		fmt.Fprintln(&b, s.verdict)
	}
	return b.String()
}

func row(b *strings.Builder, cells []string) {
	fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
}

// machine says in general terms where this ran.
func machine() string {
	var u unix.Utsname
	var si unix.Sysinfo_t
	unix.Uname(&u)
	unix.Sysinfo(&si)
	cgroups := "v1"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		cgroups = "v2"
	}
	release := unix.ByteSliceToString(u.Release[:])
	if parts := strings.SplitN(release, ".", 3); len(parts) == 3 {
		release = parts[0] + "." + parts[1]
	}
	return fmt.Sprintf("Machine: %d cores (%s), %d GiB, Linux %s, cgroups %s.", runtime.NumCPU(), runtime.GOARCH,
		(uint64(si.Totalram)*uint64(si.Unit)+1<<29)>>30, release, cgroups)
}

// median of times, which it sorts.
func median(t []time.Duration) time.Duration {
	slices.Sort(t)
	return t[len(t)/2]
}

func ms(t time.Duration) string { return fmt.Sprintf("%.1f ms", float64(t.Microseconds())/1e3) }
func mb(n int64) string         { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
