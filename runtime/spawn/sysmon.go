package spawn

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

// SlowSysmon makes the thread by which the Go runtime looks after itself sleep for a millisecond at a time in place of 20 µs. It is for a
// process that does one thing after the other: nothing there has to be taken from a thread that is in a system call. It counts for this
// process alone, and where it cannot be done nothing is lost.
func SlowSysmon() {
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		return
	}
	defer dir.Close()
	// In the order of their making; sysmon is what the first thread makes first (runtime.main).
	threads, err := dir.Readdirnames(2)
	if err != nil || len(threads) != 2 {
		return
	}
	os.WriteFile(fmt.Sprintf("/proc/%s/timerslack_ns", threads[1]), strconv.AppendInt(nil, int64(time.Millisecond), 10), 0)
}
