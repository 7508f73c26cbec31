package fetcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/veneerfs/veneer/unionfs"
)

// stream is the streaming of one layer. Who needs a content of it waits for done.
type stream struct {
	done chan struct{}
	err  error // set before done is closed
}

// restore brings back a content that is missing from the store, by streaming its layer.
func (x *Contents) restore(ctx context.Context, c *unionfs.Content) error {
	if x.layers[c.Layer].source == nil {
		return asEIO(errAbsent)
	}
	x.stats.waits.Add(1)
	if err := x.streamLayer(ctx, c.Layer); err != nil {
		if ctx.Err() != nil {
			return syscall.EINTR
		}
		return asEIO(fmt.Errorf("restore it: %w", err))
	}
	f, err := x.openWhole(c)
	if errors.Is(err, errAbsent) {
		err = errNotInLayer
	}
	if err != nil {
		return asEIO(err)
	}
	f.Close()
	return errAgain
}

// streamInstead brings the chunks of part, whose source ignores ranges, by streaming the layer.
func (x *Contents) streamInstead(layer int, part []*flight) {
	err := x.streamLayer(x.life, layer)
	for _, fl := range part {
		switch {
		case err != nil:
			x.endFlight(layer, fl, err)
		case x.missing(&fl.blobMember):
			x.endFlight(layer, fl, errNotInLayer)
		default:
			x.endFlight(layer, fl, errAgain)
		}
	}
}

// streamLayer puts all files of a layer into the store. Who comes while it is under way waits for the same. It returns when ctx ends, but
// goes on then.
func (x *Contents) streamLayer(ctx context.Context, layer int) error {
	x.mu.Lock()
	if x.closed {
		x.mu.Unlock()
		return os.ErrClosed
	}
	st := x.streams[layer]
	if st == nil {
		st = &stream{done: make(chan struct{})}
		x.streams[layer] = st
		x.work.Go(func() {
			st.err = x.streamOnce(layer)
			x.mu.Lock()
			delete(x.streams, layer)
			x.mu.Unlock()
			close(st.done)
		})
	}
	x.mu.Unlock()
	select {
	case <-st.done:
		return st.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// streamOnce streams a layer unless another process has just done so.
func (x *Contents) streamOnce(layer int) error {
	l := &x.layers[layer]
	x.log.Info("streaming a layer whose content is needed", "layer", l.Digest.String())
	err := x.patiently(layer, func() error {
		streamed, err := x.store.fillLayer(x.life, l.source, x.tree, countingProgress{x: x})
		if streamed {
			x.stats.layersStreamed.Add(1)
			x.stats.requests.Add(1)
		}
		return err
	})
	if errors.Is(err, errNotInLayer) {
		return nil // who misses it finds out; others have what they need
	}
	return err
}

// countingProgress counts what a Contents streams.
type countingProgress struct {
	silent
	x *Contents
}

func (p countingProgress) LayerBytes(_ int, n int64) { p.x.stats.fetchedBytes.Add(n) }
