package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/veneerfs/veneer/unionfs"
)

// maxAccountFile bounds what is read of an image's /etc/passwd and /etc/group.
const maxAccountFile = 8 << 20 // bytes

// account is who the process runs as.
type account struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
	Home   string   `json:"home"`
}

func (a *account) spec() specs.User {
	return specs.User{UID: a.UID, GID: a.GID, AdditionalGids: a.Groups}
}

// lookUpUser resolves USER[:GROUP] by the account files of the image. It is done here and not in the mount, so that the container can be
// set up while its server starts.
func lookUpUser(ctx context.Context, img *localImage, spec string) (*account, error) {
	var files [2]io.Reader
	for i, path := range []string{"/etc/passwd", "/etc/group"} {
		p, err := img.readFile(ctx, path, maxAccountFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue // then only numbers are good
		} else if err != nil {
			return nil, err
		}
		files[i] = bytes.NewReader(p)
	}
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, files[0], files[1])
	if err != nil {
		return nil, err
	}
	a := &account{UID: uint32(u.Uid), GID: uint32(u.Gid), Home: u.Home}
	for _, g := range u.Sgids {
		a.Groups = append(a.Groups, uint32(g))
	}
	if a.Home == "" {
		a.Home = "/"
	}
	return a, nil
}

// maxLinks is how many symbolic links a path may lead through: MAXSYMLINKS of the kernel.
const maxLinks = 40

// resolveInTree follows a path to its end, symbolic links included, none of which leads out of the tree.
func resolveInTree(t *unionfs.Tree, path string) (unionfs.Ino, bool) {
	dir, links := unionfs.Root, 0
	for path != "" {
		var name string
		name, path, _ = strings.Cut(path, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			dir = t.Parent(dir)
			continue
		}
		if a, ok := t.Attr(dir); !ok || a.Mode&unix.S_IFMT != unix.S_IFDIR {
			return 0, false
		}
		ino, ok := t.Lookup(dir, name)
		if !ok {
			return 0, false
		}
		target, isLink := t.Readlink(ino)
		if !isLink {
			dir = ino
			continue
		}
		if links++; links > maxLinks {
			return 0, false
		}
		if strings.HasPrefix(target, "/") {
			dir = unionfs.Root
		}
		path = target + "/" + path
	}
	return dir, true
}

func isRegular(a unionfs.Attr) bool { return a.Mode&unix.S_IFMT == unix.S_IFREG }

func errNoFile(path string) error { return &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist} }
