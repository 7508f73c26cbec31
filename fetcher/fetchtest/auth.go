package fetchtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// auth is the login that a registry wants.
type auth struct {
	user, password string
	bearer         bool
	tokens         int // given out; the last one is good, unless expired
	expired        bool
}

// RequireBasic makes the registry want a user and a password with every request.
func (r *Registry) RequireBasic(user, password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.auth = &auth{user: user, password: password}
}

// RequireToken makes the registry want a token, which its /token gives for a user and a password, or to anyone when
// user is "".
func (r *Registry) RequireToken(user, password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.auth = &auth{user: user, password: password, bearer: true}
}

// ExpireTokens makes the tokens given out so far useless.
func (r *Registry) ExpireTokens() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.auth.expired = true
}

// admit answers requests without the login, and those for a token.
func (r *Registry) admit(w http.ResponseWriter, req *http.Request) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.auth
	if a == nil {
		return true
	}
	user, password, _ := req.BasicAuth()
	known := a.user == "" || user == a.user && password == a.password
	switch {
	case a.bearer && req.URL.Path == "/token":
		a.giveToken(w, known)
		return false
	case a.bearer && !a.expired && a.tokens > 0 && req.Header.Get("Authorization") == "Bearer "+a.token(),
		!a.bearer && known:
		return true
	}
	challenge := `Basic realm="test"`
	if a.bearer {
		challenge = fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, req.Host)
		if repo, ok := repoOf(req.URL.Path); ok {
			challenge += fmt.Sprintf(`,scope="repository:%s:pull"`, repo)
		}
	}
	w.Header().Set("WWW-Authenticate", challenge)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnauthorized)
	fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
	return false
}

func (a *auth) token() string { return fmt.Sprintf("token-%d", a.tokens) }

func (a *auth) giveToken(w http.ResponseWriter, known bool) {
	if !known {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	a.tokens++
	a.expired = false
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": a.token(), "expires_in": 300})
}

func repoOf(path string) (string, bool) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	for _, kind := range []string{"/manifests/", "/blobs/"} {
		if i := strings.Index(rest, kind); ok && i > 0 {
			return rest[:i], true
		}
	}
	return "", false
}
