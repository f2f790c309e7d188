package vmdk

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
	"github.com/hyper2kvm/hyper2kvm/internal/image/qemutest"
)

// opener opens files of a folder as OpenDisk wants them, until the test ends.
func opener(t testing.TB, folder string) func(string) (io.ReaderAt, int64, error) {
	t.Helper()
	root, err := os.OpenRoot(folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return func(name string) (io.ReaderAt, int64, error) {
		f, err := root.Open(name)
		if err != nil {
			return nil, 0, err
		}
		t.Cleanup(func() { f.Close() })
		info, err := f.Stat()
		if err != nil {
			return nil, 0, err
		}
		return f, info.Size(), nil
	}
}

// openPath opens the disk at path.
func openPath(t testing.TB, path string) (image.Decoder, Info, error) {
	t.Helper()
	open := opener(t, filepath.Dir(path))
	r, size, err := open(filepath.Base(path))
	if err != nil {
		t.Fatal(err)
	}
	return OpenDisk(r, size, open)
}

// memory serves files in memory as OpenDisk wants them.
type memory map[string][]byte

func (m memory) open(name string) (io.ReaderAt, int64, error) {
	b, ok := m[name]
	if !ok {
		return nil, 0, fmt.Errorf("open %s: %w", name, os.ErrNotExist)
	}
	return bytes.NewReader(b), int64(len(b)), nil
}

// openMemory opens the disk in the file named "", with others beside it.
func openMemory(m memory) (image.Decoder, Info, error) {
	return OpenDisk(bytes.NewReader(m[""]), int64(len(m[""])), m.open)
}

// inflateExtent returns an extent's bytes.
func inflateExtent(t testing.TB, e image.Extent) []byte {
	t.Helper()
	if !e.Compressed {
		return e.Data
	}
	zr, err := zlib.NewReader(bytes.NewReader(e.Data))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(zr)
	if err != nil {
		t.Fatal(err)
	}
	return b[:e.Length]
}

// holdsDisk wants dec to yield want: every extent has its bytes, and what no
// extent covers is zeros. It returns how many bytes the extents have.
func holdsDisk(t testing.TB, dec image.Decoder, want *qemutest.Disk) int64 {
	t.Helper()
	if got, err := dec.Capacity(); err != nil || got != want.Capacity {
		t.Fatalf("capacity is %d bytes, %v, want %d", got, err, want.Capacity)
	}
	left := make([][]byte, len(want.Pieces)) // what no extent has covered
	for i, p := range want.Pieces {
		left[i] = bytes.Clone(p.Data)
	}
	sum, end := int64(0), int64(0)
	for {
		e, err := dec.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Check(end, want.Capacity); err != nil {
			t.Fatal(err)
		}
		if e.Length > loadSize {
			t.Errorf("extent at %d has %d bytes", e.Start, e.Length)
		}
		if !e.Compressed && allZero(e.Data) {
			t.Errorf("extent of %d bytes at %d is zeros", e.Length, e.Start)
		}
		end = e.End()
		sum += e.Length
		content := make([]byte, e.Length)
		if _, err := want.ReadAt(content, e.Start); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(inflateExtent(t, e), content) {
			t.Fatalf("the %d bytes at %d differ", e.Length, e.Start)
		}
		for i, p := range want.Pieces {
			from, to := max(p.Off, e.Start), min(p.Off+int64(len(p.Data)), end)
			if from < to {
				clear(left[i][from-p.Off : to-p.Off])
			}
		}
	}
	for i, b := range left {
		if !allZero(b) {
			t.Errorf("bytes of the piece at %d are missing", want.Pieces[i].Off)
		}
	}
	if _, err := dec.Next(); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
	return sum
}

// localDisks are the shapes of disks that are tried in every form.
func localDisks() map[string]*qemutest.Disk {
	return map[string]*qemutest.Disk{
		"empty":      {Capacity: 8 * mib},
		"one sector": {Capacity: 512, Pieces: []qemutest.Piece{{Off: 0, Data: qemutest.Random(1, 512)}}},
		"odd":        {Capacity: 5*mib + 512, Pieces: []qemutest.Piece{{Off: 0, Data: qemutest.Text(3, 10)}, {Off: 5 * mib, Data: qemutest.Random(3, 512)}}},
		"odd, empty": {Capacity: mib + 1536, Pieces: []qemutest.Piece{{Off: 5, Data: []byte{1}}}},
		"full":       {Capacity: 3*mib + 4*kib, Pieces: []qemutest.Piece{{Off: 0, Data: qemutest.Random(4, 3*mib+4*kib)}}},
		"mixed":      {Capacity: 90 * mib, Pieces: []qemutest.Piece{{Off: 12345, Data: qemutest.Mixed(6, 5*mib)}, {Off: 63 * mib, Data: qemutest.Mixed(7, 3*mib)}}},
		"6 GiB": {Capacity: 6*gib + 512, Pieces: []qemutest.Piece{
			{Off: 0, Data: qemutest.Text(9, 100*kib)}, {Off: 2*gib - 100*kib, Data: qemutest.Mixed(10, 200*kib)},
			{Off: 4*gib + 12345, Data: qemutest.Text(12, kib)}, {Off: 6 * gib, Data: qemutest.Random(11, 512)}}},
	}
}

// forms are those qemu-img writes, with what they are found to be.
var forms = map[string]Info{
	"monolithicSparse":                 {Kind: KindSparse},
	"monolithicSparse,zeroed_grain=on": {Kind: KindSparse},
	"monolithicFlat":                   {Kind: KindFlat},
	"twoGbMaxExtentSparse":             {Kind: KindSparse},
	"twoGbMaxExtentFlat":               {Kind: KindFlat},
	"streamOptimized":                  {Kind: KindStream, Compressed: true},
}

// TestOpenDisk reads what qemu-img writes.
func TestOpenDisk(t *testing.T) {
	t.Parallel()
	for name, d := range localDisks() {
		for form, want := range forms {
			t.Run(name+"/"+form, func(t *testing.T) {
				t.Parallel()
				path := qemutest.Convert(t, "raw", d.Raw(t), "vmdk", "-o", "subformat="+form)
				dec, info, err := openPath(t, path)
				if err != nil {
					t.Fatal(err)
				}
				want.Capacity = d.Capacity
				if info != want {
					t.Errorf("info is %+v, want %+v", info, want)
				}
				most := int64(0)
				for _, p := range d.Pieces {
					most += int64(len(p.Data)) + 2*zeroUnit
				}
				if n := holdsDisk(t, dec, d); n > most {
					t.Errorf("extents have %d bytes, want %d at most", n, most)
				}
			})
		}
	}
}

// TestOpenDiskZeroed reads grains that qemu-img marks as zeros.
func TestOpenDiskZeroed(t *testing.T) {
	t.Parallel()
	d := &qemutest.Disk{Capacity: 2 * mib, Pieces: []qemutest.Piece{{Off: 0, Data: qemutest.Random(1, mib)}}}
	path := qemutest.Create(t, "vmdk", d.Capacity, "subformat=monolithicSparse", "zeroed_grain=on")
	qemutest.Run(t, "convert", "-n", "-f", "raw", "-O", "vmdk", d.Raw(t), path)
	// qemu-img has no command that zeroes a range, so the entries are made
	// here and qemu-img says what they mean.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tablesOf(t, b) {
		for grain := range 4 {
			if _, err := f.WriteAt([]byte{1, 0, 0, 0}, table+int64(grain)*4); err != nil {
				t.Fatal(err)
			}
		}
	}
	clear(d.Pieces[0].Data[:4*64*kib])
	qemutest.Compare(t, "vmdk", path, "raw", d.Raw(t))
	dec, _, err := openPath(t, path)
	if err != nil {
		t.Fatal(err)
	}
	if n := holdsDisk(t, dec, d); n != mib-4*64*kib {
		t.Errorf("extents have %d bytes", n)
	}
}

