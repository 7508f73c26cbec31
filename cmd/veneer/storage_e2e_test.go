package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestStorageBoundsAContainer(t *testing.T) {
	l := newLab(t)
	r := l.veneer("run", "--name", "small", "--storage", "8M,inodes=20", l.image(), "sh", "-c", `
dd if=/dev/zero of=/big bs=64k 2>/dev/null; echo dd ended with $?
df / | awk 'NR == 2 { print "size", $2, "free", $4 }'
rm /big
for i in $(seq 30); do echo x > /tmp/$i; done 2>/dev/null; n=$(ls /tmp | wc -l)
[ $n -ge 10 -a $n -le 20 ] && echo some files # the runtime makes some of the 20, to mount on
dd if=/dev/zero of=/tmp/1 bs=1M count=3 2>/dev/null
sync`)
	if r.code != 0 || r.stdout != "dd ended with 1\nsize 8192 free 0\nsome files\n" {
		t.Errorf("%+v", r)
	}
	ps := l.want("ps", "-a", "-s")
	m := regexp.MustCompile(`SIZE\n.*small +(\S+) \(virtual (\S+)\)\n$`).FindStringSubmatch(ps)
	if m == nil || !strings.HasPrefix(m[1], "3.") || !strings.HasSuffix(m[1], "MB") {
		t.Errorf("ps -s: %q", ps)
	}
	l.veneer("run", "--storage", "lots", l.image(), "true").check(t, 125, "", `size "lots"`)
}

func TestStorageOfAMount(t *testing.T) {
	l, dir := overlayLab(t)
	options := "lowerdir=high:low,upperdir=state,storage=4M,inodes=10"
	l.want("overlay", "s", dir, "-o", options)
	for i := range 2 {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil || st.Blocks*uint64(st.Bsize) != 4<<20 {
			t.Errorf("mount %d: %d blocks of %d, %v", i, st.Blocks, st.Bsize, err)
		}
		if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 5<<20), 0o644); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("mount %d: 5 MiB in 4: %v", i, err)
		}
		err := os.Truncate(filepath.Join(dir, "big"), 0)
		for k := 0; k < 12 && err == nil; k++ {
			err = os.WriteFile(filepath.Join(dir, fmt.Sprint(i, k)), nil, 0o644)
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("mount %d: 12 inodes more: %v", i, err)
		}
		l.want("umount", dir)
		l.want("overlay", "s", dir, "-o", options)
	}
	l.want("umount", dir)
	// The bound is the mount's, not the state's.
	l.want("mount", "--rw", "--state", "state", "--storage", "20M", "--layer", "dir:low", "--layer", "dir:high", dir)
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 5<<20), 0o644); err != nil {
		t.Error(err)
	}
	l.want("umount", dir)
	l.veneer("mount", "--storage", "1M", "--layer", "dir:low", dir).check(t, 125, "", "--storage is for a mount with --rw")
	l.veneer("overlay", "s", dir, "-o", "lowerdir=low,storage=x").check(t, 125, "", `size "x"`)
	l.checkNoLeaks()
}
