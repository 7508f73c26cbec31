package fetcher

import (
	"bytes"
	"debug/elf"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/veneerfs/veneer/fetcher/fetchtest"
)

// hostLibrary finds a library of this machine as its loader does.
func hostLibrary(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range libraryDirs {
		if path, err := filepath.EvalSymlinks(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	t.Fatalf("no %s on this machine", name)
	return ""
}

func TestElfNeedsAreThoseOfTheSections(t *testing.T) {
	for _, path := range []string{"/bin/ls", "/bin/sh", "/proc/self/exe", hostLibrary(t, "libc.so.6")} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := readElfNeeds(f)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		want, err := elf.NewFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if names, _ := want.ImportedLibraries(); !slices.Equal(got.names, names) {
			t.Errorf("%s: %q, want %q", path, got.names, names)
		}
		interp := want.Section(".interp")
		if (interp != nil) != (got.interp != "") {
			t.Errorf("%s: the loader is %q", path, got.interp)
		}
	}
}

// lsImage is a layer of ls, its loader and its libraries, by the names by which they are looked for, and other files between.
func lsImage(t *testing.T) (layer fetchtest.Layer, libraries []string) {
	t.Helper()
	var files []fetchtest.File
	add := func(name, from string) {
		body, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, fetchtest.Reg(name, string(body)), fetchtest.Reg("between/"+filepath.Base(name), noise(uint64(len(files)), 200_000)))
	}
	add("usr/bin/ls", "/bin/ls")
	for todo := []string{"/bin/ls"}; len(todo) > 0; todo = todo[1:] {
		f, err := os.Open(todo[0])
		if err != nil {
			t.Fatal(err)
		}
		needs, err := readElfNeeds(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		names := needs.names
		if needs.interp != "" {
			names = append(names, filepath.Base(needs.interp))
			files = append(files, fetchtest.Symlink(strings.TrimPrefix(needs.interp, "/"), "/usr/lib/x86_64-linux-gnu/"+filepath.Base(needs.interp)))
		}
		for _, name := range names {
			if lib := "usr/lib/x86_64-linux-gnu/" + name; !slices.Contains(libraries, lib) {
				libraries = append(libraries, lib)
				add(lib, hostLibrary(t, name))
				todo = append(todo, hostLibrary(t, name))
			}
		}
	}
	return fetchtest.NewLayer(t, fetchtest.EStargz(), files...), libraries
}

func TestLibrariesComeWithTheirProgram(t *testing.T) {
	layer, libraries := lsImage(t)
	if len(libraries) < 2 {
		t.Fatalf("ls needs %q only", libraries)
	}
	sources, blobs := sourcesOf(layer)
	x := openSources(t, testStore(t), sources, lazy)
	x.unknown.Store(true)
	if _, err := x.ReadAt(t.Context(), x.ino(t, "usr/bin/ls"), make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	x.work.Wait()
	before := len(blobs[0].requests())
	for _, lib := range libraries {
		x.readAll(t, lib)
	}
	if n := len(blobs[0].requests()) - before; n != 0 {
		t.Errorf("%d requests for libraries that should be here", n)
	}
	if n := x.Stats().FetchedBytes; n > layer.Descriptor.Size-int64(len(libraries))*200_000 {
		t.Errorf("%d of %d bytes: what is between came, too", n, layer.Descriptor.Size)
	}
}

func TestElfThatIsNone(t *testing.T) {
	ls, err := os.ReadFile("/bin/ls")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{nil, []byte("\x7fELF"), ls[:64], ls[:200], bytes.Repeat([]byte{0xff}, 4096)} {
		if n, err := readElfNeeds(bytes.NewReader(b)); err == nil {
			t.Errorf("%d bytes: %+v", len(b), n)
		}
	}
}

func FuzzElf(f *testing.F) {
	ls, err := os.ReadFile("/bin/ls")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ls[:4096])
	f.Add(append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 200)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := readElfNeeds(bytes.NewReader(b))
		if err == nil && (len(n.names) > maxNeeds || len(n.interp) > maxElfString) {
			t.Errorf("%+v", n)
		}
	})
}
