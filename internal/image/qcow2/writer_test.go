package qcow2

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
	"github.com/hyper2kvm/hyper2kvm/internal/image/inflate"
	"github.com/hyper2kvm/hyper2kvm/internal/image/qemutest"
	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdktest"
)

// disks are the shapes a disk can have.
func disks() map[string]*qemutest.Disk {
	random, text, mixed := qemutest.Random, qemutest.Text, qemutest.Mixed
	return map[string]*qemutest.Disk{
		"empty":             {Capacity: 8 * mib},
		"one sector":        {Capacity: 512, Pieces: []qemutest.Piece{{Off: 0, Data: random(1, 512)}}},
		"one sector, zero":  {Capacity: 512},
		"one grain":         {Capacity: 64 * kib, Pieces: []qemutest.Piece{{Off: 0, Data: text(2, 64*kib)}}},
		"short last grain":  {Capacity: mib + 512, Pieces: []qemutest.Piece{{Off: 0, Data: text(3, 10)}, {Off: mib, Data: random(3, 512)}}},
		"short last, text":  {Capacity: mib + 63*kib, Pieces: []qemutest.Piece{{Off: 0, Data: text(3, 10)}, {Off: mib, Data: text(3, 63*kib)}}},
		"short last, empty": {Capacity: mib + 1536, Pieces: []qemutest.Piece{{Off: 5, Data: []byte{1}}}},
		"incompressible":    {Capacity: 3*mib + 4*kib, Pieces: []qemutest.Piece{{Off: 0, Data: random(4, 3*mib+4*kib)}}},
		"full":              {Capacity: 6 * mib, Pieces: []qemutest.Piece{{Off: 0, Data: text(5, 6*mib)}}},
		"mixed":             {Capacity: 10 * mib, Pieces: []qemutest.Piece{{Off: 12345, Data: mixed(6, 4*mib)}, {Off: 7 * mib, Data: mixed(7, mib)}}},
		"several tables": {Capacity: 2 * gib, Pieces: []qemutest.Piece{
			{Off: 31 * mib, Data: text(6, 2*mib)}, {Off: 512*mib - 100*kib, Data: text(7, 300*kib)}, {Off: 2*gib - 7, Data: []byte("the end")}}},
		"sparse 2 TiB": {Capacity: 2 * tib, Pieces: []qemutest.Piece{
			{Off: 0, Data: text(9, 100*kib)}, {Off: tib + 12345, Data: text(10, kib)}, {Off: 2*tib - 512, Data: random(11, 512)}}},
		"sparse, odd": {Capacity: 2*tib - 512, Pieces: []qemutest.Piece{
			{Off: 63 * gib, Data: random(12, 70*kib)}, {Off: 2*tib - 1024, Data: random(13, 512)}}},
	}
}

var modes = map[string]Options{
	"plain":    {},
	"compress": {Compress: true},
	"verify":   {Compress: true, VerifyGrains: true, Workers: 3},
}

// TestForQemu lets qemu-img judge images made of streams by vmdk.Encode and
// by qemu-img.
func TestForQemu(t *testing.T) {
	t.Parallel()
	for name, d := range disks() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw := d.Raw(t)
			streams := map[string][]byte{}
			levels := []int{0, 1, 9}
			if testing.Short() {
				levels = levels[1:2]
			}
			for _, level := range levels {
				streams[fmt.Sprintf("level %d", level)] = vmdktest.Stream(t, d, level)
			}
			var err error
			if streams["qemu"], err = os.ReadFile(qemutest.Convert(t, "raw", raw, "vmdk", "-o", "subformat=streamOptimized")); err != nil {
				t.Fatal(err)
			}
			for stream, data := range streams {
				for mode, opts := range modes {
					path := convert(t, data, opts)
					report := qemutest.Check(t, "qcow2", path)
					if opts.Compress && stream == "level 9" && name == "full" && report.CompressedClusters != report.AllocatedClusters {
						t.Errorf("%s, %s: check reports %+v", stream, mode, report)
					}
					if !opts.Compress && report.CompressedClusters != 0 {
						t.Errorf("%s, %s: check reports %+v", stream, mode, report)
					}
					qemutest.Compare(t, "qcow2", path, "raw", raw)
					if d.Capacity <= 16*mib {
						img, err := os.ReadFile(path)
						if err != nil {
							t.Fatal(err)
						}
						same(t, img, d)
					}
				}
			}
		})
	}
}

