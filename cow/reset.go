package cow

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// IsStateFile says whether name is one of those that this package gives files of a state directory.
func IsStateFile(name string) bool {
	switch name {
	case "lock", "data", checkpointName, checkpointTmp, packName:
		return true
	}
	return strings.HasPrefix(name, "journal.")
}

// Reset makes a state directory without a change free to be opened over another image tree, and reports whether it is: false leaves
// everything as it was. *LockedError: a server uses dir.
//
// Before: dir may hold journals without a record. After: it holds none. A crash leaves some of them.
func Reset(dir string) (bool, error) {
	d := &disk{dir: dir}
	lock, err := lockDir(d)
	if err != nil {
		return false, err
	}
	defer lock.Close()
	if _, err := os.Lstat(d.path(checkpointName)); !errors.Is(err, fs.ErrNotExist) {
		return false, err // one is written only when there was a change
	}
	gens, err := journals(d)
	if err != nil {
		return false, err
	}
	for _, g := range gens {
		st, err := os.Lstat(d.path(journalName(g)))
		if err != nil {
			return false, fmt.Errorf("reset state directory: %w", err)
		}
		if st.Size() > headerSize {
			return false, nil
		}
	}
	for _, g := range gens {
		if err := d.remove("remove journal", journalName(g)); err != nil {
			return false, fmt.Errorf("reset state directory: %w", err)
		}
	}
	return true, nil
}