// TestOpenDiskMixed puts extents of every type into one disk, at places that
// are no multiples of a grain, and a file used for two of them.
func TestOpenDiskMixed(t *testing.T) {
	t.Parallel()
	flat, sparse := qemutest.Random(1, 200*kib), qemutest.Mixed(2, 300*kib)
	d := &qemutest.Disk{Capacity: 1000 * 512 * 5, Pieces: []qemutest.Piece{
		{Off: 0, Data: flat[100*512 : 200*512]},
		{Off: 1000 * 512, Data: sparse},
		{Off: 3000 * 512, Data: flat[:100*512]},
	}}
	m := memory{
		"flat.bin": flat,
		"s.vmdk":   (&sparseImage{capacity: 1000, grain: 8, content: sparse}).build(),
		"": fmt.Appendf(nil, `%s
version=1
encoding="UTF-8"
CID=fffffffe
parentCID=ffffffff
createType="custom"
RW 100 FLAT "flat.bin" 100
RW 900 ZERO
RDONLY 1000 SPARSE "s.vmdk"
NOACCESS 1000 ZERO
RW 100 VMFS "flat.bin"
RW 1900 ZERO
ddb.toolsInstallType = "1"
`, descriptorHead)}
	dec, info, err := openMemory(m)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Info{Kind: KindMixed, Capacity: d.Capacity}); info != want {
		t.Errorf("info is %+v, want %+v", info, want)
	}
	holdsDisk(t, dec, d)

	m[""] = []byte(descriptorHead + "\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"custom\"\nRW 8 ZERO\n")
	dec, info, err = openMemory(m)
	if err != nil || info.Kind != KindZero {
		t.Fatalf("info is %+v, error %v", info, err)
	}
	holdsDisk(t, dec, &qemutest.Disk{Capacity: 8 * 512})
}

