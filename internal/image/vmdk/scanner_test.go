package vmdk

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

// scan runs a whole stream through a Scanner, chunk bytes at a time.
func scan(stream []byte, chunk int) (*Scanner, error) {
	s := NewScanner()
	for len(stream) > 0 {
		n := min(chunk, len(stream))
		if _, err := s.Write(stream[:n]); err != nil {
			return s, err
		}
		stream = stream[n:]
	}
	return s, s.Finish()
}

// qemuEncode lets qemu-img write d as a stream-optimized VMDK.
func qemuEncode(t testing.TB, d *disk) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "qemu.vmdk")
	qemuImg(t, "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", writeRaw(t, d), out)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// small is a disk of three tables with grains in the first and the third, the
// last grain short, and its stream.
func small(t testing.TB) (*disk, []byte) {
	t.Helper()
	d := &disk{size: 64*mib + 96*kib + 512, pieces: []piece{
		{0, text(1, 3000)}, {200 * kib, random(2, 100)}, {31 * mib, text(3, 100)},
		{64*mib + 64*kib - 500, text(4, 1000)}, {64*mib + 96*kib, random(5, 512)},
	}}
	return d, encode(t, d, EncodeOptions{Level: 1, CID: 1})
}

func TestScannerAccepts(t *testing.T) {
	t.Parallel()
	streams := map[string][]byte{}
	sizes := map[string]int64{}
	add := func(name string, d *disk, b []byte) {
		streams[name], sizes[name] = b, d.size
	}
	for name, d := range disks() {
		for level, l := range []string{"stored", "compressed"} {
			add("ours, "+l+", "+name, d, encode(t, d, EncodeOptions{Level: level}))
		}
		if d.size <= gib {
			add("qemu, "+name, d, qemuEncode(t, d))
		}
	}
	for name, c := range otherLayouts(t) {
		add(name, c.disk, c.stream)
	}
	for name, stream := range streams {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			chunks := []int{1, 7, 512, 4097, len(stream)}
			if len(stream) > 300*kib {
				chunks = chunks[3:]
			}
			for _, chunk := range chunks {
				s, err := scan(stream, chunk)
				if err != nil {
					t.Fatalf("in pieces of %d bytes: %v", chunk, err)
				}
				if s.Position() != sizes[name] || s.Capacity() != sizes[name] || s.Offset() != int64(len(stream)) {
					t.Errorf("position, capacity, offset are %d, %d, %d, want %d, %d, %d",
						s.Position(), s.Capacity(), s.Offset(), sizes[name], sizes[name], len(stream))
				}
				if h, ok := s.Header(); !ok || h.CapacityBytes() != sizes[name] {
					t.Errorf("header is %+v, %v", h, ok)
				}
			}
			report, err := CheckGrains(t.Context(), iotest.HalfReader(bytes.NewReader(stream)), nil)
			if err != nil {
				t.Fatal(err)
			}
			if report.StreamBytes != int64(len(stream)) {
				t.Errorf("report has %d bytes, want %d", report.StreamBytes, len(stream))
			}
		})
	}
}

type layout struct {
	disk   *disk
	stream []byte
}

