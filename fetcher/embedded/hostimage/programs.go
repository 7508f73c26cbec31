// Package hostimage makes the layers of an image out of the programs of the machine it runs on: enough of a system to
// run a shell, without a network and without an image.
package hostimage

import (
	"bufio"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// programs are files of the image, by absolute path in it: the file of the host that holds the bytes.
type programs struct {
	files  map[string]string
	search []string // where the host's loader looks for libraries
}

// add puts the program of that name, as a shell would find it, to /bin, with the interpreter and all libraries that it
// loads. Nothing is added when one of them is missing.
func (p *programs) add(name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	found := map[string]string{"/bin/" + name: path}
	if err := p.closure(path, nil, found); err != nil {
		return fmt.Errorf("find what %s needs: %w", path, err)
	}
	for in, from := range found {
		p.files[in] = from
	}
	return nil
}

// closure adds to found what the ELF file at path loads. like is the program it is for, or nil.
func (p *programs) closure(path string, like *elf.FileHeader, found map[string]string) error {
	f, err := elf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if like == nil {
		like = &f.FileHeader
	}
	if interp, err := interpreter(f); err != nil {
		return err
	} else if interp != "" {
		found[interp] = interp
	}
	needed, err := f.DynString(elf.DT_NEEDED)
	if err != nil {
		return nil // static: no dynamic section
	}
	own, err := runPath(f, filepath.Dir(path))
	if err != nil {
		return err
	}
	for _, lib := range needed {
		at, err := findLibrary(lib, slices.Concat(own, p.search), like)
		if err != nil {
			return err
		}
		if _, done := found[at]; done {
			continue
		}
		found[at] = at
		if err := p.closure(at, like, found); err != nil {
			return err
		}
	}
	return nil
}

// interpreter returns the loader that a dynamic program names, or "".
func interpreter(f *elf.File) (string, error) {
	for _, s := range f.Progs {
		if s.Type == elf.PT_INTERP {
			b := make([]byte, min(s.Filesz, 4096))
			if _, err := s.ReadAt(b, 0); err != nil {
				return "", fmt.Errorf("read interpreter: %w", err)
			}
			return strings.TrimRight(string(b), "\x00"), nil
		}
	}
	return "", nil
}

// runPath returns the directories that f itself names for its libraries. origin is f's own.
func runPath(f *elf.File, origin string) ([]string, error) {
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		lists, err := f.DynString(tag)
		if err != nil {
			return nil, err
		}
		for _, list := range lists {
			for dir := range strings.SplitSeq(list, ":") {
				dir = strings.NewReplacer("$ORIGIN", origin, "${ORIGIN}", origin).Replace(dir)
				if filepath.IsAbs(dir) {
					dirs = append(dirs, filepath.Clean(dir))
				}
			}
		}
	}
	return dirs, nil
}

// findLibrary returns the first dir/name that fits the program: loaders skip libraries of other machines.
func findLibrary(name string, dirs []string, like *elf.FileHeader) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		f, err := elf.Open(path)
		if err != nil {
			continue
		}
		fits := f.Class == like.Class && f.Machine == like.Machine
		f.Close()
		if fits {
			return path, nil
		}
	}
	return "", fmt.Errorf("no library %s", name)
}

// librarySearch returns where glibc and musl look for libraries: what /etc/ld.so.conf names, and the usual places.
func librarySearch() []string {
	dirs := loaderConfig("/etc/ld.so.conf", 0)
	for _, pattern := range []string{"/lib/*-linux-*", "/usr/lib/*-linux-*"} { // Debian's multiarch
		more, _ := filepath.Glob(pattern) // the only error is a malformed pattern
		dirs = append(dirs, more...)
	}
	return append(dirs, "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
}

// loaderConfig reads a file in the format of ld.so.conf(5); a missing one is empty.
func loaderConfig(path string, depth int) []string {
	f, err := os.Open(path)
	if err != nil || depth > 4 {
		return nil
	}
	defer f.Close()
	var dirs []string
	for s := bufio.NewScanner(f); s.Scan(); {
		line, _, _ := strings.Cut(s.Text(), "#")
		fields := strings.Fields(line)
		switch {
		case len(fields) == 2 && fields[0] == "include":
			pattern := fields[1]
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(path), pattern)
			}
			files, _ := filepath.Glob(pattern)
			for _, file := range files {
				dirs = append(dirs, loaderConfig(file, depth+1)...)
			}
		case len(fields) == 1 && filepath.IsAbs(fields[0]):
			dirs = append(dirs, fields[0])
		}
	}
	return dirs
}

// collect returns the named programs. The first, a shell, must be there; of the others those are left out that this
// machine lacks or that are no ELF files.
func collect(names ...string) (*programs, error) {
	p := &programs{files: make(map[string]string), search: librarySearch()}
	for i, name := range names {
		if err := p.add(name); err != nil && i == 0 {
			return nil, err
		}
	}
	return p, nil
}
