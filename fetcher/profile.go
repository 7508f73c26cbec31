package fetcher

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/veneerfs/veneer/unionfs"
)

// Profile says what a command reads of an image when it starts, in the order in which it does. It orders what is fetched and is
// never believed otherwise: parts of files are named by digest, and what the image does not have is skipped.
//
// As text, one line each:
//
//	veneer profile 1
//	image sha256:HEX            the manifest
//	command ["python3","a.py"]  JSON
//	runs 3                      that it was made of
//	read MS MISSED HEX OFFSET   milliseconds since the start, runs in a row that did not read it, sha256 of the file, offset of a chunk
type Profile struct {
	Image   digest.Digest
	Command []string
	Runs    int
	Reads   []ProfileRead
}

// ProfileRead is the first read of a chunk.
type ProfileRead struct {
	At      time.Duration // since the start; whole milliseconds
	Missed  int           // runs in a row that did not read it
	Content unionfs.Digest
	Offset  int64 // of a byte of the chunk, in the file
}

// The bounds of a profile. A longer one is refused when it is read, and cut when it is made.
const (
	maxProfileSize  = 16 << 20
	maxProfileReads = 64 << 10
	maxProfileLine  = 64 << 10
	profileMagic    = "veneer profile 1"
	maxMissed       = 3 // a read that so many runs in a row did without is forgotten
)

// ProfileError means that a text is no profile.
type ProfileError struct {
	Line   int // from 1
	Reason string
}

func (e *ProfileError) Error() string { return fmt.Sprintf("profile, line %d: %s", e.Line, e.Reason) }

// ParseProfile reads a profile. What it does not know is an error, *ProfileError.
func ParseProfile(r io.Reader) (*Profile, error) {
	lines := bufio.NewScanner(io.LimitReader(r, maxProfileSize))
	lines.Buffer(nil, maxProfileLine)
	p := new(Profile)
	n := 0
	for lines.Scan() {
		n++
		if err := p.addLine(n, lines.Text()); err != nil {
			return nil, &ProfileError{n, err.Error()}
		}
	}
	switch {
	case lines.Err() != nil:
		return nil, &ProfileError{n + 1, lines.Err().Error()}
	case n == 0:
		return nil, &ProfileError{1, "it is empty"}
	case p.Image == "" || p.Runs == 0:
		return nil, &ProfileError{n, "it ends before it says which image it is of, and of how many runs"}
	}
	return p, nil
}

func (p *Profile) addLine(n int, line string) error {
	if n == 1 {
		if line != profileMagic {
			return fmt.Errorf("want %q", profileMagic)
		}
		return nil
	}
	key, value, _ := strings.Cut(line, " ")
	var err error
	switch key {
	case "image":
		p.Image = digest.Digest(value)
		err = checkDigest(p.Image)
	case "command":
		err = json.Unmarshal([]byte(value), &p.Command)
	case "runs":
		p.Runs, err = parseBounded(value, 1, math.MaxInt32)
	case "read":
		if len(p.Reads) >= maxProfileReads {
			return fmt.Errorf("over %d reads: more than are allowed", maxProfileReads)
		}
		var read ProfileRead
		if read, err = parseProfileRead(value); err == nil {
			p.Reads = append(p.Reads, read)
		}
	default:
		err = fmt.Errorf("%q is not known", printable(short(key)))
	}
	return err
}

func parseProfileRead(s string) (r ProfileRead, err error) {
	fields := strings.Split(s, " ")
	if len(fields) != 4 {
		return r, fmt.Errorf("a read has 4 fields, not %d", len(fields))
	}
	ms, err := parseBounded(fields[0], 0, math.MaxInt32)
	if err != nil {
		return r, err
	}
	if r.Missed, err = parseBounded(fields[1], 0, maxMissed); err != nil {
		return r, err
	}
	if len(fields[2]) != 2*len(r.Content) {
		return r, fmt.Errorf("no sha256 digest")
	}
	if _, err := hex.Decode(r.Content[:], []byte(fields[2])); err != nil {
		return r, fmt.Errorf("no sha256 digest: %w", err)
	}
	r.Offset, err = strconv.ParseInt(fields[3], 10, 64)
	if err == nil && (r.Offset < 0 || r.Offset > maxFileSize) {
		err = fmt.Errorf("offset %d is not allowed", r.Offset)
	}
	r.At = time.Duration(ms) * time.Millisecond
	return r, err
}

func parseBounded(s string, least, most int) (int, error) {
	n, err := strconv.Atoi(s)
	if err == nil && (n < least || n > most) {
		err = fmt.Errorf("%d is not from %d to %d", n, least, most)
	}
	return n, err
}

// Text returns p as ParseProfile reads it.
func (p *Profile) Text() []byte {
	command, err := json.Marshal(p.Command)
	if err != nil {
		panic(err) // strings can always be written
	}
	b := fmt.Appendf(nil, "%s\nimage %s\ncommand %s\nruns %d\n", profileMagic, p.Image, command, p.Runs)
	for _, r := range p.Reads {
		b = append(b, "read "...)
		b = strconv.AppendInt(b, r.At.Milliseconds(), 10)
		b = append(b, ' ')
		b = strconv.AppendInt(b, int64(r.Missed), 10)
		b = append(b, ' ')
		b = hex.AppendEncode(b, r.Content[:])
		b = append(b, ' ')
		b = strconv.AppendInt(b, r.Offset, 10)
		b = append(b, '\n')
	}
	return b
}

// part names what a read read.
type part struct {
	content unionfs.Digest
	offset  int64
}

func (r *ProfileRead) part() part { return part{r.Content, r.Offset} }

// merge adds a run. Its order counts; what it did not read, and runs before it did, stays behind what it was behind.
func (p *Profile) merge(run []ProfileRead) {
	p.Runs++
	isRead := make(map[part]bool, len(run))
	for i := range run {
		isRead[run[i].part()] = true
	}
	// Reads of old runs only, by the last read before them that both have.
	kept := map[part][]ProfileRead{}
	var before part
	for _, old := range p.Reads {
		if isRead[old.part()] {
			before = old.part()
		} else if old.Missed++; old.Missed < maxMissed {
			kept[before] = append(kept[before], old)
		}
	}
	out := slices.Clone(kept[part{}])
	for _, r := range run {
		out = append(out, r)
		for _, old := range kept[r.part()] {
			old.At = r.At
			out = append(out, old)
		}
	}
	p.Reads = out[:min(len(out), maxProfileReads)]
}
