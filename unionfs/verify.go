package unionfs

import (
	"fmt"
	"hash/crc32"
	"strings"

	"golang.org/x/sys/unix"
)

// Verify reads the whole file: every section's checksum, and that directories, inodes, contents and chunks make one
// sound tree. The error is a *FormatError that says what is wrong.
func (t *Tree) Verify() error {
	for i, s := range t.header.sections {
		if crc32.Checksum(t.section(i), castagnoli) != s.crc {
			return t.damaged("the checksum of section %s is wrong", sectionTags[i])
		}
	}
	links, err := t.verifyDirs()
	if err != nil {
		return err
	}
	sum := Totals{Names: t.Totals().Names}
	for ino := Root; ino <= t.MaxIno(); ino++ {
		if err := t.verifyInode(ino, links[ino-1], &sum); err != nil {
			return err
		}
	}
	for i := range t.Totals().Contents {
		if err := t.verifyContent(uint32(i), &sum); err != nil {
			return err
		}
	}
	if sum != t.Totals() {
		return t.damaged("it holds %+v and claims %+v", sum, t.Totals())
	}
	return nil
}

func (t *Tree) damaged(format string, a ...any) error {
	return &FormatError{Path: t.path, Reason: "is damaged: " + fmt.Sprintf(format, a...)}
}

// verifyDirs checks all directories and returns the number of links that each inode should have.
func (t *Tree) verifyDirs() ([]uint32, error) {
	links := make([]uint32, t.MaxIno())
	links[Root-1] = 2
	names := 0
	for dir := Root; dir <= t.MaxIno(); dir++ {
		p := t.inodeOf(dir, unix.S_IFDIR)
		if p == nil {
			continue
		}
		e := t.entries(dir)
		if e.t == nil || t.Parent(dir) == 0 {
			return nil, t.damaged("directory %d has entries or a parent outside the tree", dir)
		}
		names += e.n
		before := ""
		for i := range e.n {
			name := e.name(i)
			ino, typ := e.target(i)
			if ino == 0 || name <= before || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
				return nil, t.damaged("entry %d of directory %d makes no sense", i, dir)
			}
			before = name
			if links[ino-1]++; typ == unix.S_IFDIR {
				links[ino-1]++
				links[dir-1]++
			}
		}
	}
	if names != t.Totals().Names {
		return nil, t.damaged("its directories have %d entries instead of %d", names, t.Totals().Names)
	}
	return links, nil
}

// verifyInode checks an inode and counts it in.
func (t *Tree) verifyInode(ino Ino, links uint32, sum *Totals) error {
	a, ok := t.Attr(ino)
	if !ok || a.Nlink != links || links == 0 {
		return t.damaged("inode %d makes no sense", ino)
	}
	sum.Inodes++
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		sum.Files++
		idx, ok := t.ContentIndex(ino)
		if c, ok2 := t.ContentInfo(idx); !ok || !ok2 || c.Size != a.Size {
			return t.damaged("file %d has no content that fits", ino)
		}
	case unix.S_IFDIR:
		sum.Dirs++
	case unix.S_IFLNK:
		sum.Symlinks++
		if target, ok := t.Readlink(ino); !ok || checkSymlink(target) != nil {
			return t.damaged("symlink %d has no target", ino)
		}
	default:
		sum.Specials++
	}
	return t.verifyXattrs(ino)
}

func (t *Tree) verifyXattrs(ino Ino) error {
	set := t.xattrSet(ino)
	if le.Uint32(t.inode(ino)[36:]) != 0 && len(set) == 0 {
		return t.damaged("inode %d has extended attributes outside the tree", ino)
	}
	for before := ""; len(set) > 0; {
		name, _, rest, ok := nextXattr(set)
		if !ok || string(name) <= before {
			return t.damaged("the extended attributes of inode %d make no sense", ino)
		}
		before, set = string(name), rest
	}
	return nil
}

// verifyContent checks a content and counts it in.
func (t *Tree) verifyContent(idx uint32, sum *Totals) error {
	c, ok := t.ContentInfo(idx)
	for i := 0; ok && i < t.NumChunks(idx); i++ {
		var k Chunk
		if k, ok = t.ChunkAt(idx, i); ok {
			c.Chunks = append(c.Chunks, k)
		}
	}
	if !ok {
		return t.damaged("content %d makes no sense", idx)
	}
	if err := checkContent(&t.layers[c.Layer], &c); err != nil {
		return t.damaged("content %d: %v", idx, err)
	}
	sum.Contents++
	sum.ContentBytes += c.Size
	return nil
}
