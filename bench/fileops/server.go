package fileops

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// statsFile is what veneer writes its figures to, below the state.
const statsFile = "stats"

// serverPatience is how long a server may take to write its figures.
const serverPatience = 10 * time.Second

// server is veneer's, of one mount.
type server struct {
	pid   int
	pidfd int
	stats string
}

// findServer finds the only server of a run root.
func findServer(state string) (*server, error) {
	found, err := filepath.Glob(filepath.Join(state, "run/mounts/*/mount.json"))
	if err != nil || len(found) != 1 {
		return nil, errors.Join(err, fmt.Errorf("%d mounts in %s, want one", len(found), state))
	}
	raw, err := os.ReadFile(found[0])
	if err != nil {
		return nil, err
	}
	var record struct {
		Server struct {
			PID int `json:"pid"`
		} `json:"server"`
	}
	if err := json.Unmarshal(raw, &record); err != nil {
		return nil, err
	}
	s := &server{pid: record.Server.PID, stats: filepath.Join(state, statsFile)}
	s.pidfd, err = unix.PidfdOpen(s.pid, 0)
	return s, err
}

// wait reports whether the server has ended, within the limit unless that is negative.
func (s *server) wait(limit time.Duration) bool {
	p := []unix.PollFd{{Fd: int32(s.pidfd), Events: unix.POLLIN}}
	ms := -1
	if limit >= 0 {
		ms = int(limit.Milliseconds())
	}
	for {
		n, err := unix.Poll(p, ms)
		if err == unix.EINTR {
			continue
		}
		if n > 0 {
			unix.Close(s.pidfd)
		}
		return n > 0
	}
}

// requests returns how many requests the server of a site has answered, by opcode; nothing for the other systems.
func (s *site) requests() (map[string]int64, error) {
	if s.server == nil {
		return nil, nil
	}
	return s.server.requests()
}

// requests asks the server for its figures, which it puts in the place of the ones before.
func (s *server) requests() (map[string]int64, error) {
	before := inodeOf(s.stats)
	if err := unix.PidfdSendSignal(s.pidfd, unix.SIGUSR1, nil, 0); err != nil {
		return nil, fmt.Errorf("ask the server: %w", err)
	}
	deadline := time.Now().Add(serverPatience)
	for inodeOf(s.stats) == before {
		if time.Now().After(deadline) {
			return nil, errors.New("the server writes no figures")
		}
		time.Sleep(time.Millisecond)
	}
	raw, err := os.ReadFile(s.stats)
	if err != nil {
		return nil, err
	}
	var figures struct {
		Requests map[string]int64 `json:"fuse_requests"`
	}
	err = json.Unmarshal(raw, &figures)
	return figures.Requests, err
}

func inodeOf(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

// privateMemory is what the server alone uses, bytes: Private_Clean and Private_Dirty.
func (s *server) privateMemory() (int64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", s.pid))
	if err != nil {
		return 0, err
	}
	var sum int64
	for line := range bytes.Lines(raw) {
		name, value, _ := strings.Cut(string(line), ":")
		if name != "Private_Clean" && name != "Private_Dirty" {
			continue
		}
		var kib int64
		if _, err := fmt.Sscanf(value, "%d kB", &kib); err != nil {
			return 0, fmt.Errorf("read smaps_rollup: %q: %w", line, err)
		}
		sum += kib << 10
	}
	return sum, nil
}
