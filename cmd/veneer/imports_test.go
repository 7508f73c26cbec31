package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/veneerfs/veneer"

// mayImport is the table "Packages" of docs/ARCHITECTURE.md: which of our folders a folder may import besides itself.
var mayImport = map[string][]string{
	"unionfs": {},
	"fetcher": {"unionfs"},
	"cow":     {"unionfs"},
	"fs":      {"unionfs"},
	"runtime": {},
	"cmd":     {"unionfs", "fetcher", "cow", "fs", "runtime"},
	"bench":   {"unionfs", "fetcher", "cow", "fs", "runtime"},
}

// owners says which folder alone may use a dependency, directly or through another module.
// The key is an import path; it stands for everything below it, too.
var owners = map[string]string{
	"github.com/hanwen/go-fuse":                "fs",
	"github.com/containerd/stargz-snapshotter": "fetcher",
	"github.com/google/go-containerregistry":   "fetcher",
	"github.com/docker/cli":                    "fetcher",
	"github.com/BurntSushi/toml":               "fetcher",
	"github.com/vishvananda/netlink":           "runtime",
	"github.com/vishvananda/netns":             "runtime",
	"github.com/google/nftables":               "runtime",
	"github.com/opencontainers/cgroups":        "runtime",
	"github.com/moby/profiles/seccomp":         "runtime",
	"github.com/elastic/go-seccomp-bpf":        "runtime",
	"github.com/spf13/cobra":                   "cmd",
	"github.com/spf13/pflag":                   "cmd",
	"github.com/vbauerster/mpb":                "cmd",
}

// pure names the folders whose code may not reach a network or a FUSE connection, even through the standard library.
var pure = []string{"unionfs"}

// pkg is what `go list -json` tells of a package.
type pkg struct {
	ImportPath   string
	Standard     bool
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func TestImportsFollowTheTable(t *testing.T) {
	pkgs, err := listPackages()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range violations(pkgs) {
		t.Error(v)
	}
}

// TestImportRulesAreEnforced holds the rules above against packages that break one each.
func TestImportRulesAreEnforced(t *testing.T) {
	at := func(path string) string { return module + "/" + path }
	const fuse = "github.com/hanwen/go-fuse/v2/fuse"
	for _, c := range []struct {
		name string
		pkgs []pkg
		want string // part of the only violation; "" for none
	}{
		{"allowed", []pkg{
			{ImportPath: at("cow"), Imports: []string{at("unionfs"), at("cow/journal")}},
			{ImportPath: at("fs"), Imports: []string{fuse}},
			{ImportPath: at("cmd/veneer"), Imports: []string{at("fs"), "github.com/spf13/cobra"}},
		}, ""},
		{"folder", []pkg{{ImportPath: at("cow"), Imports: []string{at("fetcher")}}}, "cow imports " + at("fetcher")},
		{"folder from a test", []pkg{{ImportPath: at("fs"), XTestImports: []string{at("cow")}}}, "fs imports " + at("cow")},
		{"new folder", []pkg{{ImportPath: at("util")}}, "no folder of the table"},
		{"leak", []pkg{{ImportPath: at("cow"), Imports: []string{fuse}}}, "belongs to fs"},
		{"leak from a test", []pkg{{ImportPath: at("cmd/veneer"), TestImports: []string{"github.com/google/go-containerregistry/pkg/registry"}}}, "belongs to fetcher"},
		{"leak through another module", []pkg{
			{ImportPath: at("cow"), Imports: []string{"example.com/wrap"}},
			{ImportPath: "example.com/wrap", Imports: []string{fuse}},
		}, "belongs to fs"},
		{"own dependency of a dependency", []pkg{
			{ImportPath: "github.com/hanwen/go-fuse/v2/fs", Imports: []string{fuse}},
			{ImportPath: at("fs"), Imports: []string{"github.com/hanwen/go-fuse/v2/fs"}},
		}, ""},
		{"network in unionfs", []pkg{
			{ImportPath: at("unionfs"), Imports: []string{"expvar"}},
			{ImportPath: "expvar", Standard: true, Imports: []string{"net/http"}},
		}, "reaches net/http"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := violations(c.pkgs)
			switch {
			case c.want == "" && len(got) == 0:
			case c.want != "" && len(got) == 1 && strings.Contains(got[0], c.want):
			default:
				t.Errorf("violations %q, want one with %q", got, c.want)
			}
		})
	}
}

