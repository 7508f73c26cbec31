package fetcher

import "testing"

func TestPlatformPicksTheBest(t *testing.T) {
	for _, c := range []struct {
		want string
		have []string
		best int
	}{
		{"linux/amd64", []string{"linux/arm64", "linux/amd64"}, 1},
		{"linux/amd64", []string{"windows/amd64", "linux/386"}, -1},
		{"linux/amd64", []string{"linux/amd64/v3", "linux/amd64"}, 1},
		{"linux/amd64", []string{"linux/amd64/v3"}, -1},
		{"linux/amd64/v3", []string{"linux/amd64", "linux/amd64/v3"}, 1},
		{"linux/amd64/v3", []string{"linux/amd64"}, 0},
		{"x86_64", []string{"linux/arm", "linux/amd64"}, 1},
		{"linux/arm64", []string{"linux/arm/v7", "linux/arm64/v8"}, 1},
		{"linux/arm64/v8", []string{"linux/arm64"}, 0},
		{"linux/arm", []string{"linux/arm/v5", "linux/arm/v7", "linux/arm/v6"}, 1},
		{"linux/arm/v6", []string{"linux/arm/v5", "linux/arm/v7", "linux/arm/v6"}, 2},
		{"linux/arm/v6", []string{"linux/arm/v5", "linux/arm/v7"}, 0},
		{"linux/arm/v5", []string{"linux/arm/v7"}, -1},
		{"any", []string{"linux/s390x", "linux/amd64"}, 0},
		{"any", nil, -1},
	} {
		want, err := ParsePlatform(c.want)
		if err != nil {
			t.Fatal(err)
		}
		var have []Platform
		for _, s := range c.have {
			p, err := ParsePlatform(s)
			if err != nil {
				t.Fatal(err)
			}
			have = append(have, p)
		}
		if got := want.pick(have); got != c.best {
			t.Errorf("%s of %v: %d, want %d", c.want, c.have, got, c.best)
		}
	}
}

func TestParsePlatform(t *testing.T) {
	for in, want := range map[string]string{
		"linux/amd64": "linux/amd64", "arm64": "linux/arm64", "linux/aarch64": "linux/arm64", "linux/arm64/v8": "linux/arm64",
		"armhf": "linux/arm/v7", "Linux/AMD64": "linux/amd64", "any": "any", "": HostPlatform().String(),
	} {
		if p, err := ParsePlatform(in); err != nil || p.String() != want {
			t.Errorf("%q is %s, %v, want %s", in, p, err, want)
		}
	}
	for _, in := range []string{"/", "linux/", "/amd64", "a/b/c/d", "linux//v7"} {
		if p, err := ParsePlatform(in); err == nil {
			t.Errorf("%q is taken for %s", in, p)
		}
	}
}
