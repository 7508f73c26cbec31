package unionfs

import (
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Tree is an image tree. Its methods may be called concurrently, until Close.
type Tree struct {
	path   string
	data   []byte // the whole file, mapped read-only
	header header
	layers []Layer

	// parts of data, by section
	inodes, dirents, names, strings, xattrSets, xattrData, contents, chunks, chunkDigests []byte
}

// Open maps the image tree at path. What it does, does not depend on the number of files in it; see Verify.
// The error is a *FormatError when the file is there but no tree that can be used.
func Open(path string) (*Tree, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open image tree: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open image tree: %w", err)
	}
	if !st.Mode().IsRegular() || st.Size() < headerSize {
		return nil, openShort(f, path)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map image tree %s: %w", path, err)
	}
	t := &Tree{path: path, data: data}
	if ferr := t.load(); ferr != nil {
		unix.Munmap(data)
		ferr.Path = path
		return nil, ferr
	}
	return t, nil
}

// openShort tells what is wrong with a file that is too short for a header of this version.
func openShort(f *os.File, path string) error {
	var h header
	p := make([]byte, headerSize)
	n, _ := f.ReadAt(p, 0)
	ferr := h.decode(p[:n], uint64(n))
	if ferr == nil {
		ferr = &FormatError{Reason: "is not a regular file"}
	}
	ferr.Path = path
	return ferr
}

// load reads header and layers of t.data.
func (t *Tree) load() *FormatError {
	if err := t.header.decode(t.data, uint64(len(t.data))); err != nil {
		return err
	}
	for i, p := range map[int]*[]byte{secInodes: &t.inodes, secDirents: &t.dirents, secNames: &t.names, secStrings: &t.strings,
		secXattrSets: &t.xattrSets, secXattrData: &t.xattrData, secContents: &t.contents, secChunks: &t.chunks,
		secChunkDigests: &t.chunkDigests} {
		*p = t.section(i)
	}
	if a, ok := t.Attr(Root); !ok || a.Mode&unix.S_IFMT != unix.S_IFDIR {
		return &FormatError{Reason: "is damaged: its root is not a directory"}
	}
	for p := t.section(secLayers); len(p) > 0; p = p[layerSize:] {
		l, ok := t.decodeLayer(p[:layerSize])
		if !ok {
			return &FormatError{Reason: fmt.Sprintf("is damaged: layer %d makes no sense", len(t.layers))}
		}
		t.layers = append(t.layers, l)
	}
	return nil
}

func (t *Tree) section(i int) []byte {
	s := t.header.sections[i]
	return t.data[s.off : s.off+s.len : s.off+s.len]
}

func (t *Tree) decodeLayer(p []byte) (Layer, bool) {
	l := Layer{Digest: Digest(p), DiffID: Digest(p[32:]), Size: int64(le.Uint64(p[64:])), Format: Format(p[80])}
	mediaType, ok1 := t.str(le.Uint32(p[72:]))
	path, ok2 := t.str(le.Uint32(p[76:]))
	l.MediaType, l.Path = strings.Clone(mediaType), strings.Clone(path)
	return l, ok1 && ok2 && l.Size >= 0 && l.Format >= FormatPlain && l.Format <= FormatDir
}

// Close unmaps the tree. No other method may run then or be called after it, and the names that DirAt returned are gone.
func (t *Tree) Close() error {
	data := t.data
	*t = Tree{path: t.path}
	if data == nil {
		return nil
	}
	if err := unix.Munmap(data); err != nil {
		return fmt.Errorf("unmap image tree %s: %w", t.path, err)
	}
	return nil
}

// MaxIno returns the highest inode number. All from Root to it are in use.
func (t *Tree) MaxIno() Ino { return Ino(len(t.inodes) / inodeSize) }

// Layers returns the layers that the tree was built from, bottom first. The caller must not change them.
func (t *Tree) Layers() []Layer { return t.layers }

// Totals returns what the tree holds in numbers.
func (t *Tree) Totals() Totals { return t.header.totals }

