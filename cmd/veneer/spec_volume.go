package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// parseVolumes reads the -v flags. A relative source is one of the host's that begins with a dot, as Docker has it: other
// names are those of volumes.
func parseVolumes(flags []string) ([]volume, error) {
	var vs []volume
	seen := map[string]bool{}
	for _, f := range flags {
		v, err := parseVolume(f)
		if err != nil {
			return nil, fmt.Errorf("invalid volume %q: %w", f, err)
		}
		if seen[v.Destination] {
			return nil, fmt.Errorf("invalid volume %q: duplicate mount point: %s", f, v.Destination)
		}
		seen[v.Destination] = true
		vs = append(vs, v)
	}
	return vs, nil
}

func parseVolume(s string) (volume, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 {
		return volume{}, errors.New("anonymous volumes are not supported: want SRC:DST[:ro]")
	}
	if len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return volume{}, errors.New("want SRC:DST[:ro]")
	}
	v := volume{Source: parts[0], Destination: path.Clean(parts[1])}
	switch {
	case !path.IsAbs(parts[1]):
		return volume{}, fmt.Errorf("the path in the container, %q, must be absolute", parts[1])
	case v.Destination == "/":
		return volume{}, errors.New("the path in the container can't be '/'")
	case !path.IsAbs(v.Source) && !strings.HasPrefix(v.Source, "."):
		return volume{}, fmt.Errorf("named volumes are not supported: for a directory here write ./%s", v.Source)
	}
	if len(parts) == 3 {
		switch parts[2] {
		case "ro":
			v.ReadOnly = true
		case "rw":
		default:
			return volume{}, fmt.Errorf("unknown option %q: want ro or rw", parts[2])
		}
	}
	var err error
	v.Source, err = filepath.Abs(v.Source)
	return v, err
}

// makeVolumeSources makes missing sources, as directories, like Docker.
func makeVolumeSources(vs []volume) error {
	for _, v := range vs {
		_, err := os.Stat(v.Source)
		if errors.Is(err, fs.ErrNotExist) {
			err = os.MkdirAll(v.Source, 0o755)
		}
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.Source, err)
		}
	}
	return nil
}
