package runtime

import (
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mountOptions are the options of one mount of the configuration, sorted by how they reach the kernel.
type mountOptions struct {
	flags       uintptr   // of mount(2)
	cleared     uintptr   // flags that the options turn off: a bind mount must not inherit them from its source
	propagation []uintptr // applied after mounting, in order
	recSet      uint64    // mount_setattr(2) with AT_RECURSIVE
	recClear    uint64
	data        string // file-system-specific
}

func (o *mountOptions) bind() bool    { return o.flags&unix.MS_BIND != 0 }
func (o *mountOptions) remount() bool { return o.flags&unix.MS_REMOUNT != 0 }
func (o *mountOptions) ro() bool      { return o.flags&unix.MS_RDONLY != 0 }

type mountFlag struct {
	clear bool
	flag  uintptr
}

// mountFlags are the options of config.md's table that set or clear a flag of mount(2).
var mountFlags = map[string]mountFlag{
	"async":         {true, unix.MS_SYNCHRONOUS},
	"atime":         {true, unix.MS_NOATIME},
	"bind":          {false, unix.MS_BIND},
	"defaults":      {false, 0},
	"dev":           {true, unix.MS_NODEV},
	"diratime":      {true, unix.MS_NODIRATIME},
	"dirsync":       {false, unix.MS_DIRSYNC},
	"exec":          {true, unix.MS_NOEXEC},
	"iversion":      {false, unix.MS_I_VERSION},
	"lazytime":      {false, unix.MS_LAZYTIME},
	"loud":          {true, unix.MS_SILENT},
	"mand":          {false, unix.MS_MANDLOCK},
	"noatime":       {false, unix.MS_NOATIME},
	"nodev":         {false, unix.MS_NODEV},
	"nodiratime":    {false, unix.MS_NODIRATIME},
	"noexec":        {false, unix.MS_NOEXEC},
	"noiversion":    {true, unix.MS_I_VERSION},
	"nolazytime":    {true, unix.MS_LAZYTIME},
	"nomand":        {true, unix.MS_MANDLOCK},
	"norelatime":    {true, unix.MS_RELATIME},
	"nostrictatime": {true, unix.MS_STRICTATIME},
	"nosuid":        {false, unix.MS_NOSUID},
	"nosymfollow":   {false, unix.MS_NOSYMFOLLOW},
	"rbind":         {false, unix.MS_BIND | unix.MS_REC},
	"relatime":      {false, unix.MS_RELATIME},
	"remount":       {false, unix.MS_REMOUNT},
	"ro":            {false, unix.MS_RDONLY},
	"rw":            {true, unix.MS_RDONLY},
	"silent":        {false, unix.MS_SILENT},
	"strictatime":   {false, unix.MS_STRICTATIME},
	"suid":          {true, unix.MS_NOSUID},
	"symfollow":     {true, unix.MS_NOSYMFOLLOW},
	"sync":          {false, unix.MS_SYNCHRONOUS},
}

var propagationFlags = map[string]uintptr{
	"private":     unix.MS_PRIVATE,
	"rprivate":    unix.MS_PRIVATE | unix.MS_REC,
	"shared":      unix.MS_SHARED,
	"rshared":     unix.MS_SHARED | unix.MS_REC,
	"slave":       unix.MS_SLAVE,
	"rslave":      unix.MS_SLAVE | unix.MS_REC,
	"unbindable":  unix.MS_UNBINDABLE,
	"runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

type mountAttr struct {
	clear bool
	attr  uint64
}

// recursiveAttrs are the options that mount_setattr(2) applies to a mount and all below it.
var recursiveAttrs = map[string]mountAttr{
	"rro":            {false, unix.MOUNT_ATTR_RDONLY},
	"rrw":            {true, unix.MOUNT_ATTR_RDONLY},
	"rnosuid":        {false, unix.MOUNT_ATTR_NOSUID},
	"rsuid":          {true, unix.MOUNT_ATTR_NOSUID},
	"rnodev":         {false, unix.MOUNT_ATTR_NODEV},
	"rdev":           {true, unix.MOUNT_ATTR_NODEV},
	"rnoexec":        {false, unix.MOUNT_ATTR_NOEXEC},
	"rexec":          {true, unix.MOUNT_ATTR_NOEXEC},
	"rnodiratime":    {false, unix.MOUNT_ATTR_NODIRATIME},
	"rdiratime":      {true, unix.MOUNT_ATTR_NODIRATIME},
	"rrelatime":      {false, unix.MOUNT_ATTR_RELATIME},
	"rnorelatime":    {true, unix.MOUNT_ATTR_RELATIME},
	"rnoatime":       {false, unix.MOUNT_ATTR_NOATIME},
	"ratime":         {true, unix.MOUNT_ATTR_NOATIME},
	"rstrictatime":   {false, unix.MOUNT_ATTR_STRICTATIME},
	"rnostrictatime": {true, unix.MOUNT_ATTR_STRICTATIME},
	"rnosymfollow":   {false, unix.MOUNT_ATTR_NOSYMFOLLOW},
	"rsymfollow":     {true, unix.MOUNT_ATTR_NOSYMFOLLOW},
}

// parseMountOptions sorts m's options. Later ones win. What it does not know is the file system's.
func parseMountOptions(m specs.Mount) (mountOptions, error) {
	var o mountOptions
	var data []string
	for _, opt := range m.Options {
		if f, ok := mountFlags[opt]; ok {
			if f.clear {
				o.flags &^= f.flag
				o.cleared |= f.flag
			} else {
				o.flags |= f.flag
				o.cleared &^= f.flag
			}
		} else if p, ok := propagationFlags[opt]; ok {
			o.propagation = append(o.propagation, p)
		} else if a, ok := recursiveAttrs[opt]; ok {
			o.setRecursive(a)
		} else if opt == "tmpcopyup" || opt == "idmap" || opt == "ridmap" {
			return o, fmt.Errorf("option %s: %w", opt, ErrUnsupported)
		} else {
			data = append(data, opt)
		}
	}
	if m.Type == "bind" {
		o.flags |= unix.MS_BIND
	}
	if o.bind() {
		// What remains belongs to the source's file system, which is mounted already (Docker passes such options along).
		data = nil
	}
	o.data = strings.Join(data, ",")
	return o, nil
}

func (o *mountOptions) setRecursive(a mountAttr) {
	set, clear := a.attr, uint64(0)
	if a.clear {
		set, clear = 0, a.attr
	}
	// The access time attributes are one field of values, of which relatime is 0: each is set by clearing the field first.
	if a.attr&^unix.MOUNT_ATTR__ATIME == 0 {
		o.recSet &^= unix.MOUNT_ATTR__ATIME
		o.recClear |= unix.MOUNT_ATTR__ATIME
		if !a.clear {
			o.recSet |= set
		}
		return
	}
	o.recSet = o.recSet&^clear | set
	o.recClear = o.recClear&^set | clear
}
