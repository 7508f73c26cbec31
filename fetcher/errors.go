package fetcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// NotFoundError means that the source was asked and does not have the image, or the blob.
type NotFoundError struct {
	Name   string // the reference, or the blob's digest
	Detail string // what the source said, or ""
}

func (e *NotFoundError) Error() string {
	return withDetail("image not found: "+e.Name, e.Detail)
}

// AuthError means that the registry wants a login, or does not let this one in.
type AuthError struct {
	Registry   string
	Repository string // without the registry; "" when the registry itself refused
	Status     int    // 401 or 403
	Detail     string
}

func (e *AuthError) Error() string {
	what := e.Registry
	if e.Repository != "" {
		what += "/" + e.Repository
	}
	if e.Status == 403 {
		return withDetail(fmt.Sprintf("access to %s is forbidden: the account in use may not read it (see `docker login %s`)",
			what, e.Registry), e.Detail)
	}
	return withDetail(fmt.Sprintf("access to %s is denied: it needs a login, or does not exist: run `docker login %s` "+
		"(or put the credentials into Docker's config.json)", what, e.Registry), e.Detail)
}

// NetworkError means that the registry was not reached, or the connection to it broke.
type NetworkError struct {
	Host   string
	Reason string // for people: "connection refused"
	Err    error
}

func (e *NetworkError) Error() string { return fmt.Sprintf("registry %s: %s", e.Host, e.Reason) }
func (e *NetworkError) Unwrap() error { return e.Err }

// SchemeError means that one side speaks TLS and the other does not. Trying again does not help.
type SchemeError struct {
	Host string
	TLS  bool // what the registry speaks
}

func (e *SchemeError) Error() string {
	if e.TLS {
		return fmt.Sprintf("registry %s speaks HTTPS but was asked by plain HTTP: leave out --plain-http", e.Host)
	}
	return fmt.Sprintf("registry %s answered HTTP to an HTTPS request: use --plain-http if you trust the network", e.Host)
}

// CertificateError means that the registry's certificate does not prove who it is. Trying again does not help.
type CertificateError struct {
	Host string
	Err  error
}

func (e *CertificateError) Error() string {
	return fmt.Sprintf("registry %s: %v (to trust its authority, name the certificate's file in SSL_CERT_FILE)", e.Host, e.Err)
}
func (e *CertificateError) Unwrap() error { return e.Err }

// StatusError is any other answer than the one that was asked for.
type StatusError struct {
	Host       string
	Status     int
	Detail     string
	RetryAfter time.Duration // how long it wants to be left alone; 0 when it does not say
}

func (e *StatusError) Error() string {
	return withDetail(fmt.Sprintf("registry %s answered %s", e.Host, statusText(e.Status)), e.Detail)
}

// ResponseError is an answer that breaks the protocol: a wrong Content-Range, a body of another length.
type ResponseError struct {
	Host   string
	Reason string
	Range  bool // it was to a ranged request; then the whole body may still be had
}

func (e *ResponseError) Error() string { return fmt.Sprintf("registry %s: %s", e.Host, e.Reason) }

// Is makes an answer that is wrong about a range an ErrRangeIgnored: the blob can only be streamed.
func (e *ResponseError) Is(target error) bool { return e.Range && target == ErrRangeIgnored }

// DigestError means that bytes are not those which their digest names.
type DigestError struct {
	What      string
	Want, Got digest.Digest
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("%s is damaged: its digest should be %s but is %s", e.What, e.Want, e.Got)
}

// ImageError means that an image is of a kind which cannot be run, or that its manifest or config contradicts itself.
type ImageError struct{ Reason string }

func (e *ImageError) Error() string { return e.Reason }

func imageErrorf(format string, a ...any) error {
	return &ImageError{Reason: fmt.Sprintf(format, a...)}
}

// PlatformError means that an image exists, but not for the platform that was asked for.
type PlatformError struct {
	Want      Platform
	Available []Platform
}

func (e *PlatformError) Error() string {
	if len(e.Available) == 0 {
		return fmt.Sprintf("wrong platform: the image holds nothing for %s, nor for any other", e.Want)
	}
	names := make([]string, len(e.Available))
	for i, p := range e.Available {
		names[i] = p.String()
	}
	return fmt.Sprintf("wrong platform: the image is not for %s but for %s", e.Want, strings.Join(names, ", "))
}

// Temporary reports whether the same call may succeed later: the network is down, the registry is busy or
// restarting, a body was cut. What ended by its context is not temporary.
func Temporary(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var network *NetworkError
	var status *StatusError
	switch {
	case errors.As(err, &network):
		return true
	case errors.As(err, &status):
		return temporaryStatus(status.Status)
	}
	return errors.Is(err, io.ErrUnexpectedEOF)
}

func withDetail(s, detail string) string {
	if detail == "" {
		return s
	}
	return s + ": " + detail
}
