package unionfs

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// model is the merge as simply as it can be said: a map from path to node, whose subtrees are found by scanning it.
type model struct {
	nodes map[string]*modelNode
	upper map[string]bool // paths that the current layer has an entry for, or below
	named map[string]bool // those that have an entry themselves
	links []modelLink
}

type modelNode struct {
	fact
	link bool // a hard link that is not resolved yet
}

type modelLink struct {
	at, target string
	node       *modelNode
	lower      *modelNode // what target was in the layers below
	entry      int
}

func newModel() *model {
	return &model{nodes: map[string]*modelNode{".": madeUp()}}
}

func madeUp() *modelNode { return &modelNode{fact: fact{mode: unix.S_IFDIR | 0755}} }

func (n *modelNode) isDir() bool { return n != nil && n.mode&unix.S_IFMT == unix.S_IFDIR }

var errModel = errors.New("the model refuses")

// apply applies a layer. If that fails, it says which entry is at fault.
func (m *model) apply(entries []Entry) (int, error) {
	m.upper, m.named, m.links = map[string]bool{}, map[string]bool{}, nil
	for i := range entries {
		if !m.entry(i, &entries[i]) {
			return i, errModel
		}
	}
	for i := range m.links {
		l := &m.links[i]
		if m.nodes[l.at] != l.node {
			continue
		}
		n := m.follow(l, len(m.links))
		if n == nil {
			return l.entry, errModel
		}
		m.nodes[l.at] = n
	}
	return 0, nil
}

// follow returns what a link leads to, over at most max more links.
func (m *model) follow(l *modelLink, max int) *modelNode {
	at, ok := m.resolve(l.target)
	n := m.nodes[at]
	switch {
	case !ok || n.isDir():
		return nil
	case n != nil && n.link:
		for i := range m.links {
			if next := &m.links[i]; next.node == n && max > 0 {
				return m.follow(next, max-1)
			}
		}
		return nil
	case n != nil && (m.upper[at] || l.lower == nil):
		return n
	}
	return l.lower
}

// resolve follows the symlinks in the directory part of a name.
func (m *model) resolve(name string) (string, bool) {
	name = path.Clean("/" + name)
	var dir []string
	todo := strings.Split(path.Dir(name), "/")
	for followed := 0; len(todo) > 0; {
		c := todo[0]
		todo = todo[1:]
		if c == "" || c == "." {
			continue
		}
		if c == ".." {
			dir = dir[:max(0, len(dir)-1)]
			continue
		}
		n := m.nodes[path.Join(append(slices.Clone(dir), c)...)]
		if n == nil || n.mode&unix.S_IFMT != unix.S_IFLNK {
			dir = append(dir, c)
			continue
		}
		if followed++; followed > 40 {
			return "", false
		}
		if n.text[0] == '/' {
			dir = nil
		}
		todo = append(strings.Split(n.text, "/"), todo...)
	}
	return path.Join(path.Join(dir...), path.Base(name)), true
}

func (m *model) entry(i int, e *Entry) bool {
	at, ok := m.resolve(e.Name)
	if !ok {
		return false
	}
	dir, base := path.Dir(at), path.Base(at)
	if base == ".wh..wh..opq" {
		m.hide(dir, false)
		return true
	}
	if name, ok := strings.CutPrefix(base, ".wh."); ok {
		m.hide(path.Join(dir, name), true)
		return true
	}
	m.parents(dir)
	if e.Mode&unix.S_IFMT != unix.S_IFDIR || !m.nodes[at].isDir() {
		n, ok := m.node(i, at, e)
		if !ok {
			return false
		}
		m.remove(at)
		m.nodes[at] = n
	} else {
		*m.nodes[at] = modelNode{fact: attrs(e)}
	}
	m.upper[at], m.named[at] = true, true
	return true
}

func attrs(e *Entry) fact {
	return fact{mode: e.Mode, uid: e.UID, gid: e.GID, rdev: e.Rdev, mtime: e.Mtime, xattrs: e.Xattrs,
		text: texts[e.Content.Digest] + e.Symlink}
}

