package vmdk

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Grain is one compressed piece of a disk.
type Grain struct {
	// LBA is its first sector in the guest's disk.
	LBA int64
	// Offset is where its marker stands in the stream, in bytes.
	Offset int64
	// Length is how much of the disk it holds, in bytes: a full grain, or the
	// rest of the disk for a short last one.
	Length int
	// Data is its zlib stream (RFC 1950). It is valid until the next call of
	// Decoder.Next.
	Data []byte
}

// Decoder reads a stream grain by grain and holds it to the same rules as a
// Scanner. It does not inflate. It keeps one grain in memory.
type Decoder struct {
	r       *bufio.Reader
	scanner *Scanner
	block   []byte
	err     error
}

const decodeBufferSize = 256 << 10

// NewDecoder returns a Decoder that reads r from the beginning of a stream.
func NewDecoder(r io.Reader) *Decoder {
	return &Decoder{r: bufio.NewReaderSize(r, decodeBufferSize), scanner: NewScanner(), block: make([]byte, SectorSize)}
}

// Header returns the stream's header, reading it if need be. Errors are those
// of Next.
func (d *Decoder) Header() (Header, error) {
	if h, ok := d.scanner.Header(); ok {
		return h, nil
	}
	if d.err == nil {
		d.err = d.front()
	}
	h, _ := d.scanner.Header()
	return h, d.err
}

// Next returns the next grain, or io.EOF when the stream has ended and is
// complete. Other errors are a *FormatError, ErrTruncated, or what the reader
// returned; they stay.
func (d *Decoder) Next() (Grain, error) {
	if _, err := d.Header(); err != nil {
		return Grain{}, err
	}
	for d.err == nil {
		var g Grain
		var ok bool
		if g, ok, d.err = d.next(); ok {
			return g, nil
		}
	}
	return Grain{}, d.err
}

// Position is Scanner.Position.
func (d *Decoder) Position() int64 { return d.scanner.Position() }

// Offset is Scanner.Offset.
func (d *Decoder) Offset() int64 { return d.scanner.Offset() }

// front reads everything in front of the first grain.
func (d *Decoder) front() error {
	if err := d.take(d.block); err != nil {
		return err
	}
	h, _ := d.scanner.Header()
	for n := h.Overhead*SectorSize - d.scanner.Offset(); n > 0; n -= SectorSize {
		if err := d.take(d.block); err != nil {
			return err
		}
	}
	d.block = make([]byte, grainMarkerSize+h.maxCompressed()+SectorSize)
	return nil
}

// next reads one sector and, when it begins a grain, the rest of that.
// Everything else is the scanner's business.
func (d *Decoder) next() (Grain, bool, error) {
	offset := d.scanner.Offset()
	inGrains := d.scanner.state == inMarker
	b := d.block[:SectorSize]
	if err := d.take(b); err != nil {
		return Grain{}, false, err
	}
	size := int64(binary.LittleEndian.Uint32(b[offMarkerSize:]))
	if !inGrains || size == 0 {
		return Grain{}, false, nil
	}
	end := grainMarkerSize + size // the scanner has seen to it that it fits
	if rest := end - SectorSize; rest > 0 {
		if err := d.take(d.block[SectorSize : end+padTo(end)]); err != nil {
			return Grain{}, false, err
		}
	}
	lba := int64(binary.LittleEndian.Uint64(b))
	return Grain{
		LBA:    lba,
		Offset: offset,
		Length: int(d.scanner.header.grainLength(lba)),
		Data:   d.block[grainMarkerSize:end],
	}, true, nil
}

// take fills b and hands it to the scanner. At the stream's end it returns
// what the scanner makes of that: io.EOF when it is complete.
func (d *Decoder) take(b []byte) error {
	n, err := io.ReadFull(d.r, b)
	if _, err := d.scanner.Write(b[:n]); err != nil {
		return err
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		if err := d.scanner.Finish(); err != nil {
			return err
		}
		return io.EOF
	default:
		return fmt.Errorf("read vmdk stream at byte %d: %w", d.scanner.Offset(), err)
	}
}

// GrainReport is what CheckGrains found in a whole stream.
type GrainReport struct {
	Header Header
	// Grains is the number of grains in the stream.
	Grains int64
	// AllocatedBytes is how much of the disk they hold.
	AllocatedBytes int64
	// StreamBytes is the stream's length.
	StreamBytes int64
}

// CheckGrains reads a whole stream, inflates every grain and checks its
// Adler-32 and its size, besides everything a Scanner checks. A short last
// grain may also be padded to a full one. It calls onPosition, if that is not
// nil, after each grain with the bytes of the disk passed, and with the
// capacity at the end. It stops at the first error, which names the grain's
// sector and its place in the stream: a *FormatError, ErrTruncated, what r
// returned, or ctx's cause. The report then counts the grains that were right.
//
// Memory is a few grains, whatever the stream says.
func CheckGrains(ctx context.Context, r io.Reader, onPosition func(int64)) (GrainReport, error) {
	if onPosition == nil {
		onPosition = func(int64) {}
	}
	var report GrainReport
	d := NewDecoder(r)
	var err error
	if report.Header, err = d.Header(); err != nil {
		return report, fmt.Errorf("check grains: %w", err)
	}
	in := newInflater(report.Header.GrainBytes())
	for {
		if ctx.Err() != nil {
			return report, fmt.Errorf("check grains: %w", context.Cause(ctx))
		}
		g, err := d.Next()
		report.StreamBytes = d.Offset()
		if errors.Is(err, io.EOF) {
			onPosition(report.Header.CapacityBytes())
			return report, nil
		}
		if err != nil {
			return report, fmt.Errorf("check grains: %w", err)
		}
		if err := in.check(g); err != nil {
			return report, fmt.Errorf("check grains: %w", err)
		}
		report.Grains++
		report.AllocatedBytes += int64(g.Length)
		onPosition(d.Position())
	}
}

// inflater inflates grains, one after another, with one set of buffers.
type inflater struct {
	source bytes.Reader
	zlib   io.ReadCloser
	out    []byte // a grain and one byte, to tell when it is longer
}

func newInflater(grainBytes int64) *inflater {
	return &inflater{out: make([]byte, grainBytes+1)}
}

// check inflates g and says what is wrong with it. The result is in f.out.
func (f *inflater) check(g Grain) error {
	bad := func(format string, args ...any) error {
		return &FormatError{Offset: g.Offset, LBA: g.LBA, What: fmt.Sprintf(format, args...)}
	}
	f.source.Reset(g.Data)
	var err error
	if f.zlib == nil {
		f.zlib, err = zlib.NewReader(&f.source)
	} else {
		err = f.zlib.(zlib.Resetter).Reset(&f.source, nil)
	}
	if err != nil {
		return bad("inflate: %v", err)
	}
	n := 0
	for err == nil {
		if n == len(f.out) {
			return bad("grain inflates to more than %d bytes", len(f.out)-1)
		}
		var m int
		m, err = f.zlib.Read(f.out[n:])
		n += m
	}
	if !errors.Is(err, io.EOF) { // io.EOF comes after the Adler-32 was right
		return bad("inflate: %v", err)
	}
	if n != g.Length && n != len(f.out)-1 {
		return bad("grain inflates to %d bytes, want %d", n, g.Length)
	}
	if left := f.source.Len(); left > 0 {
		return bad("%d bytes after the grain's zlib stream", left)
	}
	return nil
}
