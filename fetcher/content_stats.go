package fetcher

import (
	"math/bits"
	"sync/atomic"
)

// ContentStats counts what a Contents did.
type ContentStats struct {
	FetchedBytes   int64 // compressed bytes of layers that came from their source
	Requests       int64 // for them
	ChunksVerified int64
	ChunksDamaged  int64
	FilesOpened    int64 // different contents that were read or opened
	BytesRead      int64 // given to readers
	Waits          int64 // reads that waited for a fetch
	LayersStreamed int64 // because ranges were ignored, or content was missing

	// FetchedBytes by why they were fetched, without what was fetched in vain between two pieces. A read may have waited for any of them.
	DemandBytes, WindowBytes, ProfileBytes, FillBytes int64
}

// cause is why something is fetched.
type cause int

const (
	causeDemand  cause = iota // it is read
	causeWindow               // it comes along with what is read
	causeProfile              // starts read it
	causeFill                 // to have it all
	causes
)

type contentCounters struct {
	fetchedBytes, requests, chunksVerified, chunksDamaged, bytesRead, waits, layersStreamed atomic.Int64

	byCause [causes]atomic.Int64
}

// Stats returns the counts so far.
func (x *Contents) Stats() ContentStats {
	n := 0
	for i := range x.opened {
		n += bits.OnesCount64(x.opened[i].Load())
	}
	return ContentStats{
		FetchedBytes:   x.stats.fetchedBytes.Load(),
		Requests:       x.stats.requests.Load(),
		ChunksVerified: x.stats.chunksVerified.Load(),
		ChunksDamaged:  x.stats.chunksDamaged.Load(),
		FilesOpened:    int64(n),
		BytesRead:      x.stats.bytesRead.Load(),
		Waits:          x.stats.waits.Load(),
		LayersStreamed: x.stats.layersStreamed.Load(),
		DemandBytes:    x.stats.byCause[causeDemand].Load(),
		WindowBytes:    x.stats.byCause[causeWindow].Load(),
		ProfileBytes:   x.stats.byCause[causeProfile].Load(),
		FillBytes:      x.stats.byCause[causeFill].Load(),
	}
}
