package fetcher

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Profiles are kept below profiles/:
//
//	MANIFEST/COMMAND         a Profile, by the hex of the manifest's digest and of the sha256 of the command
//	MANIFEST/COMMAND.here    exists: a start found in the store all that the profile names, and it was of several runs: nothing is
//	                         to be fetched or learned. Who drops content removes all of these.

const hereSuffix = ".here"

func (s *Store) profileDir(image digest.Digest) string {
	return filepath.Join(s.root, "profiles", image.Encoded())
}

func (s *Store) profilePath(image digest.Digest, command []string) string {
	raw, err := json.Marshal(command)
	if err != nil {
		panic(err) // strings can always be written
	}
	return filepath.Join(s.profileDir(image), hexOf(string(raw)))
}

// Profile returns the profile of a command; fs.ErrNotExist when there is none.
func (s *Store) Profile(image digest.Digest, command []string) (*Profile, error) {
	return s.readProfile(s.profilePath(image, command))
}

// Profiles returns all profiles of an image, the last written first.
func (s *Store) Profiles(image digest.Digest) ([]*Profile, error) {
	entries, err := os.ReadDir(s.profileDir(image))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list profiles: %w", err)
	}
	var out []*Profile
	var times []int64
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || strings.HasSuffix(e.Name(), hereSuffix) {
			continue
		}
		p, err := s.readProfile(filepath.Join(s.profileDir(image), e.Name()))
		if err != nil {
			s.log.Warn("skip a profile", "file", e.Name(), "error", err)
			continue
		}
		at := info.ModTime().UnixNano()
		i := 0
		for i < len(times) && times[i] >= at {
			i++
		}
		out = append(out[:i], append([]*Profile{p}, out[i:]...)...)
		times = append(times[:i], append([]int64{at}, times[i:]...)...)
	}
	return out, nil
}

func (s *Store) readProfile(path string) (*Profile, error) {
	raw, err := readFileLimit(path, maxProfileSize)
	if err != nil {
		return nil, err
	}
	return ParseProfile(bytes.NewReader(raw))
}

// SaveProfile puts p in the place of the one that its image and command have. A crash leaves either.
func (s *Store) SaveProfile(p *Profile) error {
	path := s.profilePath(p.Image, p.Command)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return s.full(fmt.Errorf("save profile: %w", err))
	}
	f, err := s.temp()
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(p.Text())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return s.full(fmt.Errorf("save profile: %w", err))
	}
	return nil
}

// settled reports whether a start of this command has nothing to fetch or to learn.
func (s *Store) settled(image digest.Digest, command []string) bool {
	_, err := os.Lstat(s.profilePath(image, command) + hereSuffix)
	return err == nil
}

func (s *Store) settle(image digest.Digest, command []string) {
	f, err := os.OpenFile(s.profilePath(image, command)+hereSuffix, os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil { // else the next start looks once more
		f.Close()
	}
}

// unsettle makes all starts look again whether what they need is here.
func (s *Store) unsettle() error {
	marks, err := filepath.Glob(filepath.Join(s.root, "profiles", "*", "*"+hereSuffix))
	for _, m := range marks {
		if e := os.Remove(m); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}
