package unionfs

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// overlayXattrs are the extended attributes of a file in a layer of overlayfs.
type overlayXattrs struct {
	shown    map[string]string // those that are not overlayfs's own
	opaque   string            // "y": hides what is below; "x": has files with the whiteout attribute
	whiteout bool
}

// xattrs reads the extended attributes of path, whose last component is not followed.
func (w *dirWalk) xattrs(path string) (x overlayXattrs, err error) {
	n, err := unix.Llistxattr(path, w.buf)
	if errors.Is(err, unix.ENOTSUP) {
		return x, nil
	}
	if err != nil {
		return x, fmt.Errorf("list extended attributes: %w", err)
	}
	if n == 0 {
		return x, nil
	}
	names := strings.Split(strings.TrimSuffix(string(w.buf[:n]), "\x00"), "\x00")
	for _, name := range names {
		n, err := unix.Lgetxattr(path, name, w.buf)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return x, fmt.Errorf("read extended attribute %s: %w", name, err)
		}
		if err := x.add(name, string(w.buf[:n])); err != nil {
			return x, err
		}
	}
	return x, nil
}

// add sorts an attribute in. See Documentation/filesystems/overlayfs.rst: "trusted.overlay.", with the mount option
// userxattr "user.overlay."; a further "overlay." is an escape, for layers that lie in an overlay themselves.
func (x *overlayXattrs) add(name, value string) error {
	for _, prefix := range []string{"trusted.overlay.", "user.overlay."} {
		own, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		if escaped, ok := strings.CutPrefix(own, "overlay."); ok {
			name = prefix + escaped
			break
		}
		switch own {
		case "opaque":
			x.opaque = value
		case "whiteout":
			x.whiteout = true
		case "redirect", "metacopy":
			return fmt.Errorf("it has %s: overlayfs finds its data in another directory, which veneer does not follow", name)
		}
		return nil
	}
	if x.shown == nil {
		x.shown = make(map[string]string)
	}
	x.shown[name] = value
	return nil
}
