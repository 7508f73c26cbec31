package fetcher

import (
	"math/rand/v2"
	"time"
)

// maxPause is the longest that a source which could not be reached is left alone.
const maxPause = 15 * time.Second

// patiently calls f, which asks a layer's source, until it succeeds, or fails for good, or the time for it is over. The source has
// tried several times itself before it calls an error Temporary.
func (x *Contents) patiently(layer int, f func() error) error {
	began := time.Now()
	for tries := 0; ; tries++ {
		err := f()
		if err == nil && tries > 0 {
			x.log.Info("a layer can be read again", "layer", x.layers[layer].Digest.String(), "after", time.Since(began))
		}
		if !Temporary(err) || x.opts.FailAfter > 0 && time.Since(began) > x.opts.FailAfter {
			return err
		}
		if tries == 0 {
			x.log.Warn("a layer cannot be read now: reads wait", "layer", x.layers[layer].Digest.String(), "error", err)
		}
		timer := time.NewTimer(pause(x.opts.Backoff, tries))
		select {
		case <-timer.C:
		case <-x.life.Done():
			timer.Stop()
			return err
		}
	}
}

// pause returns half to all of base doubled tries times.
func pause(base time.Duration, tries int) time.Duration {
	d := min(maxPause, base<<min(tries, 10))
	return d/2 + rand.N(d/2+1)
}
