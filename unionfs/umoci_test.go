package unionfs

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestUmociAgrees unpacks the cases of TestMerge with umoci and compares all there is to see.
func TestUmociAgrees(t *testing.T) {
	needUmoci(t)
	for _, c := range mergeCases {
		t.Run(c.name, func(t *testing.T) {
			if c.not != "" {
				t.Logf("not compared: %s", c.not)
				return
			}
			var layers [][]Entry
			for _, s := range c.layers {
				layers = append(layers, parseScript(t, s))
			}
			judge(t, layers)
		})
	}
}

// TestUmociAgreesOnRandomLayers compares images whose layers are as tools write them: parents before what is in
// them, targets before links.
func TestUmociAgreesOnRandomLayers(t *testing.T) {
	needUmoci(t)
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := randomLayers{rand: rand.New(rand.NewPCG(seed, 0)), tidy: true}
			judge(t, r.image(6, 40))
		})
	}
}

// needUmoci skips a test on a machine without umoci, but not in CI, which promises it.
func needUmoci(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("umoci"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("umoci is needed: %v", err)
		}
		t.Skipf("umoci is not installed: %v", err)
	}
	if os.Getuid() != 0 {
		t.Skip("umoci unpacks owners and devices only as root")
	}
}

// judge fails the test if umoci unpacks the layers to another tree than the Builder merges them to.
func judge(t *testing.T, layers [][]Entry) {
	t.Helper()
	tree, err := mergeEntries(t, layers...)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeImage(t, filepath.Join(dir, "image"), layers)
	out, err := exec.Command("umoci", "raw", "unpack", "--image", filepath.Join(dir, "image:tag"), filepath.Join(dir, "rootfs")).CombinedOutput()
	if err != nil {
		t.Fatalf("umoci: %v\n%s\nof\n%s", err, out, showLayers(layers))
	}
	ours, theirs := facts(t, tree), hostFacts(t, filepath.Join(dir, "rootfs"))
	for i := range min(len(ours), len(theirs)) {
		// umoci gives the time of day to directories that it makes up, and leaves it on those that it changes for a
		// whiteout further up; our times are long past. A root that no entry speaks of gets the mode it likes.
		f, g := &ours[i], &theirs[i]
		if f.mode&unix.S_IFMT == unix.S_IFDIR && g.mtime.Sec > 1e9 {
			g.mtime = f.mtime
		}
		if f.path == "." && f.mtime == (Time{}) {
			g.mode, g.mtime = f.mode, f.mtime
		}
	}
	if a, b := showLinks(ours), showLinks(theirs); !slices.Equal(a, b) {
		t.Errorf("of\n%s\nwe make\n\t%s\numoci makes\n\t%s", showLayers(layers), strings.Join(a, "\n\t"), strings.Join(b, "\n\t"))
	}
}

// showLinks is show with the number of links of what is no directory.
func showLinks(facts []fact) []string {
	var lines []string
	for i := range facts {
		line := facts[i].String()
		if facts[i].mode&unix.S_IFMT != unix.S_IFDIR {
			line += fmt.Sprintf(" (%d)", facts[i].nlink)
		}
		lines = append(lines, line)
	}
	return lines
}

// showLayers prints layers so that a failure can be made a case of its own.
func showLayers(layers [][]Entry) string {
	var s strings.Builder
	for i, entries := range layers {
		fmt.Fprintf(&s, "layer %d\n", i)
		for _, e := range entries {
			fmt.Fprintf(&s, "\t%q mode %#o uid %d content %q symlink %q link %q\n", e.Name, e.Mode, e.UID,
				texts[e.Content.Digest], e.Symlink, e.Link)
		}
	}
	return s.String()
}

// hostFacts are the facts of a directory on the host, to be compared with those of a tree.
func hostFacts(t *testing.T, root string) []fact {
	t.Helper()
	var all []fact
	first := map[fileID]string{}
	for todo := []string{"."}; len(todo) > 0; {
		rel := todo[0]
		todo = todo[1:]
		f, ok := hostFact(t, filepath.Join(root, rel), rel)
		if !ok {
			continue
		}
		all = append(all, f)
		if f.mode&unix.S_IFMT == unix.S_IFDIR {
			for _, name := range hostNames(t, filepath.Join(root, rel)) {
				todo = append(todo, filepath.Join(rel, name))
			}
		}
	}
	slices.SortFunc(all, func(a, b fact) int { return strings.Compare(a.path, b.path) })
	for i := range all {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, all[i].path), &st); err != nil {
			t.Fatal(err)
		}
		id := fileID{st.Dev, st.Ino}
		if all[i].same = first[id]; all[i].same == "" {
			first[id] = all[i].path
		}
	}
	return all
}

