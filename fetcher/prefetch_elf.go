package fetcher

import (
	"io"
	"path"
	"slices"
	"strings"

	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// Without a profile, a program that is started brings its loader and its libraries, and theirs: the loader would ask for one after the other.
const (
	maxClosure     = 256     // files
	maxClosureFile = 4 << 20 // a larger one is left to the reads
)

// libraryDirs are where libraries are looked for that no path is given for.
var libraryDirs = []string{
	"/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib",
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
}

// bringLibraries fetches what the file of a content needs to be loaded, when its start, p, is that of an ELF file.
func (x *Contents) bringLibraries(ino unionfs.Ino, p []byte) {
	if len(p) < 4 || string(p[:4]) != "\x7fELF" {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.closed {
		x.work.Go(func() { x.fetchClosure(ino) })
	}
}

func (x *Contents) fetchClosure(ino unionfs.Ino) {
	seen := map[unionfs.Ino]bool{ino: true}
	for todo := []unionfs.Ino{ino}; len(todo) > 0 && len(seen) < maxClosure && x.life.Err() == nil; {
		var next []unionfs.Ino
		for _, ino := range todo {
			for _, lib := range x.libraries(ino) {
				if !seen[lib] {
					seen[lib] = true
					next = append(next, lib)
				}
			}
		}
		var list []memberRef
		for _, ino := range next {
			list = x.missingOfFile(ino, list)
		}
		x.fetchInOrder(list)
		todo = next
	}
}

// missingOfFile adds to list what is not here of a file that is not too large.
func (x *Contents) missingOfFile(ino unionfs.Ino, list []memberRef) []memberRef {
	idx, ok := x.tree.ContentIndex(ino)
	c, _ := x.tree.ContentInfo(idx)
	if !ok || c.Size > maxClosureFile {
		return list
	}
	for i := range x.tree.NumChunks(idx) {
		k, ok := x.tree.ChunkAt(idx, i)
		if !ok || isZeros(&k) || x.have(chunkRef{idx, uint32(i)}) {
			continue
		}
		x.index.Do(x.buildIndex)
		if m, ok := x.memberAt(c.Layer, k.BlobOff); ok && m.off == k.BlobOff {
			list = append(list, memberRef{c.Layer, m})
		}
	}
	return list
}

// libraries returns the files that a file needs to be loaded, as far as they are found. What is no ELF file needs none.
func (x *Contents) libraries(ino unionfs.Ino) []unionfs.Ino {
	needs, err := readElfNeeds(&inoReader{x, ino})
	if err != nil {
		return nil
	}
	x.expandOrigin(ino, needs.paths)
	var out []unionfs.Ino
	add := func(p string) bool {
		lib, ok := x.lookup(p)
		if ok {
			out = append(out, lib)
		}
		return ok
	}
	if needs.interp != "" {
		add(needs.interp)
	}
	for _, name := range needs.names {
		if strings.Contains(name, "/") {
			add(name)
			continue
		}
		for _, dir := range slices.Concat(needs.paths, libraryDirs) {
			if strings.HasPrefix(dir, "/") && add(path.Join(dir, name)) {
				break
			}
		}
	}
	return out
}

// expandOrigin puts the directory of a file into paths that are relative to it. It looks through the tree for that, and so only where there are such.
func (x *Contents) expandOrigin(ino unionfs.Ino, paths []string) {
	var names *strings.Replacer
	for i, p := range paths {
		if !strings.Contains(p, "$") {
			continue
		}
		if names == nil {
			file, _ := x.tree.Path(ino)
			dir := path.Dir("/" + file)
			names = strings.NewReplacer("$ORIGIN", dir, "${ORIGIN}", dir)
		}
		paths[i] = names.Replace(p)
	}
}

// maxLinks is how many symbolic links a path may lead through.
const maxLinks = 20

// lookup finds a regular file by its path in the tree, through symbolic links.
func (x *Contents) lookup(p string) (unionfs.Ino, bool) {
	at, links := unionfs.Root, 0
	for rest := p; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			at = x.tree.Parent(at)
			continue
		}
		next, ok := x.tree.Lookup(at, name)
		if !ok {
			return 0, false
		}
		attr, _ := x.tree.Attr(next)
		switch attr.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, _ := x.tree.Readlink(next)
			if links++; links > maxLinks {
				return 0, false
			}
			if strings.HasPrefix(target, "/") {
				at = unionfs.Root
			}
			rest = target + "/" + rest
		case unix.S_IFDIR:
			at = next
		case unix.S_IFREG:
			return next, strings.Trim(rest, "/") == ""
		default:
			return 0, false
		}
	}
	return 0, false
}

// inoReader reads a file without that counting as one of the reads of the process.
type inoReader struct {
	x   *Contents
	ino unionfs.Ino
}

func (r *inoReader) ReadAt(p []byte, off int64) (int, error) {
	idx, ok := r.x.tree.ContentIndex(r.ino)
	c, ok2 := r.x.tree.ContentInfo(idx)
	if !ok || !ok2 || off < 0 || off >= c.Size {
		return 0, io.EOF
	}
	want := int(min(int64(len(p)), c.Size-off))
	for done := 0; done < want; {
		n, err := r.x.read(r.x.life, idx, &c, p[done:want], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	if want < len(p) {
		return want, io.EOF
	}
	return want, nil
}
