package inflate

import (
	"math/bits"
	"sync"
)

// Sizes given by RFC 1951, section 3.2.
const (
	maxCodeBits = 15
	litSymbols  = 288 // 286 and 287 have codes in fixed blocks and never occur
	distSymbols = 32  // 30 and 31 likewise
	preSymbols  = 19
	maxLit      = 286 // most literal/length codes a block may define
	maxDist     = 30
	endOfBlock  = 256
)

// A code is decoded with a table that is indexed with the next bits of the
// stream. Codes that are longer continue in a second table behind the first.
// With these many bits in the first one, the tables of all complete codes fit
// in the sizes below (2342, 402 and 128 entries at most, as zlib's "enough"
// computes); powers of two make an index provably in range by masking it.
const (
	litBits  = 11
	distBits = 8
	preBits  = 7

	litSize  = 4096
	distSize = 512
	preSize  = 128
)

// An entry of a table, from the low end:
//
//	bits 0-7    bits to consume: of the code, and the extra bits behind it
//	bits 8-12   bits of the code alone; in a link, bits that index the second table
//	bit 13      link to a second table
//	bit 14      end of block
//	bit 15      special: a link, the end of the block, or no symbol at all
//	bits 16-30  literal, base length, base distance, code length symbol, or
//	            where in the table the second one begins
//	bit 31      literal
const (
	flagLink    = 1 << 13
	flagEnd     = 1 << 14
	flagSpecial = 1 << 15
	flagLiteral = 1 << 31
	valueShift  = 16
	valueMask   = 1<<15 - 1
	codeShift   = 8
	codeMask    = 1<<5 - 1
	useMask     = 63
	invalid     = flagSpecial | 1 // one bit, so that a stream that ends there ends early
)

// Entries of each symbol, without the bits of its code.
var (
	litEntries  = makeLitEntries()
	distEntries = makeDistEntries()
	preEntries  = makePreEntries()
)

func makeLitEntries() (t [litSymbols]uint32) {
	for i := range endOfBlock {
		t[i] = flagLiteral | uint32(i)<<valueShift
	}
	t[endOfBlock] = flagSpecial | flagEnd
	// 257 to 264 have no extra bits; then four symbols each for 1 to 5.
	base := uint32(3)
	for i := uint32(0); i < 28; i++ {
		extra := max(i>>2, 1) - 1
		t[257+i] = base<<valueShift | extra
		base += 1 << extra
	}
	t[285] = 258 << valueShift
	t[286], t[287] = flagSpecial, flagSpecial
	return t
}

func makeDistEntries() (t [distSymbols]uint32) {
	base := uint32(1)
	for i := range uint32(maxDist) {
		extra := max(i>>1, 1) - 1
		t[i] = base<<valueShift | extra
		base += 1 << extra
	}
	t[30], t[31] = flagSpecial, flagSpecial
	return t
}

func makePreEntries() (t [preSymbols]uint32) {
	for i := range t {
		t[i] = uint32(i) << valueShift
	}
	return t
}

// fixed holds the tables of blocks of type 1, made when the first one comes.
var fixed = sync.OnceValue(func() *tables {
	var lens [litSymbols]uint8
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	t := new(tables)
	build(t.lit[:], litBits, lens[:], litEntries[:])
	for i := range distSymbols {
		lens[i] = 5
	}
	build(t.dist[:], distBits, lens[:distSymbols], distEntries[:])
	return t
})

// tables are the two tables of a block.
type tables struct {
	lit  [litSize]uint32
	dist [distSize]uint32
}

// build makes the table of the code with these lengths (RFC 1951, section
// 3.2.2) and reports whether there is such a code. A code must be complete,
// with two exceptions, in which the bits left over are no symbol: it may be
// empty, and it may be of one symbol of one bit.
func build(table []uint32, primary uint, lens []uint8, entries []uint32) bool {
	var count [maxCodeBits + 1]int
	for _, l := range lens {
		count[l&maxCodeBits]++
	}
	used := len(lens) - count[0]
	left := 1
	for _, n := range count[1:] {
		left = left<<1 - n
		if left < 0 {
			return false
		}
	}
	if left > 0 {
		if used > 1 || used == 1 && count[1] != 1 {
			return false
		}
		for i := range table[:1<<primary] {
			table[i] = invalid
		}
		for s, l := range lens {
			if l == 0 {
				continue
			}
			for i := 0; i < 1<<primary; i += 2 {
				table[i] = entries[s] + 1<<codeShift + 1
			}
		}
		return true
	}

	// Symbols in the order of their codes: by length, then by number.
	var next [maxCodeBits + 2]int
	for l := 1; l <= maxCodeBits; l++ {
		next[l+1] = next[l] + count[l]
	}
	var sorted [litSymbols]uint16
	for s, l := range lens {
		if l != 0 {
			sorted[next[l]] = uint16(s)
			next[l]++
		}
	}

	// Codes stand in the stream from their most significant bit on, so code is
	// kept reversed. While the lengths grow, the table doubles: what was found
	// by l bits is found by l+1 bits whatever the last one is.
	code := uint32(0)
	at := 0
	for l := uint(1); l <= primary; l++ {
		for range count[l] {
			table[code] = entries[sorted[at]] + uint32(l<<codeShift|l)
			at++
			code = successor(code, l)
		}
		if l < primary {
			copy(table[1<<l:1<<(l+1)], table[:1<<l])
		}
	}
	if at == used {
		return true
	}
	end := uint32(1) << primary // of the tables made so far
	start, prefix := uint32(0), ^uint32(0)
	for l := primary + 1; l <= maxCodeBits; l++ {
		for n := count[l]; n > 0; n-- {
			if p := code & (1<<primary - 1); p != prefix {
				// The second table holds all codes with this prefix. Its size
				// is that of the longest of them.
				prefix, start = p, end
				more := l - primary
				for room := 1<<more - n; room > 0; {
					more++
					room = room<<1 - count[primary+more]
				}
				end += 1 << more
				table[prefix] = flagSpecial | flagLink | start<<valueShift | uint32(more<<codeShift|primary)
			}
			e := entries[sorted[at]] + uint32((l-primary)<<codeShift|(l-primary))
			at++
			for i := start + code>>primary; i < end; i += 1 << (l - primary) {
				table[i] = e
			}
			code = successor(code, l)
		}
	}
	return true
}

// successor is the reversed code of l bits that follows code.
func successor(code uint32, l uint) uint32 {
	zeros := ^code & (1<<l - 1)
	if zeros == 0 {
		return 0 // code was the last
	}
	top := uint32(1) << (bits.Len32(zeros) - 1)
	return code&(top-1) | top
}
