package fs

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadOnlyMountsRefuseToWrite(t *testing.T) {
	var mounts readOnlyMounts
	defer mounts.close()
	dir := t.TempDir()
	for _, name := range []string{"first makes the mount", "second is opened by its handle"} {
		t.Run(name, func(t *testing.T) {
			f, err := os.Create(dir + "/" + name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			file, err := identify(f)
			if err != nil {
				t.Fatal(err)
			}
			again, err := mounts.open(f, file)
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if got, err := identify(again); err != nil || got != file {
				t.Errorf("another file: %v, %v", got, err)
			}
			if err := again.Chmod(0o600); err == nil {
				t.Error("chmod went well")
			}
			// As the kernel opens a backing file: by its path, with the opener's flags.
			fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", again.Fd()), unix.O_RDWR, 0)
			if err != unix.EROFS {
				t.Errorf("open for writing: %d, %v", fd, err)
			}
		})
	}
}
