package unionfs

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"
)

// limits bound what a Builder takes in; tests lower them.
type limits struct {
	layers    int
	inodes    int    // entries, and directories made for them
	xattrData uint64 // bytes of different xattr sets
	strings   uint64 // bytes of the string section, and of the name section
	chunks    int
	bytes     int64 // of all contents together
}

var defaultLimits = limits{
	layers:    4096,
	inodes:    20_000_000,
	xattrData: 1 << 30,
	strings:   math.MaxUint32,
	chunks:    1 << 26,
	bytes:     1 << 56,
}

// Limits of Linux, and of a path (PATH_MAX doesn't bound it: directories are also reached step by step).
const (
	maxName      = 255
	maxPath      = 1<<16 - 1
	maxSymlink   = 4095
	maxXattrName = 255
	maxXattr     = 1 << 16
	maxXattrList = 1 << 16
	maxMajor     = 1<<12 - 1
	maxMinor     = 1<<20 - 1
	maxChunk     = math.MaxUint32
	maxMediaType = 1024
)

// layerPath is a path of a layer, split before its last component.
type layerPath struct {
	dir   string // may have empty and "." components, for walk to skip
	base  string
	depth int  // number of components; 0 is the root
	aufs  bool // the entry is AUFS's own, or below such a one
}

// splitPath checks and splits a path. Slashes at its start are ignored, as tar does.
func splitPath(s string) (layerPath, error) {
	if len(s) > maxPath {
		return layerPath{}, fmt.Errorf("the path has more than %d bytes", maxPath)
	}
	if strings.IndexByte(s, 0) >= 0 {
		return layerPath{}, errors.New("the path has a NUL byte")
	}
	var p layerPath
	whiteout := false
	for at := 0; at <= len(s); {
		name := s[at:]
		if i := strings.IndexByte(name, '/'); i >= 0 {
			name = name[:i]
		}
		if name != "" && name != "." {
			if whiteout {
				return layerPath{}, errors.New("there can be nothing below a whiteout")
			}
			p.dir, p.base, p.depth = s[:at], name, p.depth+1
			if name == ".." {
				return layerPath{}, errors.New("the path has a .. component")
			}
			if len(strings.TrimPrefix(name, whiteoutPrefix)) > maxName {
				return layerPath{}, fmt.Errorf("the path has a name of more than %d bytes", maxName)
			}
			if strings.HasPrefix(name, whiteoutPrefix+whiteoutPrefix) && name != opaqueName {
				p.aufs = true
			}
			whiteout = !p.aufs && strings.HasPrefix(name, whiteoutPrefix)
		}
		at += len(name) + 1
	}
	return p, nil
}

// checkLayer checks a layer that is to be number n.
func (l *limits) checkLayer(n int, layer *Layer) error {
	switch {
	case n >= l.layers:
		return fmt.Errorf("the image has more than %d layers", l.layers)
	case layer.Format < FormatPlain || layer.Format > FormatDir:
		return fmt.Errorf("unknown format %d", layer.Format)
	case layer.Size < 0:
		return fmt.Errorf("size %d is negative", layer.Size)
	case len(layer.MediaType) > maxMediaType:
		return fmt.Errorf("the media type has more than %d bytes", maxMediaType)
	case len(layer.Path) > maxPath:
		return fmt.Errorf("the path has more than %d bytes", maxPath)
	}
	return nil
}