func hostNames(t *testing.T, dir string) []string {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// hostFact is false for a name that can be listed but not found, as overlayfs has them: a whiteout in a directory
// that only one layer has.
func hostFact(t *testing.T, path, rel string) (fact, bool) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err == unix.ENOENT {
		return fact{}, false
	} else if err != nil {
		t.Fatal(err)
	}
	f := fact{path: rel, mode: st.Mode, uid: st.Uid, gid: st.Gid, nlink: uint32(st.Nlink), rdev: st.Rdev,
		mtime: Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}, xattrs: map[string]string{}}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("read %s, %d links: %v", rel, st.Nlink, err)
		}
		f.text = string(text)
	case unix.S_IFLNK:
		f.text, _ = os.Readlink(path)
	}
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatalf("list xattrs of %s: %v", path, err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		f.xattrs[name] = string(value[:n])
	}
	return f, true
}

// writeImage writes an OCI image layout with a tag "tag".
func writeImage(t *testing.T, dir string, layers [][]Entry) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0755); err != nil {
		t.Fatal(err)
	}
	type descriptor = map[string]any
	blob := func(mediaType string, p []byte) descriptor {
		sum := fmt.Sprintf("%x", sha256.Sum256(p))
		writeFile(t, filepath.Join(dir, "blobs/sha256", sum), p)
		return descriptor{"mediaType": mediaType, "digest": "sha256:" + sum, "size": len(p)}
	}
	var blobs []descriptor
	var diffIDs []any
	for _, entries := range layers {
		d := blob("application/vnd.oci.image.layer.v1.tar", writeTar(t, entries))
		blobs, diffIDs = append(blobs, d), append(diffIDs, d["digest"])
	}
	config := blob("application/vnd.oci.image.config.v1+json", asJSON(t, descriptor{
		"architecture": "amd64", "os": "linux", "rootfs": descriptor{"type": "layers", "diff_ids": diffIDs}}))
	manifest := blob("application/vnd.oci.image.manifest.v1+json", asJSON(t, descriptor{
		"schemaVersion": 2, "config": config, "layers": blobs}))
	manifest["annotations"] = map[string]string{"org.opencontainers.image.ref.name": "tag"}
	writeFile(t, filepath.Join(dir, "index.json"), asJSON(t, descriptor{"schemaVersion": 2, "manifests": []any{manifest}}))
	writeFile(t, filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
}

func writeFile(t testing.TB, path string, p []byte) {
	t.Helper()
	if err := os.WriteFile(path, p, 0644); err != nil {
		t.Fatal(err)
	}
}

func asJSON(t *testing.T, v any) []byte {
	t.Helper()
	p, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// writeTar writes a layer.
func writeTar(t *testing.T, entries []Entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := range entries {
		e := &entries[i]
		h := &tar.Header{Format: tar.FormatPAX, Name: e.Name, Linkname: e.Symlink, Mode: int64(e.Mode & 07777),
			Uid: int(e.UID), Gid: int(e.GID), Size: e.Size, ModTime: time.Unix(e.Mtime.Sec, int64(e.Mtime.Nsec)),
			Devmajor: int64(unix.Major(e.Rdev)), Devminor: int64(unix.Minor(e.Rdev)), PAXRecords: map[string]string{}}
		h.Typeflag = map[uint32]byte{0: tar.TypeLink, unix.S_IFREG: tar.TypeReg, unix.S_IFDIR: tar.TypeDir,
			unix.S_IFLNK: tar.TypeSymlink, unix.S_IFCHR: tar.TypeChar, unix.S_IFBLK: tar.TypeBlock,
			unix.S_IFIFO: tar.TypeFifo}[e.Mode&unix.S_IFMT]
		if e.Link != "" {
			h.Linkname = e.Link
		}
		for k, v := range e.Xattrs {
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(texts[e.Content.Digest])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
