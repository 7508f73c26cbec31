package runtime

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What this file changes is of the calling thread only, which is the one that will call execve. So raw system calls are
// used: those of the syscall package would change all threads, and stop the world for it.

// becomeUser takes on the process's identity: bounding set, groups, IDs, capabilities.
//
// The order matters. The bounding set needs CAP_SETPCAP, the IDs CAP_SETUID and CAP_SETGID, so both come before the
// capabilities are reduced; PR_SET_KEEPCAPS carries the permitted set across setuid; groups go before the gid, the gid before the uid.
func (c *child) becomeUser() error {
	if err := dropBounding(c.config.Caps.Bounding); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if err := c.setIDs(c.spec().Process.User); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	return c.config.Caps.apply()
}

func (c *child) setIDs(u specs.User) error {
	if c.config.KeepGroups && len(u.AdditionalGids) > 0 {
		return fmt.Errorf("set additional groups: setgroups is denied in this user namespace: %w", unix.EPERM)
	}
	if !c.config.KeepGroups {
		if err := setgroups(u.AdditionalGids); err != nil {
			return fmt.Errorf("set additional groups: %w", err)
		}
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.GID), uintptr(u.GID), uintptr(u.GID)); e != 0 {
		return fmt.Errorf("set group %d: %w", u.GID, e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.UID), uintptr(u.UID), uintptr(u.UID)); e != 0 {
		return fmt.Errorf("set user %d: %w", u.UID, e)
	}
	return nil
}

func setgroups(gids []uint32) error {
	var first unsafe.Pointer
	if len(gids) > 0 {
		first = unsafe.Pointer(&gids[0])
	}
	_, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(gids)), uintptr(first), 0)
	runtime.KeepAlive(gids)
	if e != 0 {
		return e
	}
	return nil
}

// capSet is a specs.LinuxCapabilities as bit masks.
type capSet struct {
	Bounding, Effective, Inheritable, Permitted, Ambient uint64
}

// newCapSet translates; no capabilities in the configuration means none. What cannot be given is left out with a warning, as
// config.md asks: what the kernel does not know, what is not in available, and what its rules exclude (capabilities(7)): effective
// is part of permitted, inheritable of bounding, ambient of permitted and inheritable. "runc spec" writes the latter wrongly.
func newCapSet(l *specs.LinuxCapabilities, available uint64, log *slog.Logger) capSet {
	if l == nil {
		return capSet{}
	}
	mask := func(set string, names []string, possible uint64) (m uint64) {
		for _, name := range names {
			n, ok := capNumbers()[name]
			if !ok || possible&(1<<n) == 0 {
				log.Warn("capability cannot be given", "set", set, "name", name)
				continue
			}
			m |= 1 << n
		}
		return m
	}
	var s capSet
	s.Bounding = mask("bounding", l.Bounding, available)
	s.Permitted = mask("permitted", l.Permitted, available)
	s.Effective = mask("effective", l.Effective, s.Permitted)
	s.Inheritable = mask("inheritable", l.Inheritable, s.Bounding&available)
	s.Ambient = mask("ambient", l.Ambient, s.Permitted&s.Inheritable)
	return s
}

// capNumbers has the capabilities by the names of the specification.
var capNumbers = sync.OnceValue(func() map[string]capability.Cap {
	known := make(map[string]capability.Cap)
	for _, n := range capability.ListKnown() {
		known["CAP_"+strings.ToUpper(n.String())] = n
	}
	return known
})

// without takes n out of all sets.
func (s *capSet) without(n uint) {
	for _, m := range []*uint64{&s.Bounding, &s.Effective, &s.Inheritable, &s.Permitted, &s.Ambient} {
		*m &^= 1 << n
	}
}

// ownCaps is the set that a child of the calling thread can have at most.
func ownCaps() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("read own capabilities: %w", err)
	}
	return uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted), nil
}

func dropBounding(keep uint64) error {
	last, err := capability.LastCap()
	if err != nil {
		return err
	}
	for n := range uintptr(last) + 1 {
		if keep&(1<<n) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, n, 0, 0, 0); err != nil {
			return fmt.Errorf("drop %s from the bounding set: %w", capability.Cap(n), err)
		}
	}
	return nil
}

// apply sets the thread's sets. A capability that cannot be had is an error of capset, not left out.
func (s capSet) apply() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i := range data {
		shift := 32 * i
		data[i].Effective = uint32(s.Effective >> shift)
		data[i].Permitted = uint32(s.Permitted >> shift)
		data[i].Inheritable = uint32(s.Inheritable >> shift)
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	// setresuid cleared the ambient set unless the user is root.
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && err != unix.EINVAL {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	for n := range uintptr(64) {
		if s.Ambient&(1<<n) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, n, 0, 0); err != nil {
			return fmt.Errorf("raise ambient %s: %w", capability.Cap(n), err)
		}
	}
	return nil
}