// listPackages returns all packages of the module and everything that they or their tests depend on.
func listPackages() ([]pkg, error) {
	out, err := exec.Command("go", "list", "-deps", "-json=ImportPath,Standard,Imports,TestImports,XTestImports", module+"/...").Output()
	if err != nil {
		if x := new(exec.ExitError); errors.As(err, &x) {
			err = fmt.Errorf("%w: %s", err, x.Stderr)
		}
		return nil, fmt.Errorf("go list: %w", err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			return pkgs, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		pkgs = append(pkgs, p)
	}
}

// violations returns a sentence for every import that the rules do not allow, sorted.
func violations(pkgs []pkg) []string {
	byPath := make(map[string]pkg)
	for _, p := range pkgs {
		byPath[p.ImportPath] = p
	}
	found := make(map[string]bool)
	for _, p := range pkgs {
		folder, ours := folderOf(p.ImportPath)
		if !ours {
			continue
		}
		if _, known := mayImport[folder]; !known {
			found[fmt.Sprintf("%s is in no folder of the table", p.ImportPath)] = true
			continue
		}
		for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if to, ours := folderOf(i); ours && to != folder && !slices.Contains(mayImport[folder], to) {
				found[fmt.Sprintf("%s imports %s, the table does not allow %s to", p.ImportPath, i, folder)] = true
			}
		}
		for dep, via := range foreignDeps(p, byPath) {
			if o := owner(dep); o != "" && o != folder && owner(via) == "" {
				found[fmt.Sprintf("%s uses %s (by %s), which belongs to %s", p.ImportPath, dep, via, o)] = true
			}
		}
		if slices.Contains(pure, folder) {
			for dep := range standardDeps(p.Imports, byPath) {
				if dep == "net" || dep == "net/http" {
					found[fmt.Sprintf("%s reaches %s, and %s is pure", p.ImportPath, dep, folder)] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// foreignDeps returns what p and its tests reach through imports of other modules, not through packages of ours,
// each with the importer that led there. What an owned dependency itself needs is its own affair.
func foreignDeps(p pkg, byPath map[string]pkg) map[string]string {
	deps := make(map[string]string)
	var walk func(from string, imports []string)
	walk = func(from string, imports []string) {
		for _, i := range imports {
			if _, ours := folderOf(i); ours || deps[i] != "" || byPath[i].Standard {
				continue
			}
			deps[i] = from
			walk(i, byPath[i].Imports)
		}
	}
	walk(p.ImportPath, slices.Concat(p.Imports, p.TestImports, p.XTestImports))
	return deps
}

// standardDeps returns everything that imports lead to, through packages of any kind.
func standardDeps(imports []string, byPath map[string]pkg) map[string]bool {
	deps := make(map[string]bool)
	var walk func([]string)
	walk = func(imports []string) {
		for _, i := range imports {
			if !deps[i] {
				deps[i] = true
				walk(byPath[i].Imports)
			}
		}
	}
	walk(imports)
	return deps
}

// folderOf returns the top-level folder of one of our packages.
func folderOf(path string) (folder string, ours bool) {
	rest, ours := strings.CutPrefix(path, module+"/")
	folder, _, _ = strings.Cut(rest, "/")
	return folder, ours
}

// owner returns the folder that a dependency belongs to, "" when any may use it.
func owner(path string) string {
	for prefix, folder := range owners {
		if path == prefix || strings.HasPrefix(path, prefix+"/") {
			return folder
		}
	}
	return ""
}
