// Package fetcher goes from a reference to verified bytes: which image a name means, what its layers hold, and the
// bytes of a file when they are first read.
//
// It has four parts, each of which stands on the one before:
//
//   - Sources: a Client resolves a Reference to an Image (manifest, config, layers) and reads the layers' blobs, from a
//     registry over HTTP, from an OCI layout (a directory) or from an OCI archive (a tar of such a directory).
//   - Layers: what a layer holds, from its table of contents or from its whole body.
//   - The content store: files by the sha256 of their bytes, partly or wholly here, shared by all images and processes.
//   - What is fetched before it is read: what starts read is learned (Profile), what comes along with a miss (window), then the rest.
//
// Guarantees: everything that comes from outside is checked against a digest before it is used, and the chain starts at
// the digest of the manifest; every size is bounded; a request that a retry can mend is tried again, a bounded
// number of times; what fails says what to do about it. Ending the context of a call ends it at once.
package fetcher
