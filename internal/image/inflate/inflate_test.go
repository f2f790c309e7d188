package inflate

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/adler32"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	kflate "github.com/klauspost/compress/flate"
	kzlib "github.com/klauspost/compress/zlib"

	"github.com/hyper2kvm/hyper2kvm/internal/image/qemutest"
)

const grain = 64 << 10

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

// text is data that compresses to about a third.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%d: the quick brown fox %x jumped over %d lazy dogs\n", b.Len(), r.Uint32(), r.IntN(100))
	}
	return b.Bytes()[:n]
}

// mixed is what disks look like: text, structures, runs, and noise.
func mixed(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	var b bytes.Buffer
	for b.Len() < n {
		k := 1 + r.IntN(3000)
		switch r.IntN(5) {
		case 0:
			b.Write(random(r.Uint64(), k))
		case 1:
			b.Write(bytes.Repeat([]byte{byte(r.IntN(256))}, k))
		case 2:
			b.Write(bytes.Repeat(random(r.Uint64(), 1+r.IntN(20)), 1+k/20))
		case 3:
			for i := range k / 16 {
				_ = binary.Write(&b, binary.LittleEndian, [4]uint32{uint32(i), 0x8000 + uint32(i)*16, r.Uint32N(1 << 12), 0})
			}
		default:
			b.Write(text(r.Uint64(), k))
		}
	}
	return b.Bytes()[:n]
}

func deflate(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// contents are what the tests compress.
func contents() map[string][]byte {
	m := map[string][]byte{
		"nothing":  {},
		"one":      {7},
		"zeros":    make([]byte, grain),
		"random":   random(1, grain),
		"text":     text(1, grain),
		"mixed":    mixed(1, grain),
		"long":     mixed(2, 150<<10),
		"odd":      text(3, 1234),
		"pairs":    bytes.Repeat([]byte("ab"), 20000),
		"seven":    bytes.Repeat([]byte("abcdefg"), 9000),
		"far":      append(append(text(4, 300), random(4, 32400)...), text(4, 300)...),
		"distance": append(random(5, 32768), random(5, 32768)...),
	}
	// Symbols whose frequencies are Fibonacci numbers get codes of the
	// greatest length, which need second tables.
	var fib []byte
	a, b := 1, 1
	for s := range 22 {
		fib = append(fib, bytes.Repeat([]byte{byte(s * 11)}, a)...)
		a, b = b, a+b
	}
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(fib), func(i, j int) { fib[i], fib[j] = fib[j], fib[i] })
	m["long codes"] = fib
	return m
}

func TestInflate(t *testing.T) {
	t.Parallel()
	var f Inflater
	for name, want := range contents() {
		for level := flate.HuffmanOnly; level <= flate.BestCompression; level++ {
			src := deflate(t, want, level)
			// Room to spare, and something behind the stream; then neither.
			for _, extra := range []int{1000, 0} {
				dst := make([]byte, len(want)+extra)
				n, used, err := f.Inflate(dst, append(bytes.Clone(src), make([]byte, extra)...))
				if err != nil || n != len(want) || used != len(src) {
					t.Fatalf("%s, level %d: %d bytes of %d used, %d inflated, error %v", name, level, used, len(src), n, err)
				}
				if !bytes.Equal(dst[:n], want) {
					t.Fatalf("%s, level %d: inflated to something else", name, level)
				}
			}
			if len(want) == 0 {
				continue
			}
			short := make([]byte, len(want)-1, len(want)+1000)
			if n, _, err := f.Inflate(short, src); !errors.Is(err, ErrTooLong) || n > len(short) || !bytes.Equal(short[:n], want[:n]) {
				t.Fatalf("%s, level %d: %d bytes in a buffer of %d, error %v", name, level, n, len(short), err)
			}
			if rest := short[len(short):cap(short)]; !bytes.Equal(rest, make([]byte, len(rest))) {
				t.Fatalf("%s, level %d: wrote behind the buffer", name, level)
			}
		}
	}
}

// TestTruncated cuts streams at every byte.
func TestTruncated(t *testing.T) {
	t.Parallel()
	var f Inflater
	for level := flate.HuffmanOnly; level <= flate.BestCompression; level++ {
		want := mixed(3, 1500)
		src := deflate(t, want, level)
		dst := make([]byte, len(want))
		for cut := range src {
			n, used, err := f.Inflate(dst, src[:cut])
			if !errors.Is(err, ErrTruncated) || used > cut || !bytes.Equal(dst[:n], want[:n]) {
				t.Fatalf("level %d, %d of %d bytes: used %d, error %v", level, cut, len(src), used, err)
			}
		}
	}
}

