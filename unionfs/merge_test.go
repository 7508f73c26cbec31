package unionfs

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mergeCases are the OCI layer rules, one by one. TestUmociAgrees holds them against umoci, too.
var mergeCases = []struct {
	name   string
	layers []string
	want   string
	// not is why umoci's tree is another one, if it is.
	not string
}{{
	name:   "every type of file keeps what its entry says",
	layers: []string{"d d 1777 u=1:2 @5\n f f text 4755 u=3:4 @-6\n s s some/target\n p p 0600\n c c 5:1\n f x - user.a=1 user.b=2\n d d/e 2755"},
	want:   "c 5:1\n d/ 1777 u=1:2 @5\n d/e/ 2755\n f text 4755 u=3:4 @-6\n p| 0600\n s -> some/target\n x - user.a=1 user.b=2",
}, {
	name:   "layers above add files to a directory",
	layers: []string{"d d\n f d/a 1", "d d\n f d/b 2", "d d\n f d/c 3"},
	want:   "d/\n d/a 1\n d/b 2\n d/c 3",
}, {
	name:   "a directory over a directory gives it its attributes and keeps what is in it",
	layers: []string{"d d 0700 u=1:1 user.old=1\n f d/a 1", "d d 0750 u=2:2 @7 user.new=1"},
	want:   "d/ 0750 u=2:2 @7 user.new=1\n d/a 1",
}, {
	name:   "a directory that is only passed through keeps its attributes",
	layers: []string{"d d 0700 @7", "f d/a 1"},
	want:   "d/ 0700 @7\n d/a 1",
}, {
	name:   "a file replaces a file and takes nothing from it",
	layers: []string{"f f old 4755 user.a=1", "f f new"},
	want:   "f new",
}, {
	name:   "a file replaces a directory and all in it",
	layers: []string{"d d\n d d/d\n f d/d/a 1", "f d file"},
	want:   "d file",
}, {
	name:   "a directory replaces a file",
	layers: []string{"f d file", "d d\n f d/a 1"},
	want:   "d/\n d/a 1",
}, {
	name:   "a directory replaces a symlink to a directory",
	layers: []string{"d real\n f real/x 1\n s d real", "d d\n f d/a 1"},
	want:   "d/\n d/a 1\n real/\n real/x 1",
}, {
	name:   "a symlink replaces a directory",
	layers: []string{"d d\n f d/a 1", "s d elsewhere"},
	want:   "d -> elsewhere",
}, {
	name:   "the later of two entries in a layer counts",
	layers: []string{"f f one 0600\n f f two\n f g file\n d g\n d h 0700\n f h/a 1\n d h 0711"},
	want:   "f two\n g/\n h/ 0711\n h/a 1",
}, {
	name:   "an entry for the root sets its attributes",
	layers: []string{"d ./ 0700 u=1:2 @9\n f a 1", "f b 2"},
	want:   "./ 0700 u=1:2 @9\n a 1\n b 2",
}, {
	name:   "names are taken as tar takes them",
	layers: []string{"d ./a/\n f a//b 1\n f /c 2\n f ./a/./d 3\n d ///e/./"},
	want:   "a/\n a/b 1\n a/d 3\n c 2\n e/",
}, {
	name:   "missing parents are made",
	layers: []string{"f a/b/c 1"},
	want:   "a/ @0\n a/b/ @0\n a/b/c 1",
}, {
	name:   "an entry for a parent may come after what is in it",
	layers: []string{"f a/b 1\n d a 0700 @8"},
	want:   "a/ 0700 @8\n a/b 1",
}, {
	name:   "a whiteout hides a file",
	layers: []string{"f a 1\n f b 2", "w a"},
	want:   "b 2",
}, {
	name:   "a whiteout hides a directory and all in it",
	layers: []string{"d d\n d d/d\n f d/d/a 1\n f e 2", "w d"},
	want:   "e 2",
}, {
	name:   "a whiteout of what is not there is nothing",
	layers: []string{"f a 1", "w b\n w no/such/parent\n w a/b\n o no/such\n o a"},
	want:   "a 1",
}, {
	name:   "a whiteout before an entry of its layer leaves it alone",
	layers: []string{"f a old\n d d\n f d/old 1", "w a\n f a new\n w d\n d d\n f d/new 2"},
	want:   "a new\n d/\n d/new 2",
}, {
	name:   "a whiteout after an entry of its layer leaves it alone",
	layers: []string{"f a old\n d d\n f d/old 1\n d d/d\n f d/d/old 1", "f a new\n d d 0700\n f d/new 2\n d d/d\n f d/d/new 3\n w a\n w d"},
	want:   "a new\n d/ 0700\n d/d/\n d/d/new 3\n d/new 2",
}, {
	name:   "a whiteout does not act on its own layer's files alone",
	layers: []string{"f a 1\n w a"},
	want:   "a 1",
}, {
	name:   "a whiteout does not act on the layers above",
	layers: []string{"f a 1", "w a", "f a 3"},
	want:   "a 3",
}, {
	name:   "a directory made after its whiteout takes nothing from the one below",
	layers: []string{"d d 0700 u=1:1 user.a=1\n f d/old 1", "w d\n f d/new 2"},
	want:   "d/ @0\n d/new 2",
}, {
	name:   "a directory hidden by a whiteout after its use takes nothing from the one below",
	layers: []string{"d d 0700 u=1:1 user.a=1\n f d/old 1", "f d/new 2\n w d"},
	want:   "d/ @0\n d/new 2",
	not:    "umoci keeps the hidden directory's attributes, so the order matters to it",
}, {
	name:   "an opaque mark hides what lower layers have in a directory",
	layers: []string{"d d 0700\n f d/a 1\n d d/e\n f d/e/b 2", "d d 0711\n o d\n f d/c 3"},
	want:   "d/ 0711\n d/c 3",
}, {
	name:   "an opaque mark after entries of its layer leaves them alone",
	layers: []string{"d d\n f d/a old\n d d/e\n f d/e/b 2", "d d\n f d/a new\n d d/e 0700\n f d/e/c 3\n o d"},
	want:   "d/\n d/a new\n d/e/ 0700\n d/e/c 3",
}, {
	name:   "an opaque mark keeps its directory, as it is",
	layers: []string{"d d 0700 @3\n f d/a 1", "o d"},
	want:   "d/ 0700 @3",
}, {
	name:   "an opaque root hides all of the layers below",
	layers: []string{"f a 1\n d d\n f d/b 2", "f d/c 3\n o .\n f e 4"},
	want:   "d/ @0\n d/c 3\n e 4",
	not:    "umoci keeps the attributes of the lower d",
}, {
	name:   "opaque marks of several layers",
	layers: []string{"d d\n f d/a 1", "d d\n o d\n f d/b 2", "d d\n f d/c 3", "d d\n o d\n f d/d 4", "d d\n f d/e 5"},
	want:   "d/\n d/d 4\n d/e 5",
}, {
	name:   "a whiteout in a directory behind a symlink",
	layers: []string{"d real\n f real/a 1\n f real/b 2\n s l real", "w l/a"},
	want:   "l -> real\n real/\n real/b 2",
}, {
	name:   "hard links share an inode",
	layers: []string{"f a 1 0600\n h b a\n h d/c b"},
	want:   "a 1 0600\n b = a\n d/ @0\n d/c = a",
}, {
	name:   "a hard link to a file of a lower layer shares its inode",
	layers: []string{"f a 1", "h b a"},
	want:   "a 1\n b = a",
}, {
	name:   "a hard link to a symlink is one more name of the symlink",
	layers: []string{"s a nowhere", "h b a"},
	want:   "a -> nowhere\n b = a",
}, {
	name:   "a hard link goes by the directory behind a symlink",
	layers: []string{"d real\n f real/a 1\n s l real\n h b l/a"},
	want:   "b 1\n l -> real\n real/\n real/a = b",
}, {
	name:   "the other name keeps the content when one name is replaced",
	layers: []string{"f a 1\n h b a", "f a 2"},
	want:   "a 2\n b 1",
}, {
	name:   "the other name keeps the content when one name is hidden",
	layers: []string{"f a 1\n h b a", "w a"},
	want:   "b 1",
}, {
	name:   "the other name keeps the content when its layer replaces one name",
	layers: []string{"f a 1\n h b a\n f a 2\n h c a"},
	want:   "a 2\n b 1\n c = a",
}, {
	name:   "a hard link lives on when its layer hides the target",
	layers: []string{"f a 1", "h b a\n w a"},
	want:   "b 1",
}, {
	name:   "a hard link may come before its target",
	layers: []string{"h c b\n h b a\n f a 1"},
	want:   "a 1\n b = a\n c = a",
	not:    "umoci wants the target first",
}, {
	name:   "a hard link means the target of its own layer, wherever that stands",
	layers: []string{"f a old", "h b a\n f a new"},
	want:   "a new\n b = a",
	not:    "umoci takes what is there when the link comes",
}, {
	name:   "a hard link that is replaced before its layer ends is forgotten",
	layers: []string{"h a nothing\n f a 1\n h b a"},
	want:   "a 1\n b = a",
	not:    "umoci wants the target first",
}, {
	name:   "a hard link replaces a directory",
	layers: []string{"d d\n f d/x 1\n f a 2", "h d a"},
	want:   "a 2\n d = a",
}, {
	name:   "a parent that is a symlink is followed",
	layers: []string{"d usr/lib\n s lib usr/lib", "f lib/a 1\n d lib/d\n f lib/d/b 2"},
	want:   "lib -> usr/lib\n usr/ @0\n usr/lib/\n usr/lib/a 1\n usr/lib/d/\n usr/lib/d/b 2",
}, {
	name:   "an absolute symlink is followed inside the root",
	layers: []string{"d usr/lib\n s lib /usr/lib\n s up ../../../usr", "f lib/a 1\n f up/b 2"},
	want:   "lib -> /usr/lib\n up -> ../../../usr\n usr/ @0\n usr/b 2\n usr/lib/\n usr/lib/a 1",
}, {
	name:   "a parent that is a dangling symlink is made where it leads",
	layers: []string{"s l a/b/../c", "f l/f 1"},
	want:   "a/ @0\n a/c/ @0\n a/c/f 1\n l -> a/b/../c",
}, {
	name:   "a parent that is a file is replaced by a directory",
	layers: []string{"f a 1", "f a/b 2"},
	want:   "a/ @0\n a/b 2",
	not:    "umoci 0.4 gives up, later ones do the same as we",
}, {
	name:   "what AUFS left behind is ignored",
	layers: []string{"f .wh..wh.aufs x\n d .wh..wh.plnk\n f .wh..wh.plnk/1.2 y\n d .wh..wh.orph\n f a 1"},
	want:   "a 1",
	not:    "umoci makes the files below .wh..wh.plnk",
}}

