package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/veneerfs/veneer/unionfs"
)

// The kernel makes node 1, the root of the mount, before INIT tells it that there are POSIX ACLs, and so it never keeps the ACL of that
// node (fs/fuse/inode.c fuse_init_inode, ACL_DONT_CACHE): every path from the root would cost a request of whoever does not own the
// root. With Options.Nested the root of the tree is another node, in node 1 under InnerRoot, which is all that node 1 has:
//
//	node 1 ── InnerRoot ── innerNode: the root of the tree (inode 1)
//
// Who mounts it uses that directory as the root. It is a directory of the mount, so ".." of it leads nowhere when it is bound or pivoted to.

// InnerRoot is the name of the tree's root in a mount with Options.Nested.
const InnerRoot = "tree"

// innerNode is a node ID that no inode has: a directory has no epoch (openTable).
const innerNode = uint64(unionfs.Root) | 1<<epochShift

// outer answers a request for node 1 of a nested mount.
func (d *dispatcher) outer(r *request) int {
	h, w := r.header(), d.wire
	switch h.Opcode {
	case codeForget:
		return 0
	case codeGetattr, codeStatx, codeStatfs, codeAccess:
		return d.inode(r)
	case codeOpendir, codeReleasedir:
		return d.dir(r)
	case codeReaddir, codeReaddirplus:
		return r.done(fuse.OK, 0) // nobody is meant to look
	case codeLookup:
		_, b := args[fuse.InHeader](r)
		if name, _ := cutName(b); name != InnerRoot {
			return r.done(fuse.ENOENT, 0)
		}
		out := result[fuse.EntryOut](r)
		w.count(opLookup)
		a, err := w.b.GetAttr(unionfs.Root)
		return doneWith(r, w.made(&a, err, "LOOKUP", h.NodeId, out), out)
	}
	return r.done(fuse.EPERM, 0)
}
