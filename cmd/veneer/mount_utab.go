package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// umount(8) asks for a helper only by the type that statfs(2) tells, "fuse", unless its own table has a line of the mount. That table is
// util-linux's, and so its own programs write it: with a mount that they only pretend to make.

const utab = "/run/mount/utab"

// noteMount makes umount(8) call our helper for a mount, if there is one for its type.
func noteMount(r *mountRecord) error {
	if _, err := os.Stat("/sbin/umount." + r.Type); err != nil {
		return nil
	}
	return utilLinux("mount", "-i", "-f", "--no-canonicalize", "-t", r.Type, "-o", "helper=veneer", "--", r.Source, r.Dir)
}

// forgetMount takes the note back, of a mount that is gone.
func forgetMount(dir string) error {
	escape := strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`)
	table, err := os.ReadFile(utab)
	if err != nil || !bytes.Contains(table, []byte(" TARGET="+escape.Replace(dir)+" ")) {
		return nil
	}
	return utilLinux("umount", "-i", "--fake", "--no-canonicalize", "--", dir)
}

func utilLinux(name string, args ...string) error {
	// By its path: mount(8) calls its helpers without PATH.
	if out, err := exec.Command("/bin/"+name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
