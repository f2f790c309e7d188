package inflate

import (
	"encoding/binary"
	"fmt"
)

// Inflater inflates streams, one after another, with one set of tables. The
// zero value is ready. It belongs to one goroutine at a time, keeps nothing
// of a stream, and allocates only to report an error.
type Inflater struct {
	tables tables
	pre    [preSize]uint32
	lens   [litSymbols + distSymbols]uint8
}

// zlib's wrapper: two bytes in front of the deflate stream, four behind it.
const (
	zlibHead = 2
	zlibTail = 4
)

// Zlib inflates the zlib stream (RFC 1950) src into dst, checks its Adler-32
// and returns the number of bytes. src must end with the stream. A preset
// dictionary is refused. Errors are an *Error; n is then how many bytes had
// been inflated. dst behind n may have been written to.
func (f *Inflater) Zlib(dst, src []byte) (n int, err error) {
	body, sum, err := Unwrap(src)
	if err != nil {
		return 0, err
	}
	n, used, err := f.Inflate(dst, body)
	if err != nil {
		if e, ok := err.(*Error); ok { //nolint:errorlint // Inflate returns it bare
			e.Offset += zlibHead
		}
		return n, err
	}
	if used != len(body) {
		// The checksum is where the stream ends, not where src does.
		return n, &Error{Err: ErrTrailing, Offset: zlibHead + used + zlibTail, Written: n,
			What: fmt.Sprintf("%d bytes", len(body)-used)}
	}
	if got := Adler32(dst[:n]); got != sum {
		return n, &Error{Err: ErrChecksum, Offset: len(src) - zlibTail, Written: n,
			What: fmt.Sprintf("want %08x, got %08x", sum, got)}
	}
	return n, nil
}

// Unwrap checks a zlib stream's header and takes the stream apart: the
// deflate stream within and the Adler-32 of what it inflates to. Neither is
// checked. Errors are an *Error with ErrHeader or ErrTruncated.
func Unwrap(src []byte) (deflate []byte, adler uint32, err error) {
	if len(src) < zlibHead+zlibTail {
		return nil, 0, &Error{Err: ErrTruncated, Offset: len(src),
			What: fmt.Sprintf("%d bytes, a zlib stream has %d at least", len(src), zlibHead+zlibTail)}
	}
	cmf, flg := src[0], src[1]
	what := ""
	switch {
	case cmf&0x0f != 8:
		what = fmt.Sprintf("method is %d, want 8", cmf&0x0f)
	case cmf>>4 > 7:
		what = fmt.Sprintf("window is 2^%d, want at most 2^15", cmf>>4+8)
	case (uint(cmf)<<8|uint(flg))%31 != 0:
		what = fmt.Sprintf("%02x%02x is no multiple of 31", cmf, flg)
	case flg&0x20 != 0:
		what = "it wants a preset dictionary"
	}
	if what != "" {
		return nil, 0, &Error{Err: ErrHeader, What: what}
	}
	end := len(src) - zlibTail
	return src[zlibHead:end], binary.BigEndian.Uint32(src[end:]), nil
}

// Inflate inflates the deflate stream (RFC 1951) that src begins with into
// dst. n is the number of bytes inflated, used the number of bytes of src the
// stream takes, the last one perhaps in part. Errors are an *Error; n is then
// how many bytes had been inflated and used its Offset. dst behind n may have
// been written to. dst and src must not overlap.
func (f *Inflater) Inflate(dst, src []byte) (n, used int, err error) {
	r := reader{src: src}
	for {
		r.fill()
		at := r.offset()
		if r.n < 3 {
			return n, at, &Error{Err: ErrTruncated, Offset: at, Written: n, What: "in a block's header"}
		}
		head := r.take(3)
		var bad fault
		switch head >> 1 {
		case 0:
			n, bad = r.stored(dst, n)
		case 1:
			t := fixed()
			n, bad = r.block(dst, n, &t.lit, &t.dist)
		case 2:
			if bad = f.readTables(&r); bad.err == nil {
				n, bad = r.block(dst, n, &f.tables.lit, &f.tables.dist)
			}
		default:
			bad = fault{ErrCorrupt, at, "block type is 3"}
		}
		if bad.err != nil {
			return n, bad.offset, &Error{Err: bad.err, Offset: bad.offset, Written: n, What: bad.what}
		}
		if head&1 != 0 {
			return n, r.used(), nil
		}
	}
}

// fault is an Error in the making; err is nil when there is none.
type fault struct {
	err    error
	offset int
	what   string
}

// reader takes bits from src, least significant first. Bits of buf at n and
// above are zero, but within block.
type reader struct {
	src []byte
	i   int    // next byte of src
	buf uint64 // bits taken from src and not used
	n   uint   // how many
}

