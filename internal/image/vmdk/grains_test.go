package vmdk

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestCheckGrainsReport(t *testing.T) {
	t.Parallel()
	d, stream := small(t)
	var positions []int64
	report, err := CheckGrains(t.Context(), bytes.NewReader(stream), func(p int64) { positions = append(positions, p) })
	if err != nil {
		t.Fatal(err)
	}
	if report.Grains != 5 || report.AllocatedBytes != 4*64*kib+32*kib+512 || report.Header.CapacityBytes() != d.size {
		t.Errorf("report is %+v", report)
	}
	want := []int64{64 * kib, 256 * kib, 31*mib + 64*kib, 64*mib + 64*kib, d.size, d.size}
	if len(positions) != len(want) {
		t.Fatalf("positions are %d, want %d", positions, want)
	}
	for i, p := range positions {
		if p != want[i] {
			t.Errorf("positions are %d, want %d", positions, want)
			break
		}
	}
}

// TestDecoder reads a stream back and compares it with the disk.
func TestDecoder(t *testing.T) {
	t.Parallel()
	d, stream := small(t)
	for name, s := range map[string][]byte{"ours": stream, "qemu": qemuEncode(t, d)} {
		dec := NewDecoder(bytes.NewReader(s))
		for {
			g, err := dec.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			zr, err := zlib.NewReader(bytes.NewReader(g.Data))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got, err := io.ReadAll(zr)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			want := make([]byte, g.Length)
			if _, err := d.ReadAt(want, g.Start); err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(got, want) || !allZero(got[len(want):]) {
				t.Errorf("%s: grain at sector %d differs", name, g.Start/SectorSize)
			}
			if lba := binary.LittleEndian.Uint64(s[g.StreamOffset:]); lba != uint64(g.Start/SectorSize) {
				t.Errorf("%s: offset %d is not that of the grain at sector %d", name, g.StreamOffset, g.Start/SectorSize)
			}
		}
		if _, err := dec.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: after the end: %v", name, err)
		}
	}
}

// withGrain is a stream of one grain of 64 KiB whose compressed form is data.
func withGrain(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	e := newEncoder(t, &b, &disk{size: 64 * kib})
	if err := e.begin(1); err != nil {
		t.Fatal(err)
	}
	block := make([]byte, grainMarkerSize, 1<<20)
	binary.LittleEndian.PutUint32(block[offMarkerSize:], uint32(len(data)))
	block = append(block, data...)
	block = append(block, make([]byte, padTo(int64(len(block))))...)
	e.table, e.entries[0] = 0, uint32(e.sector)
	if err := e.write(block); err != nil {
		t.Fatal(err)
	}
	if err := e.finish(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func deflate(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestCheckGrainsRefuses(t *testing.T) {
	t.Parallel()
	good := deflate(t, text(1, 64*kib))
	wrongSum := bytes.Clone(good)
	wrongSum[len(wrongSum)-1] ^= 1
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"good":       {good, ""},
		"short":      {deflate(t, text(1, 64*kib-1)), "inflates to 65535 bytes, want 65536"},
		"nothing":    {deflate(t, nil), "inflates to 0 bytes"},
		"long":       {deflate(t, text(1, 64*kib+1)), "inflates to more than 65536 bytes"},
		"bomb":       {deflate(t, make([]byte, 50*mib)), "inflates to more than 65536 bytes"},
		"checksum":   {wrongSum, "adler-32 mismatch"},
		"cut":        {good[:len(good)-1], "ends early"},
		"cut deep":   {good[:len(good)/2], "ends early"},
		"more":       {append(bytes.Clone(good), 1, 2, 3), "data after the end"},
		"not zlib":   {append([]byte{0x78, 0x9c}, bytes.Repeat([]byte{0xff}, 60)...), "corrupt"},
		"dictionary": {append([]byte{0x78, 0xbb}, make([]byte, 60)...), "preset dictionary"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := CheckGrains(t.Context(), bytes.NewReader(withGrain(t, c.data)), nil)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			f, ok := errors.AsType[*FormatError](err)
			if !ok || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got error %v, want one with %q", err, c.want)
			}
			if f.LBA != 0 || f.Offset != 64*kib {
				t.Errorf("error names sector %d and byte %d", f.LBA, f.Offset)
			}
		})
	}
}

func TestCheckGrainsCancelled(t *testing.T) {
	t.Parallel()
	_, stream := small(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	report, err := CheckGrains(ctx, bytes.NewReader(stream), func(int64) { cancel(why) })
	if !errors.Is(err, why) || report.Grains != 1 {
		t.Errorf("got %d grains and error %v, want 1 and %v", report.Grains, err, why)
	}
}

func TestCheckGrainsReadError(t *testing.T) {
	t.Parallel()
	_, stream := small(t)
	boom := errors.New("boom")
	for _, n := range []int{0, 100, 512, 64 * kib, 64*kib + 700, len(stream) - 512, len(stream)} {
		r := io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(boom))
		if _, err := CheckGrains(t.Context(), r, nil); !errors.Is(err, boom) || errors.Is(err, ErrTruncated) {
			t.Errorf("after %d bytes: got error %v, want %v", n, err, boom)
		}
	}
}

// FuzzCheckGrains wants no panic, bounded memory, and never a stream accepted
// that the Scanner refuses.
func FuzzCheckGrains(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		_, scanErr := scan(stream, max(1, len(stream)))
		report, err := CheckGrains(t.Context(), bytes.NewReader(stream), nil)
		if err == nil && scanErr != nil {
			t.Fatalf("accepted, and the scanner says %v", scanErr)
		}
		if err == nil && report.AllocatedBytes > report.Header.CapacityBytes() {
			t.Fatalf("report is %+v", report)
		}
		f, isFormat := errors.AsType[*FormatError](err)
		if err != nil && !isFormat && !errors.Is(err, ErrTruncated) {
			t.Fatalf("error is %v", err)
		}
		if isFormat && (f.Offset < 0 || f.Offset > int64(len(stream))) {
			t.Fatalf("error names byte %d of %d", f.Offset, len(stream))
		}
	})
}

func BenchmarkCheckGrains(b *testing.B) {
	for name, d := range map[string]*disk{
		"text":   {size: 16 * mib, pieces: []piece{{0, text(1, 16*mib)}}},
		"random": {size: 16 * mib, pieces: []piece{{0, random(1, 16*mib)}}},
	} {
		b.Run(name, func(b *testing.B) {
			stream := encode(b, d, EncodeOptions{Level: 1})
			b.SetBytes(d.size)
			for b.Loop() {
				if _, err := CheckGrains(context.Background(), bytes.NewReader(stream), nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
