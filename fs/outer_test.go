package fs

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

func TestNestedMountHasTheTreeInside(t *testing.T) {
	m := mountTest(t, newFakeFS(), Options{Nested: true})
	inner := m.dir + "/" + InnerRoot
	if ino := statIno(t, inner); ino != unionfs.Root {
		t.Errorf("the tree's root is inode %d", ino)
	}
	if err := withFile(inner+"/f", unix.O_CREAT|unix.O_WRONLY, write("hello")); err != nil {
		t.Fatal(err)
	}
	if got := mustRead(t, inner+"/f"); string(got) != "hello" {
		t.Errorf("read %q", got)
	}
	// Around it there is nothing, and nothing can be made.
	if err := unix.Mkdir(m.dir+"/d", 0o755); err != unix.ENOENT && err != unix.EPERM {
		t.Errorf("mkdir beside the tree: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(m.dir+"/f", &st); err != unix.ENOENT {
		t.Errorf("stat beside the tree: %v", err)
	}
}

// On the mount's own root each of these walks asks for the ACL.
func TestNestedRootKeepsItsACL(t *testing.T) {
	m := mountTest(t, newFakeFS(), Options{Nested: true})
	inner := m.dir + "/" + InnerRoot
	fd, err := unix.Open(inner, unix.O_PATH|unix.O_DIRECTORY, 0) // as a container's root: nobody walks through node 1
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := withFile(inner+"/f", unix.O_CREAT|unix.O_WRONLY, write("hello")); err != nil {
		t.Fatal(err)
	}
	const walks = 100
	err = unprivileged(func() error {
		for range walks {
			var st unix.Stat_t
			if err := unix.Fstatat(fd, "f", &st, 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := m.server.Stats().Requests["GETXATTR"]; n >= walks {
		t.Errorf("%d GETXATTRs for %d walks", n, walks)
	}
}
