package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/cow"
	"github.com/veneerfs/veneer/fetcher"
	"github.com/veneerfs/veneer/unionfs"
)

// Host directories are merged into a tree when they are mounted, and its inode numbers are what the changes in a state directory are
// about. So the tree is kept there, beside the delta (package cow), and serves again while there are changes:
//
//	STATE/tree     the merged tree, which names its layers; replaced by rename, and only while there is no change
//	STATE/.tree.*  one that was not finished
//
// A crash leaves the old tree or the new one, and no change that was made over another. What else lies in STATE was put there by
// somebody: the directory was an upper directory of overlayfs. It is the topmost layer then.

const treeName = "tree"

// ownName says whether name is of one of our files in a state directory.
func ownName(name string) bool {
	return cow.IsStateFile(name) || name == treeName || strings.HasPrefix(name, "."+treeName+".")
}

// openDirs opens host directories, with what was changed over them.
func (t *servedTree) openDirs(job serverJob, log *slog.Logger) error {
	if job.State == "" {
		if err := t.mergeUnkept(job.Dirs); err != nil {
			return err
		}
		if err := t.openDirContents(log); err != nil {
			return err
		}
		t.FS = cow.ReadOnly(t.tree, t.contents)
		return nil
	}
	state, err := os.Open(job.State)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(job.State, 0o700); err != nil {
			return err
		}
		state, err = os.Open(job.State)
	}
	if err != nil {
		return err
	}
	defer state.Close()
	// Who mounts it at the same time waits here, and then for our end or for the lock that package cow has.
	if err := flock(state, unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", job.State, err)
	}
	if err := t.keptTree(job); err != nil {
		return err
	}
	if err := t.openDirContents(log); err != nil {
		return err
	}
	dir, err := t.reachable(job)
	if err != nil {
		return err
	}
	t.FS, err = cow.Open(dir, t.tree, t.contents, job.Storage.limit(cow.Options{Log: log}))
	return err
}

// reachable returns the state directory by a path that leads to it after the mount, too: the mount point may be above it.
func (t *servedTree) reachable(job serverJob) (string, error) {
	isDir, err := sameDir(job.Dir)
	if err != nil || !upward(job.State, isDir) {
		return job.State, err
	}
	fd, err := unix.Open(job.State, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", job.State, err)
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), nil // it stays open until the process ends
}

// mergeUnkept merges for a mount without state. Nobody needs the tree's file once it is open.
func (t *servedTree) mergeUnkept(dirs []string) error {
	tmp, err := os.MkdirTemp("", "veneer-tree-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	return t.merge(dirs, "", filepath.Join(tmp, treeName))
}

// keptTree opens the state directory's tree if there are changes, which must have been made over the same layers. Else it merges them
// anew. The directory is locked.
func (t *servedTree) keptTree(job serverJob) error {
	foreign, err := checkState(job.State)
	if err != nil {
		return err
	}
	unchanged, err := cow.Reset(job.State)
	if err != nil {
		return err
	}
	path := filepath.Join(job.State, treeName)
	if unchanged {
		upper := ""
		if foreign {
			upper = job.State
		}
		return t.merge(job.Dirs, upper, path)
	}
	if t.tree, err = unionfs.Open(path); err != nil {
		return err
	}
	t.closers = append(t.closers, t.tree.Close)
	if err := checkLayers(t.tree.Layers(), job); err != nil {
		return err
	}
	for _, l := range t.tree.Layers() {
		if err := t.openLayer(l.Path); err != nil {
			return err
		}
	}
	return nil
}

// checkState looks what is in a state directory: foreign says that something is not ours.
func checkState(dir string) (foreign bool, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	isState, own := false, ""
	for _, e := range entries {
		switch {
		case e.Name() == treeName:
			isState = true
		case strings.HasPrefix(e.Name(), "."+treeName+"."):
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return false, err
			}
		case !ownName(e.Name()):
			foreign = true
		case e.Name() != "lock": // which comes before the tree
			own = e.Name()
		}
	}
	if own != "" && !isState {
		return false, fmt.Errorf("state directory %s is not one of merged directories, but %q is in it: use another", dir, own)
	}
	return foreign, nil
}

// checkLayers compares the layers that the changes of a state directory were made over with those of a job.
func checkLayers(layers []unionfs.Layer, job serverJob) error {
	var kept []string
	for _, l := range layers {
		if l.Path != job.State {
			kept = append(kept, l.Path)
		}
	}
	if slices.Equal(kept, job.Dirs) {
		return nil
	}
	slices.Reverse(kept)
	names := strings.Join(kept, ":")
	if len(names) > 1000 {
		names = names[:1000] + "…"
	}
	return fmt.Errorf("state directory %s has changes that were made over lowerdir=%s: mount it over the same directories, "+
		"or use another state directory", job.State, names)
}

// merge makes a tree of dirs, bottom first, and of upper if there is one, at path, and opens it.
func (t *servedTree) merge(dirs []string, upper, path string) error {
	b := unionfs.NewBuilder()
	for _, dir := range dirs {
		if err := t.addLayer(b, dir, nil); err != nil {
			return err
		}
	}
	if upper != "" {
		if err := t.addLayer(b, upper, ownName); err != nil {
			return err
		}
	}
	if err := b.WriteFile(path); err != nil {
		return err
	}
	var err error
	if t.tree, err = unionfs.Open(path); err != nil {
		return err
	}
	t.closers = append(t.closers, t.tree.Close)
	b = nil
	debug.FreeOSMemory() // merging took some hundred bytes for each file; serving takes none
	return nil
}

func (t *servedTree) addLayer(b *unionfs.Builder, dir string, skip func(string) bool) error {
	if err := t.openLayer(dir); err != nil {
		return err
	}
	if err := b.AddDirAt(t.dirs[len(t.dirs)-1], dir, skip); err != nil {
		return fmt.Errorf("layer %s: %w", dir, err)
	}
	return nil
}

// openLayer opens a layer as a mount of its own that is nowhere in the tree of mounts, as overlayfs does: what is mounted below it, which
// our own mount may be, is not seen, and the host may unmount what it is on. Where that is not allowed it is opened as it is.
func (t *servedTree) openLayer(dir string) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		// Reading changes no time of access. Only a wish.
		_ = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOATIME})
	} else if fd, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("layer %s: %w", dir, err)
	}
	t.dirs = append(t.dirs, os.NewFile(uintptr(fd), dir))
	return nil
}

// openDirContents gives the open layers to the reader of their files, which closes them.
func (t *servedTree) openDirContents(log *slog.Logger) (err error) {
	t.contents, err = fetcher.DirContents(t.tree, fetcher.ContentsOptions{Log: log, Dirs: t.dirs})
	if err != nil {
		return err
	}
	t.dirs = nil
	t.closers = append(t.closers, t.contents.Close)
	return nil
}
