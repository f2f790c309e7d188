package vmdk

import (
	"bytes"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

// TestEncodeForQemu lets qemu-img judge what Encode writes.
func TestEncodeForQemu(t *testing.T) {
	t.Parallel()
	for name, d := range disks() {
		for _, opts := range []EncodeOptions{{Level: 1, CID: 0x1234abcd}, {Level: 0, Variant: 3}} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				path := writeFile(t, "disk.vmdk", encode(t, d, opts))
				if got := virtualSize(t, path); got != d.size {
					t.Errorf("qemu-img sees %d bytes, want %d", got, d.size)
				}
				qemuImg(t, "check", "-f", "vmdk", path)
				compareQemu(t, path, d)
			})
		}
	}
}

func TestEncodeDeterministic(t *testing.T) {
	t.Parallel()
	d := disks()["several tables"]
	opts := EncodeOptions{Level: 1, CID: 7}
	first := encode(t, d, opts)
	if !bytes.Equal(first, encode(t, d, opts)) {
		t.Fatal("the same content and options gave different bytes")
	}
	seen := map[string]int{string(first): 0}
	for v := 1; v < 10; v++ {
		opts.Variant = v
		s := string(encode(t, d, opts))
		if other, ok := seen[s]; ok {
			t.Errorf("variants %d and %d are the same", v, other)
		}
		seen[s] = v
	}
}

func TestEncodeThinIsSmall(t *testing.T) {
	t.Parallel()
	// The directory of a 2 TiB disk has 65536 entries of 4 bytes.
	if n := len(encode(t, &disk{size: 2 * tib}, EncodeOptions{Level: 1})); n > 400*kib {
		t.Errorf("an empty 2 TiB disk takes %d bytes", n)
	}
	if n := len(encode(t, &disk{size: 8 * gib}, EncodeOptions{Level: 1})); n > 70*kib {
		t.Errorf("an empty 8 GiB disk takes %d bytes", n)
	}
}

type badContent struct {
	disk
	extents []Range
	err     error
}

func (b *badContent) Extents() []Range { return b.extents }

func (b *badContent) ReadAt(p []byte, off int64) (int, error) {
	if b.err != nil {
		return len(p) / 2, b.err
	}
	return b.disk.ReadAt(p, off)
}

func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	full := []Range{{0, mib}}
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		content Content
		opts    EncodeOptions
		want    string
	}{
		"no capacity":       {&disk{}, EncodeOptions{}, "capacity is 0 bytes"},
		"odd capacity":      {&disk{size: 1000}, EncodeOptions{}, "capacity is 1000 bytes"},
		"huge capacity":     {&disk{size: MaxCapacity + 512}, EncodeOptions{}, "capacity is"},
		"level":             {&disk{size: 512}, EncodeOptions{Level: 10}, "invalid compression level"},
		"extent beyond end": {&badContent{disk: disk{size: 512}, extents: full}, EncodeOptions{}, "out of order or beyond"},
		"extent overflow":   {&badContent{disk: disk{size: 512}, extents: []Range{{1, math.MaxInt64}}}, EncodeOptions{}, "out of order or beyond"},
		"extents unsorted":  {&badContent{disk: disk{size: mib}, extents: []Range{{9, 9}, {0, 9}}}, EncodeOptions{}, "out of order"},
		"short read":        {&badContent{disk: disk{size: mib}, extents: full, err: io.EOF}, EncodeOptions{}, "unexpected EOF"},
		"read error":        {&badContent{disk: disk{size: mib}, extents: full, err: boom}, EncodeOptions{}, "boom"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := Encode(io.Discard, c.content, c.opts)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}

// failingWriter fails once limit bytes have been taken.
type failingWriter struct{ limit int }

func (f *failingWriter) Write(p []byte) (int, error) {
	if f.limit -= len(p); f.limit < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

func TestEncodeWriteError(t *testing.T) {
	t.Parallel()
	d := disks()["incompressible"]
	for _, limit := range []int{0, 100 * kib, 3 * mib} {
		if err := Encode(&failingWriter{limit}, d, EncodeOptions{}); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("limit %d: got error %v, want %v", limit, err, io.ErrClosedPipe)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	for name, d := range map[string]*disk{
		"text":   {size: 8 * mib, pieces: []piece{{0, text(1, 8*mib)}}},
		"random": {size: 8 * mib, pieces: []piece{{0, random(1, 8*mib)}}},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(d.size)
			for b.Loop() {
				if err := Encode(io.Discard, d, EncodeOptions{Level: 1}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