// writer packs bits as RFC 1951, section 3.1.1 says.
type writer struct {
	b []byte
	n uint
}

func (w *writer) bits(v uint64, n uint) *writer {
	for i := range n {
		if w.n%8 == 0 {
			w.b = append(w.b, 0)
		}
		w.b[w.n/8] |= byte(v>>i&1) << (w.n % 8)
		w.n++
	}
	return w
}

// code adds a Huffman code, which goes from its most significant bit on.
func (w *writer) code(v uint64, n uint) *writer {
	for i := n; i > 0; i-- {
		w.bits(v>>(i-1)&1, 1)
	}
	return w
}

// fixedBlock begins a final block of type 1.
func fixedBlock() *writer { return new(writer).bits(1, 1).bits(1, 2) }

// dynamic begins a final block of type 2 with these code lengths, each of
// which is sent as itself: the code of the code lengths has 16 symbols of 4.
func dynamic(lits, dists int, lens map[int]int) *writer {
	w := new(writer).bits(1, 1).bits(2, 2).bits(uint64(lits-257), 5).bits(uint64(dists-1), 5).bits(15, 4)
	for _, s := range preOrder {
		n := uint64(4)
		if s >= 16 {
			n = 0
		}
		w.bits(n, 3)
	}
	for i := range lits + dists {
		w.code(uint64(lens[i]), 4)
	}
	return w
}

func TestCorrupt(t *testing.T) {
	t.Parallel()
	pad := make([]byte, 400)
	for name, c := range map[string]struct {
		src    []byte
		err    error
		what   string
		offset int
		n      int
	}{
		"empty":                {nil, ErrTruncated, "header", 0, 0},
		"type 3":               {[]byte{7}, ErrCorrupt, "block type is 3", 0, 0},
		"stored length":        {[]byte{1, 5, 0, 5, 0, 1, 2, 3, 4, 5}, ErrCorrupt, "inverse", 1, 0},
		"stored cut":           {[]byte{1, 5, 0, 250, 255, 1, 2}, ErrTruncated, "stored", 7, 2},
		"stored, no length":    {[]byte{1, 5, 0}, ErrTruncated, "length", 1, 0},
		"symbol 286":           {fixedBlock().code(0x30+'a', 8).code(0xc6, 8).b, ErrCorrupt, "no literal or length", 1, 1},
		"distance symbol 30":   {fixedBlock().code(0x30+'a', 8).code(1, 7).code(30, 5).b, ErrCorrupt, "no distance", 1, 1},
		"too far":              {fixedBlock().code(0x30+'a', 8).code(1, 7).code(1, 5).b, ErrCorrupt, "before the beginning", 1, 1},
		"too many literals":    {new(writer).bits(1, 1).bits(2, 2).bits(30, 5).bits(0, 5).bits(0, 4).b, ErrCorrupt, "more codes", 0, 0},
		"too many distances":   {new(writer).bits(1, 1).bits(2, 2).bits(0, 5).bits(30, 5).bits(0, 4).b, ErrCorrupt, "more codes", 0, 0},
		"oversubscribed pre":   {new(writer).bits(1, 1).bits(2, 2).bits(0, 5).bits(0, 5).bits(0, 4).bits(1, 3).bits(1, 3).bits(1, 3).bits(1, 3).b, ErrCorrupt, "code lengths is no prefix", 0, 0},
		"incomplete pre":       {new(writer).bits(1, 1).bits(2, 2).bits(0, 5).bits(0, 5).bits(0, 4).bits(2, 3).bits(2, 3).bits(2, 3).bits(0, 3).b, ErrCorrupt, "code lengths is no prefix", 0, 0},
		"empty pre":            {append(new(writer).bits(1, 1).bits(2, 2).bits(0, 5).bits(0, 5).bits(0, 4).bits(0, 12).b, 0), ErrCorrupt, "no symbol", 3, 0},
		"oversubscribed lit":   {dynamic(257, 1, map[int]int{0: 1, 1: 1, 256: 1}).b, ErrCorrupt, "literal and length code", 0, 0},
		"incomplete lit":       {dynamic(257, 1, map[int]int{0: 2, 256: 2}).b, ErrCorrupt, "literal and length code", 0, 0},
		"single lit of 2":      {dynamic(257, 1, map[int]int{256: 2}).b, ErrCorrupt, "literal and length code", 0, 0},
		"oversubscribed dist":  {dynamic(257, 3, map[int]int{0: 1, 256: 1, 257: 1, 258: 1, 259: 1}).b, ErrCorrupt, "distance code", 0, 0},
		"unused lit bit":       {dynamic(257, 1, map[int]int{256: 1}).bits(1, 1).b, ErrCorrupt, "no literal or length", 138, 0},
		"no distances":         {dynamic(258, 1, map[int]int{0: 2, 256: 2, 257: 1}).code(2, 2).code(0, 1).b, ErrCorrupt, "no distance", 139, 1},
		"repeat first":         {new(writer).bits(1, 1).bits(2, 2).bits(0, 5).bits(0, 5).bits(0, 4).bits(1, 3).bits(1, 3).bits(0, 6).bits(0, 20).b, ErrCorrupt, "repeated", 3, 0},
		"too many repetitions": {new(writer).bits(1, 1).bits(2, 2).bits(0, 5).bits(0, 5).bits(0, 4).bits(0, 3).bits(1, 3).bits(1, 3).bits(0, 3).bits(1, 1).bits(127, 7).bits(1, 1).bits(127, 7).bits(0, 30).b, ErrCorrupt, "more code lengths", 4, 0},
	} {
		// By itself and with bytes behind it, so that the fast loop runs too.
		for _, src := range [][]byte{c.src, append(bytes.Clone(c.src), pad...)} {
			if len(src) > len(c.src) && errors.Is(c.err, ErrTruncated) {
				continue
			}
			var f Inflater
			n, used, err := f.Inflate(make([]byte, 1000), src)
			e, ok := errors.AsType[*Error](err)
			if !ok || !errors.Is(err, c.err) || !strings.Contains(e.What, c.what) {
				t.Errorf("%s: got error %v, want %v with %q", name, err, c.err, c.what)
				continue
			}
			if n != c.n || e.Written != n || used != c.offset || e.Offset != used {
				t.Errorf("%s: at byte %d after %d bytes (%v), want %d and %d", name, used, n, e, c.offset, c.n)
			}
			if _, err := io.ReadAll(flate.NewReader(bytes.NewReader(src))); err == nil {
				t.Errorf("%s: compress/flate has no objection", name)
			}
		}
	}
}

