package fileops

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// writeSize is what the sequential writer writes at once, bytes.
const writeSize = 1 << 20

func writeByte(s *site) error {
	fd, err := unix.Open(s.dir+"/written", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Pwrite(fd, []byte{1}, s.in.copyUp/2)
	return err
}

func chmodBig(s *site) error { return unix.Chmod(s.dir+"/touched", 0o600) }

// chownTree is `chown -R`; to another owner than before, every time.
func chownTree(s *site) error {
	var st unix.Stat_t
	if err := unix.Stat(s.dir+"/tree/own", &st); err != nil {
		return err
	}
	id := int(st.Uid%100) + 1
	own := func(dir int, name string, _ uint8) error {
		return unix.Fchownat(dir, name, id, id, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err := own(unix.AT_FDCWD, s.dir+"/tree/own", 0); err != nil {
		return err
	}
	return walk(s.dir+"/tree/own", own)
}

// plantGone puts back what removeGone removes from the plain directory; a mount is new in every round.
func plantGone(s *site) error {
	if s.state != "" {
		return nil
	}
	for name, size := range s.in.gone {
		path := s.dir + "/" + name
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, s.buf[:size], 0o644); err != nil {
			return err
		}
	}
	return nil
}

func removeGone(s *site) error { return removeTree(s.dir + "/tree/gone") }

func renameLower(s *site) error { return unix.Rename(s.dir+"/tree/a", s.dir+"/tree/a-moved") }

// renameBack undoes renameLower, where that worked.
func renameBack(s *site) error {
	err := unix.Rename(s.dir+"/tree/a-moved", s.dir+"/tree/a")
	if err == unix.ENOENT {
		return nil
	}
	return err
}

func removeWritten(s *site) error { return os.RemoveAll(s.dir + "/new") }

func writeBig(s *site) error {
	fd, err := unix.Open(s.dir+"/new", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for left := s.in.written; left > 0; left -= writeSize {
		if _, err := unix.Write(fd, s.buf[:writeSize]); err != nil {
			return err
		}
	}
	return nil
}

// makeWork makes an empty directory for the rows that change names.
func makeWork(s *site) error {
	if err := os.RemoveAll(s.dir + "/work"); err != nil {
		return err
	}
	return os.Mkdir(s.dir+"/work", 0o755)
}

func (s *site) work(kind string, i int) string { return fmt.Sprintf("%s/work/%s%d", s.dir, kind, i) }

func (s *site) each(do func(i int) error) error {
	for i := range s.in.ops {
		if err := do(i); err != nil {
			return err
		}
	}
	return nil
}

func mkdirRmdir(s *site) error {
	return s.each(func(i int) error {
		name := s.work("d", i)
		if err := unix.Mkdir(name, 0o755); err != nil {
			return err
		}
		return unix.Rmdir(name)
	})
}

func createFiles(s *site) error {
	return s.each(func(i int) error {
		fd, err := unix.Open(s.work("f", i), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		_, err = unix.Write(fd, s.buf[:4096])
		return err
	})
}

func appendFile(s *site) error {
	fd, err := unix.Open(s.work("f", 0), unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return s.each(func(int) error {
		_, err := unix.Write(fd, s.buf[:4096])
		return err
	})
}

func renameFiles(s *site) error {
	return s.each(func(i int) error { return unix.Rename(s.work("f", i), s.work("g", i)) })
}

func unlinkFiles(s *site) error {
	return s.each(func(i int) error { return unix.Unlink(s.work("g", i)) })
}
