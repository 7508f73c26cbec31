package fetcher

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

// host is one place that serves what a registry has: the registry itself, or a mirror of it. Immutable.
type host struct {
	scheme  string // "http", "https"; "" is HTTPS, and for loopback the one that works
	addr    string // with its port if that is not the scheme's
	root    string // of the API: "/v2"
	resolve bool   // says what tags mean
	pull    bool   // has what is asked for by digest
	mirror  bool
	header  http.Header
	tls     *tls.Config   // nil: the system's authorities
	dial    time.Duration // 0: dialTimeout
}

func (h *host) String() string { return h.addr }

// DefaultCertsDirs are where registries are configured, the first directory that knows one decides. The last is Docker's, with certificates only.
func DefaultCertsDirs() []string {
	return []string{"/etc/veneer/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"}
}

// maxHostsFile bounds what is read of a file below the directories.
const maxHostsFile = 1 << 20

// findHosts returns the hosts of a registry, in the order in which they are tried: as the first of dirs says that knows it, else the registry
// itself.
func findHosts(dirs []string, registry string) ([]*host, error) {
	for _, dir := range dirs {
		for _, name := range hostDirs(registry) {
			hosts, err := readHostDir(filepath.Join(dir, name), registry)
			if err != nil || hosts != nil {
				return hosts, err
			}
		}
	}
	return []*host{itself(registry)}, nil
}

// itself is a registry of which nothing is configured.
func itself(registry string) *host {
	addr := registry
	if registry == dockerHub {
		addr = name.DefaultRegistry
	}
	return &host{addr: addr, root: "/v2", resolve: true, pull: true}
}

// hostDirs returns the names that the directory of a registry may have. Some file systems don't take the colon.
func hostDirs(registry string) []string {
	names := []string{registry}
	if h, port, ok := cutPort(registry); ok {
		names = append(names, h+"_"+port+"_")
	}
	return append(names, "_default")
}

func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// readHostDir reads what a directory says of a registry: hosts.toml, or certificates only; nil when there is nothing.
func readHostDir(dir, registry string) ([]*host, error) {
	path := filepath.Join(dir, "hosts.toml")
	raw, err := readFileLimit(path, maxHostsFile)
	switch {
	case err == nil:
		hosts, err := parseHosts(raw, dir, registry)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		return hosts, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	config, err := readCertificates(dir)
	if config == nil || err != nil {
		return nil, err
	}
	h := itself(registry)
	h.tls = config
	return []*host{h}, nil
}

// readCertificates reads a directory as Docker has it: authorities in *.crt, what we show in *.cert, each with its *.key. nil when there is none.
func readCertificates(dir string) (*tls.Config, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil // there is no such directory, or it is not for us
	}
	var ca []string
	var client [][2]string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch base, isCert := strings.CutSuffix(path, ".cert"); {
		case isCert:
			client = append(client, [2]string{path, base + ".key"})
		case strings.HasSuffix(path, ".crt"):
			ca = append(ca, path)
		}
	}
	return newTLSConfig(ca, client, false)
}

// newTLSConfig reads files of authorities, beside which the system's count, and pairs of a certificate and its key, "" for both in one file. nil
// when there is nothing to configure.
func newTLSConfig(ca []string, client [][2]string, skipVerify bool) (*tls.Config, error) {
	if len(ca) == 0 && len(client) == 0 && !skipVerify {
		return nil, nil
	}
	config := &tls.Config{InsecureSkipVerify: skipVerify}
	for _, path := range ca {
		raw, err := readFileLimit(path, maxHostsFile)
		if err != nil {
			return nil, fmt.Errorf("read authority: %w", err)
		}
		if config.RootCAs == nil {
			if config.RootCAs, err = x509.SystemCertPool(); err != nil {
				config.RootCAs = x509.NewCertPool()
			}
		}
		if !config.RootCAs.AppendCertsFromPEM(raw) {
			return nil, fmt.Errorf("there is no certificate in %s", path)
		}
	}
	for _, pair := range client {
		cert, err := readKeyPair(pair[0], pair[1])
		if err != nil {
			return nil, err
		}
		config.Certificates = append(config.Certificates, cert)
	}
	return config, nil
}

func readKeyPair(certPath, keyPath string) (tls.Certificate, error) {
	cert, err := readFileLimit(certPath, maxHostsFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read certificate: %w", err)
	}
	key := slices.Clone(cert)
	if keyPath != "" {
		if key, err = readFileLimit(keyPath, maxHostsFile); err != nil {
			return tls.Certificate{}, fmt.Errorf("read key: %w", err)
		}
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate %s: %w", certPath, err)
	}
	return pair, nil
}
