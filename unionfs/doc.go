// Package unionfs is the read-only side: it merges the layers of an image into one image tree.
//
// A [Builder] takes the entries of each layer, bottom first, applies the OCI layer rules in memory and writes the
// result once. A [Tree] maps that file and answers from it: opening costs the same for ten files and for a million,
// a lookup costs the same for one layer and for 128, and no Go memory is held per file. The package does no network
// and no FUSE; what it reads is one file, or with [Builder.AddDir] host directories.
//
// # The file
//
// Immutable, little-endian, the same bytes for the same entries. Sections follow the header in this order, each
// starting at a multiple of 8:
//
//	┌────────────────────────────────────────────────────────────────────────────────┐
//	│ header   magic "VNRTREE\n" · version u32 · header bytes u32 · file bytes u64   │
//	│          totals: 8 × u64                                                       │
//	│          section table: 10 × {tag [4]byte, CRC-32C u32, offset u64, bytes u64} │
//	│          0 u32 · CRC-32C of all header bytes before it u32                     │
//	├────────────────────────────────────────────────────────────────────────────────┤
//	│ LAYR  96 each                                                                  │
//	│ INOD  48 each: place i is inode number i+1, so the root is the first           │
//	│ DENT   8 each: name u32 (in NAME), inode u32; a directory's are adjacent       │
//	│                and sorted by the bytes of the name                             │
//	│ NAME  length u8, bytes; in the order of DENT                                   │
//	│ STRS  length u32, bytes: symlink targets, paths, media types                   │
//	│ XSET  16 each: offset u64 (in XDAT), bytes u32, 0 u32; equal sets are one      │
//	│ XDAT  name length u8, value length u32, name, value; a set's sorted by name    │
//	│ CONT  56 each                                                                  │
//	│ CHNK  24 each, four 48-bit numbers: offset, blob offset, blob bytes, inner;    │
//	│                a chunk ends where the content's next one starts                │
//	│ CDIG  32 each: digests of chunks                                               │
//	└────────────────────────────────────────────────────────────────────────────────┘
//
//	LAYR  0 digest │32 diff ID │64 size i64│72 media type u32 and 76 path u32 (in STRS)│80 format u8│81 zeros
//	INOD  0 mtime s i64 │ 8 size i64, or a directory's first DENT u32 and its own DENT u32, or rdev u64
//	     16 mtime ns u32│20 mode u32│24 uid u32│28 gid u32│32 nlink u32│36 place in XSET + 1, or 0
//	     40 content, or symlink target (in STRS), or a directory's number of entries │ 44 a directory's parent, or 0
//	CONT  0 digest │32 size i64│40 first CHNK u32, or the path's directory (in STRS)│44 number of chunks u32, or the path's
//	      name (in STRS)│48 layer u32│52 first CDIG u32, or 0xffffffff: the only chunk's digest is the content's
//
// Inodes are numbered directory by directory, depth first: the entries of a directory have adjacent numbers, all
// below a directory is one range, and a directory's number is above its parent's. That order and a directory's record of its
// own entry make every walk of a damaged file end: a directory can be reached by one name only.
//
// # Trust
//
// [Open] checks the header's checksum and that all sections lie in the file; [Tree.Verify] checks all of the rest.
// Between the two nothing is trusted: each accessor checks each number it follows, and a damaged or hostile file is
// answered with "not there", never with a panic, an endless loop or a read outside the mapping. The one thing that
// can't be answered so is a file that is truncated while it is mapped: trees are replaced by rename, never in place.
//
// # The merge
//
// Within a layer entries may come in any order, a later one replaces an earlier one of the same name. Whiteouts
// (.wh.NAME) and opaque marks (.wh..wh..opq) hide only what lower layers brought, wherever they stand in their layer.
// What AUFS left behind (.wh..wh.*) is ignored. A parent that is missing is made with mode 0755, owner root and time 0; a
// parent that is a symlink is resolved inside the root, as umoci does; one that is another non-directory is replaced.
// Hard links are resolved when the layer ends, so their target may come later; a target in the layer itself goes
// before one in lower layers, and neither a later replacement nor a whiteout of the target touches the link.
//
// The entries that eStargz keeps for itself at the root of a layer (stargz.index.json and the prefetch landmarks) are
// not part of the image: they are left out of FormatEStargz and FormatZstdChunked layers, and of a FormatPlain layer that
// has a stargz.index.json, which is how an eStargz layer looks when it is read as a plain one.
package unionfs