// TestWindow: grains refer back farther than the 4 KiB that qemu announces to
// zlib. All of the second half of each cluster is 32 KiB back.
func TestWindow(t *testing.T) {
	t.Parallel()
	d := &qemutest.Disk{Capacity: 4 * mib}
	for i := range 64 {
		half := qemutest.Random(uint64(i), 32*kib-258)
		d.Pieces = append(d.Pieces, qemutest.Piece{Off: int64(i) * 64 * kib, Data: slices.Concat(half, half)})
	}
	path := convert(t, vmdktest.Stream(t, d, 9), Options{Compress: true})
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	// Without the far references nothing here can be compressed.
	if info.Size() > 3*mib {
		t.Fatalf("image has %d bytes: the grains were not compressed", info.Size())
	}
	if r := qemutest.Check(t, "qcow2", path); r.CompressedClusters != 64 {
		t.Fatalf("check reports %+v", r)
	}
	qemutest.Compare(t, "qcow2", path, "raw", d.Raw(t))
}

// TestDensity: streams are packed without gaps, and zeros take no space.
func TestDensity(t *testing.T) {
	t.Parallel()
	d := disks()["full"]
	stream := vmdktest.Stream(t, d, 6)
	info, err := os.Stat(convert(t, stream, Options{Compress: true}))
	if err != nil {
		t.Fatal(err)
	}
	if over := info.Size() - int64(len(stream)); over > 6*ClusterSize {
		t.Errorf("image has %d bytes more than the stream", over)
	}
	// Compressible and incompressible grains by turns.
	alternate := &qemutest.Disk{Capacity: 8 * mib}
	for i := int64(0); i < alternate.Capacity/ClusterSize; i += 2 {
		alternate.Pieces = append(alternate.Pieces,
			qemutest.Piece{Off: i * ClusterSize, Data: qemutest.Random(uint64(i), ClusterSize)},
			qemutest.Piece{Off: (i + 1) * ClusterSize, Data: qemutest.Text(uint64(i), ClusterSize)})
	}
	stream = vmdktest.Stream(t, alternate, 6)
	if info, err = os.Stat(convert(t, stream, Options{Compress: true})); err != nil {
		t.Fatal(err)
	}
	if info.Size() > int64(len(stream))*5/4 {
		t.Errorf("image has %d bytes, the stream %d", info.Size(), len(stream))
	}
}

// TestZeros: clusters of zeros become holes, however they come.
func TestZeros(t *testing.T) {
	t.Parallel()
	zero := make([]byte, ClusterSize)
	for mode, opts := range modes {
		var extents []image.Extent
		add := func(data []byte, compressed bool) {
			extents = append(extents, image.Extent{Start: int64(len(extents)) * ClusterSize, Length: ClusterSize, Data: data, Compressed: compressed})
		}
		for level := flate.HuffmanOnly; level <= 9; level++ {
			if opts.Compress && level == flate.HuffmanOnly {
				continue // such a stream is too long to be looked at
			}
			add(qemutest.Deflated(t, zero, level), true)
		}
		holes := len(extents)
		add(zero, false)
		add(qemutest.Deflated(t, qemutest.Text(1, ClusterSize), 6), true)
		add(qemutest.Text(1, ClusterSize), false)
		m := new(memory)
		d := &qemutest.Disk{Capacity: int64(len(extents)) * ClusterSize, Pieces: []qemutest.Piece{
			{Off: int64(holes+1) * ClusterSize, Data: qemutest.Text(1, ClusterSize)},
			{Off: int64(holes+2) * ClusterSize, Data: qemutest.Text(1, ClusterSize)}}}
		w := newTest(t, m, d.Capacity, opts)
		for _, e := range extents {
			if err := w.WriteExtent(e); err != nil {
				t.Fatalf("%s: %v", mode, err)
			}
		}
		finish(t, w)
		if n := same(t, m.data, d); n != 2 {
			t.Errorf("%s: %d clusters are allocated, want 2", mode, n)
		}
	}
}

