package qcow2

import "encoding/binary"

// ClusterSize is the unit of allocation, in bytes: the default of qemu-img
// and the size of a VMDK's grain.
const ClusterSize = 1 << clusterBits

const (
	clusterBits = 16
	clusterMask = ClusterSize - 1

	// A table of the second level is one cluster.
	tableEntries = ClusterSize / 8
	tableBits    = clusterBits - 3
	// tableSpan is how much of the disk one covers.
	tableSpan = tableEntries * ClusterSize

	// A block of reference counts is one cluster of 16-bit numbers.
	refcountOrder = 4
	blockEntries  = ClusterSize / 2
	blockBits     = clusterBits - 1
)

// Bits of an entry of a table.
const (
	flagCopied     = 1 << 63 // the cluster has one reference: it may be written in place
	flagCompressed = 1 << 62
	// Of a compressed cluster, the low bits are the byte where it begins, and
	// those from here on the number of further sectors it touches.
	sectorsShift = 62 - (clusterBits - 8)
	sectorBits   = 9
)

// headerLength is that of a version 3 header without optional fields.
const headerLength = 104

// header is what a header has that is not the same in all images.
type header struct {
	size             int64 // of the disk, in bytes
	l1Entries        int
	l1Offset         int64
	refcountOffset   int64
	refcountClusters int64
}

// put writes h into a cluster of zeros. What stays zero: backing file,
// encryption, snapshots, feature bits, and the end of the header extensions
// behind the header.
func (h header) put(b []byte) {
	be := binary.BigEndian
	copy(b, "QFI\xfb")
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], clusterBits)
	be.PutUint64(b[24:], uint64(h.size))
	be.PutUint32(b[36:], uint32(h.l1Entries))
	be.PutUint64(b[40:], uint64(h.l1Offset))
	be.PutUint64(b[48:], uint64(h.refcountOffset))
	be.PutUint32(b[56:], uint32(h.refcountClusters))
	be.PutUint32(b[96:], refcountOrder)
	be.PutUint32(b[100:], headerLength)
}

// compressedEntry is the entry of a cluster whose deflate stream has size
// bytes at offset.
func compressedEntry(offset, size int64) uint64 {
	further := (offset+size-1)>>sectorBits - offset>>sectorBits
	return flagCompressed | uint64(further)<<sectorsShift | uint64(offset)
}

// putEntries encodes entries into whole clusters.
func putEntries(entries []uint64) []byte {
	b := make([]byte, clusters(int64(len(entries))*8)<<clusterBits)
	for i, v := range entries {
		binary.BigEndian.PutUint64(b[i*8:], v)
	}
	return b
}

// clusters is how many clusters n bytes take.
func clusters(n int64) int64 { return (n + clusterMask) >> clusterBits }
