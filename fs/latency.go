package fs

import (
	"encoding/binary"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// latency asks the kernel to let no idle CPU sleep deeply while requests are dense: waking one of a virtual machine takes longer than
// all else that a request does. It is system-wide and burns idle CPUs (cpuidle: the idle loop polls), so it lasts only as long as
// requests come: until the watch sees none for a tick. The kernel takes the wish back when the file is closed, however we end.
type latency struct {
	on, always bool

	// Of the hot reader.
	count int
	since time.Time

	mu   sync.Mutex
	file *os.File // nil while there is none, and where it cannot be written
	held bool     // guarded by mu
}

// The values of Options.Latency.
const (
	LatencyAuto = "auto" // while at least denseCount requests come in denseTime
	LatencyOn   = "on"   // while any request comes
	LatencyOff  = "off"
)

const (
	latencyDevice = "/dev/cpu_dma_latency"
	denseCount    = 16
	denseTime     = 2 * time.Millisecond
	noWish        = 2000000000 // µs: the kernel's default (PM_QOS_CPU_LATENCY_DEFAULT_VALUE)
)

func newLatency(mode string) *latency {
	l := &latency{always: mode == LatencyOn}
	if mode == LatencyOff {
		return l
	}
	// Not os.OpenFile: it would try to poll.
	fd, err := unix.Open(latencyDevice, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return l
	}
	l.file = os.NewFile(uintptr(fd), latencyDevice)
	l.on = l.wish(noWish) == nil // to open it is a wish for 0
	return l
}

func (l *latency) wish(us int32) error {
	_, err := l.file.Write(binary.NativeEndian.AppendUint32(nil, uint32(us)))
	return err
}

// request counts one more. Only the hot reader calls it.
func (l *latency) request(now time.Time) {
	if !l.on {
		return
	}
	if l.count++; l.count < denseCount && !l.always {
		return
	}
	dense := now.Sub(l.since) < denseTime
	l.count, l.since = 0, now
	if dense || l.always {
		l.hold()
	}
}

func (l *latency) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.held {
		l.held = l.wish(0) == nil
	}
}

// release takes the wish back.
func (l *latency) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held {
		l.held = l.wish(noWish) != nil
	}
}

func (l *latency) close() {
	if l.file != nil {
		l.file.Close()
	}
}