func TestMerge(t *testing.T) {
	for _, c := range mergeCases {
		t.Run(c.name, func(t *testing.T) {
			wantTree(t, merge(t, c.layers...), c.want)
		})
	}
}

// TestMergeAboveManyLayers puts each case on top of 50 layers that it hides.
func TestMergeAboveManyLayers(t *testing.T) {
	for _, c := range mergeCases {
		var layers []string
		for range 50 {
			layers = append(layers, "d junk\n f junk/x 1\n h junk/y junk/x\n s l junk\n")
		}
		// The case's own "w l" and the like must not meet ours.
		layers = append(layers, "w junk\n w l", "")
		t.Run(c.name, func(t *testing.T) {
			wantTree(t, merge(t, append(layers, c.layers...)...), c.want)
		})
	}
}

func TestRefusesEntries(t *testing.T) {
	long := strings.Repeat("n", 256)
	for name, c := range map[string]struct {
		layers []string
		entry  string
		words  []string
	}{
		".. in a name":                   {[]string{"f a/../b 1"}, "a/../b", []string{".."}},
		".. at the start":                {[]string{"f ../b 1"}, "../b", []string{".."}},
		".. behind a slash":              {[]string{"f /.. 1"}, "/..", []string{".."}},
		".. in a whiteout":               {[]string{"w ../a"}, "../.wh.a", []string{".."}},
		".. in a hard link's target":     {[]string{"f a 1\n h b ../a"}, "b", []string{"target", ".."}},
		"a name of 256 bytes":            {[]string{"f " + long + " 1"}, long, []string{"255"}},
		"a path of 64 KiB":               {[]string{"f " + strings.Repeat("a/", 1<<15) + " 1"}, strings.Repeat("a/", 1<<15), []string{"65535"}},
		"a root that is a file":          {[]string{"f ./ 1"}, "./", []string{"root"}},
		"a root that is a symlink":       {[]string{"s / etc"}, "/", []string{"root"}},
		"a root that is a hard link":     {[]string{"f a 1\n h / a"}, "/", []string{"root"}},
		"a whiteout without a name":      {[]string{"w a/"}, "a/.wh.", []string{"whiteout"}},
		"a whiteout of .":                {[]string{"f a/.wh.. 1"}, "a/.wh..", []string{"whiteout"}},
		"a whiteout of ..":               {[]string{"f a/.wh... 1"}, "a/.wh...", []string{"whiteout"}},
		"a file below a whiteout":        {[]string{"f .wh.a/b 1"}, ".wh.a/b", []string{"below a whiteout"}},
		"a hard link to nothing":         {[]string{"f a 1\n h b c"}, "b", []string{"leads to nothing"}},
		"a hard link to what is hidden":  {[]string{"f a 1", "w a\n h b a"}, "b", []string{"layer 1", "leads to nothing"}},
		"a hard link to a directory":     {[]string{"d a\n h b a"}, "b", []string{"directory"}},
		"a hard link to the root":        {[]string{"h b /"}, "b", []string{"directory"}},
		"a hard link to a lower dir":     {[]string{"d a", "h b a"}, "b", []string{"directory"}},
		"a hard link to itself":          {[]string{"h b b"}, "b", []string{"itself"}},
		"a hard link to its lower self":  {[]string{"f b 1", "h b b"}, "b", []string{"itself"}},
		"a cycle of two hard links":      {[]string{"h a b\n h b a"}, "a", []string{"itself"}},
		"a cycle of three hard links":    {[]string{"h x a\n h a b\n h b c\n h c a"}, "x", []string{"itself"}},
		"a loop of symlinks as a parent": {[]string{"s a b\n s b a\n f a/x 1"}, "a/x", []string{"symlinks"}},
		"a symlink to itself as parent":  {[]string{"s a a/b\n f a/x 1"}, "a/x", []string{"symlinks"}},
		"a parent's name behind a link":  {[]string{"s a " + long + "\n f a/x 1"}, "a/x", []string{"255"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := mergeScripts(t, c.layers...)
			wantEntryError(t, err, c.entry, c.words...)
		})
	}
}

