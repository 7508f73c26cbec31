// Package fs is the FUSE adaptor: it decodes a request, makes one call to a Backend, encodes the reply; it mounts, and
// it chooses how the bytes of a file reach the reader.
//
// It is not a file system: names, attributes, permissions to change and data are the Backend's. It keeps nothing about an
// inode but how often the kernel knows it (refs) and, on the passthrough rung, how it is open (openTable).
//
// Layers, so that the loop that reads /dev/fuse can be replaced:
//
//	Server          puts the others together, on an already mounted descriptor
//	loop            reads requests and writes replies: who reads, who waits, who is woken
//	dispatcher      decodes a request where it lies, encodes the reply
//	wire            one method per opcode over Backend, with go-fuse's structs; no state of the transport
//	refs, openTable what has to be remembered between requests
//
// # Node IDs
//
//	63            48 47                                             0
//	+---------------+-----------------------------------------------+
//	|  epoch        |  inode number (st_ino)                        |
//	+---------------+-----------------------------------------------+
//
// The root is 1. The epoch is 0 but on the passthrough rung, after a file whose backing changed while it was open (openTable). A node
// ID is never given to another inode, so the generation is always 0.
//
// # What the kernel may remember
//
// Nobody but this mount changes the tree, so entries (missing ones too), attributes, symlinks and directory listings are
// valid for ever; the kernel forgets what its own operations change. Where that is not enough the attributes are
// answered with timeout 0: regular files with set-id bits (a write that clears them does not make the kernel forget the mode,
// fs/fuse/file.c fuse_write_update_attr), and files that are open for passthrough writing (a store through a mapping tells nobody).
//
// # Rules
//
// The process that serves must never touch its own mount: it would wait for itself. A request is answered EINTR only if its
// process is dying (requestContext). A panic in a handler answers EIO and the server goes on.
//
// Lock order: none is held over a call to the Backend but openTable's per-node lock, which is taken before any lock of the Backend.
// The loop's lock is innermost.
package fs
