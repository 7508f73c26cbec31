package runtime

import (
	"context"
	"runtime"
	"testing"
)

// BenchmarkTrue is create, start, wait and delete of /bin/true under the default configuration.
func BenchmarkTrue(b *testing.B) {
	root := newRootfs(b)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for b.Loop() {
		c, err := Create(context.Background(), CreateOptions{ID: "bench", Spec: newSpec("/bin/true"), Root: root})
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
		if s, err := c.Wait(); err != nil || s.ExitCode() != 0 {
			b.Fatal(s, err)
		}
		if err := c.Delete(); err != nil {
			b.Fatal(err)
		}
	}
}
