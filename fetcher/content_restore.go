package fetcher

import (
	"errors"
	"fmt"
	"os"

	"github.com/veneerfs/veneer/unionfs"
)

// stream is the streaming of one layer. Who needs a content of it waits for done.
type stream struct {
	done chan struct{}
	err  error // set before done is closed
}

// restore brings back a content that is missing from the store, by streaming its layer.
func (x *Contents) restore(w *waiter, c *unionfs.Content) error {
	if x.layers[c.Layer].source == nil {
		return asEIO(errAbsent)
	}
	x.stats.waits.Add(1)
	st, err := x.streamLayer(c.Layer)
	if err != nil {
		return asEIO(err)
	}
	if err := w.wait(st.done); err != nil {
		return err
	}
	if st.err != nil {
		return asEIO(fmt.Errorf("restore it: %w", st.err))
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
	st, err := x.streamLayer(layer)
	if err == nil {
		<-st.done // it ends with x.life
		err = st.err
	}
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

// streamLayer begins to put all files of a layer into the store, unless that is under way.
func (x *Contents) streamLayer(layer int) (*stream, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return nil, os.ErrClosed
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
	return st, nil
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
