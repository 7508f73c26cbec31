package fetcher

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/BurntSushi/toml"
)

// hostsFile is a hosts.toml as containerd has it: what is said of the registry itself, and its mirrors.
type hostsFile struct {
	Server string `toml:"server"`
	hostTable
	Hosts map[string]hostTable `toml:"host"` // by URL
}

// hostTable is what a hosts.toml says of one host.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"` // pull, resolve, push; none: all
	CA           any            `toml:"ca"`           // a path or a list of them
	Client       any            `toml:"client"`       // a path, a list of paths, or a list of pairs
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"` // each a string or a list of them
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// maxHosts bounds the mirrors of a registry.
const maxHosts = 64

// parseHosts reads a hosts.toml of the directory dir, which paths in it are relative to. Keys that are not known are ignored, as containerd does.
func parseHosts(raw []byte, dir, registry string) ([]*host, error) {
	var file hostsFile
	meta, err := toml.Decode(string(raw), &file)
	if err != nil {
		return nil, errors.New(printable(err.Error()))
	}
	var hosts []*host
	for _, u := range hostOrder(meta, file.Hosts) {
		table := file.Hosts[u]
		h, err := table.host(u, dir)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", printable(u), err)
		}
		h.mirror = true
		hosts = append(hosts, h)
	}
	if len(hosts) > maxHosts {
		return nil, fmt.Errorf("it has %d hosts: more than the %d that are allowed", len(hosts), maxHosts)
	}
	server := itself(registry)
	if file.Server != "" {
		u := file.Server
		if !strings.Contains(u, "://") {
			u = "https://" + u
		}
		if server, err = file.host(u, dir); err != nil {
			return nil, fmt.Errorf("server %q: %w", printable(u), err)
		}
	} else if err := file.apply(server, dir); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	return append(hosts, server), nil
}

// hostOrder returns the keys of hosts in the order of the file, which is the order of trust. Those of an inline table come last.
func hostOrder(meta toml.MetaData, hosts map[string]hostTable) []string {
	var order []string
	for _, key := range meta.Keys() {
		if len(key) < 2 || key[0] != "host" || slices.Contains(order, key[1]) {
			continue
		}
		if _, ok := hosts[key[1]]; ok {
			order = append(order, key[1])
		}
	}
	return order
}

// host makes the host of a URL.
func (t *hostTable) host(raw, dir string) (*host, error) {
	if !strings.Contains(raw, "://") {
		raw = "https://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("want a URL such as https://mirror.example:5000")
	}
	h := &host{scheme: u.Scheme, addr: u.Host, root: path.Clean("/" + u.Path)}
	switch {
	case t.OverridePath:
	case h.root == "/":
		h.root = "/v2"
	case !strings.HasSuffix(h.root, "/v2"):
		h.root += "/v2"
	}
	h.root = strings.TrimSuffix(h.root, "/")
	return h, t.apply(h, dir)
}

// apply adds everything but the URL to h.
func (t *hostTable) apply(h *host, dir string) error {
	h.resolve = len(t.Capabilities) == 0 || slices.Contains(t.Capabilities, "resolve")
	h.pull = len(t.Capabilities) == 0 || slices.Contains(t.Capabilities, "pull")
	ca, err := stringsOf(t.CA)
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	client, err := pairsOf(t.Client)
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	within(dir, ca)
	for i := range client {
		within(dir, client[i][:])
	}
	if h.tls, err = newTLSConfig(ca, client, t.SkipVerify); err != nil {
		return err
	}
	if h.header, err = headerOf(t.Header); err != nil {
		return err
	}
	if t.DialTimeout != "" {
		if h.dial, err = time.ParseDuration(t.DialTimeout); err != nil || h.dial <= 0 {
			return fmt.Errorf("dial_timeout %q is no duration above zero", printable(t.DialTimeout))
		}
	}
	return nil
}

// within makes relative paths ones below dir.
func within(dir string, paths []string) {
	for i, p := range paths {
		if p != "" && !filepath.IsAbs(p) {
			paths[i] = filepath.Join(dir, p)
		}
	}
}

// stringsOf takes a string or a list of strings.
func stringsOf(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		out := make([]string, len(v))
		for i := range v {
			s, ok := v[i].(string)
			if !ok {
				return nil, errors.New("want strings")
			}
			out[i] = s
		}
		return out, nil
	}
	return nil, errors.New("want a string, or a list of strings")
}

// pairsOf takes "file", ["file", ...], or [["certificate", "key"], ...].
func pairsOf(v any) ([][2]string, error) {
	list, ok := v.([]any)
	if s, isString := v.(string); isString {
		list, ok = []any{s}, true
	}
	if v != nil && !ok {
		return nil, errors.New("want a path, a list of paths, or a list of pairs")
	}
	out := make([][2]string, len(list))
	for i := range list {
		paths, err := stringsOf(list[i])
		if err != nil {
			return nil, err
		}
		if n := copy(out[i][:], paths); n == 0 || n < len(paths) {
			return nil, errors.New("want a certificate and its key")
		}
	}
	return out, nil
}

func headerOf(table map[string]any) (http.Header, error) {
	out := http.Header{}
	for key, v := range table {
		values, err := stringsOf(v)
		if err != nil {
			return nil, fmt.Errorf("header %q: %w", printable(key), err)
		}
		for _, value := range values {
			if key == "" || strings.ContainsFunc(key, notInHeaderName) || strings.ContainsFunc(value, unicode.IsControl) {
				return nil, fmt.Errorf("header %q is not valid", printable(key))
			}
			out.Add(key, value)
		}
	}
	return out, nil
}

func notInHeaderName(c rune) bool {
	return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_')
}
