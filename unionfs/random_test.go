package unionfs

import (
	"fmt"
	"math/rand/v2"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// randomLayers makes up layers on few names, so that entries meet.
type randomLayers struct {
	rand *rand.Rand
	// tidy layers are as tools write them: an entry's parents come before it in its layer and are directories there,
	// hard links come after their targets, which are files of the same layer.
	tidy  bool
	files map[string]bool // of the current layer; false for directories
	out   []Entry
}

func (r *randomLayers) image(layers, entries int) [][]Entry {
	var image [][]Entry
	for range 1 + r.rand.IntN(layers) {
		r.out, r.files = nil, map[string]bool{}
		for range r.rand.IntN(entries) {
			r.entry()
		}
		image = append(image, r.out)
	}
	return image
}

var randomNames = []string{"a", "b", "c", "d"}

func (r *randomLayers) path() string {
	p := randomNames[r.rand.IntN(len(randomNames))]
	for r.rand.IntN(3) > 0 && len(p) < 8 {
		p += "/" + randomNames[r.rand.IntN(len(randomNames))]
	}
	return p
}

func (r *randomLayers) entry() {
	name := r.path()
	if r.tidy && !r.parents(name) {
		return
	}
	e := Entry{Name: name, UID: uint32(r.rand.IntN(3)), GID: uint32(r.rand.IntN(3)), Mtime: Time{Sec: int64(1 + r.rand.IntN(1000)), Nsec: uint32(r.rand.IntN(1e9))}}
	perm := uint32(r.rand.IntN(010000))
	if r.rand.IntN(4) == 0 {
		e.Xattrs = map[string]string{"user.x": fmt.Sprint(r.rand.IntN(3)), "trusted.y": "\x00\xff"}
	}
	switch n := r.rand.IntN(20); {
	case n < 6:
		e.Mode, e.Content = unix.S_IFREG|perm, textContent(fmt.Sprint("text", r.rand.IntN(5)))
		e.Size = e.Content.Size
	case n < 11:
		e.Mode = unix.S_IFDIR | perm
	case n < 13:
		e.Mode, e.Symlink, e.Xattrs = unix.S_IFLNK|0777, r.target(), nil
	case n < 14:
		e.Mode, e.Rdev, e.Xattrs = unix.S_IFCHR|perm, unix.Mkdev(1, uint32(1+r.rand.IntN(9))), nil
	case n < 16:
		e.Link = r.path()
	case n < 19:
		e.Mode, e.Name = unix.S_IFREG, path.Join(path.Dir(name), ".wh."+path.Base(name))
	default:
		e.Mode, e.Name = unix.S_IFREG, path.Join(name, ".wh..wh..opq")
	}
	r.add(name, e)
}

// target makes up a symlink's target.
func (r *randomLayers) target() string {
	return []string{"", "/", "../", "./", "../../"}[r.rand.IntN(5)] + r.path()
}

// add adds e, which is about name, if it is tidy enough.
func (r *randomLayers) add(name string, e Entry) {
	if !r.tidy {
		r.out = append(r.out, e)
		return
	}
	typ := e.Mode & unix.S_IFMT
	base := path.Base(e.Name)
	switch {
	case base == opaqueName:
		if isFile, ok := r.files[name]; !ok || isFile {
			return
		}
	case strings.HasPrefix(base, whiteoutPrefix):
		if _, ok := r.files[name]; ok {
			return
		}
	case typ == 0 && (!r.files[e.Link] || e.Link == name):
		return
	case typ == unix.S_IFDIR && r.files[name]:
		return
	case typ != unix.S_IFDIR:
		if isFile, ok := r.files[name]; ok && !isFile {
			return
		}
		r.files[name] = true
	default:
		r.files[name] = false
	}
	r.out = append(r.out, e)
}

// parents adds the directories above name that the layer doesn't have yet. It is false if one is no directory.
func (r *randomLayers) parents(name string) bool {
	for i := range name {
		if name[i] != '/' {
			continue
		}
		dir := name[:i]
		isFile, ok := r.files[dir]
		if isFile {
			return false
		}
		if !ok {
			r.files[dir] = false
			r.out = append(r.out, Entry{Name: dir, Mode: unix.S_IFDIR | 0700, Mtime: Time{Sec: int64(len(r.out))}})
		}
	}
	return true
}
