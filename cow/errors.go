package cow

import "fmt"

// LockedError says that another server holds the state directory.
type LockedError struct{ Dir string }

func (e *LockedError) Error() string {
	return fmt.Sprintf("lock %s: another server is using this container", e.Dir)
}

// VersionError says that a file was written by a newer version of this package.
type VersionError struct {
	File           string
	Version, Known uint32
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("read %s: format version %d is newer than %d, the newest this program knows", e.File, e.Version, e.Known)
}

// TreeError says that the state belongs to another image tree than the one it is opened over.
type TreeError struct{ File string }

func (e *TreeError) Error() string {
	return fmt.Sprintf("read %s: the changes were made over another image tree", e.File)
}

// DamageError says that a journal or a checkpoint cannot be what was written: nothing of it was applied for good.
type DamageError struct {
	File   string
	Offset int64 // bytes from the start of File
	Reason string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("read %s: damaged at byte %d: %s", e.File, e.Offset, e.Reason)
}