func newTest(t testing.TB, out Output, capacity int64, opts Options) *Writer {
	t.Helper()
	w, err := NewWriter(t.Context(), out, capacity, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Abort() })
	return w
}

func finish(t testing.TB, w *Writer) {
	t.Helper()
	if err := w.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestRandomExtents writes extents of any place, size and kind.
func TestRandomExtents(t *testing.T) {
	t.Parallel()
	seeds := uint64(12)
	if testing.Short() {
		seeds = 4
	}
	for seed := range seeds {
		for mode, opts := range modes {
			m := new(memory)
			d := randomExtents(t, seed, m, opts)
			same(t, m.data, d)
			if m.twice {
				t.Errorf("seed %d, %s: bytes were written twice", seed, mode)
			}
			if seed%4 == 0 {
				path := filepath.Join(t.TempDir(), "disk.qcow2")
				if err := os.WriteFile(path, m.data, 0o600); err != nil {
					t.Fatal(err)
				}
				qemutest.Check(t, "qcow2", path)
				qemutest.Compare(t, "qcow2", path, "raw", d.Raw(t))
			}
		}
	}
}

// randomExtents writes a disk made from seed to m.
func randomExtents(t testing.TB, seed uint64, m *memory, opts Options) *qemutest.Disk {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 3))
	d := &qemutest.Disk{Capacity: 512 * (1 + r.Int64N(1<<r.IntN(24)))}
	w := newTest(t, m, d.Capacity, opts)
	unit := int64(512) << r.IntN(12) // the grain size, mostly
	for at, total := int64(0), int64(0); at < d.Capacity && total < 4*mib; {
		if r.IntN(3) == 0 {
			at += unit * r.Int64N(20)
		}
		if r.IntN(20) == 0 {
			at += 512 << r.IntN(20)
		}
		n := unit
		if r.IntN(10) == 0 {
			n = 1 + r.Int64N(300*kib)
		}
		if n = min(n, d.Capacity-at); n <= 0 {
			break
		}
		var data []byte
		switch r.IntN(4) {
		case 0:
			data = qemutest.Random(r.Uint64(), int(n))
		case 1:
			data = make([]byte, n)
		case 2:
			data = qemutest.Mixed(r.Uint64(), int(n))
		default:
			data = qemutest.Text(r.Uint64(), int(n))
		}
		e := image.Extent{Start: at, Length: n, Data: data}
		if r.IntN(4) != 0 {
			e.Compressed = true
			padded := data
			if e.End() == d.Capacity && r.IntN(2) == 0 {
				padded = append(bytes.Clone(data), make([]byte, 1000)...)
			}
			e.Data = qemutest.Deflated(t, padded, r.IntN(12)-2)
		}
		if err := w.WriteExtent(e); err != nil {
			t.Fatal(err)
		}
		d.Pieces = append(d.Pieces, qemutest.Piece{Off: at, Data: data})
		at += n
		total += n
	}
	finish(t, w)
	return d
}