// fill takes as many whole bytes as fit: after it there are 56 bits at least,
// or all that are left.
func (r *reader) fill() {
	for r.n <= 56 && r.i < len(r.src) {
		r.buf |= uint64(r.src[r.i]) << (r.n & 63)
		r.i++
		r.n += 8
	}
}

// take removes n bits, of which there must be enough.
func (r *reader) take(n uint) uint64 {
	v := r.buf & (1<<(n&63) - 1)
	r.buf >>= n & 63
	r.n -= n
	return v
}

// offset is the byte of src the next bit stands in.
func (r *reader) offset() int { return r.i - int((r.n+7)>>3) }

// used is the byte of src behind those that bits have been taken of.
func (r *reader) used() int { return r.i - int(r.n>>3) }

// stored copies a block of type 0 to dst[o:] and returns the new o.
func (r *reader) stored(dst []byte, o int) (int, fault) {
	r.i = r.used() // the rest of the current byte is padding
	r.buf, r.n = 0, 0
	at := r.i
	if len(r.src)-r.i < 4 {
		return o, fault{ErrTruncated, at, "in a stored block's length"}
	}
	length := int(binary.LittleEndian.Uint16(r.src[r.i:]))
	if inverse := int(binary.LittleEndian.Uint16(r.src[r.i+2:])); length != inverse^0xffff {
		return o, fault{ErrCorrupt, at, "a stored block's length is not the inverse of its check"}
	}
	r.i += 4
	room := min(length, len(dst)-o, len(r.src)-r.i)
	copy(dst[o:o+room], r.src[r.i:r.i+room])
	r.i += room
	o += room
	switch {
	case room == length:
		return o, fault{}
	case r.i == len(r.src):
		return o, fault{ErrTruncated, r.i, "in a stored block"}
	default:
		return o, fault{ErrTooLong, r.i, ""}
	}
}

// preOrder is the order of the code lengths of the code of the code lengths
// (RFC 1951, section 3.2.7).
var preOrder = [preSymbols]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// readTables reads the code lengths at the beginning of a block of type 2 and
// makes f's tables of them.
func (f *Inflater) readTables(r *reader) fault {
	const what = "in a block's code lengths"
	at := r.offset()
	r.fill()
	if r.n < 14 {
		return fault{ErrTruncated, r.offset(), what}
	}
	lits, dists, pres := int(r.take(5))+257, int(r.take(5))+1, int(r.take(4))+4
	if lits > maxLit || dists > maxDist {
		return fault{ErrCorrupt, at, "a block has more codes than there are symbols"}
	}
	var preLens [preSymbols]uint8
	for _, s := range preOrder[:pres] {
		r.fill()
		if r.n < 3 {
			return fault{ErrTruncated, r.offset(), what}
		}
		preLens[s] = uint8(r.take(3))
	}
	if !build(f.pre[:], preBits, preLens[:], preEntries[:]) {
		return fault{ErrCorrupt, at, "the code of the code lengths is no prefix code"}
	}

	lens := f.lens[:lits+dists]
	for i := 0; i < len(lens); {
		// Three symbols of 7 bits with 7 extra bits fit in what fill gives, but
		// one at a time is fast enough here.
		if r.n < 14 {
			r.fill()
		}
		at := r.offset()
		e := f.pre[r.buf&(preSize-1)]
		if uint(e&useMask) > r.n {
			return fault{ErrTruncated, at, what}
		}
		if e&flagSpecial != 0 {
			return fault{ErrCorrupt, at, "bits that are no symbol in a block's code lengths"}
		}
		r.take(uint(e & useMask))
		symbol := uint8(e >> valueShift)
		if symbol < 16 {
			lens[i] = symbol
			i++
			continue
		}
		extra, repeat, value := uint(2), 3, uint8(0)
		switch symbol {
		case 16:
			if i == 0 {
				return fault{ErrCorrupt, at, "a repeated code length without one before it"}
			}
			value = lens[i-1]
		case 17:
			extra = 3
		default:
			extra, repeat = 7, 11
		}
		if r.n < extra {
			return fault{ErrTruncated, at, what}
		}
		repeat += int(r.take(extra))
		if repeat > len(lens)-i {
			return fault{ErrCorrupt, at, "more code lengths than were announced"}
		}
		for range repeat {
			lens[i] = value
			i++
		}
	}
	if !build(f.tables.lit[:], litBits, lens[:lits], litEntries[:]) {
		return fault{ErrCorrupt, at, "the literal and length code is no prefix code"}
	}
	if !build(f.tables.dist[:], distBits, lens[lits:], distEntries[:]) {
		return fault{ErrCorrupt, at, "the distance code is no prefix code"}
	}
	return fault{}
}