// Attr returns the attributes of an inode. Atime, Ctime and Btime are the Mtime. It does not allocate.
func (t *Tree) Attr(ino Ino) (Attr, bool) {
	p := t.inode(ino)
	if p == nil {
		return Attr{}, false
	}
	mtime := Time{Sec: int64(le.Uint64(p)), Nsec: le.Uint32(p[16:])}
	a := Attr{
		Ino: ino, Mode: le.Uint32(p[20:]), Nlink: le.Uint32(p[32:]), UID: le.Uint32(p[24:]), GID: le.Uint32(p[28:]),
		Atime: mtime, Mtime: mtime, Ctime: mtime, Btime: mtime,
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFLNK:
		a.Size = int64(le.Uint64(p[8:]))
	case unix.S_IFDIR:
		a.Size = dirSize
	case unix.S_IFCHR, unix.S_IFBLK:
		a.Rdev = le.Uint64(p[8:])
	case unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return Attr{}, false
	}
	if a.Size < 0 || a.Size > max48 || mtime.Nsec >= 1e9 || a.Mode&^uint32(unix.S_IFMT|07777) != 0 {
		return Attr{}, false
	}
	if a.Mode&unix.S_IFMT != unix.S_IFLNK { // ext4 keeps short targets in the inode
		a.Blocks = (a.Size + 511) / 512
	}
	return a, true
}

// dirSize is st_size of every directory.
const dirSize = 4096

// inode returns the record of an inode, or nil.
func (t *Tree) inode(ino Ino) []byte {
	if ino == 0 || ino > uint64(len(t.inodes)/inodeSize) {
		return nil
	}
	i := int(ino-1) * inodeSize
	return t.inodes[i : i+inodeSize : i+inodeSize]
}

// inodeOf returns the record of an inode of one type, or nil.
func (t *Tree) inodeOf(ino Ino, typ uint32) []byte {
	p := t.inode(ino)
	if p == nil || le.Uint32(p[20:])&unix.S_IFMT != typ {
		return nil
	}
	return p
}

// str returns the string at off of the string section. It aliases the mapping.
func (t *Tree) str(off uint32) (string, bool) {
	if uint64(off)+4 > uint64(len(t.strings)) {
		return "", false
	}
	n, p := le.Uint32(t.strings[off:]), t.strings[off+4:]
	if uint64(n) > uint64(len(p)) {
		return "", false
	}
	return unsafe.String(unsafe.SliceData(p), int(n)), true
}

// Readlink returns the target of a symlink.
func (t *Tree) Readlink(ino Ino) (string, bool) {
	p := t.inodeOf(ino, unix.S_IFLNK)
	if p == nil {
		return "", false
	}
	target, ok := t.str(le.Uint32(p[40:]))
	if !ok || uint64(len(target)) != le.Uint64(p[8:]) {
		return "", false
	}
	return strings.Clone(target), true
}

// Xattr returns the value of an extended attribute.
func (t *Tree) Xattr(ino Ino, name string) ([]byte, bool) {
	for p := t.xattrSet(ino); len(p) > 0; {
		n, value, rest, ok := nextXattr(p)
		if !ok {
			break
		}
		if string(n) == name {
			return append([]byte{}, value...), true
		}
		p = rest
	}
	return nil, false
}

// Xattrs returns the names of an inode's extended attributes, sorted.
func (t *Tree) Xattrs(ino Ino) []string {
	var names []string
	for p := t.xattrSet(ino); len(p) > 0; {
		n, _, rest, ok := nextXattr(p)
		if !ok {
			break
		}
		names, p = append(names, string(n)), rest
	}
	return names
}

// xattrSet returns the encoded attributes of an inode, or nil.
func (t *Tree) xattrSet(ino Ino) []byte {
	p := t.inode(ino)
	if p == nil {
		return nil
	}
	set := uint64(le.Uint32(p[36:]))
	if set == 0 || set > uint64(len(t.xattrSets)/xattrSetSize) {
		return nil
	}
	row := t.xattrSets[(set-1)*xattrSetSize:]
	off, n := le.Uint64(row), uint64(le.Uint32(row[8:]))
	if off > uint64(len(t.xattrData)) || n > uint64(len(t.xattrData))-off {
		return nil
	}
	return t.xattrData[off : off+n]
}

// nextXattr splits the first attribute off an encoded set.
func nextXattr(p []byte) (name, value, rest []byte, ok bool) {
	if len(p) < 5 {
		return nil, nil, nil, false
	}
	n, v := uint64(p[0]), uint64(le.Uint32(p[1:]))
	if p = p[5:]; n == 0 || n+v > uint64(len(p)) {
		return nil, nil, nil, false
	}
	return p[:n], p[n : n+v], p[n+v:], true
}