// TestSingleCodes: the incomplete codes that are allowed.
func TestSingleCodes(t *testing.T) {
	t.Parallel()
	var f Inflater
	dst := make([]byte, 1000)
	// One literal/length code, one distance code: end at once.
	if n, _, err := f.Inflate(dst, dynamic(257, 1, map[int]int{256: 1, 257: 1}).code(0, 1).b); n != 0 || err != nil {
		t.Errorf("inflated %d bytes, error %v", n, err)
	}
	// A literal, then matches of 3 with the only distance code.
	src := dynamic(258, 1, map[int]int{0: 2, 256: 2, 257: 1, 258: 1}).code(2, 2).
		code(0, 1).code(0, 1).code(0, 1).code(0, 1).code(3, 2).b
	for _, src := range [][]byte{src, append(src, make([]byte, 100)...)} {
		if n, _, err := f.Inflate(dst, src); n != 7 || err != nil {
			t.Errorf("inflated %d bytes, error %v", n, err)
		}
	}
}

func TestZlib(t *testing.T) {
	t.Parallel()
	var f Inflater
	for name, want := range contents() {
		dst := make([]byte, len(want))
		n, err := f.Zlib(dst, qemutest.Deflated(t, want, 6))
		if err != nil || !bytes.Equal(dst[:n], want) {
			t.Errorf("%s: %d bytes, error %v", name, n, err)
		}
	}
	good := qemutest.Deflated(t, text(1, 100), 6)
	change := func(i int, b byte) []byte {
		s := bytes.Clone(good)
		s[i] = b
		return s
	}
	for name, c := range map[string]struct {
		src    []byte
		err    error
		what   string
		offset int
	}{
		"nothing":    {nil, ErrTruncated, "0 bytes", 0},
		"five":       {good[:5], ErrTruncated, "5 bytes", 5},
		"method":     {change(0, 0x79), ErrHeader, "method is 9", 0},
		"window":     {change(0, 0x88), ErrHeader, "window is 2^16", 0},
		"check":      {change(1, 0x9d), ErrHeader, "789d", 0},
		"dictionary": {change(1, 0xbb), ErrHeader, "dictionary", 0},
		"cut":        {good[:len(good)-1], ErrTruncated, "stored", len(good) - 8},
		"trailing":   {append(bytes.Clone(good), 0, 0, 0), ErrTrailing, "3 bytes", len(good)},
		"checksum":   {change(len(good)-1, good[len(good)-1]^1), ErrChecksum, "want", len(good) - 4},
		"block type": {change(2, 7), ErrCorrupt, "type is 3", 2},
	} {
		n, err := f.Zlib(make([]byte, 100), c.src)
		e, ok := errors.AsType[*Error](err)
		if !ok || !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.what) || e.Offset != c.offset || e.Written != n {
			t.Errorf("%s: got error %v, want %v with %q at %d", name, err, c.err, c.what, c.offset)
		}
	}
}