// checkEntry checks what an entry says apart from its name, xattrs and content.
func (l *limits) checkEntry(e *Entry) error {
	if e.Mode&^uint32(unix.S_IFMT|07777) != 0 {
		return fmt.Errorf("mode %#o has unknown bits", e.Mode)
	}
	if e.Mtime.Nsec >= 1e9 {
		return fmt.Errorf("its time has %d nanoseconds", e.Mtime.Nsec)
	}
	if e.Size < 0 {
		return fmt.Errorf("size %d is negative", e.Size)
	}
	typ := e.Mode & unix.S_IFMT
	if (e.Link != "") != (typ == 0) {
		return fmt.Errorf("mode %#o does not go with hard link target %.300q", e.Mode, e.Link)
	}
	switch typ {
	case 0, unix.S_IFDIR, unix.S_IFIFO, unix.S_IFSOCK:
	case unix.S_IFREG:
		if e.Size != e.Content.Size {
			return fmt.Errorf("size %d does not go with a content of %d bytes", e.Size, e.Content.Size)
		}
	case unix.S_IFLNK:
		return checkSymlink(e.Symlink)
	case unix.S_IFCHR, unix.S_IFBLK:
		major, minor := unix.Major(e.Rdev), unix.Minor(e.Rdev)
		if major > maxMajor || minor > maxMinor || e.Rdev != unix.Mkdev(major, minor) {
			return fmt.Errorf("device number %d:%d is out of range", major, minor)
		}
	default:
		return fmt.Errorf("mode %#o has an unknown type", e.Mode)
	}
	return nil
}

func checkSymlink(target string) error {
	switch {
	case target == "":
		return errors.New("the symlink has no target")
	case len(target) > maxSymlink:
		return fmt.Errorf("the symlink's target has more than %d bytes", maxSymlink)
	case strings.IndexByte(target, 0) >= 0:
		return errors.New("the symlink's target has a NUL byte")
	}
	return nil
}

// checkContent checks where the bytes of a file of layer l come from.
func checkContent(l *Layer, c *Content) error {
	if c.Size < 0 || c.Size > max48 {
		return fmt.Errorf("size %d is out of range", c.Size)
	}
	if l.Format == FormatDir {
		if len(c.Chunks) > 0 {
			return errors.New("a file of a directory has no chunks")
		}
		return checkHostPath(c.Path)
	}
	if c.Path != "" {
		return errors.New("only a file of a directory has a path")
	}
	switch {
	case c.Size == 0 && c.Digest != emptyDigest && c.Digest != Digest{}:
		return fmt.Errorf("an empty file can't have digest %v", c.Digest)
	case c.Size > 0 && c.Digest == Digest{}:
		return errors.New("the file has no digest")
	case l.Format == FormatPlain && len(c.Chunks) > 0:
		return errors.New("a file of a plain layer has no chunks")
	case l.Format == FormatPlain || c.Size == 0 && len(c.Chunks) == 0:
		return nil
	}
	return checkChunks(l, c)
}

// checkHostPath checks a path below a FormatDir layer: it must be clean, so that it leads nowhere else.
func checkHostPath(path string) error {
	if len(path) > maxPath || strings.IndexByte(path, 0) >= 0 {
		return fmt.Errorf("%.300q can't be the path of a file", path)
	}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." || name == ".." || len(name) > maxName {
			return fmt.Errorf("%.300q can't be the path of a file", path)
		}
	}
	return nil
}

// checkChunks checks that the chunks are the whole file, in order, and lie in the blob.
func checkChunks(l *Layer, c *Content) error {
	end := int64(0)
	for i := range c.Chunks {
		k := &c.Chunks[i]
		switch {
		case k.Offset != end:
			return fmt.Errorf("chunk %d starts at %d and not at %d", i, k.Offset, end)
		case k.Size <= 0 || k.Size > maxChunk || k.Size > c.Size-end:
			return fmt.Errorf("chunk %d at %d can't have %d of the file's %d bytes", i, end, k.Size, c.Size)
		case k.Digest == Digest{}:
			return fmt.Errorf("chunk %d has no digest", i)
		case k.Inner < 0 || k.Inner > max48:
			return fmt.Errorf("chunk %d can't start at %d of its member", i, k.Inner)
		case k.BlobOff < 0 || k.BlobOff > max48 || k.BlobSize < 0 || k.BlobSize > max48,
			l.Size > 0 && (k.BlobOff > l.Size || k.BlobSize > l.Size-k.BlobOff):
			return fmt.Errorf("chunk %d can't be %d bytes at %d of a blob of %d", i, k.BlobSize, k.BlobOff, l.Size)
		}
		end += k.Size
	}
	if end != c.Size {
		return fmt.Errorf("its chunks have %d of %d bytes", end, c.Size)
	}
	return nil
}
