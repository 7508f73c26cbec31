package fetcher

import (
	"log/slog"
	"os"
	"time"
)

// ContentsOptions are the choices for Contents. The zero value is right for most.
type ContentsOptions struct {
	Log *slog.Logger // nil: the store's

	// FailAfter is how long a read waits for what is not here before it fails. 0: for as long as it takes; the reader sees a
	// slow read, which its context ends.
	FailAfter time.Duration
	Backoff   time.Duration // before the source is asked again, then doubled, with jitter; 0 is 500 ms

	Requests int // at the same time; 0 is 16: five eighths for reads, of which one layer has two thirds at most, the rest ahead of reads
	// Dirs are the directories of the tree's FormatDir layers, by the places of the layers: Close closes them. Where there is none, the
	// layer's path is opened.
	Dirs      []*os.File
	OpenFiles int // descriptors kept for content that was read; 0 is 512, or less where RLIMIT_NOFILE is low
	// Readahead is up to how many compressed bytes of the file being read one after the other a request brings ahead; 0 is 4 MiB, negative none.
	Readahead int64
	// Neighbours is up to how many compressed bytes of other files, next to a chunk in the blob, come with it, if those that came are read; 0 is 4 MiB,
	// negative none.
	Neighbours int64

	// Profile lets the profile of Command be replayed and learned; see Profile.
	Profile bool
	Command []string
	// Fill lets the rest of the image be fetched when the start is over, at up to FillRate bytes a second; 0: as fast as the network is.
	Fill     bool
	FillRate int64
}

func (o ContentsOptions) withDefaults(s *Store) ContentsOptions {
	if o.Log == nil {
		o.Log = s.log
	}
	if o.Requests <= 0 {
		o.Requests = 16
	}
	if o.Backoff <= 0 {
		o.Backoff = 500 * time.Millisecond
	}
	if o.OpenFiles <= 0 {
		o.OpenFiles = defaultOpenFiles()
	}
	if o.Readahead == 0 {
		o.Readahead = 4 << 20
	}
	if o.Neighbours == 0 {
		o.Neighbours = maxWindow
	}
	return o
}
