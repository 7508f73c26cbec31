package fetcher

// maxGap is up to how many bytes between two members are fetched in vain to save a request. zstd:chunked has tar headers there.
const maxGap = 4 << 10

// maxRequest is up to how many bytes are asked for at once, unless a single member is larger.
const maxRequest = 8 << 20

// plan returns the members that come along with those of need, which a read of content idx up to its chunk last waits for: what is
// likely to be needed next and costs little.
func (x *Contents) plan(layer int, idx uint32, last int, need []blobMember) []blobMember {
	return x.neighbours(layer, &need[len(need)-1])
}

// neighbours returns the members behind last that are missing, up to the allowed number of bytes.
func (x *Contents) neighbours(layer int, last *blobMember) []blobMember {
	var out []blobMember
	left := x.opts.Neighbours
	for at := last.end(); ; {
		m, ok := x.memberAt(layer, at)
		if !ok || m.off-at > maxGap || m.size > left || !x.missing(&m) {
			return out
		}
		out = append(out, m)
		left -= m.size
		at = m.end()
	}
}