func TestOpenDiskRefuses(t *testing.T) {
	t.Parallel()
	good := (&sparseImage{capacity: 1000, grain: 128, content: qemutest.Random(1, 1000*512)}).build()
	describe := func(lines string) []byte {
		return []byte(descriptorHead + "\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"custom\"\n" + lines)
	}
	stream := encode(t, &disk{size: mib, pieces: []piece{{0, text(1, mib)}}}, EncodeOptions{Level: 1})
	for name, c := range map[string]struct {
		files memory
		want  string
	}{
		"nothing":           {memory{"": nil}, "neither a VMDK"},
		"raw data":          {memory{"": make([]byte, mib)}, "give NAME.vmdk"},
		"cut header":        {memory{"": good[:300]}, "less than a header"},
		"esx sparse":        {memory{"": append([]byte("COWD"), make([]byte, 4096)...)}, "consolidate"},
		"se sparse":         {memory{"": append([]byte{0xbe, 0xba, 0xfe, 0xca}, make([]byte, 4096)...)}, "consolidate"},
		"no descriptor":     {memory{"": (&sparseImage{capacity: 1000, grain: 128}).build()}, "give the descriptor"},
		"long descriptor":   {memory{"": append(describe("RW 8 ZERO\n"), bytes.Repeat([]byte("#\n"), maxDescriptor)...)}, "more than 65536"},
		"missing file":      {memory{"": describe("RW 8 FLAT \"a\" 0\n")}, `open the disk's file "a": open a: file does not exist`},
		"short flat file":   {memory{"": describe("RW 8 FLAT \"a\" 1\n"), "a": make([]byte, 8*512)}, `file "a": it has 4096 bytes, and the descriptor wants 4096 bytes of it from byte 512 on`},
		"not sparse":        {memory{"": describe("RW 8 SPARSE \"a\"\n"), "a": make([]byte, 8*512)}, `file "a" at byte 0: magic`},
		"stream as extent":  {memory{"": describe("RW 2048 SPARSE \"a\"\n"), "a": stream}, `file "a": the file is stream-optimized`},
		"smaller extent":    {memory{"": describe("RW 872 SPARSE \"a\"\n"), "a": good}, "capacity is 1000 sectors, and the descriptor has 872"},
		"larger extent":     {memory{"": describe("RW 1001 SPARSE \"a\"\n"), "a": good}, "capacity is 1000 sectors, and the descriptor has 1001"},
		"cut stream":        {memory{"": stream[:700]}, "stream ends early"},
		"uncompressed flag": {memory{"": func() []byte { b := bytes.Clone(stream); b[offFlags+2] = 2; return b }()}, "stream-optimized, where"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dec, _, err := openMemory(c.files)
			if err == nil || !strings.Contains(err.Error(), c.want) || dec != nil {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
			if errors.Is(err, io.EOF) {
				t.Errorf("error %v is io.EOF", err)
			}
		})
	}
}

