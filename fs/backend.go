package fs

import (
	"context"
	"os"

	"github.com/veneerfs/veneer/unionfs"
)

// Backend is the tree that a mount shows; *cow.FS is one. Inodes are named by number, never by handle.
// Errors are, or wrap, a syscall.Errno; any other error reaches the kernel as EIO and is logged.
// All methods may be called concurrently. Permission checks are the kernel's (default_permissions).
type Backend interface {
	Changes
	GetAttr(ino unionfs.Ino) (unionfs.Attr, error)
	SetAttr(ino unionfs.Ino, set unionfs.SetAttr) (unionfs.Attr, error)
	Lookup(dir unionfs.Ino, name string) (unionfs.Attr, error)
	// Forget says that the kernel holds no reference to ino any more: an unlinked inode's data may go.
	Forget(ino unionfs.Ino)

	ReadDir(dir unionfs.Ino, after uint64, yield func(unionfs.Dirent) bool) error
	Readlink(ino unionfs.Ino) (string, error)

	Tmpfile(dir unionfs.Ino, mode uint32, c unionfs.Owner) (unionfs.Attr, error)

	// Read fills p from off and returns how much there was; less than len(p) only at the end of the file.
	// It returns EINTR when ctx ends first.
	Read(ctx context.Context, ino unionfs.Ino, p []byte, off int64) (int, error)
	// Write writes p at off. killPriv asks for set-id bits and security.capability to be cleared.
	Write(ctx context.Context, ino unionfs.Ino, p []byte, off int64, killPriv bool) (int, error)
	Fallocate(ctx context.Context, ino unionfs.Ino, mode uint32, off, length int64) error
	Lseek(ino unionfs.Ino, off int64, whence int) (int64, error)
	Fsync(ino unionfs.Ino, dataOnly bool) error

	GetXattr(ino unionfs.Ino, name string) ([]byte, error)
	ListXattr(ino unionfs.Ino) ([]string, error)

	StatFS() (unionfs.StatFS, error)
}

// Changes are the operations that fail when they are done a second time.
type Changes interface {
	Mknod(dir unionfs.Ino, name string, mode uint32, rdev uint64, c unionfs.Owner) (unionfs.Attr, error)
	Mkdir(dir unionfs.Ino, name string, mode uint32, c unionfs.Owner) (unionfs.Attr, error)
	Symlink(dir unionfs.Ino, name, target string, c unionfs.Owner) (unionfs.Attr, error)
	Link(ino, dir unionfs.Ino, name string) (unionfs.Attr, error)
	Unlink(dir unionfs.Ino, name string) error
	Rmdir(dir unionfs.Ino, name string) error
	Rename(oldDir unionfs.Ino, oldName string, newDir unionfs.Ino, newName string, flags uint32) error
	// SetXattr takes setxattr(2)'s flags and unionfs.XattrKillSGID. A POSIX ACL goes with the mode: it sets the permission bits, and
	// they set it; what is made in a directory with a default ACL inherits that (the kernel then enforces what it is told).
	SetXattr(ino unionfs.Ino, name string, value []byte, flags uint32) error
	RemoveXattr(ino unionfs.Ino, name string) error
}

// Resumable is the optional power of a Backend that a server which takes over needs (resume.go): to know what was executed and not
// answered. What the kernel may have open, unlinked or not, it must have kept too.
type Resumable interface {
	// Request returns the Backend for one request, of which it remembers, as long as what was done, that it was done.
	Request(unique uint64) Changes
	// Executed reports whether the operation of a request of this mount was done, by whichever server. One that failed was not.
	Executed(unique uint64) bool
}

// Passthrough is the optional power of a Backend to name one local file that holds all of an inode's bytes.
type Passthrough interface {
	// OpenBacking opens the file that holds exactly ino's current bytes at the same offsets, or returns nil
	// when there is none. A file that is open for reading only is shared content; this container's own data object is always open for
	// reading and writing: that is how the caller tells them apart. With write set it is the data object or nil, never shared content; if
	// content has to be copied up whole for that, the backend declines with nil. The caller closes the file.
	//
	// Until CloseBacking has been called as often as a file was returned, with the same write, that file stays the one: a data
	// object is not replaced, and SetAttr, Fallocate and Write change it in place. While it is open for writing the backend takes size
	// and mtime from it, and SetAttr gives it the times that are set, for the close of a writer comes here after what was done next.
	OpenBacking(ino unionfs.Ino, write bool) (*os.File, error)
	CloseBacking(ino unionfs.Ino, write bool)
}
