package runtime

import (
	"fmt"
	"io"
	"math"
	"path"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxUserFile bounds how much of a container's passwd or group file is read, bytes.
const maxUserFile = 16 << 20

// ResolveUser gives meaning to USER[:GROUP] as Docker does: names are looked up in the container's passwd and group files, numbers
// need not be in them. Without a group, it is the one in passwd and the additional ones are those that list the user; with one,
// there are no others. "" is root. home is the user's directory, "/" if passwd does not tell.
//
// passwd and group are the files' contents, which nobody has checked; nil if the container has none.
func ResolveUser(name string, passwd, group io.Reader) (u specs.User, home string, err error) {
	found, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, bounded(passwd), bounded(group))
	if err != nil {
		return specs.User{}, "", fmt.Errorf("find user %q in the container: %w", name, err)
	}
	// The files' numbers come unchecked. -1, above all, would mean "leave it" to setresuid(2), and so root.
	for _, id := range append([]int{found.Uid, found.Gid}, found.Sgids...) {
		if id < 0 || id > math.MaxInt32 {
			return specs.User{}, "", fmt.Errorf("find user %q in the container: ID %d is out of range", name, id)
		}
	}
	u = specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid)}
	for _, g := range found.Sgids {
		u.AdditionalGids = append(u.AdditionalGids, uint32(g))
	}
	if !path.IsAbs(found.Home) {
		found.Home = "/"
	}
	return u, found.Home, nil
}

func bounded(r io.Reader) io.Reader {
	if r == nil {
		return nil
	}
	return io.LimitReader(r, maxUserFile)
}
