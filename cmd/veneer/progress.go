package main

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// progress draws what is fetched of an image's layers: a bar for each on a terminal, else a line when one is done.
// It is a fetcher.Progress; close ends it.
//
// The table of contents of a layer that is read by range is so small a part of it that it is not shown.
type progress struct {
	w    io.Writer
	bars *mpb.Progress // nil: lines

	mu     sync.Mutex
	layers map[int]*shownLayer // those under way; guarded by mu
}

// shownLayer is a layer that is being read.
type shownLayer struct {
	id    string
	bytes int64
	bar   *mpb.Bar // nil: lines
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, layers: make(map[int]*shownLayer)}
	if f, ok := w.(*os.File); ok && isTerminal(f) {
		p.bars = mpb.New(mpb.WithOutput(w), mpb.WithWidth(70))
	}
	return p
}

// close draws the last state. What is still under way was given up.
func (p *progress) close() {
	p.mu.Lock()
	for _, l := range p.layers {
		if l.bar != nil {
			l.bar.Abort(false)
		}
	}
	p.layers = nil
	p.mu.Unlock()
	if p.bars != nil {
		p.bars.Wait()
	}
}

func (p *progress) LayerStarted(layer int, d ocispec.Descriptor, total int64) {
	if total < d.Size/4 {
		return // a table of contents
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.layers == nil {
		return // closed
	}
	l := &shownLayer{id: shortDigest(d.Digest)}
	if p.bars != nil {
		// Without a total at first, the bar waits for LayerDone: who has all bytes has not verified them.
		l.bar = p.bars.AddBar(0, mpb.BarPriority(layer),
			mpb.PrependDecorators(decor.Name(l.id+": "), decor.OnAbort(decor.OnComplete(decor.Name("fetching", decor.WCSyncWidthR), "complete"), "stopped")),
			mpb.AppendDecorators(decor.Any(func(s decor.Statistics) string {
				return fmt.Sprintf("%s/%s", humanSize(s.Current), humanSize(s.Total))
			}, decor.WCSyncSpaceR)))
		l.bar.SetTotal(total, false)
	}
	p.layers[layer] = l
}

func (p *progress) LayerBytes(layer int, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.layers[layer]
	if l == nil {
		return
	}
	l.bytes += n
	if l.bar != nil {
		l.bar.IncrInt64(n)
	}
}

func (p *progress) LayerDone(layer int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.layers[layer]
	if l == nil {
		return
	}
	delete(p.layers, layer)
	switch {
	case l.bar != nil && err == nil:
		l.bar.SetTotal(-1, true)
	case l.bar != nil:
		l.bar.Abort(false)
	case err == nil:
		fmt.Fprintf(p.w, "%s: fetched %s\n", l.id, humanSize(l.bytes))
	}
}

// shortDigest is the part of a digest that people see.
func shortDigest(d digest.Digest) string {
	hex := d.Encoded()
	return hex[:min(12, len(hex))]
}

// humanSize writes bytes as Docker does: decimal units, three digits.
func humanSize(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	size := float64(n)
	for size >= 999.5 { // what would round to 1e+03
		size, units = size/1000, units[1:]
	}
	return fmt.Sprintf("%.3g%s", size, units[0])
}
