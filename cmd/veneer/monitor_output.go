package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/veneerfs/veneer/runtime"
)

// outputLog writes what a detached container prints to its log, a JSON object a line, as Docker's json-file driver does:
// {"log":"hello\n","stream":"stdout","time":"..."}. A longer line than maxLogLine is cut into several objects without "\n".
type outputLog struct {
	file    *os.File
	readers [2]*os.File // of the pipes; nil with a terminal
	writers [2]*os.File
	console *os.File
	copying sync.WaitGroup
	mu      sync.Mutex // guards file
}

const maxLogLine = 16 << 10 // bytes

var streamNames = [2]string{"stdout", "stderr"}

// newOutputLog opens the log and puts pipes to it into o.
func newOutputLog(path string, o *runtime.CreateOptions) (*outputLog, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open the container's log: %w", err)
	}
	l := &outputLog{file: f}
	if o.Spec.Process.Terminal {
		return l, nil
	}
	for i := range l.readers {
		if l.readers[i], l.writers[i], err = os.Pipe(); err != nil {
			l.begin(false, nil)
			l.finish()
			return nil, err
		}
	}
	o.Stdin, o.Stdout, o.Stderr = nil, l.writers[0], l.writers[1]
	return l, nil
}

// begin gives up our writing ends; if the process exists it starts to copy.
func (l *outputLog) begin(exists bool, c *runtime.Container) {
	for _, w := range l.writers {
		w.Close()
	}
	if !exists {
		return
	}
	if l.console = c.Console(); l.console != nil {
		l.copying.Go(func() { l.copy("stdout", l.console) })
		return
	}
	for i, r := range l.readers {
		l.copying.Go(func() { l.copy(streamNames[i], r) })
	}
}

// finish waits until all was copied. The container has ended; should its pipe live on outside, what comes later is lost.
func (l *outputLog) finish() {
	deadline := time.Now().Add(drainLimit)
	for _, r := range append(l.readers[:], l.console) {
		r.SetReadDeadline(deadline)
	}
	l.copying.Wait()
	for _, r := range l.readers {
		r.Close()
	}
	l.file.Close()
}

func (l *outputLog) copy(stream string, r io.Reader) {
	b := bufio.NewReaderSize(r, maxLogLine)
	for {
		line, err := b.ReadSlice('\n')
		if len(line) > 0 {
			l.write(stream, line)
		}
		if err != nil && err != bufio.ErrBufferFull {
			return
		}
	}
}

func (l *outputLog) write(stream string, line []byte) {
	p, err := json.Marshal(struct {
		Log    string    `json:"log"`
		Stream string    `json:"stream"`
		Time   time.Time `json:"time"`
	}{string(line), stream, time.Now().UTC()})
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.file.Write(append(p, '\n')) // on a full disk the process goes on, and its output is lost
}

// drain reads a terminal's output for a command line that is gone, so that the process never waits for it.
func drain(console *os.File) { io.Copy(io.Discard, console) }
