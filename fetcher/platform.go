package fetcher

import (
	"fmt"
	"runtime"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Platform says for which machines an image is made. The zero Platform is this machine's.
type Platform struct {
	OS, Architecture string // as Go names them
	Variant          string // "v7", "v8"; "" for any
}

// AnyPlatform takes what there is: the image if there is one, the first of an index.
var AnyPlatform = Platform{OS: "any"}

// HostPlatform returns this machine's platform.
func HostPlatform() Platform {
	return Platform{OS: "linux", Architecture: runtime.GOARCH}.normal()
}

// ParsePlatform reads OS/ARCH[/VARIANT], ARCH alone, "any", or "" for the host's.
func ParsePlatform(s string) (Platform, error) {
	parts := strings.Split(strings.ToLower(s), "/")
	switch {
	case s == "":
		return HostPlatform(), nil
	case s == AnyPlatform.OS:
		return AnyPlatform, nil
	case strings.Contains("/"+s+"/", "//") || len(parts) > 3:
		return Platform{}, fmt.Errorf("invalid platform %q: write OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64", s)
	case len(parts) == 1:
		return Platform{OS: "linux", Architecture: parts[0]}.normal(), nil
	}
	p := Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p.normal(), nil
}

func (p Platform) String() string {
	if p == AnyPlatform {
		return p.OS
	}
	if p.Variant == "" {
		return p.OS + "/" + p.Architecture
	}
	return p.OS + "/" + p.Architecture + "/" + p.Variant
}

// normal gives each platform one spelling.
func (p Platform) normal() Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "i386", "i486", "i586", "i686":
		p.Architecture = "386"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	switch p.Architecture + "/" + p.Variant {
	case "arm64/v8", "arm64/8", "amd64/v1":
		p.Variant = "" // what every such machine has
	case "arm/5", "arm/6", "arm/7":
		p.Variant = "v" + p.Variant
	}
	return p
}

func (p Platform) orHost() Platform {
	if p == (Platform{}) {
		return HostPlatform()
	}
	return p.normal()
}

func platformOf(p *ocispec.Platform) Platform {
	return Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}.normal()
}

// pick returns the index of the best of have for p, or -1. The first of equally good ones wins.
func (p Platform) pick(have []Platform) int {
	best, bestRank := -1, 0
	for i, h := range have {
		if r := p.rank(h); r > bestRank {
			best, bestRank = i, r
		}
	}
	return best
}

// rank says how well an image for h serves p; 0 is not at all.
func (p Platform) rank(h Platform) int {
	switch {
	case p == AnyPlatform, h == Platform{}: // nothing is known of h: when it is all there is
		return 1
	case p.OS != h.OS || p.Architecture != h.Architecture:
		return 0
	case p.Variant == h.Variant:
		return 100
	case h.Variant == "":
		return 50
	case p.Architecture == "arm":
		return p.armRank(h)
	}
	return 0 // amd64/v3 on a machine of which that is not known, arm64/v9
}

// armRank: a machine runs what was made for it or for an older one, and the newest such is the best. Without a
// variant the machine is taken for a v7, the oldest that current systems are built for.
func (p Platform) armRank(h Platform) int {
	want := p.Variant
	if want == "" {
		want = "v7"
	}
	if h.Variant > want || len(h.Variant) != len(want) {
		return 0
	}
	return 10 + int(h.Variant[1]-'0')
}
