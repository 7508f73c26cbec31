package fs

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// The bytes of fakeFS: in memory, or in a data object that the kernel may write to as well.

// stat returns n's attributes; while a writer has the data object they are the object's.
func (n *fakeInode) stat() unionfs.Attr {
	if n.writers > 0 {
		n.look()
	}
	return n.attr
}

// look takes size and times from the data object.
func (n *fakeInode) look() {
	var st unix.Stat_t
	if err := unix.Fstat(int(n.object.Fd()), &st); err != nil {
		panic(err)
	}
	n.attr.Size, n.attr.Blocks = st.Size, (st.Size+511)/512
	if m := (unionfs.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}); m != n.attr.Mtime {
		n.attr.Mtime, n.attr.Ctime = m, m
	}
}

// setObjectTime gives the data object n's mtime, for look to find it.
func (n *fakeInode) setObjectTime() {
	if n.object == nil {
		return
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: n.attr.Mtime.Sec, Nsec: int64(n.attr.Mtime.Nsec)}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, n.object.Name(), times, 0); err != nil {
		panic(err)
	}
}

func (n *fakeInode) resize(size int64) {
	n.shared = ""
	switch {
	case size < 0 || size > 1<<30:
		panic("a fake file has no room for that")
	case n.object != nil:
		if err := n.object.Truncate(size); err != nil {
			panic(err)
		}
	case size <= int64(len(n.data)):
		n.data = n.data[:size:size]
	default:
		n.data = append(n.data, make([]byte, size-int64(len(n.data)))...)
	}
	n.attr.Size = size
	n.attr.Blocks = (size + 511) / 512
}

func (n *fakeInode) readAt(p []byte, off int64) (int, error) {
	if n.object == nil {
		if off >= int64(len(n.data)) {
			return 0, nil
		}
		return copy(p, n.data[off:]), nil
	}
	got, err := n.object.ReadAt(p, off)
	if err == io.EOF {
		err = nil
	}
	return got, err
}

func (n *fakeInode) writeAt(p []byte, off int64) error {
	n.shared = ""
	if end := off + int64(len(p)); end > n.attr.Size {
		n.resize(end)
	}
	if n.object == nil {
		copy(n.data[off:], p)
		return nil
	}
	_, err := n.object.WriteAt(p, off)
	return err
}

// share makes path, which holds the same bytes, the local file of the inode.
func (f *fakeFS) share(ino unionfs.Ino, path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	n := f.inodes[ino]
	n.resize(int64(len(data)))
	n.data, n.object, n.shared = data, nil, path
}

func (f *fakeFS) OpenBacking(ino unionfs.Ino, write bool) (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.inode(ino)
	switch {
	case err != nil:
		return nil, err
	case n.shared != "" && write:
		return nil, nil
	case n.shared != "":
		return os.Open(n.shared)
	case f.objects == "":
		return nil, nil
	case n.object == nil && !write:
		return nil, nil
	case n.object == nil:
		if err := f.newObject(n); err != nil {
			return nil, err
		}
	}
	if write {
		n.writers++
	}
	return os.OpenFile(n.object.Name(), os.O_RDWR, 0)
}

func (f *fakeFS) newObject(n *fakeInode) error {
	o, err := os.OpenFile(filepath.Join(f.objects, strconv.Itoa(int(n.attr.Ino))), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	n.object = o
	_, err = o.WriteAt(n.data, 0)
	n.data = nil
	n.setObjectTime()
	return err
}

func (f *fakeFS) CloseBacking(ino unionfs.Ino, write bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.inodes[ino]; n != nil && write {
		n.look()
		n.writers--
	}
}

func (f *fakeFS) Read(ctx context.Context, ino unionfs.Ino, p []byte, off int64) (int, error) {
	if f.onRead != nil {
		if err := f.onRead(ctx, ino); err != nil {
			return 0, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.inode(ino)
	if err != nil {
		return 0, err
	}
	return n.readAt(p, off)
}

func (f *fakeFS) Write(_ context.Context, ino unionfs.Ino, p []byte, off int64, killPriv bool) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.inode(ino)
	if err != nil {
		return 0, err
	}
	if killPriv {
		n.killPriv()
	}
	if err := n.writeAt(p, off); err != nil {
		return 0, err
	}
	n.attr.Mtime = now()
	n.attr.Ctime = n.attr.Mtime
	return len(p), nil
}

func (f *fakeFS) Fallocate(_ context.Context, ino unionfs.Ino, mode uint32, off, length int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.inode(ino)
	if err != nil {
		return err
	}
	end := off + length
	switch mode {
	case 0, unix.FALLOC_FL_KEEP_SIZE:
		if mode == 0 && end > n.attr.Size {
			n.resize(end)
		}
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE:
		if off < n.attr.Size {
			if err := n.writeAt(make([]byte, min(end, n.attr.Size)-off), off); err != nil {
				return err
			}
		}
	default:
		return syscall.EOPNOTSUPP
	}
	n.touchDir()
	return nil
}

func (f *fakeFS) Lseek(ino unionfs.Ino, off int64, whence int) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.inode(ino)
	if err != nil {
		return 0, err
	}
	if off >= n.attr.Size {
		return 0, syscall.ENXIO
	}
	if whence == unix.SEEK_HOLE {
		return n.attr.Size, nil
	}
	return off, nil
}
