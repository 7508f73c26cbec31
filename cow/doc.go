// Package cow is the writable layer of a container: the image tree and what the container changed, as one tree.
//
// # Delta
//
// What the container changed is a delta over inodes. An image inode that was never changed has no memory here and is
// answered from the tree. One that was has a node: its attributes; for a directory the entries that differ; for a
// file the runs that are in its data object, while the rest is still the image's. Inode numbers never change and are
// never used twice, also not after a restart.
//
// # State directory
//
//	lock         flock: one server at a time
//	checkpoint   the delta as it was at some record
//	journal.N    the records since; N grows by one with every checkpoint
//	pack         the content of files up to 64 KiB without holes (drawn in pack.go)
//	data/X/Y     the data object of inode Y (hex, X is Y/4096): a sparse file with bytes at the offsets of the file's
//
// Journal and checkpoint begin with a header and are a sequence of frames (drawn in journal.go), each with length,
// CRC32C and sequence number; a frame's payload is a list of changes (record.go). Numbers are little-endian.
// A version that is newer than ours is refused (*VersionError), as is another image's state (*TreeError).
//
// # Sessions
//
// A mount may outlive the server that was killed. For the one that goes on with it, within the same session ([Options.Session]), what has no name
// lives on until Forget, and it is known which requests were executed (session.go).
//
// # What was answered is kept
//
// An operation is one record: first its bytes are in the pack or the data object, then its record in the journal, then it
// is true in memory, then it is answered. The page cache outlives a killed server, so a new one finds what was answered,
// and at most the one operation more that was under way. A record that the disk has no room for is cut off again, the
// operation fails, and nothing has changed.
//
// After a power loss (a journal that was written in another boot of the machine) the state is that of the last commit
// (commit.go): Fsync makes one, and so does time. A commit covers the whole history before it, names and content, so a
// file that was renamed over another after it was synced is there whole, and one that was never synced is as it was after
// some operation. Bytes that are overwritten in place are the exception: only Fsync of their file is sure to have them.
// A file that the kernel writes (OpenBacking) has what the host's file system promises.
//
// A torn tail of the journal (an append that was cut short) is cut off silently. Damage anywhere else is refused with
// its place (*DamageError).
//
// # What changed
//
// A [Snapshot] reads the delta without the lock, while a server may be writing it, and tells what differs from the image as
// paths: for people, and as the tar of a layer. The walk starts from the nodes of the delta and looks only at directories in
// which, or below which, there is one. A layer carries for each file that differs all of it: a layer has no way to say
// "as below, but with another mode". What a layer does not carry is lost in it: atime, ctime, birth time, sockets, holes.
//
// # Damage
//
// A damaged state is not opened. [Check] says what is wrong with one. [Salvage] reads it all the same: a journal up to
// its first damage, because each record builds on those before; of a checkpoint every whole frame, because each says
// all of some inodes, then what of the journal still finds what it is about. It never says what was not written, but
// of a file whose directory is lost only the number is left of its name.
//
// # Locks
//
// In this order; no lock is held over Contents, which may wait for the network:
//
//	data (by inode)  held by a change of content, over the data object and the record
//	op               held by every change of the delta, over its checks, the journal and the change in memory: changes
//	                 are made in the order of their records. Who has op may read the delta without st
//	st               for reading: to look at the delta, briefly. For writing, under op: to change it in memory, never
//	                 over I/O. So readers never wait for the disk
//	pack.gate        for reading: by who reads a slot, before st
//	flushMu          held over what syncs data; op may be held
//	jmu, journal.mu, objects.mu, pack.mu, freedList.mu, held.mu, usage.mu   innermost
//
// The contract of each operation (what holds before, after, and after a crash) is in its comment.
package cow