// node makes the node of an entry that is to replace what is there.
func (m *model) node(i int, at string, e *Entry) (*modelNode, bool) {
	if e.Link == "" {
		return &modelNode{fact: attrs(e)}, true
	}
	target, ok := m.resolve(e.Link)
	if !ok {
		return nil, false
	}
	found := m.nodes[target]
	if found != nil && !found.isDir() && !found.link && m.upper[target] {
		return found, true
	}
	n := &modelNode{link: true}
	l := modelLink{at: at, target: e.Link, node: n, entry: i}
	if found != nil && !found.isDir() && !found.link {
		l.lower = found
	}
	m.links = append(m.links, l)
	return n, true
}

// parents makes dir and all above it directories.
func (m *model) parents(dir string) {
	if dir != "." {
		m.parents(path.Dir(dir))
	}
	if !m.nodes[dir].isDir() {
		m.remove(dir)
		m.nodes[dir] = madeUp()
	}
	m.upper[dir] = true
}

func below(p, dir string) bool { return dir == "." && p != "." || strings.HasPrefix(p, dir+"/") }

func (m *model) remove(at string) {
	for p := range m.nodes {
		if p == at || below(p, at) {
			delete(m.nodes, p)
			delete(m.upper, p)
			delete(m.named, p)
		}
	}
}

// hide hides what lower layers have below at, and at itself too if self.
func (m *model) hide(at string, self bool) {
	for p, n := range m.nodes {
		if !below(p, at) && (!self || p != at) {
			continue
		}
		if !m.upper[p] {
			delete(m.nodes, p)
		} else if n.isDir() && !m.named[p] {
			m.nodes[p] = madeUp()
		}
	}
}

// facts are the model's side of the comparison.
func (m *model) facts() []fact {
	var all []fact
	first, links := map[*modelNode]string{}, map[*modelNode]uint32{}
	for _, p := range slices.Sorted(maps.Keys(m.nodes)) {
		n := m.nodes[p]
		links[n]++
		if n.isDir() {
			links[n]++
			if p != "." {
				links[m.nodes[path.Dir(p)]]++
			}
		}
	}
	for _, p := range slices.Sorted(maps.Keys(m.nodes)) {
		f := m.nodes[p].fact
		f.path, f.nlink, f.same = p, links[m.nodes[p]], first[m.nodes[p]]
		if f.same == "" {
			first[m.nodes[p]] = p
		}
		all = append(all, f)
	}
	return all
}

// TestModelAgreesOnRandomLayers merges random layers. An entry that the model refuses must be refused by the
// Builder; without it, both must come to the same tree.
func TestModelAgreesOnRandomLayers(t *testing.T) {
	for seed := range uint64(400) {
		r := randomLayers{rand: rand.New(rand.NewPCG(seed, 1)), tidy: seed%4 == 0}
		agree(t, fmt.Sprint("seed ", seed), r.image(5, 40))
	}
}

func agree(t *testing.T, name string, layers [][]Entry) {
	t.Helper()
	var m *model
	for range 1000 { // more than there are entries
		bad := false
		m = newModel()
		for i := range layers {
			at, err := m.apply(layers[i])
			if err == nil {
				continue
			}
			_, err = mergeEntries(t, layers...)
			wantEntryError(t, err, layers[i][at].Name)
			layers[i] = slices.Delete(slices.Clone(layers[i]), at, at+1)
			bad = true
			break
		}
		if !bad {
			break
		}
	}
	tree, err := mergeEntries(t, layers...)
	if err != nil {
		t.Fatalf("%s: %v\nof\n%s", name, err, showLayers(layers))
	}
	ours, theirs := showAll(facts(t, tree)), showAll(m.facts())
	if !slices.Equal(ours, theirs) {
		t.Fatalf("%s: of\n%swe make\n\t%s\nthe model makes\n\t%s", name, showLayers(layers),
			strings.Join(ours, "\n\t"), strings.Join(theirs, "\n\t"))
	}
}

// showAll is show with all numbers of links.
func showAll(facts []fact) []string {
	var lines []string
	for i := range facts {
		lines = append(lines, fmt.Sprintf("%s (%d)", facts[i].String(), facts[i].nlink))
	}
	return lines
}
