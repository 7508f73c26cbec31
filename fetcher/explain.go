package fetcher

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// explain turns an error of the HTTP client, or of the login, into one of this package.
func (e *endpoint) explain(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return cause
	}
	var answer *transport.Error
	if errors.As(err, &answer) {
		details := make([]string, 0, len(answer.Errors))
		for _, d := range answer.Errors {
			details = append(details, d.Message)
		}
		return e.statusToError(answer.StatusCode, strings.Join(details, "; "), "repository "+e.name.repo)
	}
	if typed := typedError(err); typed != nil {
		return typed
	}
	// What is left are answers that the login, or the following of redirects, can make nothing of.
	return &ResponseError{Host: e.host.addr, Reason: printable(err.Error())}
}

// explainBody is explain for an error with which a body ended.
func (e *endpoint) explainBody(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return cause
	}
	return explainNetwork(e.host.addr, err)
}

// typedError returns the error of this package in err, or nil.
func typedError(err error) error {
	var network *NetworkError
	var scheme *SchemeError
	var certificate *CertificateError
	var response *ResponseError
	switch {
	case errors.As(err, &network):
		return network
	case errors.As(err, &scheme):
		return scheme
	case errors.As(err, &certificate):
		return certificate
	case errors.As(err, &response):
		return response
	}
	return nil
}

// explainNetwork gives an error of a connection its type and a reason that people understand.
func explainNetwork(host string, err error) error {
	var record tls.RecordHeaderError
	switch typed := typedError(err); {
	case typed != nil:
		return typed
	case errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/":
		return &SchemeError{Host: host, TLS: false}
	case isTLSAnswer(err):
		return &SchemeError{Host: host, TLS: true}
	case isTLSFailure(err):
		return &CertificateError{Host: host, Err: tlsCause(err)}
	}
	return &NetworkError{Host: host, Reason: reasonOf(err), Err: err}
}

// isTLSAnswer reports whether what was not HTTP was a TLS alert: a record of type 21, version 3.x. net/http has no
// error of its own for it.
func isTLSAnswer(err error) bool {
	return strings.Contains(err.Error(), `malformed HTTP response "\x15\x03`)
}

func isTLSFailure(err error) bool {
	var verification *tls.CertificateVerificationError
	var alert tls.AlertError
	return errors.As(err, &verification) || errors.As(err, &alert)
}

func tlsCause(err error) error {
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &authority):
		return authority
	case errors.As(err, &hostname):
		return hostname
	case errors.As(err, &invalid):
		return invalid
	}
	return err
}

func reasonOf(err error) string {
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Sprintf("there is no host of the name %s", dns.Name)
	case errors.As(err, &dns):
		return fmt.Sprintf("cannot look up %s: %s", dns.Name, dns.Err)
	case errors.Is(err, unix.ECONNREFUSED):
		return "connection refused: nothing listens there"
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return "there is no route to it: is the network up?"
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return "it reset the connection"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "it closed the connection in the middle of an answer"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	}
	return printable(err.Error())
}

// statusError reads what the registry says to an answer with an error status, and closes it.
func (e *endpoint) statusError(resp *http.Response, what string) error {
	defer resp.Body.Close()
	err := e.statusToError(resp.StatusCode, registryDetail(resp.Body), what)
	var status *StatusError
	if errors.As(err, &status) {
		status.RetryAfter = retryAfter(resp.Header, time.Now())
	}
	return err
}

func (e *endpoint) statusToError(status int, detail, what string) error {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return &AuthError{Registry: e.registry(), Repository: e.name.repo, Status: status, Detail: detail}
	case http.StatusNotFound:
		return &NotFoundError{Name: what, Detail: detail}
	}
	return &StatusError{Host: e.host.addr, Status: status, Detail: detail}
}

// registryDetail returns the messages of an error body as the distribution spec has it, or "".
func registryDetail(body io.Reader) string {
	raw, err := io.ReadAll(io.LimitReader(body, 64<<10))
	if err != nil {
		return ""
	}
	var answer struct {
		Errors []struct {
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(raw, &answer) != nil {
		return ""
	}
	var messages []string
	for _, e := range answer.Errors {
		if m := printable(e.Message); m != "" && len(messages) < 4 {
			messages = append(messages, m)
		}
	}
	return strings.Join(messages, "; ")
}

// printable keeps a registry from writing control characters to a terminal.
func printable(s string) string {
	const most = 500
	s = strings.ToValidUTF8(s, "?")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strings.Map(func(c rune) rune {
		if strconv.IsPrint(c) {
			return c
		}
		return ' '
	}, s)
}

func statusText(status int) string {
	return strings.TrimSpace(strconv.Itoa(status) + " " + http.StatusText(status))
}