// FuzzExtents: every list of extents is either refused or comes back.
func FuzzExtents(f *testing.F) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 5))
		b := make([]byte, 8*(1+r.IntN(40)))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(r.Uint32N(1<<22), byte(seed), b)
	}
	f.Fuzz(func(t *testing.T, sectors uint32, mode byte, script []byte) {
		d := &qemutest.Disk{Capacity: 512 * (1 + int64(sectors%(1<<23)))}
		m := new(memory)
		w := newTest(t, m, d.Capacity, Options{Compress: mode&1 != 0, VerifyGrains: mode&2 != 0, Workers: 1 + int(mode>>2&3)})
		var end int64
		for ; len(script) >= 8; script = script[8:] {
			gap, length := int64(binary.LittleEndian.Uint16(script)), int64(binary.LittleEndian.Uint16(script[2:]))
			kind, seed := script[4], uint64(script[5])
			start := end + gap
			if kind&1 == 0 { // aligned
				start = (start + clusterMask) &^ clusterMask
				length = ClusterSize
			}
			if kind&2 != 0 {
				start += gap * 512
			}
			if kind&4 != 0 {
				start -= 100
			}
			data := qemutest.Text(seed, int(length))
			switch kind >> 5 {
			case 0, 1:
				clear(data)
			case 2, 3:
				data = qemutest.Random(seed, int(length))
			}
			e := image.Extent{Start: start, Length: length, Data: data}
			if kind&8 != 0 {
				e.Compressed, e.Data = true, qemutest.Deflated(t, data, int(seed%12)-2)
			}
			bad := length == 0 || start < end || start+length > d.Capacity
			err := w.WriteExtent(e)
			if (err != nil) != bad {
				t.Fatalf("extent of %d bytes at %d after %d on a disk of %d: error %v", length, start, end, d.Capacity, err)
			}
			if bad {
				if w.Finish(t.Context()) == nil {
					t.Fatal("finished after an error")
				}
				return
			}
			d.Pieces = append(d.Pieces, qemutest.Piece{Off: start, Data: data})
			end = start + length
		}
		finish(t, w)
		same(t, m.data, d)
		if m.twice {
			t.Fatal("bytes were written twice")
		}
	})
}

// TestOrder: the header is written last, and what an earlier image left in
// the file is gone before.
func TestOrder(t *testing.T) {
	t.Parallel()
	d := disks()["mixed"]
	stream := vmdktest.Stream(t, d, 6)
	for mode, opts := range modes {
		m := &memory{data: bytes.Repeat([]byte("QFI\xfb"), 4*mib)}
		w := newTest(t, m, d.Capacity, opts)
		if len(m.data) != 0 {
			t.Fatalf("%s: %d bytes are left of the old image", mode, len(m.data))
		}
		if err := transfer(t.Context(), bytes.NewReader(stream), w); err != nil {
			t.Fatal(err)
		}
		same(t, m.data, d)
		if last := m.log[len(m.log)-1]; last != "write 65536 at 0" {
			t.Errorf("%s: the last thing done is %s", mode, last)
		}
		for _, l := range m.log[:len(m.log)-1] {
			if strings.HasSuffix(l, " at 0") {
				t.Errorf("%s: the header was written too early", mode)
			}
		}
	}
}

// TestDeterministic: the same extents give the same image, however many
// goroutines there are.
func TestDeterministic(t *testing.T) {
	t.Parallel()
	seeds := uint64(4)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		for mode, opts := range modes {
			var first []byte
			for workers := 1; workers < 4; workers++ {
				m := new(memory)
				opts.Workers = workers
				randomExtents(t, seed, m, opts)
				if first == nil {
					first = m.data
				} else if !bytes.Equal(m.data, first) {
					t.Errorf("seed %d, %s: %d workers write something else", seed, mode, workers)
				}
			}
		}
	}
}

// forgetful is a file that does not keep data that begins with one of these,
// so that an image of gigabytes can be judged without writing them.
type forgetful struct {
	*os.File
	data [][]byte
}

func (f forgetful) WriteAt(b []byte, off int64) (int, error) {
	for _, d := range f.data {
		if bytes.HasPrefix(b, d) {
			return len(b), nil
		}
	}
	return f.File.WriteAt(b, off)
}

