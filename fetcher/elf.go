package fetcher

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// elfNeeds is what a program or a library needs to be loaded.
type elfNeeds struct {
	interp string   // the path of the loader, or ""
	names  []string // of libraries: DT_NEEDED
	paths  []string // where they are looked for before the default places: DT_RUNPATH, DT_RPATH
}

// The bounds of what is read of a file for that.
const (
	maxSegments  = 128
	maxDynamic   = 64 << 10
	maxNeeds     = 256
	maxElfString = 1024
)

// errNoElf means that a file is not of a kind that is understood: 64 bits, little-endian.
var errNoElf = errors.New("not a 64-bit little-endian ELF file")

// readElfNeeds reads the headers of a file, not its sections: those are at its end, and not needed to load it.
func readElfNeeds(r io.ReaderAt) (*elfNeeds, error) {
	var h elf.Header64
	if err := readStruct(r, 0, &h); err != nil {
		return nil, err
	}
	if string(h.Ident[:4]) != elf.ELFMAG || h.Ident[elf.EI_CLASS] != byte(elf.ELFCLASS64) || h.Ident[elf.EI_DATA] != byte(elf.ELFDATA2LSB) {
		return nil, errNoElf
	}
	if h.Phnum > maxSegments || h.Phoff > 1<<40 || h.Phentsize != 56 {
		return nil, fmt.Errorf("%w: program headers", errNoElf)
	}
	segments := make([]elf.Prog64, h.Phnum)
	if err := readStruct(r, int64(h.Phoff), segments); err != nil {
		return nil, err
	}
	n := new(elfNeeds)
	for _, s := range segments {
		var err error
		switch elf.ProgType(s.Type) {
		case elf.PT_INTERP:
			n.interp, err = readElfString(r, s.Off)
		case elf.PT_DYNAMIC:
			err = n.readDynamic(r, segments, &s)
		}
		if err != nil {
			return nil, err
		}
	}
	return n, nil
}

// readDynamic reads the names in a dynamic section. They are offsets in a string table, of which the address in memory is known.
func (n *elfNeeds) readDynamic(r io.ReaderAt, segments []elf.Prog64, s *elf.Prog64) error {
	entries := make([]elf.Dyn64, min(s.Filesz, maxDynamic)/16)
	if err := readStruct(r, int64(min(s.Off, 1<<40)), entries); err != nil {
		return err
	}
	var names, paths []uint64
	table, ok := uint64(0), false
	for _, e := range entries {
		switch elf.DynTag(e.Tag) {
		case elf.DT_NEEDED:
			names = append(names, e.Val)
		case elf.DT_RUNPATH, elf.DT_RPATH:
			paths = append(paths, e.Val)
		case elf.DT_STRTAB:
			table, ok = fileOffset(segments, e.Val)
		}
	}
	if !ok || len(names) > maxNeeds || len(paths) > maxNeeds {
		return nil // nothing is linked to it, or too much
	}
	for _, at := range names {
		name, err := readElfString(r, table+at)
		if err != nil {
			return err
		}
		n.names = append(n.names, name)
	}
	for _, at := range paths {
		list, err := readElfString(r, table+at)
		if err != nil {
			return err
		}
		n.paths = append(n.paths, strings.Split(list, ":")...)
	}
	return nil
}

// fileOffset returns where in the file the byte is that is loaded at an address.
func fileOffset(segments []elf.Prog64, addr uint64) (uint64, bool) {
	for _, s := range segments {
		if elf.ProgType(s.Type) == elf.PT_LOAD && addr >= s.Vaddr && addr-s.Vaddr < s.Filesz {
			return s.Off + addr - s.Vaddr, true
		}
	}
	return 0, false
}

// readElfString reads up to a zero byte.
func readElfString(r io.ReaderAt, off uint64) (string, error) {
	if off > 1<<40 {
		return "", fmt.Errorf("%w: a string at %d", errNoElf, off)
	}
	var b [maxElfString]byte
	n, err := r.ReadAt(b[:], int64(off))
	s, _, ok := bytes.Cut(b[:n], []byte{0})
	if !ok {
		return "", errors.Join(fmt.Errorf("%w: a string without an end", errNoElf), ignoring(err, io.EOF))
	}
	return string(s), nil
}

func readStruct(r io.ReaderAt, off int64, v any) error {
	return binary.Read(io.NewSectionReader(r, off, int64(binary.Size(v))), binary.LittleEndian, v)
}
