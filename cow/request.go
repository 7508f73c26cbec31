package cow

import "github.com/veneerfs/veneer/unionfs"

// Request is the tree for one request of the kernel that must not be executed twice: the record of its operation names it.
type Request struct {
	*FS
	unique uint64
}

// Request returns the tree for a request of the session, by its number there; 0 is none.
func (f *FS) Request(unique uint64) Request { return Request{f, unique} }

func (r Request) begin() (*tx, error) {
	t, err := r.FS.begin()
	if err == nil {
		t.request = r.unique
	}
	return t, err
}

// Mknod is Request's.
func (f *FS) Mknod(dir Ino, name string, mode uint32, rdev uint64, c unionfs.Owner) (unionfs.Attr, error) {
	return f.Request(0).Mknod(dir, name, mode, rdev, c)
}

// Mkdir is Request's.
func (f *FS) Mkdir(dir Ino, name string, mode uint32, c unionfs.Owner) (unionfs.Attr, error) {
	return f.Request(0).Mkdir(dir, name, mode, c)
}

// Symlink is Request's.
func (f *FS) Symlink(dir Ino, name, target string, c unionfs.Owner) (unionfs.Attr, error) {
	return f.Request(0).Symlink(dir, name, target, c)
}

// Link is Request's.
func (f *FS) Link(ino, dir Ino, name string) (unionfs.Attr, error) {
	return f.Request(0).Link(ino, dir, name)
}

// Unlink is Request's.
func (f *FS) Unlink(dir Ino, name string) error { return f.Request(0).Unlink(dir, name) }

// Rmdir is Request's.
func (f *FS) Rmdir(dir Ino, name string) error { return f.Request(0).Rmdir(dir, name) }

// Rename is Request's.
func (f *FS) Rename(oldDir Ino, oldName string, newDir Ino, newName string, flags uint32) error {
	return f.Request(0).Rename(oldDir, oldName, newDir, newName, flags)
}

// SetXattr is Request's.
func (f *FS) SetXattr(ino Ino, name string, value []byte, flags uint32) error {
	return f.Request(0).SetXattr(ino, name, value, flags)
}

// RemoveXattr is Request's.
func (f *FS) RemoveXattr(ino Ino, name string) error { return f.Request(0).RemoveXattr(ino, name) }
