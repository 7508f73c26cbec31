package fs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/veneerfs/veneer/unionfs"
)

// OpenDir implements fuse.RawFileSystem: ENOSYS makes the kernel open directories by itself, and keep their listings
// (FOPEN_KEEP_CACHE and FOPEN_CACHE_DIR, fs/fuse/file.c fuse_file_open).
func (w *wire) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	w.count(opOpendir)
	return fuse.ENOSYS
}

// ReadDir implements fuse.RawFileSystem.
func (w *wire) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	w.count(opReaddir)
	err := w.b.ReadDir(inoOf(in.NodeId), in.Offset, func(d unionfs.Dirent) bool {
		return out.AddDirEntry(fuse.DirEntry{Name: d.Name, Ino: d.Ino, Mode: d.Type, Off: d.Next})
	})
	return w.status(err, "READDIR", in.NodeId)
}

// plusEntry is a place in a READDIRPLUS reply whose attributes are still to come.
type plusEntry struct {
	ino unionfs.Ino
	out *fuse.EntryOut // in the reply
}

var plusEntries = sync.Pool{New: func() any { return new([]plusEntry) }}

// ReadDirPlus implements fuse.RawFileSystem. Names first, attributes after: the Backend may hold a lock while it lists.
func (w *wire) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	w.count(opReaddirplus)
	pooled := plusEntries.Get().(*[]plusEntry)
	defer plusEntries.Put(pooled)
	entries := (*pooled)[:0]
	defer func() { clear(entries); *pooled = entries[:0] }()

	err := w.b.ReadDir(inoOf(in.NodeId), in.Offset, func(d unionfs.Dirent) bool {
		e := out.AddDirLookupEntry(fuse.DirEntry{Name: d.Name, Ino: d.Ino, Mode: d.Type, Off: d.Next})
		if e == nil {
			return false
		}
		// Node 0 says that we tell nothing about an entry, and counts no lookup (fs/fuse/readdir.c fuse_direntplus_link).
		if d.Name != "." && d.Name != ".." {
			entries = append(entries, plusEntry{d.Ino, e})
		}
		return true
	})
	if err != nil {
		return w.status(err, "READDIRPLUS", in.NodeId)
	}
	for _, e := range entries {
		if a, err := w.b.GetAttr(e.ino); err == nil {
			w.entry(&a, e.out)
		}
	}
	return fuse.OK
}

// FsyncDir implements fuse.RawFileSystem.
func (w *wire) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	w.count(opFsyncdir)
	return w.status(w.b.Fsync(inoOf(in.NodeId), in.FsyncFlags&fsyncDataOnly != 0), "FSYNCDIR", in.NodeId)
}
