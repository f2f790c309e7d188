package inflate

import "encoding/binary"

const (
	adlerMod = 65521 // the largest prime below 2^16 (RFC 1950, section 8.2)
	// adlerLine is how many bytes are summed in one turn, as four words.
	adlerLine = 32
	// adlerBlock is how many bytes are summed between two reductions: the
	// 16-bit lanes of odd take 4 times 255 for each line, so 64 lines fit.
	adlerBlock = 64 * adlerLine

	evenBytes = 0x00ff00ff00ff00ff
	laneSum   = 0x0001000100010001 // times this, the top lane is the sum of all four
)

// Adler32 is the checksum of RFC 1950 of p. It is hash/adler32, several bytes
// at a time in the lanes of a word.
//
// With a the sum of the bytes and b the sum of all values of a, a line of 32
// bytes adds to b: 32 times the a before it, and 32 times its first byte, 31
// times the second and so on. The first part is summed line by line. For the
// second, bytes are summed by their place in the line, two neighbours in one
// lane, and weighted once in a block.
func Adler32(p []byte) uint32 {
	a, b := uint64(1), uint64(0)
	for len(p) >= adlerLine {
		block := p[:min(len(p)&^(adlerLine-1), adlerBlock)]
		p = p[len(block):]
		var w0, w1, w2, w3 uint64 // sums of pairs, for each word of a line
		var odd uint64            // sum of the second bytes of all pairs
		var before uint64         // sum of the a before each line
		for len(block) >= adlerLine {
			line := (*[adlerLine]byte)(block)
			block = block[adlerLine:]
			v := binary.LittleEndian.Uint64(line[0:8])
			o := v >> 8 & evenBytes
			odd += o
			x := v&evenBytes + o
			w0 += x
			sum := x
			v = binary.LittleEndian.Uint64(line[8:16])
			o = v >> 8 & evenBytes
			odd += o
			x = v&evenBytes + o
			w1 += x
			sum += x
			v = binary.LittleEndian.Uint64(line[16:24])
			o = v >> 8 & evenBytes
			odd += o
			x = v&evenBytes + o
			w2 += x
			sum += x
			v = binary.LittleEndian.Uint64(line[24:32])
			o = v >> 8 & evenBytes
			odd += o
			x = v&evenBytes + o
			w3 += x
			sum += x
			before += a
			a += sum * laneSum >> 48
		}
		b += adlerLine * before
		for lane := range uint64(4) {
			shift := 16 * lane
			for word, w := range [4]uint64{w0, w1, w2, w3} {
				// The weight of a pair's first byte; that of the second is
				// one less.
				b += (w >> shift & 0xffff) * (adlerLine - 8*uint64(word) - 2*lane)
			}
			b -= odd >> shift & 0xffff
		}
		a %= adlerMod
		b %= adlerMod
	}
	for _, v := range p {
		a += uint64(v)
		b += a
	}
	return uint32(b%adlerMod)<<16 | uint32(a%adlerMod)
}