// otherLayouts are streams that other writers may make: tables gathered at
// the end, tables without grains, a padded last grain, a longer directory.
func otherLayouts(t testing.TB) map[string]layout {
	t.Helper()
	d, _ := small(t)
	out := map[string]layout{}
	build := func(name string, f func(e *encoder)) {
		var b bytes.Buffer
		e := newEncoder(t, &b, d)
		f(e)
		if err := e.w.Flush(); err != nil {
			t.Fatal(err)
		}
		out[name] = layout{d, b.Bytes()}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	grains := []int64{0, 3, 496, 1024, 1025}
	build("tables at the end", func(e *encoder) {
		must(e.begin(1))
		tables := map[int64]*[EntriesPerTable]uint32{}
		for _, g := range grains {
			must(e.encodeGrain(g))
			if tables[e.table] == nil {
				tables[e.table] = new([EntriesPerTable]uint32)
			}
			tables[e.table][g%EntriesPerTable] = e.entries[g%EntriesPerTable]
			e.entries = [EntriesPerTable]uint32{}
			if g == 496 {
				e.table = -1 // no table here
			}
		}
		for _, i := range []int64{0, 2} {
			e.table, e.entries = i, *tables[i]
			must(e.endTable())
		}
		e.table = -1
		must(e.finish())
	})
	build("empty tables", func(e *encoder) {
		must(e.begin(1))
		e.table = 1
		must(e.endTable())
		e.table = 0
		for _, g := range grains {
			must(e.encodeGrain(g))
		}
		must(e.finish())
	})
	build("long directory", func(e *encoder) {
		must(e.begin(1))
		for _, g := range grains {
			must(e.encodeGrain(g))
		}
		e.directory = append(e.directory, make([]uint32, 1000)...)
		must(e.endTable())
		e.table = -1
		must(e.marker(markerDirectory, 8))
		footer := e.header
		footer.GDOffset = uint64(e.sector)
		must(e.write(putEntries(e.directory, 8)))
		must(e.marker(markerFooter, 1))
		sector := make([]byte, SectorSize)
		footer.put(sector)
		must(e.write(sector))
		must(e.marker(markerEndOfStream, 0))
	})
	// A last grain of full size: the same disk with its end at the grain's,
	// then the capacity set back.
	full := &disk{size: 64*mib + 128*kib, pieces: d.pieces}
	b := encode(t, full, EncodeOptions{Level: 1})
	binary.LittleEndian.PutUint64(b[offCapacity:], uint64(d.size/SectorSize))
	binary.LittleEndian.PutUint64(b[len(b)-2*SectorSize+offCapacity:], uint64(d.size/SectorSize))
	out["padded last grain"] = layout{d, b}
	return out
}

// flips that change nothing of what the stream says, in our layout: they are
// the exceptions from "every flipped byte is found", each with its reason.
func harmless(stream []byte, markers map[int64]bool, at int64, b byte) string {
	sector, in := at/SectorSize, at%SectorSize
	footer := int64(len(stream))/SectorSize - 2
	switch {
	case sector == 0 || sector == footer:
		switch {
		case in >= offRGDOffset && in < offGDOffset:
			return "the redundant directory's offset is not used without its flag"
		case in == offUnclean && b <= 1:
			return "an unclean shutdown says nothing of a stream"
		case in >= headerEnd:
			return "padding"
		}
	case sector < defaultOverhead:
		return "descriptor text and padding in front of the grains"
	case markers[sector] && in >= metaMarkerSize:
		return "padding of a metadata marker"
	case sector == footer-1 && in == 0 && b == 0:
		return "a footer's marker may have no size"
	}
	return ""
}

// TestEveryFlip changes every byte of a small stream, in several ways, and
// wants the Scanner or CheckGrains to notice.
func TestEveryFlip(t *testing.T) {
	t.Parallel()
	_, stream := small(t)
	markers := map[int64]bool{}
	body := map[int64]bool{}    // bytes of zlib streams
	padding := map[int64]bool{} // bytes behind them
	for _, p := range structures(stream) {
		switch p.kind {
		case "marker":
			markers[p.from/SectorSize] = true
		case "grain":
			for i := p.from + grainMarkerSize; i < p.to; i++ {
				body[i] = i < p.from+grainMarkerSize+int64(binary.LittleEndian.Uint32(stream[p.from+offMarkerSize:]))
				padding[i] = !body[i]
			}
		}
	}
	contents := inflateAll(t, stream)
	scanned, inflated, same, passed := 0, 0, 0, 0
	step := int64(1)
	if testing.Short() {
		step = 7
	}
	for at := int64(0); at < int64(len(stream)); at += step {
		masks := []byte{0x01, 0x80, 0xff}
		switch {
		case at >= SectorSize && at < defaultOverhead*SectorSize && at%61 != 0:
			continue // 64 KiB of the same
		case body[at] || padding[at]:
			masks = []byte{1 << (at % 8)}
		}
		for _, mask := range masks {
			bad := stream[at] ^ mask
			reason := harmless(stream, markers, at, bad)
			if padding[at] {
				reason = "padding of a grain"
			}
			old := stream[at]
			stream[at] = bad
			_, err := scan(stream, len(stream))
			switch {
			case err != nil:
				scanned++
				if reason != "" {
					t.Errorf("byte %d, mask %#x: refused with %q although it is %s", at, mask, err, reason)
				}
			case reason != "":
				passed++
			default:
				_, err := CheckGrains(t.Context(), bytes.NewReader(stream), nil)
				f, ok := errors.AsType[*FormatError](err)
				switch {
				case err == nil && bytes.Equal(inflateAll(t, stream), contents):
					same++ // a reference to one of two equal places now names the other
				case err == nil:
					t.Errorf("byte %d, mask %#x (in a grain: %v): not noticed", at, mask, body[at])
				case !ok || f.LBA < 0 || f.Offset > at || f.Offset < at-128*kib:
					t.Errorf("byte %d, mask %#x: error is %v", at, mask, err)
				default:
					inflated++
				}
			}
			stream[at] = old
		}
	}
	t.Logf("%d found by the scanner, %d by inflating, %d inflate to the same, %d without effect", scanned, inflated, same, passed)
}

// inflateAll is the contents of a stream's grains, one after another.
func inflateAll(t testing.TB, stream []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	d := NewDecoder(bytes.NewReader(stream))
	for {
		g, err := d.Next()
		if errors.Is(err, io.EOF) {
			return out.Bytes()
		}
		if err != nil {
			t.Fatal(err)
		}
		zr, err := zlib.NewReader(bytes.NewReader(g.Data))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.ReadFrom(zr); err != nil {
			t.Fatal(err)
		}
	}
}

type structure struct {
	kind     string
	from, to int64
}

// structures lists where each structure of one of our streams is.
func structures(stream []byte) []structure {
	h, _ := ParseHeader(stream)
	out := []structure{{"header", 0, SectorSize}, {"overhead", SectorSize, h.Overhead * SectorSize}}
	for at := h.Overhead * SectorSize; at < int64(len(stream)); {
		value := int64(binary.LittleEndian.Uint64(stream[at:]))
		size := int64(binary.LittleEndian.Uint32(stream[at+offMarkerSize:]))
		end := at + SectorSize
		kind := "marker"
		if size > 0 {
			kind, end = "grain", at+grainMarkerSize+size+padTo(grainMarkerSize+size)
		}
		out = append(out, structure{kind, at, end})
		if at = end; size == 0 && value > 0 {
			out = append(out, structure{"table", at, at + value*SectorSize})
			at += value * SectorSize
		}
	}
	return out
}

// TestEveryTruncation cuts small streams everywhere.
func TestEveryTruncation(t *testing.T) {
	t.Parallel()
	check := func(t *testing.T, stream []byte, n int) {
		t.Helper()
		if n > SectorSize && n < defaultOverhead*SectorSize && n%61 != 0 {
			return // 64 KiB of the same
		}
		_, err := scan(stream[:n], 100_000)
		if !errors.Is(err, ErrTruncated) {
			t.Fatalf("cut at %d of %d: scanner says %v", n, len(stream), err)
		}
		if n%97 == 0 || n%SectorSize < 2 {
			_, err = CheckGrains(t.Context(), bytes.NewReader(stream[:n]), nil)
			if !errors.Is(err, ErrTruncated) {
				t.Fatalf("cut at %d of %d: CheckGrains says %v", n, len(stream), err)
			}
		}
	}
	t.Run("ours", func(t *testing.T) {
		t.Parallel()
		_, stream := small(t)
		for n := range len(stream) {
			check(t, stream, n)
		}
	})
	t.Run("ours, empty", func(t *testing.T) {
		t.Parallel()
		stream := encode(t, &disk{size: mib}, EncodeOptions{})
		for n := range len(stream) {
			check(t, stream, n)
		}
	})
	t.Run("qemu", func(t *testing.T) {
		t.Parallel()
		d, _ := small(t)
		stream := qemuEncode(t, d)
		// Whole is a qemu-img stream when its last grain is; the zeros behind
		// a short one do not matter.
		whole := len(bytes.TrimRight(stream, "\x00"))
		whole += int(padTo(int64(whole)))
		for n := range whole {
			check(t, stream, n)
		}
		for n := whole; n <= len(stream); n += 1 + (len(stream)-whole)/100 {
			if _, err := scan(stream[:n], n); err != nil {
				t.Fatalf("cut at %d of %d, behind the last grain: %v", n, len(stream), err)
			}
		}
		for _, extra := range []string{"\x00", "x"} {
			if _, err := scan(append(stream[:len(stream):len(stream)], extra...), 1<<20); err == nil {
				t.Errorf("%q behind the end is not noticed", extra)
			}
		}
	})
}

// TestScannerRefuses breaks a small stream in chosen ways.
func TestScannerRefuses(t *testing.T) {
	t.Parallel()
	_, good := small(t)
	parts := structures(good)
	nth := func(kind string, n int) structure {
		for _, p := range parts {
			if p.kind == kind {
				if n == 0 {
					return p
				}
				n--
			}
		}
		t.Fatalf("no %s %d", kind, n)
		return structure{}
	}
	le := binary.LittleEndian
	put64 := func(at int64, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint64(b[at:], v); return b }
	}
	put32 := func(at int64, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint32(b[at:], v); return b }
	}
	cut := func(from, to int64) func([]byte) []byte {
		return func(b []byte) []byte { return append(b[:from:from], b[to:]...) }
	}
	g := func(n int) int64 { return nth("grain", n).from }
	footer := int64(len(good)) - 2*SectorSize
	end := int64(len(good))
	swap := func(b []byte) []byte {
		// Two grains of one sector each change places.
		first, second := nth("grain", 1), nth("grain", 2)
		out := append([]byte{}, b[:first.from]...)
		out = append(out, b[second.from:second.to]...)
		out = append(out, b[first.from:first.to]...)
		return append(out, b[second.to:]...)
	}
	for name, c := range map[string]struct {
		change func([]byte) []byte
		offset int64
		want   string
	}{
		"html":             {func([]byte) []byte { return []byte("<html>") }, 0, "magic is not"},
		"version":          {put32(offVersion, 4), 0, "version is 4"},
		"flags":            {put32(offFlags, 1), 0, "not stream-optimized"},
		"unknown flag":     {put32(offFlags, 0x30001|1<<5), 0, "0x20 are unknown"},
		"no capacity":      {put64(offCapacity, 0), 0, "capacity is 0"},
		"huge capacity":    {put64(offCapacity, 1<<63), 0, "capacity is 9223372036854775808"},
		"grain size":       {put64(offGrainSize, 129), 0, "grain size is 129"},
		"grain size 0":     {put64(offGrainSize, 0), 0, "grain size is 0"},
		"grain size large": {put64(offGrainSize, 4096), 0, "grain size is 4096"},
		"table entries":    {put32(offNumGTEs, 1024), 0, "1024 entries"},
		"overhead 0":       {put64(offOverhead, 0), 0, "overhead is 0"},
		"overhead large":   {put64(offOverhead, MaxOverheadSectors+1), 0, "overhead is"},
		"descriptor":       {put64(offDescOffset, 120), 0, "descriptor is 20 sectors at sector 120"},
		"descriptor wraps": {put64(offDescOffset, 1<<64-10), 0, "descriptor is 20 sectors"},
		"newlines":         {func(b []byte) []byte { b[offNewlines+2] = '\n'; return b }, 0, "text-mode"},
		"compression":      {put32(offCompression, 2), 0, "compression algorithm is 2"},
		"directory early":  {put64(offGDOffset, 5), 5 * SectorSize, "grain directory has table 0"},
		"directory at 0":   {put64(offGDOffset, 0), 0, "does not fit"},
		"directory late":   {put64(offGDOffset, 1<<40), 0, "does not fit"},

		"grain beyond":     {put64(g(4), 1<<40), g(4), "beyond the disk"},
		"grain wraps":      {put64(g(4), 1<<64-128), g(4), "beyond the disk"},
		"grain unaligned":  {put64(g(1), 129), g(1), "not aligned"},
		"grain repeated":   {put64(g(1), 0), g(1), "follows the one at sector 0"},
		"grain swapped":    {swap, g(1) + SectorSize, "follows the one"},
		"grain huge":       {put32(g(1)+8, 80*kib), g(1), "compressed grain has 81920 bytes"},
		"grain max":        {put32(g(1)+8, 1<<32-1), g(1), "compressed grain has 4294967295 bytes"},
		"grain tiny":       {put32(g(1)+8, 7), g(1), "compressed grain has 7 bytes"},
		"grain method":     {func(b []byte) []byte { b[g(1)+12] = 0x79; return b }, g(1), "zlib method is 9"},
		"grain dictionary": {func(b []byte) []byte { b[g(1)+13] = 0x20; return b }, g(1), "preset dictionary"},
		"grain removed":    {cut(g(1), g(2)), nth("table", 0).from - (g(2) - g(1)), "which are not the 2 seen"},
		"grain moved":      {put64(g(1), 128*4), nth("table", 0).from, "which are not the 3 seen"},
		"grain in the gap": {put64(g(2), 128*600), nth("table", 0).from, "which are not the 2 seen"},

		"marker unknown":    {put32(nth("marker", 0).from+12, 9), nth("marker", 0).from, "unknown marker type 9"},
		"table size":        {put64(nth("marker", 0).from, 8), nth("marker", 0).from, "grain table has 8 sectors"},
		"table removed":     {cut(nth("marker", 0).from, g(3)), nth("table", 1).from - (g(3) - nth("marker", 0).from), "grain table 0 names 2"},
		"last table gone":   {cut(nth("marker", 1).from, nth("marker", 2).from), nth("marker", 1).from, "before the tables of 1"},
		"table twice":       {func(b []byte) []byte { return append(b[:g(3):g(3)], b[nth("marker", 0).from:]...) }, g(3) + SectorSize, "none await a table"},
		"table entry":       {put32(nth("table", 0).from, 7), nth("table", 0).from, "which are not the 3 seen"},
		"directory entry":   {put32(nth("table", 2).from, 7), nth("table", 2).from, "table 0 at sector 7"},
		"directory entry 1": {put32(nth("table", 2).from+4, 7), nth("table", 2).from, "where none is"},
		"directory entry 3": {put32(nth("table", 2).from+12, 7), nth("table", 2).from, "want 3 entries"},
		"directory size":    {put64(nth("marker", 2).from, 1<<40), nth("marker", 2).from, "want 1"},
		"directory size 0":  {put64(nth("marker", 2).from, 0), nth("marker", 2).from, "has 0 sectors"},
		"directory gone":    {cut(nth("marker", 2).from, nth("marker", 3).from), nth("marker", 2).from, "out of order"},
		"footer gone":       {cut(nth("marker", 3).from, nth("marker", 4).from), nth("marker", 3).from, "out of order"},
		"footer magic":      {put32(footer, 0), footer, "footer: magic"},
		"footer capacity":   {put64(footer+offCapacity, 100), footer, "footer has capacity 100"},
		"footer grain":      {put64(footer+offGrainSize, 64), footer, "footer has grain size 64"},
		"footer directory":  {put64(footer+offGDOffset, 64), footer, "footer has grain directory offset 64"},
		"footer at end":     {put64(footer+offGDOffset, GDAtEnd), footer, "footer has grain directory offset"},
		"bytes at the end":  {func(b []byte) []byte { return append(b, 0) }, end, "after the end-of-stream"},
		"sector at the end": {func(b []byte) []byte { return append(b, make([]byte, SectorSize)...) }, end, "after the end-of-stream"},
		"zeros":             {func(b []byte) []byte { clear(b[g(1):]); return b }, g(1), "out of order"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stream := c.change(bytes.Clone(good))
			for _, chunk := range []int{1, 1000, len(stream)} {
				_, err := scan(stream, chunk)
				f, ok := errors.AsType[*FormatError](err)
				if !ok || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("got error %v, want one with %q", err, c.want)
				}
				// Of a table, the error may name a later sector.
				if f.Offset < c.offset || f.Offset > c.offset+3*SectorSize {
					t.Errorf("error is at %d, want %d", f.Offset, c.offset)
				}
			}
			if _, err := CheckGrains(t.Context(), bytes.NewReader(stream), nil); err == nil {
				t.Error("CheckGrains accepts it")
			}
		})
	}
}

