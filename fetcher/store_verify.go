package fetcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/veneerfs/veneer/unionfs"
	"golang.org/x/sys/unix"
)

// Verified is what Verify found.
type Verified struct {
	Files   int   // whole contents and trees
	Bytes   int64 // that were hashed
	Damaged []string
}

// Verify hashes all contents and checks all trees. What is damaged is dropped: it is fetched again by the next who needs it. The chunks of
// partial files are verified when the file is opened next.
func (s *Store) Verify(ctx context.Context) (Verified, error) {
	var v Verified
	err := s.eachFile(func(f storedFile) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if f.partial {
			return forgetBoot(strings.TrimSuffix(f.path, ".data") + ".map")
		}
		file, err := os.Open(f.path)
		if errors.Is(err, os.ErrNotExist) {
			return nil // dropped since
		}
		if err != nil {
			return fmt.Errorf("verify store: %w", err)
		}
		defer file.Close()
		v.Files, v.Bytes = v.Files+1, v.Bytes+f.bytes
		if d, err := hashFile(file); err != nil || d != f.digest {
			v.Damaged = append(v.Damaged, "content "+f.digest.String())
			s.drop(f)
		}
		return nil
	})
	if err != nil {
		return v, err
	}
	trees, err := s.storedTrees()
	for _, t := range trees {
		v.Files++
		if verifyTree(t.path) != nil {
			v.Damaged = append(v.Damaged, "tree "+t.path)
			os.Remove(t.path)
		}
	}
	if len(v.Damaged) > 0 {
		err = errors.Join(err, s.unsettle())
	}
	return v, err
}

func verifyTree(path string) error {
	t, err := unionfs.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer t.Close()
	return t.Verify()
}

// forgetBoot makes the next who opens a partial file verify its chunks, as after a power failure.
func forgetBoot(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("verify store: %w", err)
	}
	defer f.Close()
	if err := flock(f); err != nil {
		return fmt.Errorf("verify store: %w", err)
	}
	defer unix.Flock(int(f.Fd()), unix.LOCK_UN)
	var none bootID
	if _, err := f.WriteAt(none[:], mapBoot); err != nil {
		return fmt.Errorf("verify store: %w", err)
	}
	return nil
}
