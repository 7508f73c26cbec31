package fetcher

import (
	"context"
	"errors"
	"io"
)

// ErrRangeIgnored means that a source answered a ranged request with the whole body: it can only be streamed.
var ErrRangeIgnored = errors.New("the registry ignores ranged requests")

// Blob reads one layer blob of an image. Its methods may be called concurrently.
//
// Both retry what a retry can mend, a bounded number of times, and continue a body that was cut where it was cut.
// An error for which Temporary is true says that trying again later may help.
type Blob interface {
	// ReadRange returns exactly the n bytes from off, or an error; ErrRangeIgnored when the source answers a
	// ranged request with the whole body. The bytes are not verified. The caller closes the reader, at any time;
	// ctx governs the reader too.
	ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error)

	// Stream returns the whole body from the start, digest-verified: the last Read returns an error (a
	// *DigestError) instead of io.EOF when the bytes were not the digest's. The caller closes the reader.
	Stream(ctx context.Context) (io.ReadCloser, error)
}

// Traffic is what a Client has asked of its sources and got from them. Local sources (oci:, oci-archive:) make no
// requests.
type Traffic struct {
	LayerRequests int64 // requests for layer data, each redirect and retry counted
	LayerBytes    int64 // bytes of their bodies that were read
	OtherRequests int64 // manifests, configs, tokens, pings
	OtherBytes    int64
}