// TestFlatShrinks wants an error where a file lost its end while it was read,
// not zeros.
func TestFlatShrinks(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path := filepath.Join(folder, "d.vmdk")
	text := descriptorHead + "\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\nRW 8192 VMFS \"d-flat.vmdk\"\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	flat := filepath.Join(folder, "d-flat.vmdk")
	for name, content := range map[string][]byte{"data": qemutest.Random(1, 4*mib), "hole behind data": qemutest.Random(1, mib)} {
		for _, cut := range []int64{0, mib, 2*mib + 1} {
			if err := os.WriteFile(flat, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(flat, 4*mib); err != nil {
				t.Fatal(err)
			}
			dec, _, err := openPath(t, path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(flat, cut); err != nil {
				t.Fatal(err)
			}
			for err == nil {
				_, err = dec.Next()
			}
			if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
				t.Errorf("%s, cut to %d bytes: got error %v", name, cut, err)
			}
			if _, again := dec.Next(); again != err {
				t.Errorf("the error does not stay: %v", again)
			}
		}
	}
}

// TestFlatHoles wants a file of 1 TiB to cost what it holds.
func TestFlatHoles(t *testing.T) {
	t.Parallel()
	d := &qemutest.Disk{Capacity: tib, Pieces: []qemutest.Piece{
		{Off: 3*mib + 5, Data: qemutest.Text(1, 10)}, {Off: 800 * gib, Data: qemutest.Random(2, 2*mib)}}}
	path := d.Raw(t)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if from, _ := nextData(f, 900*gib, tib); from != tib {
		t.Skip("this system does not tell holes")
	}
	text := fmt.Sprintf("%s\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\nRW %d VMFS %q\n", descriptorHead, d.Capacity/512, filepath.Base(path))
	dec, info, err := OpenDisk(strings.NewReader(text), int64(len(text)), opener(t, filepath.Dir(path)))
	if err != nil || info.Kind != KindFlat {
		t.Fatal(info, err)
	}
	holdsDisk(t, dec, d)
}

// TestReadErrors wants what a reader returns to be found in the error.
func TestReadErrors(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	b := (&sparseImage{capacity: 100000, grain: 128, content: qemutest.Random(1, 300*kib), embed: true, redundant: true}).build()
	seen := 0
	for after := range 100 {
		r := &failing{r: bytes.NewReader(b), left: after, err: boom}
		dec, _, err := OpenDisk(r, int64(len(b)), memory{}.open)
		for err == nil {
			_, err = dec.Next()
		}
		if err == io.EOF {
			if seen < 6 {
				t.Errorf("the disk took %d reads only", seen)
			}
			return
		}
		if !errors.Is(err, boom) || !strings.Contains(err.Error(), "at byte ") {
			t.Errorf("after %d reads: got error %v", after, err)
		}
		seen++
	}
	t.Error("the disk was never read whole")
}

type failing struct {
	r    io.ReaderAt
	left int
	err  error
}

func (f *failing) ReadAt(b []byte, off int64) (int, error) {
	if f.left--; f.left < 0 {
		return 0, f.err
	}
	return f.r.ReadAt(b, off)
}

// FuzzOpenDisk wants no panic, and of any file, which is also the one beside
// it, a disk that is in order and not larger than what it was made of.
func FuzzOpenDisk(f *testing.F) {
	content := qemutest.Random(1, 10*kib)
	for _, s := range []*sparseImage{
		{capacity: 64, grain: 8, content: content, embed: true},
		{capacity: 61, grain: 8, content: content, embed: true, redundant: true, zeroed: []int64{0}},
		{capacity: 9000, grain: 16, content: content, embed: true, order: []int64{1, 0}},
	} {
		b := s.build()
		f.Add(b)
		f.Add(append(bytes.Clone(b), 1))
	}
	for _, lines := range []string{"RW 4 FLAT \"a\" 1\nRW 1 ZERO\nRW 2 VMFS \"b\" 0\n", "RW 64 SPARSE \"a\"\n"} {
		f.Add([]byte(descriptorHead + "\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"custom\"\n" + lines + strings.Repeat("# comment\n", 300)))
	}
	f.Add(encode(f, &disk{size: 64 * kib, pieces: []piece{{0, text(1, 600)}}}, EncodeOptions{Level: 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		files := 1
		dec, info, err := OpenDisk(bytes.NewReader(b), int64(len(b)), func(string) (io.ReaderAt, int64, error) {
			files++
			return bytes.NewReader(b), int64(len(b)), nil
		})
		if err != nil {
			if errors.Is(err, io.EOF) {
				t.Fatalf("error %v is io.EOF", err)
			}
			return
		}
		if got, err := dec.Capacity(); err != nil || got != info.Capacity || info.Capacity <= 0 || info.Capacity > MaxCapacity {
			t.Fatalf("capacity is %d, and in %+v", got, info)
		}
		sum, end := int64(0), int64(0)
		for {
			e, err := dec.Next()
			if err != nil {
				if _, again := dec.Next(); again != err {
					t.Fatalf("error %v does not stay: %v", err, again)
				}
				break
			}
			if err := e.Check(end, info.Capacity); err != nil {
				t.Fatal(err)
			}
			end = e.End()
			sum += e.Length
		}
		// Of misaligned grains, two may share bytes.
		if !info.Compressed && sum > 2*int64(files)*int64(len(b)) {
			t.Fatalf("%d bytes came of %d files with %d bytes", sum, files, len(b))
		}
	})
}

func TestExtentsOfAWindow(t *testing.T) {
	t.Parallel()
	b := make([]byte, 300*kib)
	start := int64(5*mib + 512) // units end at multiples of 64 KiB of the disk
	set := func(at int64) { b[at-start] = 1 }
	set(5*mib + 64*kib - 1)
	set(5*mib + 64*kib)
	set(5*mib + 192*kib)
	set(start + 300*kib - 1)
	w := new(window)
	if err := w.load(file{r: bytes.NewReader(b), size: int64(len(b))}, 0, start, int64(len(b))); err != nil {
		t.Fatal(err)
	}
	var got [][2]int64
	for e, ok := w.next(); ok; e, ok = w.next() {
		got = append(got, [2]int64{e.Start, e.End()})
	}
	want := [][2]int64{{start, 5*mib + 128*kib}, {5*mib + 192*kib, start + 300*kib}}
	if !slices.Equal(got, want) {
		t.Errorf("extents are %v, want %v", got, want)
	}
}
