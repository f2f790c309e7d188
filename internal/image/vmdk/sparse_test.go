package vmdk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/internal/image/qemutest"
)

// sparseImage is a sparse file to be built: header, descriptor, directories
// with their tables, grains.
type sparseImage struct {
	capacity, grain int64 // sectors
	content         []byte
	embed           bool // a descriptor
	redundant       bool
	shift           int64   // sectors the grains are off a grain's alignment
	zeroed          []int64 // grains marked as zeros
	order           []int64 // of the first grains in the file
}

// build returns the file. Grains that are not wholly zeros are allocated.
func (s *sparseImage) build() []byte {
	h := Header{Version: 1, Flags: FlagNewlineTest, Capacity: s.capacity, GrainSize: s.grain, DescriptorOffset: 1, DescriptorSize: 2}
	if len(s.zeroed) > 0 {
		h.Version, h.Flags = 2, h.Flags|FlagZeroedGrain
	}
	at := int64(3)
	place := func() uint64 {
		o := at
		at += h.directorySectors() + h.Tables()*tableSectors
		return uint64(o)
	}
	if s.redundant {
		h.Flags |= FlagRedundantTable
		h.RGDOffset = place()
	}
	h.GDOffset = place()
	h.Overhead = ceilDiv(at, s.grain)*s.grain + s.shift
	b := make([]byte, h.Overhead*SectorSize)
	h.put(b[:SectorSize])
	binary.LittleEndian.PutUint16(b[offCompression:], 0)
	if s.embed {
		copy(b[SectorSize:], fmt.Sprintf("%s\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\nRW %d SPARSE \"old name.vmdk\"\n", descriptorHead, s.capacity))
	}
	directories := []uint64{h.GDOffset}
	if s.redundant {
		directories = append(directories, h.RGDOffset)
	}
	for _, d := range directories {
		for t := range h.Tables() {
			binary.LittleEndian.PutUint32(b[int64(d)*SectorSize+t*4:], uint32(int64(d)+h.directorySectors()+t*tableSectors))
		}
	}
	set := func(grain, sector int64) {
		for _, d := range directories {
			binary.LittleEndian.PutUint32(b[(int64(d)+h.directorySectors())*SectorSize+grain*4:], uint32(sector))
		}
	}
	size := h.GrainBytes()
	var grains []int64
	for i := range ceilDiv(int64(len(s.content)), size) {
		if !slices.Contains(s.order, i) && !slices.Contains(s.zeroed, i) && !allZero(s.content[i*size:min((i+1)*size, int64(len(s.content)))]) {
			grains = append(grains, i)
		}
	}
	for _, i := range slices.Concat(s.order, grains) {
		set(i, int64(len(b))/SectorSize)
		piece := make([]byte, size)
		copy(piece, s.content[i*size:])
		b = append(b, piece...)
	}
	for _, i := range s.zeroed {
		set(i, zeroedGrain)
	}
	return b
}

func (s *sparseImage) disk() *qemutest.Disk {
	c := bytes.Clone(s.content)
	for _, i := range s.zeroed {
		clear(c[i*s.grain*SectorSize : min((i+1)*s.grain*SectorSize, int64(len(c)))])
	}
	return &qemutest.Disk{Capacity: s.capacity * SectorSize, Pieces: []qemutest.Piece{{Off: 0, Data: c}}}
}

// tablesOf says where the grain tables of a sparse file are, in bytes.
func tablesOf(t testing.TB, b []byte) []int64 {
	t.Helper()
	le := binary.LittleEndian
	directories := []uint64{le.Uint64(b[offGDOffset:])}
	if le.Uint32(b[offFlags:])&FlagRedundantTable != 0 {
		directories = append(directories, le.Uint64(b[offRGDOffset:]))
	}
	var out []int64
	for _, d := range directories {
		for o := d * SectorSize; le.Uint32(b[o:]) != 0; o += 4 {
			out = append(out, int64(le.Uint32(b[o:]))*SectorSize)
		}
	}
	return out
}