// The prefix makes a whiteout longer than a name can be.
func TestWhiteoutOfTheLongestName(t *testing.T) {
	long := strings.Repeat("n", 255)
	wantTree(t, merge(t, "f "+long+" 1\n f a 1", "w "+long), "a 1")
}

func TestNamesAreAnyBytes(t *testing.T) {
	var entries []Entry
	want := map[string]bool{}
	for c := 1; c < 256; c++ {
		if name := "x" + string([]byte{byte(c)}) + "\xff"; c != '/' {
			entries = append(entries, Entry{Name: name, Mode: unix.S_IFIFO})
			want[name] = true
		}
	}
	long := strings.Repeat("\xfe", 255)
	entries = append(entries, Entry{Name: long, Mode: unix.S_IFLNK, Symlink: strings.Repeat("\xfd", 4095)})
	tree, err := mergeEntries(t, entries)
	if err != nil {
		t.Fatal(err)
	}
	for i := range tree.DirLen(Root) {
		name, _, _ := tree.DirAt(Root, i)
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("%d names are missing: %v", len(want), want)
	}
	ino, _ := tree.Lookup(Root, long)
	if target, _ := tree.Readlink(ino); target != strings.Repeat("\xfd", 4095) {
		t.Errorf("the long symlink leads to %q", target)
	}
}

