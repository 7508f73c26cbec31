package fs

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// readAheadKiB makes a sequential reader ask for whole requests: the default of 128 triples the time of a cold read.
const readAheadKiB = 1024

// MountDevice returns the "MAJ:MIN" of what is mounted at dir, as the calling thread sees it. It asks the kernel's mount table
// and not the mount, so it is safe before anybody answers.
func MountDevice(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find mount %s: %w", dir, err)
	}
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find mount %s: %w", dir, err)
	}
	defer f.Close()
	dev := ""
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// id parent MAJ:MIN root mount-point …, see proc(5); a later line is mounted over an earlier one.
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && unescapeMount(fields[4]) == abs {
			dev = fields[2]
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("find mount %s: %w", dir, err)
	}
	if dev == "" {
		return "", fmt.Errorf("find mount %s: %w", dir, os.ErrNotExist)
	}
	return dev, nil
}

// TuneReadAhead raises the read-ahead of the mount with that "MAJ:MIN". INIT's answer lowers it, so it comes after NewServer.
func TuneReadAhead(dev string) error {
	path := "/sys/class/bdi/" + dev + "/read_ahead_kb"
	if err := os.WriteFile(path, []byte(strconv.Itoa(readAheadKiB)), 0); err != nil {
		return fmt.Errorf("raise read-ahead: %w", err)
	}
	return nil
}

// unescapeMount undoes mountinfo's \ooo for space, tab, newline and backslash.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