// TestSparse reads layouts that qemu-img does not write but reads.
func TestSparse(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*sparseImage{
		"small grains":      {capacity: 5000, grain: 8, content: qemutest.Mixed(1, 5000*512)},
		"large grains":      {capacity: 10000, grain: 2048, content: qemutest.Mixed(2, 10000*512)},
		"any order":         {capacity: 2000, grain: 128, content: qemutest.Random(3, 2000*512), order: []int64{7, 2, 15, 1, 0}},
		"redundant":         {capacity: 9000, grain: 8, content: qemutest.Mixed(4, 4000*512), redundant: true},
		"zeroed":            {capacity: 2000, grain: 64, content: qemutest.Random(5, 2000*512), zeroed: []int64{0, 3, 31}},
		"unaligned":         {capacity: 2001, grain: 128, content: qemutest.Random(6, 2001*512), shift: 5},
		"several tables":    {capacity: 9001, grain: 8, content: append(make([]byte, 4200*512), qemutest.Mixed(7, 4801*512)...)},
		"one sector":        {capacity: 1, grain: 128, content: qemutest.Random(8, 512)},
		"grain at a border": {capacity: 4096 * 8, grain: 8, content: qemutest.Random(9, 4096*8*512)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s.embed = true
			b := s.build()
			qemutest.Compare(t, "vmdk", writeFile(t, "d.vmdk", b), "raw", s.disk().Raw(t))
			dec, info, err := openMemory(memory{"": b})
			if err != nil {
				t.Fatal(err)
			}
			if want := (Info{Kind: KindSparse, Capacity: s.capacity * 512}); info != want {
				t.Errorf("info is %+v, want %+v", info, want)
			}
			holdsDisk(t, dec, s.disk())
		})
	}
}

// TestSparseRounded reads a disk whose header has its capacity rounded up to
// a grain, and whose file lacks what is behind the disk's end.
func TestSparseRounded(t *testing.T) {
	t.Parallel()
	s := &sparseImage{capacity: 1001, grain: 128, content: qemutest.Random(1, 1001*512), embed: true}
	b := s.build()
	binary.LittleEndian.PutUint64(b[offCapacity:], 1024)
	b = b[:len(b)-23*512]
	dec, _, err := openMemory(memory{"": b})
	if err != nil {
		t.Fatal(err)
	}
	holdsDisk(t, dec, s.disk())
}

// TestSparseMerges wants grains in a row to be read at once.
func TestSparseMerges(t *testing.T) {
	t.Parallel()
	s := &sparseImage{capacity: 4 * mib / 512, grain: 8, content: qemutest.Random(1, 4*mib), embed: true}
	dec, _, err := openMemory(memory{"": s.build()})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, err = dec.Next(); err == nil; _, err = dec.Next() {
		n++
	}
	if err != io.EOF || n != 4 {
		t.Errorf("got %d extents and error %v, want 4", n, err)
	}
}

