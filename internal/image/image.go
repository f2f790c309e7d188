// Package image has what decoders and writers of disk images say to each
// other: extents of a guest's disk. The formats are in the packages below it,
// which know bytes only: no network, no vSphere, no output folder.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// SectorSize is the unit of a disk's capacity, in bytes.
const SectorSize = 512

// MaxCapacity is the largest disk a Writer takes, in bytes. The largest one
// vSphere makes has 62 TiB.
const MaxCapacity = 64 << 40

// MaxGrain is the greatest Length of a compressed extent, in bytes; grains of
// VMDK have 64 KiB in practice and 1 MiB at most.
const MaxGrain = 1 << 20

// MaxGrainData is the greatest size of a compressed extent's Data, in bytes:
// what zlib's deflateBound says of MaxGrain.
const MaxGrainData = MaxGrain + MaxGrain/8 + MaxGrain/64 + 11

// Extent is a run of bytes of a guest's disk that holds something.
type Extent struct {
	// Start is its first byte on the guest's disk.
	Start int64
	// Length is how many bytes of the disk it covers, 1 at least.
	Length int64
	// Data is what it holds: Length bytes, or with Compressed a zlib stream
	// (RFC 1950, no preset dictionary) of Length bytes. The stream of the
	// disk's last extent may have zeros more than Length, as qemu-img pads
	// a short last grain.
	Data       []byte
	Compressed bool
	// StreamOffset is where it stood in the stream it came in, in bytes, so
	// that an error can name the place; 0 when there is none.
	StreamOffset int64
}

// End is the first byte behind e on the guest's disk.
func (e Extent) End() int64 { return e.Start + e.Length }

// Check says what is wrong with e as the extent that follows one that ended
// at after, on a disk of capacity bytes. It does not look into Data. The error
// is an *ExtentError.
func (e Extent) Check(after, capacity int64) error {
	switch {
	case e.Length <= 0:
		return e.Bad(fmt.Errorf("%w: length is %d", ErrOrder, e.Length))
	case e.Start < after:
		return e.Bad(fmt.Errorf("%w: it begins before byte %d, where the last one ended", ErrOrder, after))
	case e.Start > capacity || e.Length > capacity-e.Start:
		return e.Bad(fmt.Errorf("%w: %d bytes reach beyond the disk's %d", ErrOrder, e.Length, capacity))
	case !e.Compressed && int64(len(e.Data)) != e.Length:
		return e.Bad(fmt.Errorf("it has %d bytes of data, want %d", len(e.Data), e.Length))
	case e.Compressed && e.Length > MaxGrain:
		return e.Bad(fmt.Errorf("compressed extent has %d bytes, more than %d", e.Length, MaxGrain))
	case e.Compressed && len(e.Data) > MaxGrainData:
		return e.Bad(fmt.Errorf("compressed data has %d bytes, more than %d", len(e.Data), MaxGrainData))
	}
	return nil
}

// Bad wraps err with e's place.
func (e Extent) Bad(err error) error {
	return &ExtentError{Start: e.Start, StreamOffset: e.StreamOffset, Err: err}
}

// Decoder yields what a disk holds.
type Decoder interface {
	// Capacity is the disk's size in bytes, as far as the input says it. Its
	// errors are those of Next.
	Capacity() (int64, error)
	// Next returns the next extent, or io.EOF behind the last one, once the
	// input has been seen to be whole. Extents come in rising order and do not
	// overlap; what none of them covers is zeros. Data is valid until the next
	// call. An error stays.
	Next() (Extent, error)
}

// Copy hands all extents of d to w, which it neither finishes nor aborts.
// onPosition, if it is not nil, hears after each extent where that ended on
// the disk, in bytes. An error is what d, w or ctx ended with.
func Copy(ctx context.Context, w Writer, d Decoder, onPosition func(int64)) error {
	for ctx.Err() == nil {
		e, err := d.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := w.WriteExtent(e); err != nil {
			return err
		}
		if onPosition != nil {
			onPosition(e.End())
		}
	}
	return context.Cause(ctx)
}

// Errors of a Writer, to be found with errors.Is.
var (
	// ErrOrder means that an extent overlaps the one before it, comes too
	// late, or reaches beyond the disk.
	ErrOrder = errors.New("extent out of place")
	// ErrEnded means that the Writer was finished or aborted before.
	ErrEnded = errors.New("image writer has ended")
)

// ExtentError says that an extent could not be taken, and which.
type ExtentError struct {
	// Start is its first byte on the guest's disk.
	Start int64
	// StreamOffset is Extent.StreamOffset.
	StreamOffset int64
	Err          error
}

// Error names the sector, the place in the stream if there is one, and the
// cause.
func (e *ExtentError) Error() string {
	if e.StreamOffset > 0 {
		return fmt.Sprintf("extent at sector %d of the disk, byte %d of the stream: %v", e.Start/SectorSize, e.StreamOffset, e.Err)
	}
	return fmt.Sprintf("extent at sector %d of the disk: %v", e.Start/SectorSize, e.Err)
}

// Unwrap gives the cause.
func (e *ExtentError) Unwrap() error { return e.Err }

// Writer writes a disk image. It belongs to one goroutine. Its life is
// bounded by the context it was made with: once that is cancelled, WriteExtent
// and Finish return its cause. Whoever makes a Writer calls Abort in the end,
// whatever happened; `defer w.Abort()` is right.
type Writer interface {
	// WriteExtent takes the next extent. Extents come in rising order and do
	// not overlap; what none of them covers is zeros. Data is not kept. The
	// extent may be written later than this returns, so an error may concern
	// an extent taken before: an *ExtentError, or what the output returned.
	// An error stays: every further call returns it.
	WriteExtent(e Extent) error
	// Finish writes what is left and makes the image valid. It neither syncs
	// nor closes the output. When it returns, error or not, nothing of the
	// Writer runs any more. ctx bounds the wait for writes under way.
	Finish(ctx context.Context) error
	// Abort ends a Writer that is not finished; what it wrote is no valid
	// image and is left to the caller. It waits for writes under way. After
	// Finish or another Abort it does nothing.
	Abort() error
}

// ValidCapacity says what is wrong with a disk's capacity, in bytes.
func ValidCapacity(capacity int64) error {
	if capacity <= 0 || capacity > MaxCapacity || capacity%SectorSize != 0 {
		return fmt.Errorf("capacity is %d bytes, want a positive multiple of %d up to %d", capacity, SectorSize, int64(MaxCapacity))
	}
	return nil
}
