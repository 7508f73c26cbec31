package unionfs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Version is the version of the image tree's format that this package writes.
const Version = 1

const magic = "VNRTREE\n"

// The sections, in file order.
const (
	secLayers = iota
	secInodes
	secDirents
	secNames
	secStrings
	secXattrSets
	secXattrData
	secContents
	secChunks
	secChunkDigests
	numSections
)

var sectionTags = [numSections]string{"LAYR", "INOD", "DENT", "NAME", "STRS", "XSET", "XDAT", "CONT", "CHNK", "CDIG"}

// Bytes per record of a section.
const (
	layerSize    = 96
	inodeSize    = 48
	direntSize   = 8
	xattrSetSize = 16
	contentSize  = 56
	chunkSize    = 24
	digestSize   = 32
)

// recordSizes are 1 for the sections of variable records.
var recordSizes = [numSections]uint64{layerSize, inodeSize, direntSize, 1, 1, xattrSetSize, 1, contentSize, chunkSize, digestSize}

const (
	totalsOff   = 24
	numTotals   = 8
	tableOff    = totalsOff + 8*numTotals
	tableEntry  = 24
	headerSize  = tableOff + numSections*tableEntry + 8
	sectionUnit = 8 // alignment of sections
)

// noDigests says that a content's only chunk has the content's digest.
const noDigests = 0xffffffff

// max48 is the highest number that a chunk's fields hold, and so the size limit of files.
const max48 = 1<<48 - 1

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// FormatError says that a file is not an image tree that can be used: not one at all, damaged, or too new.
type FormatError struct {
	Path    string
	Version uint32 // above [Version] when a newer veneer wrote it, else 0
	Reason  string
}

func (e *FormatError) Error() string {
	if e.Version != 0 {
		return fmt.Sprintf("image tree %s: has format version %d, this veneer reads versions up to %d", e.Path, e.Version, Version)
	}
	return fmt.Sprintf("image tree %s: %s", e.Path, e.Reason)
}

// Totals counts what an image tree holds.
type Totals struct {
	Files        int   // regular files; hard links count once
	Dirs         int   // with the root
	Symlinks     int   // inodes
	Specials     int   // devices, FIFOs, sockets
	Inodes       int   // all of the above
	Names        int   // entries of all directories
	Contents     int   // different contents of files
	ContentBytes int64 // bytes of all contents
}

func (t *Totals) encode(p []byte) {
	for i, v := range []int64{int64(t.Files), int64(t.Dirs), int64(t.Symlinks), int64(t.Specials),
		int64(t.Inodes), int64(t.Names), int64(t.Contents), t.ContentBytes} {
		le.PutUint64(p[8*i:], uint64(v))
	}
}

func (t *Totals) decode(p []byte) {
	for i, v := range []*int{&t.Files, &t.Dirs, &t.Symlinks, &t.Specials, &t.Inodes, &t.Names, &t.Contents} {
		*v = int(le.Uint64(p[8*i:]))
	}
	t.ContentBytes = int64(le.Uint64(p[8*(numTotals-1):]))
}

// section is a row of the section table.
type section struct {
	crc      uint32
	off, len uint64
}

// header is the start of the file.
type header struct {
	size     uint64 // of the file
	totals   Totals
	sections [numSections]section
}

func (h *header) encode() []byte {
	p := make([]byte, headerSize)
	copy(p, magic)
	le.PutUint32(p[8:], Version)
	le.PutUint32(p[12:], headerSize)
	le.PutUint64(p[16:], h.size)
	h.totals.encode(p[totalsOff:])
	for i, s := range h.sections {
		row := p[tableOff+i*tableEntry:]
		copy(row, sectionTags[i])
		le.PutUint32(row[4:], s.crc)
		le.PutUint64(row[8:], s.off)
		le.PutUint64(row[16:], s.len)
	}
	le.PutUint32(p[headerSize-4:], crc32.Checksum(p[:headerSize-4], castagnoli))
	return p
}

// decode reads a header from the first bytes of a file of size bytes. It checks everything that is there to check
// without looking behind the header.
func (h *header) decode(p []byte, size uint64) *FormatError {
	bad := func(format string, a ...any) *FormatError { return &FormatError{Reason: fmt.Sprintf(format, a...)} }
	if len(p) < 16 || string(p[:8]) != magic {
		return bad("is not an image tree")
	}
	if v := le.Uint32(p[8:]); v > Version {
		return &FormatError{Version: v}
	} else if v != Version {
		return bad("has the unknown format version %d", v)
	}
	if len(p) < headerSize || le.Uint32(p[12:]) != headerSize {
		return bad("is damaged: the header is cut short")
	}
	if crc32.Checksum(p[:headerSize-4], castagnoli) != le.Uint32(p[headerSize-4:]) {
		return bad("is damaged: the header's checksum is wrong")
	}
	if h.size = le.Uint64(p[16:]); h.size != size {
		return bad("is damaged: it has %d bytes instead of %d", size, h.size)
	}
	h.totals.decode(p[totalsOff:])
	end := uint64(headerSize)
	for i := range h.sections {
		row := p[tableOff+i*tableEntry:]
		s := section{crc: le.Uint32(row[4:]), off: le.Uint64(row[8:]), len: le.Uint64(row[16:])}
		if string(row[:4]) != sectionTags[i] || s.off%sectionUnit != 0 || s.off < end || s.off > size ||
			s.len > size-s.off || s.len%recordSizes[i] != 0 {
			return bad("is damaged: section %s is not where it can be", sectionTags[i])
		}
		h.sections[i], end = s, s.off+s.len
	}
	return h.checkTotals()
}

// checkTotals holds the counts that callers allocate by against the sections' lengths.
func (h *header) checkTotals() *FormatError {
	t := h.totals
	count := func(sec int) int { return int(h.sections[sec].len / recordSizes[sec]) }
	sum := 0
	for _, n := range []int{t.Files, t.Dirs, t.Symlinks, t.Specials} {
		if n < 0 || n > t.Inodes {
			return &FormatError{Reason: "is damaged: its totals make no sense"}
		}
		sum += n
	}
	if t.Inodes != count(secInodes) || t.Names != count(secDirents) || t.Contents != count(secContents) ||
		sum != t.Inodes || t.Inodes == 0 || t.Inodes > noDigests || t.ContentBytes < 0 {
		return &FormatError{Reason: "is damaged: its totals make no sense"}
	}
	return nil
}

func put48(p []byte, v int64) {
	le.PutUint32(p, uint32(v))
	le.PutUint16(p[4:], uint16(v>>32))
}

func get48(p []byte) int64 {
	_ = p[5]
	return int64(le.Uint32(p)) | int64(le.Uint16(p[4:]))<<32
}