func TestAdler32(t *testing.T) {
	t.Parallel()
	big := random(1, 100000)
	full := bytes.Repeat([]byte{0xff}, 100000)
	for n := 0; n < 5000; n += 1 + n/100 {
		if got, want := Adler32(big[:n]), adler32.Checksum(big[:n]); got != want {
			t.Fatalf("%d random bytes: got %08x, want %08x", n, got, want)
		}
		if got, want := Adler32(full[:n*20]), adler32.Checksum(full[:n*20]); got != want {
			t.Fatalf("%d bytes of 0xff: got %08x, want %08x", n*20, got, want)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	var f Inflater
	src := qemutest.Deflated(t, mixed(1, grain), 6)
	dst := make([]byte, grain)
	if n := testing.AllocsPerRun(10, func() {
		if _, err := f.Zlib(dst, src); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for each call", n)
	}
}

// reference is what compress/flate makes of src, up to limit bytes.
func reference(src []byte, limit int) (out []byte, used int, err error) {
	r := bytes.NewReader(src)
	out, err = io.ReadAll(io.LimitReader(flate.NewReader(r), int64(limit)+1))
	if err == nil && len(out) > limit {
		err = ErrTooLong
	}
	return out, len(src) - r.Len(), err
}

// FuzzInflate: the same bytes as compress/flate, or both fail.
func FuzzInflate(f *testing.F) {
	for name, data := range contents() {
		if name == "long" {
			continue
		}
		for _, level := range []int{flate.HuffmanOnly, 0, 1, 6, 9} {
			f.Add(deflate(f, data[:min(len(data), 5000)], level), 5000)
		}
	}
	f.Add(fixedBlock().code(0x30+'a', 8).code(1, 7).code(0, 5).code(0, 7).b, 100)
	f.Add(dynamic(258, 1, map[int]int{0: 2, 256: 2, 257: 1, 258: 1}).code(2, 2).code(0, 1).code(3, 2).b, 10)
	var in Inflater
	f.Fuzz(func(t *testing.T, src []byte, room int) {
		if room < 0 || room > 1<<17 {
			return
		}
		want, wantUsed, wantErr := reference(src, room)
		buf := make([]byte, room+8)
		n, used, err := in.Inflate(buf[:room:room], src)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("error %v, compress/flate says %v", err, wantErr)
		}
		if err == nil && (!bytes.Equal(buf[:n], want) || used != wantUsed) {
			t.Fatalf("%d bytes from %d, compress/flate has %d from %d", n, used, len(want), wantUsed)
		}
		if n > room || used > len(src) || !bytes.HasPrefix(want, buf[:n]) && errors.Is(wantErr, ErrTooLong) {
			t.Fatalf("%d bytes from %d are wrong", n, used)
		}
		e, ok := errors.AsType[*Error](err)
		if err != nil && (!ok || e.Offset != used || e.Written != n || used < 0) {
			t.Fatalf("error %v with %d bytes from %d", err, n, used)
		}
	})
}

// FuzzRoundTrip: whatever is compressed in whatever pieces comes back.
func FuzzRoundTrip(f *testing.F) {
	for _, data := range contents() {
		f.Add(data[:min(len(data), 5000)], 6, 1000)
	}
	var in Inflater
	f.Fuzz(func(t *testing.T, data []byte, level, flushAt int) {
		level = (level%12+12)%12 - 2
		var b bytes.Buffer
		w, err := flate.NewWriter(&b, level)
		if err != nil {
			t.Fatal(err)
		}
		cut := 0
		if flushAt > 0 {
			cut = flushAt % (len(data) + 1)
		}
		for _, err := range []error{write(w, data[:cut]), w.Flush(), write(w, data[cut:]), w.Close()} {
			if err != nil {
				t.Fatal(err)
			}
		}
		dst := make([]byte, len(data))
		n, used, err := in.Inflate(dst, b.Bytes())
		if err != nil || used != b.Len() || !bytes.Equal(dst[:n], data) {
			t.Fatalf("%d bytes from %d of %d, error %v", n, used, b.Len(), err)
		}
	})
}

func write(w io.Writer, p []byte) error {
	_, err := w.Write(p)
	return err
}

// TestDamaged flips bits of streams of all kinds and compares with
// compress/flate: what a fuzzer does not find soon.
func TestDamaged(t *testing.T) {
	t.Parallel()
	var in Inflater
	r := rand.New(rand.NewPCG(1, 9))
	rounds := 1500
	if testing.Short() {
		rounds = 300
	}
	for i := range rounds {
		data := mixed(r.Uint64(), 1+r.IntN(3000))
		if i%20 == 0 {
			data = mixed(r.Uint64(), 1+r.IntN(grain))
		}
		src := deflate(t, data, r.IntN(12)-2)
		for range 1 + r.IntN(3) {
			src[r.IntN(len(src))] ^= 1 << r.IntN(8)
		}
		room := len(data) + r.IntN(2000)
		want, wantUsed, wantErr := reference(src, room)
		dst := make([]byte, room)
		n, used, err := in.Inflate(dst, src)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("error %v, compress/flate says %v\n%s", err, wantErr, hex.Dump(src))
		}
		if err == nil && (used != wantUsed || !bytes.Equal(dst[:n], want)) {
			t.Fatalf("differs from compress/flate\n%s", hex.Dump(src))
		}
	}
}

// BenchmarkGrain compares on grains as they come from a host.
func BenchmarkGrain(b *testing.B) {
	const grains = 64
	for _, data := range []struct {
		name string
		make func(uint64, int) []byte
	}{{"text", text}, {"mixed", mixed}, {"random", random}} {
		for _, level := range []int{1, 6} {
			var streams [][]byte
			for i := range grains {
				streams = append(streams, qemutest.Deflated(b, data.make(uint64(i), grain), level))
			}
			dst := make([]byte, grain)
			run := func(name string, one func(src []byte) error) {
				b.Run(fmt.Sprintf("%s-%d/%s", data.name, level, name), func(b *testing.B) {
					b.SetBytes(grain)
					for i := 0; b.Loop(); i++ {
						if err := one(streams[i%grains]); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
			var in Inflater
			run("this", func(src []byte) error { _, err := in.Zlib(dst, src); return err })
			run("this-noadler", func(src []byte) error { _, _, err := in.Inflate(dst, src[2:]); return err })
			var source bytes.Reader
			source.Reset(streams[0])
			kz, err := kzlib.NewReader(&source)
			if err != nil {
				b.Fatal(err)
			}
			run("klauspost", func(src []byte) error {
				source.Reset(src)
				if err := kz.(kzlib.Resetter).Reset(&source, nil); err != nil {
					return err
				}
				_, err := io.ReadFull(kz, dst)
				return err
			})
			kf := kflate.NewReader(&source)
			run("klauspost-noadler", func(src []byte) error {
				source.Reset(src[2:])
				if err := kf.(kflate.Resetter).Reset(&source, nil); err != nil {
					return err
				}
				_, err := io.ReadFull(kf, dst)
				return err
			})
			source.Reset(streams[0])
			sz, err := zlib.NewReader(&source)
			if err != nil {
				b.Fatal(err)
			}
			run("stdlib", func(src []byte) error {
				source.Reset(src)
				if err := sz.(zlib.Resetter).Reset(&source, nil); err != nil {
					return err
				}
				_, err := io.ReadFull(sz, dst)
				return err
			})
		}
	}
}

func BenchmarkAdler32(b *testing.B) {
	data := random(1, grain)
	b.Run("this", func(b *testing.B) {
		b.SetBytes(grain)
		for b.Loop() {
			Adler32(data)
		}
	})
	b.Run("stdlib", func(b *testing.B) {
		b.SetBytes(grain)
		for b.Loop() {
			adler32.Checksum(data)
		}
	})
}