// TestManyClusters fills several blocks of reference counts.
func TestManyClusters(t *testing.T) {
	t.Parallel()
	capacity := int64(5 * gib)
	if testing.Short() {
		capacity = gib
	}
	random := qemutest.Random(1, ClusterSize)
	text := slices.Concat(random[100:ClusterSize/2+100], qemutest.Text(1, ClusterSize/2))
	packedText, packedRandom := qemutest.Deflated(t, text, 1), qemutest.Deflated(t, random, 1)
	for name, pick := range map[string]func(i int) image.Extent{
		"normal":     func(int) image.Extent { return image.Extent{Data: random} },
		"compressed": func(int) image.Extent { return image.Extent{Data: packedText, Compressed: true} },
		"by turns": func(i int) image.Extent {
			if i%3 == 0 || i > 30000 && i < 70000 {
				return image.Extent{Data: packedRandom, Compressed: true}
			}
			return image.Extent{Data: packedText, Compressed: true}
		},
	} {
		path := filepath.Join(t.TempDir(), name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		w := newTest(t, forgetful{f, [][]byte{random[:16], packedText[2:18]}}, capacity, Options{Compress: true})
		most := 0
		for i := range int(capacity / ClusterSize) {
			e := pick(i)
			e.Start, e.Length = int64(i)*ClusterSize, ClusterSize
			if name == "by turns" && i%7 == 0 {
				continue
			}
			if e.Compressed && len(e.Data) > ClusterSize && i%10 != 0 {
				e.Data, e.Compressed = random, false // the same, and faster
			}
			if err := w.WriteExtent(e); err != nil {
				t.Fatal(err)
			}
			most = max(most, len(w.alloc.blocks))
		}
		finish(t, w)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if most > 2 {
			t.Errorf("%s: %d blocks of reference counts were in memory", name, most)
		}
		report := qemutest.Check(t, "qcow2", path)
		if report.AllocatedClusters < capacity/ClusterSize*6/7-1 {
			t.Errorf("%s: check reports %+v", name, report)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLargestDisk writes the first and the last sector of 64 TiB.
func TestLargestDisk(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := newTest(t, f, image.MaxCapacity, Options{})
	sector := qemutest.Random(1, 512)
	for _, at := range []int64{0, image.MaxCapacity - 512} {
		if err := w.WriteExtent(image.Extent{Start: at, Length: 512, Data: sector}); err != nil {
			t.Fatal(err)
		}
	}
	finish(t, w)
	if r := qemutest.Check(t, "qcow2", path); r.AllocatedClusters != 2 {
		t.Errorf("check reports %+v", r)
	}
	if n := qemutest.VirtualSize(t, "qcow2", path); n != image.MaxCapacity {
		t.Errorf("disk has %d bytes", n)
	}
}

func TestCapacity(t *testing.T) {
	t.Parallel()
	for _, capacity := range []int64{-512, 0, 511, 513, image.MaxCapacity + 512} {
		if w, err := NewWriter(t.Context(), new(memory), capacity, Options{}); err == nil {
			w.Abort()
			t.Errorf("a disk of %d bytes was accepted", capacity)
		}
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	good := qemutest.Deflated(t, qemutest.Text(1, ClusterSize), 6)
	change := func(i int, by byte) []byte {
		b := bytes.Clone(good)
		b[(i+len(b))%len(b)] ^= by
		return b
	}
	const at, stream = 5 * ClusterSize, 777
	full := func(data []byte) image.Extent {
		return image.Extent{Start: at, Length: ClusterSize, Data: data, Compressed: true, StreamOffset: stream}
	}
	part := full(qemutest.Deflated(t, qemutest.Text(1, 1000), 6))
	part.Length = 1001
	for name, c := range map[string]struct {
		e        image.Extent
		is       error
		what     string
		byVerify bool // seen with compress only when verifying
	}{
		"order":          {image.Extent{Start: ClusterSize - 1, Length: 1, Data: []byte{1}}, image.ErrOrder, "", false},
		"beyond":         {image.Extent{Start: 16*mib - 1, Length: 2, Data: []byte{1, 2}}, image.ErrOrder, "", false},
		"overflow":       {image.Extent{Start: at, Length: 1<<63 - 1, Data: []byte{1, 2}}, image.ErrOrder, "", false},
		"no length":      {image.Extent{Start: at}, image.ErrOrder, "", false},
		"data missing":   {image.Extent{Start: at, Length: 2, Data: []byte{1}}, nil, "1 bytes of data, want 2", false},
		"huge grain":     {image.Extent{Start: at, Length: 2 * mib, Data: good, Compressed: true}, nil, "more than", false},
		"huge data":      {full(make([]byte, 2*mib)), nil, "more than", false},
		"no data":        {full(nil), inflate.ErrTruncated, "", false},
		"empty stream":   {full(qemutest.Deflated(t, nil, 6)), nil, "inflates to 0 bytes, want 65536", false},
		"method":         {full(change(0, 1)), inflate.ErrHeader, "method", false},
		"dictionary":     {full(change(1, 0x27)), inflate.ErrHeader, "dictionary", false},
		"damaged":        {full(change(2000, 0xff)), nil, "", true},
		"checksum":       {full(change(-1, 1)), inflate.ErrChecksum, "", true},
		"cut":            {full(good[:len(good)-500]), inflate.ErrTruncated, "", true},
		"trailing":       {full(append(bytes.Clone(good), 1, 2, 3)), inflate.ErrTrailing, "", true},
		"too short":      {full(qemutest.Deflated(t, qemutest.Text(1, ClusterSize-1), 6)), nil, "inflates to 65535 bytes, want 65536", true},
		"too long":       {full(qemutest.Deflated(t, qemutest.Text(1, ClusterSize+1), 6)), inflate.ErrTooLong, "", true},
		"bomb":           {full(qemutest.Deflated(t, make([]byte, 50*mib), 6)), inflate.ErrTooLong, "", true},
		"part too short": {part, nil, "inflates to 1000 bytes, want 1001", false},
		"stored damaged": {full(qemutest.Deflated(t, qemutest.Random(1, ClusterSize), 6)[:ClusterSize+7]), inflate.ErrTruncated, "", false},
	} {
		for mode, opts := range modes {
			m := new(memory)
			w := newTest(t, m, 16*mib, opts)
			if err := w.WriteExtent(image.Extent{Start: 0, Length: ClusterSize, Data: good, Compressed: true}); err != nil {
				t.Fatal(err)
			}
			first := w.WriteExtent(c.e)
			err := w.Finish(t.Context())
			if c.byVerify && opts.Compress && !opts.VerifyGrains {
				if err != nil {
					t.Errorf("%s, %s: %v", name, mode, err)
				}
				continue
			}
			if err == nil || first != nil && !errors.Is(err, first) {
				t.Errorf("%s, %s: errors %v, then %v", name, mode, first, err)
				continue
			}
			if c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.what) {
				t.Errorf("%s, %s: got error %v, want %v with %q", name, mode, err, c.is, c.what)
			}
			if e, ok := errors.AsType[*image.ExtentError](err); !ok || e.Start != c.e.Start || e.StreamOffset != c.e.StreamOffset {
				t.Errorf("%s, %s: error %v names another place", name, mode, err)
			}
			if hasHeader(m.data) {
				t.Errorf("%s, %s: a header was written", name, mode)
			}
			if again := w.WriteExtent(c.e); again == nil {
				t.Errorf("%s, %s: an extent was taken after the error", name, mode)
			}
		}
	}
}

// full is an Output that has room for limit bytes.
type full struct {
	memory
	limit int64
}

func (f *full) WriteAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) > f.limit {
		return 0, syscall.ENOSPC
	}
	return f.memory.WriteAt(b, off)
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	d := disks()["mixed"]
	stream := vmdktest.Stream(t, d, 1)
	for mode, opts := range modes {
		whole := new(memory)
		if err := transfer(t.Context(), bytes.NewReader(stream), newTest(t, whole, d.Capacity, opts)); err != nil {
			t.Fatal(err)
		}
		size := int64(len(whole.data))
		for _, limit := range []int64{0, size / 2, size - 3*ClusterSize, size - 1} {
			f := &full{limit: limit}
			w := newTest(t, f, d.Capacity, opts)
			if err := transfer(t.Context(), bytes.NewReader(stream), w); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%s: room for %d bytes: error %v", mode, limit, err)
			}
			if err := w.Abort(); err != nil {
				t.Error(err)
			}
			if hasHeader(f.data) {
				t.Errorf("%s: room for %d bytes: a header was written", mode, limit)
			}
		}
	}
}

type broken struct {
	memory
	err error
}

func (b *broken) Truncate(int64) error { return b.err }

func TestTruncateFails(t *testing.T) {
	t.Parallel()
	if _, err := NewWriter(t.Context(), &broken{err: syscall.EROFS}, 512, Options{}); !errors.Is(err, syscall.EROFS) {
		t.Errorf("got error %v", err)
	}
	b := new(broken)
	w := newTest(t, b, 512, Options{})
	b.err = syscall.EFBIG
	if err := w.Finish(t.Context()); !errors.Is(err, syscall.EFBIG) || hasHeader(b.data) {
		t.Errorf("got error %v", err)
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	d := disks()["mixed"]
	stream := vmdktest.Stream(t, d, 1)
	why := errors.New("enough")
	for mode, opts := range modes {
		// The writer's context, in the middle.
		ctx, cancel := context.WithCancelCause(t.Context())
		m := new(memory)
		w, err := NewWriter(ctx, m, d.Capacity, opts)
		if err != nil {
			t.Fatal(err)
		}
		r := io.MultiReader(bytes.NewReader(stream[:len(stream)/2]), readerFunc(func([]byte) (int, error) {
			cancel(why)
			return 0, io.EOF
		}), bytes.NewReader(stream[len(stream)/2:]))
		if err := transfer(t.Context(), r, w); !errors.Is(err, why) {
			t.Errorf("%s: got error %v, want %v", mode, err, why)
		}
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
		if hasHeader(m.data) {
			t.Errorf("%s: a header was written", mode)
		}

		// That of Finish.
		m = new(memory)
		w = newTest(t, m, d.Capacity, opts)
		if err := w.WriteExtent(image.Extent{Start: 0, Length: 1, Data: []byte{1}}); err != nil {
			t.Fatal(err)
		}
		if err := w.Finish(ctx); !errors.Is(err, why) || hasHeader(m.data) {
			t.Errorf("%s: got error %v, want %v", mode, err, why)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestEnded(t *testing.T) {
	t.Parallel()
	e := image.Extent{Start: 0, Length: 1, Data: []byte{1}}
	for name, end := range map[string]func(w *Writer) error{
		"finished": func(w *Writer) error { return w.Finish(t.Context()) },
		"aborted":  (*Writer).Abort,
	} {
		m := new(memory)
		w := newTest(t, m, 512, Options{})
		if err := w.WriteExtent(e); err != nil {
			t.Fatal(err)
		}
		if err := end(w); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		size := len(m.data)
		if err := w.WriteExtent(e); !errors.Is(err, image.ErrEnded) {
			t.Errorf("%s: got error %v", name, err)
		}
		if err := w.Finish(t.Context()); !errors.Is(err, image.ErrEnded) {
			t.Errorf("%s: got error %v", name, err)
		}
		if err := w.Abort(); err != nil || len(m.data) != size {
			t.Errorf("%s: got error %v", name, err)
		}
	}
}

// TestKeepsNothing: an extent's bytes may be changed once WriteExtent returns.
func TestKeepsNothing(t *testing.T) {
	t.Parallel()
	d := disks()["mixed"]
	for _, opts := range modes {
		m := new(memory)
		w := newTest(t, m, d.Capacity, opts)
		for at := int64(0); at < d.Capacity; at += ClusterSize {
			data := make([]byte, ClusterSize)
			if _, err := d.ReadAt(data, at); err != nil {
				t.Fatal(err)
			}
			e := image.Extent{Start: at, Length: ClusterSize, Data: data}
			if at/ClusterSize%2 == 0 {
				e.Compressed, e.Data = true, qemutest.Deflated(t, data, 1)
			}
			if err := w.WriteExtent(e); err != nil {
				t.Fatal(err)
			}
			for i := range e.Data {
				e.Data[i] = 0xee
			}
		}
		finish(t, w)
		same(t, m.data, d)
	}
}

// hasHeader reports whether an image begins with anything but zeros.
func hasHeader(img []byte) bool {
	return !bytes.Equal(img[:min(len(img), 104)], make([]byte, min(len(img), 104)))
}
