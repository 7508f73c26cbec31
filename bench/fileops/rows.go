package fileops

import (
	"time"
)

// row is a line of the table.
type row struct {
	name string
	ops  int // that the requests are divided by
	goal goal

	before func(*site) error // not timed; nil for nothing
	run    func(*site) error
	after  func(*site) error // not timed; nil for nothing
	cold   bool              // caches are dropped first
	again  bool              // run once more before, not timed: caches are warm then
	settle bool              // the disk is let come to rest first
}

// warm does what makes a row a warm one. The first run fills the caches; the second asks again for what the first has changed (access
// times) and makes pages active. From then on every run is the same.
func (r *row) warm(s *site) error {
	if !r.again {
		return nil
	}
	if err := r.run(s); err != nil {
		return err
	}
	return r.run(s)
}

// goal is what veneer must reach: a ratio to overlayfs, or a time. With neither the row only reports.
type goal struct {
	ratio float64
	limit time.Duration
}

// rows in the order in which a round runs them: first those that only read.
func rows(in *input) []row {
	entries, files := in.entries, len(in.files)
	reads := int(in.big / readSize)
	ratio := func(r float64) goal { return goal{ratio: r} }
	return []row{
		{name: "stat walk, caches dropped", ops: entries, goal: ratio(1.2), cold: true, run: statWalk},
		{name: "stat walk, warm", ops: entries, goal: ratio(0.95), again: true, run: statWalk},
		{name: "read the tree, caches dropped", ops: files, goal: ratio(1.3), cold: true, run: readTree},
		{name: "read the tree, warm", ops: files, goal: ratio(1), again: true, run: readTree},
		{name: "open+read+close of small files, second time", ops: in.small, goal: ratio(0.9), again: true, run: readSmall},
		{name: "open+close, warm", ops: files, goal: ratio(1), again: true, run: openClose},
		{name: "stat of a missing name, warm", ops: files, goal: ratio(1.1), again: true, run: statMissing},
		{name: "sequential read, caches dropped", ops: reads, goal: ratio(1.05), cold: true, run: readBig},
		{name: "sequential read, warm", ops: reads, goal: ratio(1.1), again: true, run: readBig},
		{name: "random read 4 KiB, warm", ops: 10 * in.ops, goal: ratio(1.1), again: true, run: readRandom},
		{name: "write 1 byte into a large lower file", ops: 1, goal: ratio(0.01), settle: true, run: writeByte},
		{name: "chmod of a large lower file", ops: 1, goal: ratio(0.001), settle: true, run: chmodBig},
		{name: "chown -R of lower files", ops: in.own * filesInPack, goal: ratio(0.3), settle: true, run: chownTree},
		{name: "rm -rf of lower files", ops: in.own * filesInPack, goal: ratio(0.7), settle: true, run: removeGone, after: plantGone},
		{name: "rename of a lower directory of 10,000 files", ops: 1, goal: goal{limit: 10 * time.Millisecond}, run: renameLower, after: renameBack},
		{name: "sequential write", ops: int(in.written / writeSize), goal: ratio(1.3), settle: true, before: removeWritten, run: writeBig},
		{name: "mkdir+rmdir", ops: in.ops, goal: ratio(0.7), settle: true, before: makeWork, run: mkdirRmdir},
		{name: "create files of 4 KiB", ops: in.ops, settle: true, before: makeWork, run: createFiles},
		{name: "append 4 KiB", ops: in.ops, run: appendFile},
		{name: "rename files", ops: in.ops, run: renameFiles},
		{name: "unlink files", ops: in.ops, run: unlinkFiles},
	}
}