const (
	maxMatch = 258
	// copySpan is how much of dst a match may write to in the fast loop: a
	// match, and what copying in words of 8 bytes adds.
	copySpan = (maxMatch + 8 + 7) &^ 7
	// fastOut and fastIn are the room that one turn of the fast loop may need:
	// two literals and a match, or three literals; two fills of 8 bytes, of
	// which the first may use up 7.
	fastOut = copySpan + 3
	fastIn  = 15
	// longMatch is from where on copy is faster than a loop over words.
	longMatch = 64
)

// block inflates the symbols of a block to dst[o:] and returns the new o.
func (r *reader) block(dst []byte, o int, lit *[litSize]uint32, dist *[distSize]uint32) (int, fault) {
	o, done, bad := r.fast(dst, o, lit, dist)
	if done || bad.err != nil {
		return o, bad
	}
	return r.careful(dst, o, lit, dist)
}

// fast inflates symbols as long as there is room enough in src and dst to
// check it once for several of them. It reports whether the block ended.
func (r *reader) fast(dst []byte, o int, lit *[litSize]uint32, dist *[distSize]uint32) (int, bool, fault) {
	src, i, buf, n := r.src, r.i, r.buf, r.n
	inLimit, outLimit := len(src)-fastIn, len(dst)-fastOut
	if i >= inLimit || o >= outLimit {
		return o, false, fault{}
	}
	var e uint32
	var bad fault
	done := false

	// A fill ORs in eight bytes and counts those that fit whole; the bits
	// above n are then the beginning of the next byte, and the next fill ORs
	// the same ones in again.
	buf |= binary.LittleEndian.Uint64(src[i:]) << (n & 63)
	i += int(63-n) >> 3
	n |= 56
	e = lit[buf&(1<<litBits-1)]
	for {
		// 56 bits here, and e is looked up and not yet consumed. A literal
		// found in the first table takes 11 at most: three leave 23, enough to
		// look up the next symbol.
		if e&flagLiteral != 0 {
			buf >>= e & useMask
			n -= uint(e & useMask)
			dst[o] = byte(e >> valueShift)
			o++
			e = lit[buf&(1<<litBits-1)]
			if e&flagLiteral != 0 {
				buf >>= e & useMask
				n -= uint(e & useMask)
				dst[o] = byte(e >> valueShift)
				o++
				e = lit[buf&(1<<litBits-1)]
				if e&flagLiteral != 0 {
					buf >>= e & useMask
					n -= uint(e & useMask)
					dst[o] = byte(e >> valueShift)
					o++
					if i >= inLimit || o >= outLimit {
						break
					}
					e = lit[buf&(1<<litBits-1)]
					buf |= binary.LittleEndian.Uint64(src[i:]) << (n & 63)
					i += int(63-n) >> 3
					n |= 56
					continue
				}
			}
		}
		at := n // bits left before this symbol, for an error's place
		atByte := i
		if e&flagSpecial != 0 {
			if e&flagLink != 0 {
				buf >>= litBits
				n -= litBits
				e = lit[(e>>valueShift+uint32(buf)&(1<<(e>>codeShift&codeMask)-1))&(litSize-1)]
			}
			if e&flagLiteral != 0 {
				buf >>= e & useMask
				n -= uint(e & useMask)
				dst[o] = byte(e >> valueShift)
				o++
				if i >= inLimit || o >= outLimit {
					break
				}
				buf |= binary.LittleEndian.Uint64(src[i:]) << (n & 63)
				i += int(63-n) >> 3
				n |= 56
				e = lit[buf&(1<<litBits-1)]
				continue
			}
			if e&flagSpecial != 0 {
				if e&flagEnd != 0 {
					buf >>= e & useMask
					n -= uint(e & useMask)
					done = true
				} else {
					bad = fault{ErrCorrupt, atByte - int((at+7)>>3), "bits that are no literal or length"}
				}
				break
			}
		}
		length := int(e>>valueShift) + int(buf&(1<<(e&useMask)-1)>>(e>>codeShift&codeMask))
		buf >>= e & useMask
		n -= uint(e & useMask)

		// Up to 22 bits of literals and 20 of a length may be gone; a distance
		// takes 28.
		buf |= binary.LittleEndian.Uint64(src[i:]) << (n & 63)
		i += int(63-n) >> 3
		n |= 56
		e = dist[buf&(1<<distBits-1)]
		if e&flagSpecial != 0 {
			if e&flagLink != 0 {
				buf >>= distBits
				n -= distBits
				e = dist[(e>>valueShift+uint32(buf)&(1<<(e>>codeShift&codeMask)-1))&(distSize-1)]
			}
			if e&flagSpecial != 0 {
				bad = fault{ErrCorrupt, atByte - int((at+7)>>3), "bits that are no distance"}
				break
			}
		}
		back := int(e>>valueShift) + int(buf&(1<<(e&useMask)-1)>>(e>>codeShift&codeMask))
		buf >>= e & useMask
		n -= uint(e & useMask)
		if back > o {
			bad = fault{ErrCorrupt, atByte - int((at+7)>>3), "a distance reaches before the beginning"}
			break
		}

		// The next symbol is looked up now, so that its entry is there when
		// the bytes are copied.
		e = lit[buf&(1<<litBits-1)]
		to := (*[copySpan]byte)(dst[o : o+copySpan : o+copySpan])
		from := (*[copySpan]byte)(dst[o-back : o-back+copySpan : o-back+copySpan])
		switch {
		case back >= 8:
			// Where the two overlap, each word is stored before the next
			// is loaded.
			binary.LittleEndian.PutUint64(to[0:8], binary.LittleEndian.Uint64(from[0:8]))
			binary.LittleEndian.PutUint64(to[8:16], binary.LittleEndian.Uint64(from[8:16]))
			if length > 16 {
				if length >= longMatch && back >= length {
					copy(to[16:length], from[16:length])
				} else {
					for k := 16; k < length; k += 8 {
						binary.LittleEndian.PutUint64(to[k:k+8:k+8], binary.LittleEndian.Uint64(from[k:k+8:k+8]))
					}
				}
			}
		case back == 1:
			v := uint64(from[0]) * 0x0101010101010101
			for k := 0; k < length; k += 8 {
				binary.LittleEndian.PutUint64(to[k:k+8:k+8], v)
			}
		default:
			// Of each word stored, the first back bytes are right.
			for k := 0; k < length; k += back {
				binary.LittleEndian.PutUint64(to[k:k+8:k+8], binary.LittleEndian.Uint64(from[k:k+8:k+8]))
			}
		}
		o += length
		if i >= inLimit || o >= outLimit {
			break
		}
		buf |= binary.LittleEndian.Uint64(src[i:]) << (n & 63)
		i += int(63-n) >> 3
		n |= 56
	}
	r.i, r.buf, r.n = i, buf&(1<<(n&63)-1), n
	return o, done, bad
}