func TestSparseRefuses(t *testing.T) {
	t.Parallel()
	le := binary.LittleEndian
	// Two tables with 8 grains in the first: header, descriptor at 1,
	// directories at 3 and 12, tables at 4, 8, 13, 17, grains from 24 on.
	image := &sparseImage{capacity: 5000, grain: 8, content: qemutest.Random(1, 8*8*512), embed: true, redundant: true}
	const directory, second, table, twin = 12 * 512, 3 * 512, 13 * 512, 4 * 512
	set32 := func(v uint32, at ...int) func(b []byte) []byte {
		return func(b []byte) []byte {
			for _, i := range at {
				le.PutUint32(b[i:], v)
			}
			return b
		}
	}
	set64 := func(at int, v uint64) func(b []byte) []byte {
		return func(b []byte) []byte { le.PutUint64(b[at:], v); return b }
	}
	replace := func(old, with string) func(b []byte) []byte {
		return func(b []byte) []byte {
			copy(b[512:1536], strings.Replace(string(b[512:1536]), old, with, 1))
			return b
		}
	}
	for name, c := range map[string]struct {
		change func(b []byte) []byte
		want   string
		advice bool
	}{
		"nothing":               {func(b []byte) []byte { return b }, "", false},
		"version":               {set32(4, offVersion), "version is 4", false},
		"unknown flag":          {set32(1<<5, offFlags), "unknown", false},
		"text transfer":         {func(b []byte) []byte { b[offNewlines+2] = '\n'; return b }, "text-mode transfer", false},
		"unclean":               {func(b []byte) []byte { b[offUnclean] = 1; return b }, "vmware-vdiskmanager -R", true},
		"capacity 0":            {set64(offCapacity, 0), "capacity is 0", false},
		"huge capacity":         {set64(offCapacity, 1<<63), "capacity is", false},
		"64 TiB":                {set64(offCapacity, maxSectors), "grain tables, more than 2097152", false},
		"2 TiB":                 {set64(offCapacity, 2*tib/512), "grain directory of 1048576 tables", false},
		"more than described":   {set64(offCapacity, 6000), "the descriptor has 5000", false},
		"grain 4":               {set64(offGrainSize, 4), "grain size is 4", false},
		"grain 4096":            {set64(offGrainSize, 4096), "grain size is 4096", false},
		"grain 24":              {set64(offGrainSize, 24), "grain size is 24", false},
		"entries":               {set32(1024, offNumGTEs), "1024 entries", false},
		"compressed":            {func(b []byte) []byte { b[offCompression] = 1; return b }, "stream-optimized", true},
		"directory 0":           {set64(offGDOffset, 0), "at sector 0", false},
		"directory far":         {set64(offGDOffset, 1<<40), "at sector 1099511627776", false},
		"directory at the end":  {set64(offGDOffset, GDAtEnd), "at sector 18446744073709551615", false},
		"directory overflows":   {set64(offGDOffset, 1<<54+12), "at sector 18014398509481996", false},
		"second far":            {set64(offRGDOffset, 1<<40), "at sector 1099511627776", false},
		"directory twice":       {set64(offRGDOffset, 12), "overlap", false},
		"directory in header":   {set64(offGDOffset, 2), "overlap", false},
		"table far":             {set32(1<<31, directory, second), "table 0 at sector 2147483648", false},
		"table in header":       {set32(0xffffffff, directory+4), "table 1 at sector 4294967295", false},
		"table in descriptor":   {set32(1, directory, second), "table 0 at sector 1, where", false},
		"table in directory":    {set32(10, directory), "table 0 at sector 10, where", false},
		"one directory lacks":   {set32(0, second), "only one of the two", false},
		"other directory lacks": {set32(0, directory+4), "only one of the two", false},
		"tables differ":         {set32(0, twin+12), "two copies of grain table 0 differ", false},
		"grain far":             {set32(1<<31, table+8, twin+8), "grain for sector 16 at sector 2147483648", false},
		"grain at the end":      {set32(24+8*8-7, table+8, twin+8), "grain for sector 16 at sector 81", false},
		"grain in header":       {set32(1, table+8, twin+8), "at sector 1, where the file's own tables are", false},
		"grain in a table":      {set32(5, table+8, twin+8), "at sector 5, where the file's own tables are", false},
		"grain over the border": {set32(20, table+8, twin+8), "at sector 20, where the file's own tables are", false},
		"grain twice":           {set32(24, table+8, twin+8), "at sector 24, which overlaps", false},
		"grain twice, later":    {set32(24, table+511*4, twin+511*4), "at sector 24, which overlaps", false},
		"grain overlaps":        {set32(27, table+8, twin+8), "at sector 27, which overlaps", false},
		"tables are one":        {set32(13, directory+4), "two copies of grain table 1 differ", false},
		"cut in the grains":     {func(b []byte) []byte { return b[:len(b)-1] }, "it was cut", false},
		"cut before the grains": {func(b []byte) []byte { return b[:24*512-1] }, "it was cut", false},
		"two extents":           {replace("RW 5000 SPARSE", "RW 8 ZERO\nRW 5000 SPARSE"), "2 extents", false},
		"snapshot":              {replace("parentCID=ffffffff", "parentCID=12345678"), "consolidate", true},
		"create type":           {replace("monolithicSparse", "twoGbMaxExtentSparse"), "createType \"twoGbMaxExtentSparse\"", false},
		"descriptor's capacity": {replace("RW 5000", "RW 5001"), "the descriptor has 5001", false},
		"no descriptor":         {func(b []byte) []byte { clear(b[512:1536]); return b }, "give the descriptor", true},
		"descriptor behind":     {set64(offDescSize, 100), "descriptor is 100 sectors", false},
		"overhead":              {set64(offOverhead, 1000), "it was cut", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dec, _, err := openMemory(memory{"": c.change(image.build())})
			for err == nil {
				_, err = dec.Next()
			}
			if c.want == "" {
				if err != io.EOF {
					t.Error(err)
				}
				return
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
			_, isDisk := errors.AsType[*DiskError](err)
			_, isUnsupported := errors.AsType[*UnsupportedError](err)
			if isUnsupported != c.advice || isDisk == c.advice {
				t.Errorf("error is %v, with advice: %v", err, isUnsupported)
			}
		})
	}
}