// TestScannerErrorStays checks the count Write returns and that nothing is
// taken after an error.
func TestScannerErrorStays(t *testing.T) {
	t.Parallel()
	_, stream := small(t)
	at := structures(stream)[3].from // the second grain
	binary.LittleEndian.PutUint64(stream[at:], 1)
	s := NewScanner()
	n, err := s.Write(stream)
	if int64(n) != at || err == nil {
		t.Errorf("Write returns %d, %v, want %d and an error", n, err, at)
	}
	offset := s.Offset()
	if n, again := s.Write(stream); n != 0 || !errors.Is(again, err) {
		t.Errorf("second Write returns %d, %v", n, again)
	}
	if s.Offset() != offset {
		t.Errorf("offset moved from %d to %d", offset, s.Offset())
	}
	if again := s.Finish(); !errors.Is(again, err) {
		t.Errorf("Finish returns %v, want %v", again, err)
	}
}

// TestScannerQemuTables breaks what qemu-img's layout has in front.
func TestScannerQemuTables(t *testing.T) {
	t.Parallel()
	d, _ := small(t)
	good := qemuEncode(t, d)
	h, err := ParseHeader(good)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	for name, c := range map[string]struct {
		at   int64
		want string
	}{
		"directory":       {int64(h.GDOffset) * SectorSize, "grain directory has table 0"},
		"other directory": {int64(h.RGDOffset) * SectorSize, "grain directory has table 0"},
		"table":           {int64(h.GDOffset+1) * SectorSize, "two sets of grain tables differ"},
		"other table":     {int64(h.RGDOffset+1) * SectorSize, "two sets of grain tables differ"},
		"grain":           {h.Overhead * SectorSize, "not those the grain tables name"},
		"no grain":        {h.Overhead*SectorSize + 8, "metadata marker among the grains"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := bytes.Clone(good)
			le.PutUint32(b[c.at:], le.Uint32(b[c.at:])^128)
			if name == "no grain" {
				le.PutUint32(b[c.at:], 0)
			}
			if name == "grain" { // a place that has none: sectors 128, with two behind it to come
				le.PutUint32(b[c.at:], 128)
			}
			if _, err := scan(b, 999); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestScannerPosition(t *testing.T) {
	t.Parallel()
	d := &disk{size: 128 * kib, pieces: []piece{{0, random(1, 128*kib)}}}
	stream := encode(t, d, EncodeOptions{})
	grains := structures(stream)[2:4]
	s := NewScanner()
	for _, c := range []struct{ upTo, want int64 }{
		{100, 0}, {grains[0].from + 20, 0}, {grains[0].to - 1, 0}, {grains[0].to, 64 * kib},
		{grains[1].from + 30000, 64 * kib}, {grains[1].to, 128 * kib}, {int64(len(stream)), 128 * kib},
	} {
		if _, err := s.Write(stream[s.Offset():c.upTo]); err != nil {
			t.Fatal(err)
		}
		if s.Position() != c.want || s.Offset() != c.upTo {
			t.Errorf("at %d the position is %d, want %d", s.Offset(), s.Position(), c.want)
		}
	}
}

// newEncoder is Encode without its end, for streams in other layouts.
func newEncoder(t testing.TB, w io.Writer, c Content) *encoder {
	t.Helper()
	e, err := prepare(w, c, EncodeOptions{Level: 1})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func seeds(f *testing.F) [][]byte {
	f.Helper()
	_, stream := small(f)
	out := [][]byte{stream, encode(f, &disk{size: 512}, EncodeOptions{}), {}, []byte("KDMV")}
	tiny := &disk{size: 65*kib + 512, pieces: []piece{{0, []byte("a")}, {65 * kib, []byte("b")}}}
	out = append(out, encode(f, tiny, EncodeOptions{Level: 9}), qemuEncode(f, tiny))
	for _, l := range otherLayouts(f) {
		out = append(out, l.stream)
	}
	return out
}

// FuzzScanner wants the same answer however the stream is cut into pieces,
// and the same from CheckGrains where the Scanner refuses.
func FuzzScanner(f *testing.F) {
	for i, s := range seeds(f) {
		f.Add(s, uint64(i))
	}
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		one, err := scan(stream, max(1, len(stream)))
		s := NewScanner()
		var again error
		r := rand.New(rand.NewPCG(seed, 0))
		for rest := stream; len(rest) > 0 && again == nil; {
			n := 1 + r.IntN(min(len(rest), 1+r.IntN(5000)))
			_, again = s.Write(rest[:n])
			rest = rest[n:]
		}
		if again == nil {
			again = s.Finish()
		}
		if fmt.Sprint(err) != fmt.Sprint(again) {
			t.Fatalf("in one piece: %v\nin many: %v", err, again)
		}
		if one.Position() != s.Position() && err == nil {
			t.Fatalf("in one piece the position is %d, in many %d", one.Position(), s.Position())
		}
		if s.Position() > s.Capacity() || s.Offset() > int64(len(stream)) {
			t.Fatalf("position %d of %d, offset %d of %d", s.Position(), s.Capacity(), s.Offset(), len(stream))
		}
	})
}

// BenchmarkScanner feeds pieces of 1 MiB, as a download does.
func BenchmarkScanner(b *testing.B) {
	for name, d := range map[string]*disk{
		"text":   {size: 64 * mib, pieces: []piece{{0, text(1, 64*mib)}}},
		"random": {size: 64 * mib, pieces: []piece{{0, random(1, 64*mib)}}},
		"sparse": {size: 64 * mib, pieces: []piece{{0, bytes.Repeat([]byte("a"), 64*mib)}}},
	} {
		b.Run(name, func(b *testing.B) {
			stream := encode(b, d, EncodeOptions{Level: 1})
			b.SetBytes(int64(len(stream)))
			for b.Loop() {
				if _, err := scan(stream, mib); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
