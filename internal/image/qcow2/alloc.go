package qcow2

import "encoding/binary"

// allocator hands out space in the image, from front to back, and counts the
// references to each cluster.
type allocator struct {
	next int64 // first cluster that is not handed out

	// Streams of compressed clusters are packed without gaps into clusters of
	// their own. The space from open to openEnd, in bytes, is still free.
	open, openEnd int64

	// Reference counts, in blocks of which the first ones are written.
	written []uint64 // where those are
	blocks  []*[blockEntries]uint16
}

// whole hands out n clusters in a row and returns where they begin, in bytes.
func (a *allocator) whole(n int64) int64 {
	first := a.next
	a.next += n
	for c := first; c < a.next; c++ {
		a.refer(c, 1)
	}
	return first << clusterBits
}

// packed hands out size bytes for a compressed cluster.
func (a *allocator) packed(size int64) int64 {
	if missing := a.open + size - a.openEnd; missing > 0 {
		if a.openEnd != a.next<<clusterBits {
			// The next cluster does not follow: leave the rest free.
			a.open = a.next << clusterBits
			a.openEnd, missing = a.open, size
		}
		n := clusters(missing)
		a.next += n
		a.openEnd += n << clusterBits
	}
	at := a.open
	a.open += size
	for c := at >> clusterBits; c <= (a.open-1)>>clusterBits; c++ {
		a.refer(c, 1)
	}
	return at
}

// refer adds d to the references of cluster c.
func (a *allocator) refer(c int64, d int) {
	i := int(c>>blockBits) - len(a.written)
	for i >= len(a.blocks) {
		a.blocks = append(a.blocks, new([blockEntries]uint16))
	}
	n := &a.blocks[i][c&(blockEntries-1)]
	*n = uint16(int(*n) + d)
}

// settled takes out the first block of reference counts if none of them will
// change any more, together with the place it is to be written to.
func (a *allocator) settled() (at int64, block []byte, ok bool) {
	end := int64(len(a.written)+1) << blockBits // first cluster behind the block
	if a.next < end {
		return 0, nil, false
	}
	if a.open>>clusterBits < end {
		if a.open < a.openEnd && a.openEnd == a.next<<clusterBits {
			return 0, nil, false // the space goes on behind the block
		}
		a.open, a.openEnd = 0, 0
	}
	at, block = a.takeBlock(a.whole(1))
	return at, block, true
}

// takeBlock takes out the first block of reference counts, to be written at.
func (a *allocator) takeBlock(at int64) (int64, []byte) {
	b := make([]byte, ClusterSize)
	if len(a.blocks) > 0 {
		for i, n := range a.blocks[0] {
			binary.BigEndian.PutUint16(b[i*2:], n)
		}
		a.blocks = a.blocks[1:]
	}
	a.written = append(a.written, uint64(at))
	return at, b
}

// close hands out the space that the blocks of reference counts and the table
// of them need, which is counted in them too.
func (a *allocator) close() (blocks, table, tableClusters int64) {
	n := int64(1) // blocks in all
	for {
		tableClusters = clusters(n * 8)
		total := a.next + n - int64(len(a.written)) + tableClusters
		need := (total + blockEntries - 1) >> blockBits
		if need <= n {
			break
		}
		n = need
	}
	blocks = a.whole(n - int64(len(a.written)))
	table = a.whole(tableClusters)
	return blocks, table, tableClusters
}