func TestLinkCounts(t *testing.T) {
	tree := merge(t, "f a 1\n h b a\n d d\n d d/x\n d d/y\n d d/y/z\n h d/c a\n f d/e 2\n s s a", "w b\n w d/x")
	want := map[string]uint32{".": 3, "a": 2, "d": 3, "d/y": 3, "d/y/z": 2, "d/c": 2, "d/e": 1, "s": 1}
	for _, f := range facts(t, tree) {
		if f.nlink != want[f.path] {
			t.Errorf("%s has %d links instead of %d", f.path, f.nlink, want[f.path])
		}
	}
}

func TestInodeNumbersFollowTheDirectories(t *testing.T) {
	tree := merge(t, "f b/y 1\n f a/x/1 1\n f a/x/2 2\n f a/y 3\n f c 4\n h a/z c")
	next := Ino(1)
	var walk func(dir Ino)
	walk = func(dir Ino) { // as arranged: a directory's entries, then each directory among them
		var dirs []Ino
		for i := range tree.DirLen(dir) {
			_, ino, typ := tree.DirAt(dir, i)
			if ino == next+1 {
				next++
			} else if ino > next {
				t.Errorf("after inode %d comes %d", next, ino)
			}
			if typ == unix.S_IFDIR {
				dirs = append(dirs, ino)
			}
		}
		for _, d := range dirs {
			if tree.Parent(d) != dir {
				t.Errorf("the parent of %d is %d, should be %d", d, tree.Parent(d), dir)
			}
			walk(d)
		}
	}
	walk(Root)
	if next != tree.MaxIno() || tree.Parent(Root) != Root {
		t.Errorf("MaxIno is %d after %d inodes, the root's parent %d", tree.MaxIno(), next, tree.Parent(Root))
	}
}

func TestTimes(t *testing.T) {
	at := Time{Sec: -1 << 40, Nsec: 999999999}
	tree, err := mergeEntries(t, []Entry{{Name: "a", Mode: unix.S_IFSOCK | 0600, Mtime: at}})
	if err != nil {
		t.Fatal(err)
	}
	a, ok := tree.Attr(2)
	if !ok || a.Mtime != at || a.Atime != at || a.Ctime != at || a.Btime != at || a.Mode != unix.S_IFSOCK|0600 {
		t.Errorf("attributes are %+v, %v", a, ok)
	}
}

func TestOwnerMinusOneIsRoot(t *testing.T) {
	tree, err := mergeEntries(t, []Entry{{Name: "a", Mode: unix.S_IFDIR, UID: ^uint32(0), GID: ^uint32(0)}})
	if err != nil {
		t.Fatal(err)
	}
	if a, _ := tree.Attr(2); a.UID != 0 || a.GID != 0 {
		t.Errorf("owner is %d:%d", a.UID, a.GID)
	}
}