// TestSparseSharedTable allows tables without grains to be one.
func TestSparseSharedTable(t *testing.T) {
	t.Parallel()
	s := &sparseImage{capacity: 5000 * 8, grain: 8, content: qemutest.Random(1, 8*512), embed: true}
	b := s.build()
	for i := range 7 {
		copy(b[3*512+8+i*4:], b[3*512+4:3*512+8])
	}
	dec, _, err := openMemory(memory{"": b})
	if err != nil {
		t.Fatal(err)
	}
	holdsDisk(t, dec, s.disk())
}

// TestSparseCutAnywhere wants a file that lost its end to be refused, or to
// lack nothing.
func TestSparseCutAnywhere(t *testing.T) {
	t.Parallel()
	d := localDisks()["mixed"]
	b, err := os.ReadFile(qemutest.Convert(t, "raw", d.Raw(t), "vmdk"))
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(b); n += 1 + len(b)/200 {
		dec, _, err := openMemory(memory{"": b[:n]})
		for err == nil {
			_, err = dec.Next()
		}
		if errors.Is(err, io.EOF) {
			t.Errorf("accepted with %d bytes of %d", n, len(b))
		}
	}
}

// claims is a file that is as large as it says, and costs nothing.
type claims struct {
	begin []byte
	size  int64
}

func (c claims) ReadAt(b []byte, off int64) (int, error) {
	n := int(max(0, min(int64(len(b)), c.size-off)))
	clear(b[:n])
	if off < int64(len(c.begin)) {
		copy(b[:n], c.begin[off:])
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// TestSparseThin reads the largest disk, of which nothing is there.
func TestSparseThin(t *testing.T) {
	t.Parallel()
	s := &sparseImage{capacity: 5000, grain: 128, embed: true}
	begin := bytes.Replace(s.build(), []byte("RW 5000 "), fmt.Appendf(nil, "RW %d ", int64(maxSectors)), 1)[:3*512]
	binary.LittleEndian.PutUint64(begin[offCapacity:], maxSectors)
	dec, _, err := OpenDisk(claims{begin, gib}, gib, memory{}.open)
	if err != nil {
		t.Fatal(err)
	}
	holdsDisk(t, dec, &qemutest.Disk{Capacity: MaxCapacity})
}

func TestSlots(t *testing.T) {
	t.Parallel()
	s := newSlots(1 << 62)
	for _, n := range []int64{0, 1, 63, 64, slotsPerPage - 1, slotsPerPage, 1<<29 - 1, 1 << 29} {
		if !s.take(n) || s.take(n) {
			t.Errorf("%d is not taken once", n)
		}
	}
	pages := 0
	for _, p := range s.pages {
		if p != nil {
			pages++
		}
	}
	if pages != 4 {
		t.Errorf("%d pages are in use", pages)
	}
}

func TestJoinSpans(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in, want []span
		disjoint bool
	}{
		{[]span{{0, 1}}, []span{{0, 1}}, true},
		{[]span{{5, 6}, {0, 1}, {1, 3}}, []span{{0, 3}, {5, 6}}, true},
		{[]span{{0, 9}, {4, 5}, {8, 12}}, []span{{0, 12}}, false},
		{[]span{{4, 5}, {4, 5}}, []span{{4, 5}}, false},
	} {
		got, disjoint := joinSpans(slices.Clone(c.in))
		if !slices.Equal(got, c.want) || disjoint != c.disjoint {
			t.Errorf("%v: got %v, %v", c.in, got, disjoint)
		}
	}
}
