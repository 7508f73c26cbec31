package fs

import (
	"runtime/debug"
	"strings"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// The opcodes of linux/fuse.h that we are asked.
const (
	codeLookup        = 1
	codeForget        = 2
	codeGetattr       = 3
	codeSetattr       = 4
	codeReadlink      = 5
	codeSymlink       = 6
	codeMknod         = 8
	codeMkdir         = 9
	codeUnlink        = 10
	codeRmdir         = 11
	codeRename        = 12
	codeLink          = 13
	codeOpen          = 14
	codeRead          = 15
	codeWrite         = 16
	codeStatfs        = 17
	codeRelease       = 18
	codeFsync         = 20
	codeSetxattr      = 21
	codeGetxattr      = 22
	codeListxattr     = 23
	codeRemovexattr   = 24
	codeFlush         = 25
	codeInit          = 26
	codeOpendir       = 27
	codeReaddir       = 28
	codeReleasedir    = 29
	codeFsyncdir      = 30
	codeAccess        = 34
	codeCreate        = 35
	codeInterrupt     = 36
	codeDestroy       = 38
	codeIoctl         = 39
	codeBatchForget   = 42
	codeFallocate     = 43
	codeReaddirplus   = 44
	codeRename2       = 45
	codeLseek         = 46
	codeCopyFileRange = 47
	codeTmpfile       = 51
	codeStatx         = 52
)

// dispatcher decodes requests in their buffers, calls wire, and encodes the replies.
type dispatcher struct {
	wire *wire
	loop *loop
	// flags are what INIT agreed on; they decide the form of some requests.
	flags uint64
}

// handle answers one request and returns the length of the reply in r.out, or 0 when there is to be none. A panic is EIO.
func (d *dispatcher) handle(r *request) (n int) {
	defer func() {
		if p := recover(); p != nil {
			d.wire.log.Error("panic in a request", "panic", p, "stack", strings.TrimSpace(string(debug.Stack())))
			n = r.done(fuse.EIO, 0)
		}
	}()
	if r.n < inHeaderSize {
		d.wire.log.Error("a request without a header", "bytes", r.n)
		return 0
	}
	if h := r.header(); d.wire.nested && h.NodeId == fuse.FUSE_ROOT_ID && h.Opcode != codeInterrupt && h.Opcode != codeBatchForget {
		return d.outer(r)
	}
	switch r.header().Opcode {
	case codeLookup, codeGetattr, codeSetattr, codeReadlink, codeAccess, codeStatfs, codeStatx, codeForget, codeBatchForget:
		return d.inode(r)
	case codeSymlink, codeMknod, codeMkdir, codeUnlink, codeRmdir, codeRename, codeRename2, codeLink:
		return d.name(r)
	case codeOpen, codeCreate, codeTmpfile, codeRead, codeWrite, codeRelease, codeFlush, codeLseek:
		return d.file(r)
	case codeFsync, codeFsyncdir, codeFallocate, codeCopyFileRange:
		d.loop.yield(r)
		return d.slow(r)
	case codeOpendir, codeReaddir, codeReaddirplus, codeReleasedir:
		return d.dir(r)
	case codeSetxattr, codeGetxattr, codeListxattr, codeRemovexattr:
		return d.xattr(r)
	case codeInterrupt:
		return d.interrupt(r)
	case codeIoctl:
		return d.ioctl(r)
	case codeDestroy:
		return r.done(fuse.OK, 0)
	}
	return r.done(fuse.ENOSYS, 0)
}

func (d *dispatcher) inode(r *request) int {
	h, w := r.header(), d.wire
	switch h.Opcode {
	case codeLookup:
		_, b := args[fuse.InHeader](r)
		name, _ := cutName(b)
		out := result[fuse.EntryOut](r)
		return doneWith(r, w.Lookup(r.cancel, h, name, out), out)
	case codeGetattr:
		in, _ := args[fuse.GetAttrIn](r)
		out := result[fuse.AttrOut](r)
		return doneWith(r, w.GetAttr(r.cancel, in, out), out)
	case codeSetattr:
		in, _ := args[fuse.SetAttrIn](r)
		out := result[fuse.AttrOut](r)
		return doneWith(r, w.SetAttr(r.cancel, in, out), out)
	case codeStatx:
		in, _ := args[fuse.StatxIn](r)
		out := result[fuse.StatxOut](r)
		return doneWith(r, w.Statx(r.cancel, in, out), out)
	case codeReadlink:
		target, status := w.Readlink(r.cancel, h)
		return r.done(status, copy(r.room(maxRequest), target))
	case codeStatfs:
		out := result[fuse.StatfsOut](r)
		return doneWith(r, w.StatFs(r.cancel, h, out), out)
	case codeForget:
		in, _ := args[fuse.ForgetIn](r)
		w.Forget(h.NodeId, in.Nlookup)
		return 0
	case codeBatchForget:
		d.batchForget(r)
		return 0
	}
	in, _ := args[fuse.AccessIn](r)
	return r.done(w.Access(r.cancel, in), 0)
}

func (d *dispatcher) batchForget(r *request) {
	type batch struct {
		fuse.InHeader
		count, _ uint32
	}
	type one struct{ node, lookups uint64 }
	in, b := args[batch](r)
	if uint64(in.count)*uint64(unsafe.Sizeof(one{})) > uint64(len(b)) {
		panic(errMalformed)
	}
	for _, f := range unsafe.Slice((*one)(unsafe.Pointer(unsafe.SliceData(b))), in.count) {
		d.wire.Forget(f.node, f.lookups)
	}
}

// name does the operations on names. What they keep of a name they copy.
func (d *dispatcher) name(r *request) int {
	h, w := r.header(), d.wire
	switch h.Opcode {
	case codeUnlink, codeRmdir:
		_, b := args[fuse.InHeader](r)
		name, _ := cutName(b)
		if h.Opcode == codeRmdir {
			return r.done(w.Rmdir(r.cancel, h, strings.Clone(name)), 0)
		}
		return r.done(w.Unlink(r.cancel, h, strings.Clone(name)), 0)
	case codeRename, codeRename2:
		return d.rename(r)
	}
	out := result[fuse.EntryOut](r)
	switch h.Opcode {
	case codeMknod:
		in, b := args[fuse.MknodIn](r)
		name, _ := cutName(b)
		return doneWith(r, w.Mknod(r.cancel, in, strings.Clone(name), out), out)
	case codeMkdir:
		in, b := args[fuse.MkdirIn](r)
		name, _ := cutName(b)
		return doneWith(r, w.Mkdir(r.cancel, in, strings.Clone(name), out), out)
	case codeSymlink:
		_, b := args[fuse.InHeader](r)
		name, b := cutName(b)
		target, _ := cutName(b)
		return doneWith(r, w.Symlink(r.cancel, h, strings.Clone(target), strings.Clone(name), out), out)
	}
	in, b := args[fuse.LinkIn](r)
	name, _ := cutName(b)
	return doneWith(r, w.Link(r.cancel, in, strings.Clone(name), out), out)
}

func (d *dispatcher) rename(r *request) int {
	type oldRename struct {
		fuse.InHeader
		newdir uint64
	}
	var in fuse.RenameIn
	var b []byte
	if r.header().Opcode == codeRename {
		var old *oldRename
		old, b = args[oldRename](r)
		in = fuse.RenameIn{InHeader: old.InHeader, Newdir: old.newdir}
	} else {
		var p *fuse.RenameIn
		p, b = args[fuse.RenameIn](r)
		in = *p
	}
	from, b := cutName(b)
	to, _ := cutName(b)
	return r.done(d.wire.Rename(r.cancel, &in, strings.Clone(from), strings.Clone(to)), 0)
}

func (d *dispatcher) file(r *request) int {
	w := d.wire
	switch r.header().Opcode {
	case codeRead:
		in, _ := args[fuse.ReadIn](r)
		n, status := w.read(r.cancel, in, r.room(in.Size))
		return r.done(status, n)
	case codeWrite:
		in, b := args[fuse.WriteIn](r)
		if uint64(in.Size) > uint64(len(b)) {
			panic(errMalformed)
		}
		out := result[fuse.WriteOut](r)
		var status fuse.Status
		out.Size, status = w.Write(r.cancel, in, b[:in.Size])
		return doneWith(r, status, out)
	case codeOpen:
		in, _ := args[fuse.OpenIn](r)
		out := result[fuse.OpenOut](r)
		return doneWith(r, w.Open(r.cancel, in, out), out)
	case codeCreate:
		in, b := args[fuse.CreateIn](r)
		name, _ := cutName(b)
		out := result[fuse.CreateOut](r)
		return doneWith(r, w.Create(r.cancel, in, strings.Clone(name), out), out)
	case codeTmpfile:
		in, _ := args[fuse.CreateIn](r) // its name means nothing
		out := result[fuse.CreateOut](r)
		return doneWith(r, w.Tmpfile(r.cancel, in, out), out)
	case codeRelease:
		in, _ := args[fuse.ReleaseIn](r)
		w.Release(r.cancel, in)
		return r.done(fuse.OK, 0)
	case codeFlush:
		in, _ := args[fuse.FlushIn](r)
		return r.done(w.Flush(r.cancel, in), 0)
	}
	in, _ := args[fuse.LseekIn](r)
	out := result[fuse.LseekOut](r)
	return doneWith(r, w.Lseek(r.cancel, in, out), out)
}

// slow does what waits for a disk.
func (d *dispatcher) slow(r *request) int {
	w := d.wire
	switch r.header().Opcode {
	case codeFsync:
		in, _ := args[fuse.FsyncIn](r)
		return r.done(w.Fsync(r.cancel, in), 0)
	case codeFsyncdir:
		in, _ := args[fuse.FsyncIn](r)
		return r.done(w.FsyncDir(r.cancel, in), 0)
	case codeFallocate:
		in, _ := args[fuse.FallocateIn](r)
		return r.done(w.Fallocate(r.cancel, in), 0)
	}
	in, _ := args[fuse.CopyFileRangeIn](r)
	out := result[fuse.WriteOut](r)
	var status fuse.Status
	out.Size, status = w.CopyFileRange(r.cancel, in)
	return doneWith(r, status, out)
}

func (d *dispatcher) dir(r *request) int {
	w := d.wire
	switch r.header().Opcode {
	case codeOpendir:
		in, _ := args[fuse.OpenIn](r)
		out := result[fuse.OpenOut](r)
		return doneWith(r, w.OpenDir(r.cancel, in, out), out)
	case codeReleasedir:
		in, _ := args[fuse.ReleaseIn](r)
		w.ReleaseDir(in)
		return r.done(fuse.OK, 0)
	}
	in, _ := args[fuse.ReadIn](r)
	list := fuse.NewDirEntryList(r.room(in.Size), in.Offset)
	var status fuse.Status
	if r.header().Opcode == codeReaddir {
		status = w.ReadDir(r.cancel, in, list)
	} else {
		status = w.ReadDirPlus(r.cancel, in, list)
	}
	return r.done(status, len(list.Bytes()))
}

func (d *dispatcher) xattr(r *request) int {
	h, w := r.header(), d.wire
	switch h.Opcode {
	case codeSetxattr:
		return d.setXattr(r)
	case codeRemovexattr:
		_, b := args[fuse.InHeader](r)
		name, _ := cutName(b)
		return r.done(w.RemoveXAttr(r.cancel, h, strings.Clone(name)), 0)
	}
	in, b := args[fuse.GetXAttrIn](r)
	size := in.Size
	dest := r.room(size)
	var n uint32
	var status fuse.Status
	if h.Opcode == codeListxattr {
		n, status = w.ListXAttr(r.cancel, h, dest)
	} else {
		name, _ := cutName(b)
		n, status = w.GetXAttr(r.cancel, h, strings.Clone(name), dest)
	}
	if size > 0 {
		return r.done(status, int(n))
	}
	if status == fuse.ERANGE { // the question was how large it is
		status = fuse.OK
	}
	out := result[fuse.GetXAttrOut](r)
	out.Size = n
	return doneWith(r, status, out)
}

func (d *dispatcher) setXattr(r *request) int {
	type oldSetXattr struct {
		fuse.InHeader
		size, flags uint32
	}
	var in fuse.SetXAttrIn
	var b []byte
	if d.flags&fuse.CAP_SETXATTR_EXT == 0 {
		var old *oldSetXattr
		old, b = args[oldSetXattr](r)
		in = fuse.SetXAttrIn{InHeader: old.InHeader, Size: old.size, Flags: old.flags}
	} else {
		var p *fuse.SetXAttrIn
		p, b = args[fuse.SetXAttrIn](r)
		in = *p
	}
	name, value := cutName(b)
	if uint64(in.Size) > uint64(len(value)) {
		panic(errMalformed)
	}
	return r.done(d.wire.SetXAttr(r.cancel, &in, strings.Clone(name), value[:in.Size]), 0)
}

// interrupt has no reply, but when we do not know the request: the kernel then asks again if it is still waiting.
func (d *dispatcher) interrupt(r *request) int {
	in, _ := args[fuse.InterruptIn](r)
	if d.loop.interrupt(in.Unique) {
		return 0
	}
	return r.done(fuse.EAGAIN, 0)
}

func (d *dispatcher) ioctl(r *request) int {
	in, b := args[fuse.IoctlIn](r)
	out := result[fuse.IoctlOut](r)
	return doneWith(r, d.wire.Ioctl(r.cancel, in, b, out, nil), out)
}
