package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/veneerfs/veneer/cow"
)

// storage bounds what a container or a writable mount may add. Zero is no bound but the host's.
type storage struct {
	Bytes  int64 `json:"bytes,omitempty"`
	Inodes int64 `json:"inodes,omitempty"`
}

const storageUsage = "bound what may be added: `SIZE[,inodes=N]`, as 10G or 512M"

// String implements pflag.Value.
func (s *storage) String() string {
	switch {
	case s == nil || *s == storage{}:
		return ""
	case s.Inodes == 0:
		return strconv.FormatInt(s.Bytes, 10)
	}
	return fmt.Sprintf("%d,inodes=%d", s.Bytes, s.Inodes)
}

// Type implements pflag.Value.
func (s *storage) Type() string { return "SIZE" }

// Set implements pflag.Value.
func (s *storage) Set(value string) error {
	var set storage
	for part := range strings.SplitSeq(value, ",") {
		var err error
		if n, ok := strings.CutPrefix(part, "inodes="); ok {
			set.Inodes, err = parseCount(n)
		} else {
			set.Bytes, err = parseSize(part)
		}
		if err != nil {
			return err
		}
	}
	*s = set
	return nil
}

// limit tells package cow.
func (s storage) limit(o cow.Options) cow.Options {
	o.QuotaBytes, o.QuotaInodes = s.Bytes, s.Inodes
	return o
}

// parseSize reads a size as Docker does: a number, perhaps with a fraction, and a unit of 1024 or its powers, of which only the first
// letter counts.
func parseSize(s string) (int64, error) {
	wrong := fmt.Errorf("size %q: want a number and a unit, as 10G or 512M", s)
	end := strings.LastIndexAny(s, "0123456789") + 1
	number, unit := s[:end], strings.ToLower(strings.TrimPrefix(s[end:], " "))
	shift := 0
	if unit != "" && unit != "b" {
		i := strings.IndexByte("kmgtpe", unit[0])
		if rest := unit[1:]; i < 0 || rest != "" && rest != "b" && rest != "ib" {
			return 0, wrong
		}
		shift = 10 * (i + 1)
	}
	if strings.Trim(number, "0123456789.") != "" { // no sign, exponent, Inf or NaN
		return 0, wrong
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, wrong
	}
	bytes := math.Ldexp(n, shift)
	if bytes < 1 || bytes >= math.MaxInt64 {
		return 0, fmt.Errorf("size %q: want 1 byte or more, and less than 8E", s)
	}
	return int64(bytes), nil
}

func parseCount(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("inodes=%s: want a number of inodes", s)
	}
	return n, nil
}
