package fetcher

import (
	"encoding/json"
	"os"
)

// Beside an image tree, in KEY.first, is kept up to where each layer's blob wants to be fetched first, 0 for nowhere: a JSON list. It is a hint: who
// finds none, or another number of layers, does without.
const firstSuffix = ".first"

const maxFirstSize = 1 << 20

func (s *Store) writeFirst(tree string, ends []int64) error {
	for _, end := range ends {
		if end > 0 {
			raw, err := json.Marshal(ends)
			if err != nil {
				return err
			}
			return os.WriteFile(tree+firstSuffix, raw, 0o600)
		}
	}
	return nil
}

func readFirst(tree string, layers int) []int64 {
	raw, err := readFileLimit(tree+firstSuffix, maxFirstSize)
	var ends []int64
	if err != nil || json.Unmarshal(raw, &ends) != nil || len(ends) != layers {
		return nil
	}
	return ends
}
