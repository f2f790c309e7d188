package lab

import (
	"encoding/binary"
	"errors"
	"hash/fnv"
	"io"
	"math/bits"
	"slices"
	"sort"
	"strconv"

	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
)

const (
	blockSize = 4096
	// runBlocks is the length of a run of one kind in PatternMixed: 48 KiB, so
	// that grains of 64 KiB hold two kinds.
	runBlocks = 12
	// holeBlocks is the unit of the holes in PatternMixed: whole grains of zeros.
	holeBlocks = 64
	// pieceSize is one piece of PatternSparse. It covers parts of two grains.
	pieceSize     = 20 * blockSize
	defaultSparse = 2 * mib
)

// content is a disk's content, made by offset from a seed. Its methods are
// safe for concurrent use.
type content struct {
	size    int64
	pattern Pattern
	seed    uint64
	// covered is where the pattern is; head lies over it from the disk's start.
	covered []vmdk.Range
	head    []byte
	extents []vmdk.Range // of both
}

func newContent(d DiskSpec) *content {
	c := &content{size: d.Capacity, pattern: d.Pattern, seed: d.Seed, head: slices.Clone(d.Head)}
	switch d.Pattern {
	case PatternEmpty:
	case PatternSparse:
		c.covered = pieces(d)
	default:
		length := d.Allocated
		if length == 0 {
			length = d.Capacity
		}
		c.covered = []vmdk.Range{{Off: 0, Len: length}}
	}
	c.extents = withHead(c.covered, int64(len(c.head)))
	return c
}

// withHead adds the first n bytes to extents, which rise and do not overlap.
func withHead(extents []vmdk.Range, n int64) []vmdk.Range {
	if n == 0 {
		return extents
	}
	first := vmdk.Range{Off: 0, Len: n}
	for len(extents) > 0 && extents[0].Off <= n {
		first.Len = max(first.Len, extents[0].Off+extents[0].Len)
		extents = extents[1:]
	}
	return append([]vmdk.Range{first}, extents...)
}

// pieces spreads PatternSparse's data: one piece at the start, the last one up
// to the disk's last byte, the others where the seed says.
func pieces(d DiskSpec) []vmdk.Range {
	total := d.Allocated
	if total == 0 {
		total = defaultSparse
	}
	n := total / pieceSize
	if n < 2 || total > d.Capacity/4 {
		return []vmdk.Range{{Off: 0, Len: min(total, d.Capacity)}}
	}
	stride := d.Capacity / n / blockSize * blockSize
	out := make([]vmdk.Range, n)
	for i := range n {
		room := uint64((stride - pieceSize) / blockSize)
		out[i] = vmdk.Range{Off: i*stride + int64(mix(d.Seed+uint64(i))%(room+1))*blockSize, Len: pieceSize}
	}
	out[0].Off = 0
	out[n-1].Off = d.Capacity - pieceSize
	return out
}

// Size is the disk's capacity in bytes.
func (c *content) Size() int64 { return c.size }

// Extents lists what may hold something other than zeros.
func (c *content) Extents() []vmdk.Range { return c.extents }

// ReadAt makes the bytes at off.
func (c *content) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	if off >= c.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > c.size-off {
		p, eof = p[:c.size-off], io.EOF
	}
	n := len(p)
	clear(p)
	end := off + int64(n)
	first := sort.Search(len(c.covered), func(i int) bool { return c.covered[i].Off+c.covered[i].Len > off })
	for i, e := range c.covered[first:] {
		if e.Off >= end {
			break
		}
		from, to := max(off, e.Off), min(end, e.Off+e.Len)
		c.fill(p[from-off:to-off], from, first+i)
	}
	if off < int64(len(c.head)) {
		copy(p, c.head[off:])
	}
	return n, eof
}

// fill writes the pattern's bytes from off on, which lie in one covered range.
func (c *content) fill(p []byte, off int64, extent int) {
	var scratch [blockSize]byte
	for len(p) > 0 {
		block, skip := off/blockSize, int(off%blockSize)
		n := min(len(p), blockSize-skip)
		if n == blockSize {
			c.block(p[:n], block, extent)
		} else {
			c.block(scratch[:], block, extent)
			copy(p[:n], scratch[skip:])
		}
		p, off = p[n:], off+int64(n)
	}
}

// block fills p with the block of that number.
func (c *content) block(p []byte, number int64, extent int) {
	kind := c.pattern
	switch c.pattern {
	case PatternMixed:
		kind = PatternText
		switch h := mix(c.seed ^ uint64(number/runBlocks)<<1); {
		case mix(c.seed^uint64(number/holeBlocks)<<1^1)%4 == 0 && number >= holeBlocks, h%5 == 4:
			kind = PatternEmpty
		case h%5 >= 2:
			kind = PatternRandom
		}
	case PatternSparse:
		kind = PatternText
		if extent%2 == 1 {
			kind = PatternRandom
		}
	}
	switch kind {
	case PatternText:
		text(p, c.seed, number)
	case PatternRandom:
		random(p, c.seed, number)
	default:
		clear(p)
	}
}

// mix is the output function of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func random(p []byte, seed uint64, number int64) {
	state := mix(seed) ^ mix(uint64(number))
	for i := 0; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], mix(state))
		state += 0x9e3779b97f4a7c15
	}
}

var words = []string{
	"accepted", "address", "balance", "cache", "client", "closed", "commit", "connection", "disk", "entry", "error", "file",
	"from", "GET", "handler", "host", "index", "info", "journal", "kernel", "latency", "limit", "memory", "network", "node",
	"open", "page", "POST", "query", "read", "request", "retry", "sector", "session", "status", "table", "timeout", "user",
	"volume", "warning", "write", "200", "304", "404", "500", "127.0.0.1", "/index.html", "/api/v1/items", "/var/lib/data",
}

// text fills p with lines as a log has them.
func text(p []byte, seed uint64, number int64) {
	state := mix(seed+1) ^ mix(uint64(number))
	line := strconv.AppendInt(make([]byte, 0, 256), number*40, 10)
	for len(p) > 0 {
		line = append(line, ' ')
		for range 6 + state%6 {
			state = mix(state)
			hi, _ := bits.Mul64(state, uint64(len(words)))
			line = append(append(line, words[hi]...), ' ')
		}
		line = append(strconv.AppendUint(line, state%100000, 16), '\n')
		p = p[copy(p, line):]
		line = append(line[:0], "2026-01-16T23:59:"...)
		line = strconv.AppendUint(line, state>>32%60, 10)
	}
}

// seedFor gives a disk without a seed one of its own.
func seedFor(path string, disk int) uint64 {
	h := fnv.New64a()
	h.Write([]byte(path))
	return mix(h.Sum64() + uint64(disk))
}
