package vmdk

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
	"github.com/hyper2kvm/hyper2kvm/internal/image/inflate"
)

// Decoder reads a stream grain by grain and holds it to the same rules as a
// Scanner. It does not inflate: its extents are compressed, with
// Extent.StreamOffset at the grain's marker. It keeps one grain in memory. It
// is an image.Decoder.
type Decoder struct {
	r       *bufio.Reader
	scanner *Scanner
	block   []byte
	err     error
}

const decodeBufferSize = 256 << 10

var _ image.Decoder = (*Decoder)(nil)

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

// Capacity is the size of the guest's disk in bytes; the header says it.
func (d *Decoder) Capacity() (int64, error) {
	h, err := d.Header()
	if errors.Is(err, io.EOF) {
		err = nil // a whole stream without grains
	}
	return h.CapacityBytes(), err
}

// Next is image.Decoder's: it returns the next grain, or io.EOF when the
// stream has ended and is complete. Other errors are a *FormatError,
// ErrTruncated, or what the reader returned; they stay.
func (d *Decoder) Next() (image.Extent, error) {
	if _, err := d.Header(); err != nil {
		return image.Extent{}, err
	}
	for d.err == nil {
		var e image.Extent
		var ok bool
		if e, ok, d.err = d.next(); ok {
			return e, nil
		}
	}
	return image.Extent{}, d.err
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
func (d *Decoder) next() (image.Extent, bool, error) {
	offset := d.scanner.Offset()
	inGrains := d.scanner.state == inMarker
	b := d.block[:SectorSize]
	if err := d.take(b); err != nil {
		return image.Extent{}, false, err
	}
	size := int64(binary.LittleEndian.Uint32(b[offMarkerSize:]))
	if !inGrains || size == 0 {
		return image.Extent{}, false, nil
	}
	end := grainMarkerSize + size // the scanner has seen to it that it fits
	if rest := end - SectorSize; rest > 0 {
		if err := d.take(d.block[SectorSize : end+padTo(end)]); err != nil {
			return image.Extent{}, false, err
		}
	}
	lba := int64(binary.LittleEndian.Uint64(b))
	return image.Extent{
		Start:        lba * SectorSize,
		Length:       d.scanner.header.grainLength(lba),
		Data:         d.block[grainMarkerSize:end],
		Compressed:   true,
		StreamOffset: offset,
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
	c := checker{flat: make([]byte, report.Header.GrainBytes())}
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
		if err := c.check(g); err != nil {
			return report, fmt.Errorf("check grains: %w", err)
		}
		report.Grains++
		report.AllocatedBytes += g.Length
		onPosition(d.Position())
	}
}

// checker inflates grains, one after another, with one set of buffers.
type checker struct {
	in   inflate.Inflater
	flat []byte // room for a full grain
}

// check inflates g and says what is wrong with it.
func (c *checker) check(g image.Extent) error {
	bad := func(format string, args ...any) error {
		return &FormatError{Offset: g.StreamOffset, LBA: g.Start / SectorSize, What: fmt.Sprintf(format, args...)}
	}
	n, err := c.in.Zlib(c.flat, g.Data)
	if errors.Is(err, inflate.ErrTooLong) {
		return bad("grain inflates to more than %d bytes", len(c.flat))
	}
	if err != nil {
		return bad("inflate: %v", err)
	}
	if int64(n) != g.Length && (n != len(c.flat) || !allZero(c.flat[g.Length:])) {
		return bad("grain inflates to %d bytes, want %d", n, g.Length)
	}
	return nil
}
