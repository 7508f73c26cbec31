package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/veneerfs/veneer/fs"
	"github.com/veneerfs/veneer/unionfs"
)

// stats is what --stats writes. Times are in seconds from the start of the command; those that did not happen are null.
type stats struct {
	ImageBytes      int64        `json:"image_bytes"`      // of all files of the merged tree
	CompressedBytes int64        `json:"compressed_bytes"` // of the layers as they are in the registry
	FetchedBytes    int64        `json:"fetched_bytes"`    // of layers, by this mount
	Requests        int64        `json:"requests"`         // for layers, by this mount
	BytesByCause    bytesByCause `json:"bytes_by_cause"`
	ChunksVerified  int64        `json:"chunks_verified"`
	Files           int64        `json:"files"`
	FilesOpened     int64        `json:"files_opened"` // different files of which something was read

	SecondsToResolve   float64  `json:"seconds_to_resolve"`
	SecondsToMount     float64  `json:"seconds_to_mount"`
	SecondsToFirstRead *float64 `json:"seconds_to_first_read"` // by the container's process; of a mount by anybody

	Opens        map[string]uint64 `json:"opens"`         // by I/O mode
	FuseRequests map[string]uint64 `json:"fuse_requests"` // by opcode
	JournalBytes int64             `json:"journal_bytes"`
}

// bytesByCause tells why bytes of chunks were fetched.
type bytesByCause struct {
	Demand  int64 `json:"demand"`  // they were read
	Window  int64 `json:"window"`  // beside what was read
	Profile int64 `json:"profile"` // starts read them
	Fill    int64 `json:"fill"`    // to have all
}

// resolved notes what it took until an image's tree was here.
func (b *before) resolved(img *localImage) {
	t := img.client.Traffic()
	b.Resolved, b.Bytes, b.Requests = time.Since(b.Begun), t.LayerBytes, t.LayerRequests
}

// figures notes what the other packages don't know.
type figures struct {
	begun     time.Time
	mountedAt time.Time
	watching  atomic.Bool
	firstRead atomic.Int64 // nanoseconds since begun; 0 before
}

func (g *figures) mounted(begun time.Time) { g.begun, g.mountedAt = begun, time.Now() }

// armed says that reads are now the process's.
func (g *figures) armed() { g.watching.Store(true) }

// watch notes the first read of t.
func (g *figures) watch(t *servedTree) *watched { return &watched{servedTree: t, g: g} }

type watched struct {
	*servedTree
	g *figures
}

// Request makes the writable layer an fs.Resumable.
func (w *watched) Request(unique uint64) fs.Changes { return w.FS.Request(unique) }

func (w *watched) Read(ctx context.Context, ino unionfs.Ino, p []byte, off int64) (int, error) {
	w.g.read()
	return w.servedTree.Read(ctx, ino, p, off)
}

func (w *watched) OpenBacking(ino unionfs.Ino, write bool) (*os.File, error) {
	if !write {
		w.g.read()
	}
	return w.servedTree.OpenBacking(ino, write)
}

func (g *figures) read() {
	if g.firstRead.Load() == 0 && g.watching.Load() {
		g.firstRead.CompareAndSwap(0, int64(time.Since(g.begun)))
	}
}

// stats collects the figures of now.
func (s *server) stats() stats {
	t := s.tree.tree.Totals()
	st := s.fs.Stats()
	out := stats{
		ImageBytes: t.ContentBytes, Files: int64(t.Files), FilesOpened: s.tree.contents.Stats().FilesOpened,
		FetchedBytes: s.job.Before.Bytes, Requests: s.job.Before.Requests,
		SecondsToResolve: s.job.Before.Resolved.Seconds(),
		SecondsToMount:   s.figures.mountedAt.Sub(s.figures.begun).Seconds(),
		Opens:            opens(st),
		FuseRequests:     st.Requests,
		JournalBytes:     s.tree.JournalSize(),
	}
	if d := s.figures.firstRead.Load(); d != 0 {
		seconds := time.Duration(d).Seconds()
		out.SecondsToFirstRead = &seconds
	}
	c := s.tree.contents.Stats()
	out.ChunksVerified = c.ChunksVerified
	out.BytesByCause = bytesByCause{c.DemandBytes, c.WindowBytes, c.ProfileBytes, c.FillBytes}
	if s.tree.image != nil {
		out.CompressedBytes = s.tree.image.CompressedSize()
		traffic := s.tree.client.Traffic()
		out.FetchedBytes += traffic.LayerBytes
		out.Requests += traffic.LayerRequests
	}
	return out
}

// opens counts by I/O mode. On the cached rung the kernel opens files without asking: there it is how many were read.
func opens(s fs.Stats) map[string]uint64 {
	cached := s.OpensCached
	if s.OpensPassthrough == 0 && cached == 0 {
		cached = s.FilesRead
	}
	return map[string]uint64{"passthrough": s.OpensPassthrough, "cached": cached}
}

// writeStats replaces the file of --stats.
func (s *server) writeStats() error {
	if s.job.Stats == "" {
		return nil
	}
	p, err := json.MarshalIndent(s.stats(), "", "  ")
	if err != nil {
		return err
	}
	if err := replaceFile(s.job.Stats, append(p, '\n')); err != nil {
		return fmt.Errorf("write --stats: %w", err)
	}
	return nil
}

// createStats finds out now whether the file of --stats can be written, and returns its path for another process.
func createStats(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return "", fmt.Errorf("--stats: %w", err)
	}
	f.Close()
	if path, err = filepath.EvalSymlinks(path); err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", fmt.Errorf("--stats: %w", err)
	}
	return path, nil
}

// replaceFile writes a file at once, or in place what is not a regular file (/dev/stdout, a FIFO).
func replaceFile(path string, p []byte) error {
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.Write(p)
		if e := f.Close(); err == nil {
			err = e
		}
		return err
	}
	return writeFile(path, p)
}
