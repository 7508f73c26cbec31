package fetchtest

import (
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
	status, body, bearer := r.judge(req)
	switch {
	case status == 0:
		return true
	case status == http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", challenge(req, bearer))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprint(w, body)
	return false
}

// judge returns the answer to a request that is not to reach the registry, else 0.
func (r *Registry) judge(req *http.Request) (status int, body string, bearer bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.auth
	if a == nil {
		return 0, "", false
	}
	user, password, _ := req.BasicAuth()
	known := a.user == "" || user == a.user && password == a.password
	switch {
	case a.bearer && req.URL.Path == "/token" && known:
		a.tokens++
		a.expired = false
		return http.StatusOK, fmt.Sprintf(`{"token":%q,"expires_in":300}`, a.token()), true
	case a.bearer && !a.expired && a.tokens > 0 && req.Header.Get("Authorization") == "Bearer "+a.token(),
		!a.bearer && known:
		return 0, "", a.bearer
	}
	return http.StatusUnauthorized, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, a.bearer
}

func (a *auth) token() string { return fmt.Sprintf("token-%d", a.tokens) }

func challenge(req *http.Request, bearer bool) string {
	if !bearer {
		return `Basic realm="test"`
	}
	c := fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, req.Host)
	if repo, ok := repoOf(req.URL.Path); ok {
		c += fmt.Sprintf(`,scope="repository:%s:pull"`, repo)
	}
	return c
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
