package unionfs

import (
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// sampleFile writes a tree that has something in each section, and returns its bytes.
func sampleFile(t testing.TB) []byte {
	t.Helper()
	b := NewBuilder()
	if err := b.AddLayer(stargzLayer); err != nil {
		t.Fatal(err)
	}
	entries := append(parseScript(t, "d d 0700 user.a=1\n s d/s ../x\n p d/p user.a=2 user.b=3\n c d/c 1:3\n d d/e\n h h d/p"),
		chunked("d/f", 1, 10, 20, 30), chunked("g", 2, 5))
	for i := range entries {
		if err := b.Add(&entries[i]); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "x"), nil)
	if err := b.AddDir(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tree")
	if err := b.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// openBytes opens a file with these bytes.
func openBytes(t testing.TB, p []byte) (*Tree, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tree")
	writeFile(t, path, p)
	tree, err := Open(path)
	if err == nil {
		t.Cleanup(func() { tree.Close() })
	}
	var fe *FormatError
	if err != nil && (!errors.As(err, &fe) || fe.Path != path) {
		t.Fatalf("error is %v, should be a FormatError with the path", err)
	}
	return tree, err
}

// seal makes the header's checksum right again.
func seal(p []byte) {
	le.PutUint32(p[headerSize-4:], crc32.Checksum(p[:headerSize-4], castagnoli))
}

func TestOpenRefusesWhatIsNoTree(t *testing.T) {
	good := sampleFile(t)
	for name, c := range map[string]struct {
		change func(p []byte) []byte
		say    string
	}{
		"empty":              {func(p []byte) []byte { return nil }, "not an image tree"},
		"other file":         {func(p []byte) []byte { return []byte(strings.Repeat("#!/bin/sh\n", 100)) }, "not an image tree"},
		"only magic":         {func(p []byte) []byte { return p[:8] }, "not an image tree"},
		"only version":       {func(p []byte) []byte { return p[:16] }, "cut short"},
		"half a header":      {func(p []byte) []byte { return p[:headerSize/2] }, "cut short"},
		"only a header":      {func(p []byte) []byte { return p[:headerSize] }, "instead of"},
		"one byte short":     {func(p []byte) []byte { return p[:len(p)-1] }, "instead of"},
		"one byte more":      {func(p []byte) []byte { return append(p, 0) }, "instead of"},
		"version 0":          {func(p []byte) []byte { p[8] = 0; seal(p); return p }, "unknown format version 0"},
		"newer":              {func(p []byte) []byte { p[8] = 2; return p }, "version 2, this veneer reads versions up to 1"},
		"newer and short":    {func(p []byte) []byte { p[8] = 7; return p[:20] }, "version 7"},
		"flipped bit":        {func(p []byte) []byte { p[100] ^= 1; return p }, "checksum"},
		"section outside":    {func(p []byte) []byte { le.PutUint64(p[tableOff+8:], 1<<40); seal(p); return p }, "LAYR"},
		"section overflow":   {func(p []byte) []byte { le.PutUint64(p[tableOff+16:], ^uint64(0)-95); seal(p); return p }, "LAYR"},
		"section in header":  {func(p []byte) []byte { le.PutUint64(p[tableOff+8:], 0); seal(p); return p }, "LAYR"},
		"odd length":         {func(p []byte) []byte { p[tableOff+tableEntry+16]++; seal(p); return p }, "INOD"},
		"wrong tag":          {func(p []byte) []byte { p[tableOff+2*tableEntry]++; seal(p); return p }, "DENT"},
		"totals":             {func(p []byte) []byte { p[totalsOff]++; seal(p); return p }, "totals"},
		"negative totals":    {func(p []byte) []byte { p[totalsOff+7] = 0xff; seal(p); return p }, "totals"},
		"negative bytes":     {func(p []byte) []byte { p[totalsOff+63] = 0xff; seal(p); return p }, "totals"},
		"root is no dir":     {func(p []byte) []byte { sectionOf(p, secInodes)[21] = 0x80; return p }, "root"},
		"root of odd mode":   {func(p []byte) []byte { sectionOf(p, secInodes)[23] = 0x80; return p }, "root"},
		"layer format":       {func(p []byte) []byte { sectionOf(p, secLayers)[80] = 77; return p }, "layer 0"},
		"layer's media type": {func(p []byte) []byte { sectionOf(p, secLayers)[75] = 77; return p }, "layer 0"},
	} {
		t.Run(name, func(t *testing.T) {
			tree, err := openBytes(t, c.change(slices.Clone(good)))
			if err == nil {
				t.Fatalf("opened: %+v", tree.Totals())
			}
			if !strings.Contains(err.Error(), c.say) {
				t.Errorf("error is %q, should say %q", err, c.say)
			}
		})
	}
}

// sectionOf returns a section of a file's bytes.
func sectionOf(p []byte, i int) []byte {
	row := p[tableOff+i*tableEntry:]
	off := le.Uint64(row[8:])
	return p[off : off+le.Uint64(row[16:])]
}

func TestOpenErrorsOfTheSystemStayThemselves(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error is %v", err)
	}
	var fe *FormatError
	if _, err := Open(t.TempDir()); !errors.As(err, &fe) {
		t.Errorf("a directory: error is %v", err)
	}
}

// TestVerifyFindsEveryFlippedBit flips each bit of a tree in turn.
func TestVerifyFindsEveryFlippedBit(t *testing.T) {
	good := sampleFile(t)
	padding := make([]bool, len(good)) // between sections; no reader looks at it
	for i := range padding {
		padding[i] = i >= headerSize
	}
	var h header
	if err := h.decode(good, uint64(len(good))); err != nil {
		t.Fatal(err)
	}
	for _, s := range h.sections {
		if s.len == 0 {
			t.Errorf("the sample has an empty section at %d", s.off)
		}
		for i := s.off; i < s.off+s.len; i++ {
			padding[i] = false
		}
	}
	for i := range good {
		for bit := range 8 {
			if padding[i] {
				continue
			}
			good[i] ^= 1 << bit
			tree := &Tree{path: "flipped", data: good}
			if err := tree.load(); err == nil {
				walkAll(t, tree)
				if tree.Verify() == nil {
					t.Errorf("bit %d of byte %d was flipped and not found", bit, i)
				}
			}
			good[i] ^= 1 << bit
		}
	}
}

// TestVerifyFindsWhatChecksumsDont damages fields and makes the checksums right.
func TestVerifyFindsWhatChecksumsDont(t *testing.T) {
	good := sampleFile(t)
	tried := 0
	for sec := range numSections {
		for i := range sectionOf(good, sec) {
			p := slices.Clone(good)
			sectionOf(p, sec)[i] += 1
			le.PutUint32(p[tableOff+sec*tableEntry+4:], crc32.Checksum(sectionOf(p, sec), castagnoli))
			seal(p)
			tree := &Tree{path: "changed", data: p}
			if err := tree.load(); err != nil {
				continue
			}
			tried++
			walkAll(t, tree)
			tree.Verify() // finds some of it; most bytes may well be as they are
		}
	}
	if tried < 500 {
		t.Errorf("only %d changed trees could be opened", tried)
	}
	for name, change := range map[string]func(p []byte){
		"entry outside":     func(p []byte) { sectionOf(p, secDirents)[7] = 1 },
		"name outside":      func(p []byte) { sectionOf(p, secDirents)[3] = 1 },
		"names not sorted":  func(p []byte) { sectionOf(p, secNames)[1] = 'z' },
		"name with a slash": func(p []byte) { sectionOf(p, secNames)[1] = '/' },
		"too many links":    func(p []byte) { sectionOf(p, secInodes)[inodeSize+32]++ },
		"xattrs outside":    func(p []byte) { sectionOf(p, secInodes)[inodeSize+36] = 99 },
		"own parent":        func(p []byte) { sectionOf(p, secInodes)[inodeSize+44] = 2 },
		"size":              func(p []byte) { sectionOf(p, secContents)[32]++ },
		"chunks outside":    func(p []byte) { sectionOf(p, secContents)[44]++ },
		"chunk offset":      func(p []byte) { sectionOf(p, secChunks)[0]++ },
		"layer":             func(p []byte) { sectionOf(p, secContents)[48] = 9 },
		"totals":            func(p []byte) { p[totalsOff]--; p[totalsOff+8]++ },
	} {
		p := slices.Clone(good)
		change(p)
		for sec := range numSections {
			le.PutUint32(p[tableOff+sec*tableEntry+4:], crc32.Checksum(sectionOf(p, sec), castagnoli))
		}
		seal(p)
		tree := &Tree{path: "changed", data: p}
		if err := tree.load(); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		walkAll(t, tree)
		var fe *FormatError
		if err := tree.Verify(); !errors.As(err, &fe) {
			t.Errorf("%s: Verify says %v", name, err)
		}
	}
}

// walkAll calls every method for everything that can be reached, and some that can't. It fails if a walk of the
// directories does not end after the inodes are used up.
func walkAll(t testing.TB, tree *Tree) {
	t.Helper()
	max := int(tree.MaxIno())
	dirs := []Ino{Root}
	for n := 0; len(dirs) > 0; n++ {
		if n > max {
			t.Fatalf("walked more than the %d directories there can be", max)
		}
		dir := dirs[0]
		dirs = dirs[1:]
		for i := range tree.DirLen(dir) {
			name, ino, typ := tree.DirAt(dir, i)
			tree.Lookup(dir, name)
			if typ == unix.S_IFDIR {
				dirs = append(dirs, ino)
			}
		}
		tree.DirAt(dir, -1)
		tree.DirAt(dir, tree.DirLen(dir))
		tree.Lookup(dir, "no such name")
	}
	for _, ino := range []Ino{0, tree.MaxIno() + 1, 1 << 32, ^Ino(0)} {
		useInode(t, tree, ino)
		tree.Names([]Ino{ino}, func(Ino, Ino, int) {})
	}
	all := make([]Ino, max)
	for i := range all {
		all[i] = Root + Ino(i)
	}
	tree.Names(all, func(_, dir Ino, i int) { tree.DirAt(dir, i) })
	for ino := Root; ino <= tree.MaxIno(); ino++ {
		useInode(t, tree, ino)
		depth := 0
		for dir := ino; tree.Parent(dir) != 0 && dir != Root; dir = tree.Parent(dir) {
			if depth++; depth > max {
				t.Fatalf("inode %d has more parents than there are inodes", ino)
			}
		}
	}
	for i := range uint32(tree.Totals().Contents) + 1 {
		c, _ := tree.ContentInfo(i)
		for _, off := range []int64{0, c.Size / 2, c.Size - 1, c.Size} {
			if k, n, ok := tree.ContentChunk(i, off); ok && (off < k.Offset || off >= k.Offset+k.Size || n >= tree.NumChunks(i)) {
				t.Fatalf("content %d: byte %d is not in chunk %+v", i, off, k)
			}
		}
	}
}

func useInode(t testing.TB, tree *Tree, ino Ino) {
	t.Helper()
	if a, ok := tree.Attr(ino); ok && (a.Size < 0 || a.Blocks < 0 || a.Ino != ino) {
		t.Fatalf("attributes of inode %d are %+v", ino, a)
	}
	tree.Readlink(ino)
	for _, n := range tree.Xattrs(ino) {
		tree.Xattr(ino, n)
	}
	tree.Xattr(ino, "user.none")
	tree.Content(ino)
	tree.ContentIndex(ino)
	if ino < 100 {
		tree.Path(ino)
	}
	tree.DirLen(ino)
	tree.DirAt(ino, 0)
	tree.Lookup(ino, "x")
}

func TestClosedTreeIsEmpty(t *testing.T) {
	tree, err := openBytes(t, sampleFile(t))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := tree.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := tree.Lookup(Root, "d"); ok || tree.MaxIno() != 0 {
		t.Error("the closed tree answers")
	}
}

func TestEmptyImage(t *testing.T) {
	tree, err := write(t, NewBuilder())
	if err != nil {
		t.Fatal(err)
	}
	if a, ok := tree.Attr(Root); !ok || a.Mode != unix.S_IFDIR|0755 || a.Nlink != 2 || a.Ino != Root || tree.DirLen(Root) != 0 {
		t.Errorf("the root is %+v, %v", a, ok)
	}
}

func TestSameLayersGiveTheSameFile(t *testing.T) {
	if a, b := sampleBytes(t), sampleBytes(t); a != b {
		t.Error("two builds of the same layers differ")
	}
}

func sampleBytes(t *testing.T) string {
	t.Helper()
	tree := merge(t, "d d user.b=1 user.a=2 user.c=3\n f d/a 1\n f d/b 2\n f c 3\n h e d/a\n s f x\n d g\n d h", "f d/c 4\n f i/j/k 5")
	return string(tree.data)
}

func TestWriteFileReplacesAndLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tree")
	writeFile(t, path, []byte("old"))
	b := NewBuilder()
	for range 2 { // a second time the same
		if err := b.WriteFile(path); err != nil {
			t.Fatal(err)
		}
		if tree, err := Open(path); err != nil || tree.Verify() != nil || tree.Close() != nil {
			t.Fatalf("the tree is not sound: %v", err)
		}
	}
	// A directory in the way of the rename, and no directory at all.
	blocked := filepath.Join(dir, "blocked")
	if err := os.MkdirAll(filepath.Join(blocked, "x"), 0755); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{blocked, filepath.Join(dir, "none", "tree")} {
		if err := b.WriteFile(p); err == nil {
			t.Errorf("%s was written", p)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
}

// TestWriteFileWithAFullDisk writes to a file system that is too small.
func TestWriteFileWithAFullDisk(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	b := NewBuilder()
	if err := b.AddLayer(Layer{Format: FormatPlain}); err != nil {
		t.Fatal(err)
	}
	for i := range 5000 {
		if err := b.Add(&Entry{Name: strings.Repeat("n", 1+i%200) + string(rune('a'+i/200)), Mode: unix.S_IFIFO}); err != nil {
			t.Fatal(err)
		}
	}
	inMountNamespace(t, func() error {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
			return err
		}
		if err := b.WriteFile(filepath.Join(dir, "tree")); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("error is %v, should be ENOSPC", err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("the directory holds %v, %v", entries, err)
		}
		return nil
	})
}
