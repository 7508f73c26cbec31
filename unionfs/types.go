package unionfs

import "fmt"

// Ino is an inode number: st_ino of the mount. Image files have their place in the image tree (Root is 1);
// the writable layer numbers its own inodes from Tree.MaxIno()+1 on.
type Ino = uint64

// Root is the inode number of "/".
const Root Ino = 1

// Time is a point in time as the kernel's struct timespec has it: Sec may be negative, Nsec is 0..999999999.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Attr is what stat(2) tells of an inode.
type Attr struct {
	Ino   Ino
	Mode  uint32 // st_mode: S_IFMT type bits and 07777 permission bits
	Nlink uint32
	UID   uint32
	GID   uint32
	Rdev  uint64 // as unix.Mkdev makes it; 0 unless a device
	Size  int64  // bytes
	// Blocks counts 512-byte units. An image file counts its whole size, whether or not it is here.
	Blocks                     int64
	Atime, Mtime, Ctime, Btime Time
}

// Dirent is one entry of a directory. Type is the S_IFMT bits of the target. Next is the position to continue
// after this entry; it stays valid while other entries come and go.
type Dirent struct {
	Name string
	Ino  Ino
	Type uint32
	Next uint64
}

// Digest is a sha256.
type Digest [32]byte

// String returns the digest as OCI writes it.
func (d Digest) String() string { return fmt.Sprintf("sha256:%x", d[:]) }

// Format says how the bytes of a layer are had.
type Format uint8

// The formats of a layer.
const (
	FormatPlain       Format = iota + 1 // streamed whole into the content store (tar, gzip, zstd)
	FormatEStargz                       // gzip members, fetched by range
	FormatZstdChunked                   // zstd frames, fetched by range
	FormatDir                           // a host directory
)

// Layer is one layer of an image tree, bottom first.
type Layer struct {
	Format    Format
	Digest    Digest // of the blob; zero for FormatDir
	DiffID    Digest // of the uncompressed tar; zero for FormatDir
	Size      int64  // of the blob, bytes
	MediaType string
	Path      string // FormatDir: the host directory
}

// Chunk is a run of a file's bytes, compressed together and verified together.
type Chunk struct {
	Offset   int64  // in the file
	Size     int64  // uncompressed bytes
	Digest   Digest // of the uncompressed bytes
	BlobOff  int64  // where the compressed member (gzip member, zstd frame) starts in the blob
	BlobSize int64  // compressed bytes of that member; 0: the chunk is zeros, of which the blob holds nothing
	Inner    int64  // where the chunk starts in the decompressed member
}

// Content tells where the bytes of a regular file of the image come from.
type Content struct {
	Digest Digest // sha256 of the file's bytes, as the layer's TOC claims or as it was computed; zero for FormatDir
	Size   int64
	Layer  int     // index into Tree.Layers
	Chunks []Chunk // in order, without gaps; empty unless the layer's format is fetched by range
	Path   string  // FormatDir: the path below Layer.Path
}

// Entry is one entry of a layer, as a tar header or a TOC has it. Nothing in it is trusted: Builder.Add checks it.
type Entry struct {
	Name     string // path in the layer; whiteouts by their .wh. names
	Mode     uint32 // S_IFMT type bits (0 with Link set) and 07777 permission bits
	Link     string // hard link: path of the target in the layer
	Symlink  string // S_IFLNK: the target
	UID, GID uint32
	Rdev     uint64
	Size     int64
	Mtime    Time
	Xattrs   map[string]string // binary values
	Content  Content           // S_IFREG; Layer is set by the Builder
}

// The attributes that a SetAttr changes.
const (
	SetMode uint32 = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
	SetCtime
	SetKillPriv // clear set-id bits and security.capability, as the kernel asks with a truncate or a chown
	SetKillSGID // clear S_ISGID also where it goes without group-execute: by who is not in the file's group
)

// SetAttr is a change of attributes: those whose bit is in Valid. Times are already resolved (no UTIME_NOW).
type SetAttr struct {
	Valid               uint32
	Mode                uint32 // 07777 bits
	UID, GID            uint32
	Size                int64
	Atime, Mtime, Ctime Time
}

// Owner is who makes a new inode. A set-group-id directory passes its own group on instead, and one with a default ACL
// its ACL in place of the umask.
type Owner struct {
	UID, GID uint32
	Umask    uint32
}

// XattrKillSGID is a flag of SetXattr besides setxattr(2)'s, for an access ACL: clear the set-group-id bit.
const XattrKillSGID = 1 << 31

// StatFS is what statfs(2) tells of the mount.
type StatFS struct {
	Blocks, BlocksFree, BlocksAvail uint64 // of BlockSize bytes
	Files, FilesFree                uint64
	BlockSize, NameLen              uint32
}