// careful inflates symbols one by one to the end of the block.
func (r *reader) careful(dst []byte, o int, lit *[litSize]uint32, dist *[distSize]uint32) (int, fault) {
	const what = "in a block's data"
	for {
		r.fill() // 48 bits are the most a length with its distance takes
		at := r.offset()
		e := lit[r.buf&(1<<litBits-1)]
		if e&flagLink != 0 {
			if r.n < litBits {
				return o, fault{ErrTruncated, at, what}
			}
			r.take(litBits)
			e = lit[(e>>valueShift+uint32(r.buf)&(1<<(e>>codeShift&codeMask)-1))&(litSize-1)]
		}
		if uint(e&useMask) > r.n {
			return o, fault{ErrTruncated, at, what}
		}
		if e&flagSpecial != 0 {
			if e&flagEnd == 0 {
				return o, fault{ErrCorrupt, at, "bits that are no literal or length"}
			}
			r.take(uint(e & useMask))
			return o, fault{}
		}
		taken := r.take(uint(e & useMask))
		if e&flagLiteral != 0 {
			if o == len(dst) {
				return o, fault{ErrTooLong, at, ""}
			}
			dst[o] = byte(e >> valueShift)
			o++
			continue
		}
		length := int(e>>valueShift) + int(taken>>(e>>codeShift&codeMask))

		e = dist[r.buf&(1<<distBits-1)]
		if e&flagLink != 0 {
			if r.n < distBits {
				return o, fault{ErrTruncated, at, what}
			}
			r.take(distBits)
			e = dist[(e>>valueShift+uint32(r.buf)&(1<<(e>>codeShift&codeMask)-1))&(distSize-1)]
		}
		if uint(e&useMask) > r.n {
			return o, fault{ErrTruncated, at, what}
		}
		if e&flagSpecial != 0 {
			return o, fault{ErrCorrupt, at, "bits that are no distance"}
		}
		back := int(e>>valueShift) + int(r.take(uint(e&useMask))>>(e>>codeShift&codeMask))
		if back > o {
			return o, fault{ErrCorrupt, at, "a distance reaches before the beginning"}
		}
		room := min(length, len(dst)-o)
		// Each turn copies what is there, which doubles while they overlap.
		for end := o + room; o < end; {
			o += copy(dst[o:end], dst[end-room-back:o])
		}
		if room < length {
			return o, fault{ErrTooLong, at, ""}
		}
	}
}
