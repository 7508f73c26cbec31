package main

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// overlayOptions is what the -o of an overlay says.
type overlayOptions struct {
	lowers  []string // as overlayfs orders them: top first
	upper   string   // "" mounts read-only
	source  string   // fsname=, in place of SOURCE
	typ     string   // of the mount, as /proc/mounts shows it
	io      string
	stats   string
	latency string
	storage storage
	flags   uintptr // MS_ flags of mount(2)
	remount bool
}

// flagOptions are the options that mount(2) knows as flags: some set theirs, some clear it. mount(8) gives the ones of fstab, of the
// command line and, on a remount, those that the mount has, in this order: the last one counts.
var flagOptions = map[string]struct{ set, clear uintptr }{
	"ro": {set: unix.MS_RDONLY}, "rw": {clear: unix.MS_RDONLY},
	"nosuid": {set: unix.MS_NOSUID}, "suid": {clear: unix.MS_NOSUID},
	"nodev": {set: unix.MS_NODEV}, "dev": {clear: unix.MS_NODEV},
	"noexec": {set: unix.MS_NOEXEC}, "exec": {clear: unix.MS_NOEXEC},
	"sync": {set: unix.MS_SYNCHRONOUS}, "async": {clear: unix.MS_SYNCHRONOUS},
	"dirsync": {set: unix.MS_DIRSYNC},
	"noatime": {set: unix.MS_NOATIME}, "atime": {clear: unix.MS_NOATIME},
	"nodiratime": {set: unix.MS_NODIRATIME}, "diratime": {clear: unix.MS_NODIRATIME},
	"relatime": {set: unix.MS_RELATIME}, "norelatime": {clear: unix.MS_RELATIME},
	"strictatime": {set: unix.MS_STRICTATIME}, "nostrictatime": {clear: unix.MS_STRICTATIME},
	"lazytime": {set: unix.MS_LAZYTIME}, "nolazytime": {clear: unix.MS_LAZYTIME},
	"nosymfollow": {set: unix.MS_NOSYMFOLLOW}, "symfollow": {clear: unix.MS_NOSYMFOLLOW},
	"silent": {set: unix.MS_SILENT}, "loud": {clear: unix.MS_SILENT},
	"defaults": {clear: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_SYNCHRONOUS},
}

// idleOptions change nothing here: what mount(8) and init read of a line of fstab; what every mount of ours is, and so what a remount is
// told again; and those of overlayfs that choose how it does what we do in our own way. An option ends with "=" if it has a value.
var idleOptions = optionSet("auto noauto nofail _netdev user users owner group nouser nousers noowner nogroup user= comment= " +
	"nomand noiversion helper= uhelper= " +
	"allow_other default_permissions nonempty fd= rootmode= user_id= group_id= max_read= blksize= " +
	"workdir= redirect_dir= index= xino= metacopy= uuid= volatile userxattr")

func optionSet(names string) map[string]bool {
	set := make(map[string]bool)
	for name := range strings.FieldsSeq(names) {
		set[name] = true
	}
	return set
}

// parseOverlayOptions reads what follows -o, each time it was given. If sloppy, what is not known is passed over.
func parseOverlayOptions(args []string, sloppy bool) (*overlayOptions, error) {
	o := &overlayOptions{typ: "fuse.veneer", io: "auto", latency: "auto"}
	for _, arg := range args {
		for _, opt := range splitOptions(arg) {
			if opt == "" {
				continue
			}
			if err := o.option(opt, sloppy); err != nil {
				return nil, err
			}
		}
	}
	if o.remount {
		return o, nil
	}
	if o.upper == "" {
		o.flags |= unix.MS_RDONLY
	}
	if len(o.lowers) == 0 {
		return nil, errors.New("lowerdir= is missing: it names the directories to show, the top one first")
	}
	return o, errors.Join(checkIO(o.io), checkLatency(o.latency))
}

func (o *overlayOptions) option(opt string, sloppy bool) (err error) {
	if f, ok := flagOptions[opt]; ok {
		o.flags = o.flags&^f.clear | f.set
		return nil
	}
	name, value, valued := strings.Cut(opt, "=")
	if valued {
		value = unquote(value)
		name += "="
	}
	switch name {
	case "remount":
		o.remount = true
	case "lowerdir=":
		o.lowers, err = splitLowers(value)
	case "upperdir=":
		o.upper, err = needPath(name, unescapeOption(value))
	case "fsname=":
		o.source = unescapeOption(value)
	case "subtype=":
		o.typ = strings.TrimSuffix("fuse."+value, ".")
	case "io=":
		o.io = value
	case "latency=":
		o.latency = value
	case "storage=":
		o.storage.Bytes, err = parseSize(value)
	case "inodes=":
		o.storage.Inodes, err = parseCount(value)
	case "stats=":
		o.stats, err = needPath(name, unescapeOption(value))
	default:
		known := idleOptions[name] || strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-")
		if !known && !sloppy {
			return fmt.Errorf("unknown mount option %q", opt)
		}
	}
	return err
}

func needPath(name, path string) (string, error) {
	if path == "" {
		return "", fmt.Errorf("mount option %s needs a path", name)
	}
	return path, nil
}

// splitLowers takes lowerdir= apart.
func splitLowers(value string) ([]string, error) {
	lowers := splitEscaped(value, ':', false)
	for i, l := range lowers {
		if l == "" {
			return nil, fmt.Errorf("mount option lowerdir=%s has an empty path in it (a path with a colon is written with %q)", value, `\:`)
		}
		lowers[i] = unescapeOption(l)
	}
	return lowers, nil
}

// splitOptions splits at commas, but not after a backslash, as overlayfs does (fs/overlayfs/params.c), nor in a value that is in
// double quotes, as mount(8) does.
func splitOptions(s string) []string { return splitEscaped(s, ',', true) }

// splitEscaped splits s at sep. The parts are still escaped.
func splitEscaped(s string, sep byte, quotes bool) []string {
	var parts []string
	start, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			i++
		case quotes && s[i] == '"' && (quoted || i > 0 && s[i-1] == '='):
			quoted = !quoted
		case s[i] == sep && !quoted:
			parts = append(parts, s[start:i])
			start = i + 1
		}
	}
	return append(parts, s[start:])
}

// unquote takes the quotes away that mount(8) wants around a value with commas.
func unquote(s string) string {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

// unescapeOption makes of a backslash and a character the character, as overlayfs does.
func unescapeOption(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
