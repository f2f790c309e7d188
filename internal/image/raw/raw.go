// Package raw writes the bytes of a disk as they are, to a file with holes or
// to a block device.
package raw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
	"github.com/hyper2kvm/hyper2kvm/internal/image/pool"
)

// Options says how a Writer works.
type Options struct {
	// Whole says that a block device may be overwritten from its beginning
	// to the disk's capacity. Without it, a block device is refused.
	Whole bool
	// Workers is how many goroutines inflate and write; 0 is one for each
	// processor, 8 at most.
	Workers int
}

// holeUnit is the size and alignment of the pieces of uncompressed extents
// that become holes when they hold zeros only, in bytes.
const holeUnit = 64 << 10

// target is what a Writer needs of its output.
type target interface {
	io.WriterAt
	// zero makes n bytes at off read as zeros without writing them. It
	// returns errors.ErrUnsupported when that is not possible.
	zero(off, n int64) error
}

// Writer writes one disk. It is an image.Writer.
type Writer struct {
	out      target
	pool     *pool.Pool
	capacity int64
	sparse   bool // what is not written reads as zeros
	byHand   bool // zeros must be written
	done     <-chan struct{}
	cause    func() error
	end      int64 // of the extents taken
	err      error // stays
}

var _ image.Writer = (*Writer)(nil)

// NewWriter begins to write a disk of capacity bytes, a multiple of 512, to f.
//
// A regular file loses what it holds and gets the capacity's size; zeros stay
// holes. A block device must be at least as large as the disk and is
// overwritten with it, zeros included, but not behind it; Options.Whole must
// allow that. Whether the device is in use is not looked at here: open it
// with O_EXCL.
//
// Once ctx is cancelled, nothing more is written. Abort or Finish must be
// called to end the writer's goroutines. f is not closed.
func NewWriter(ctx context.Context, f *os.File, capacity int64, opts Options) (*Writer, error) {
	if err := image.ValidCapacity(capacity); err != nil {
		return nil, fmt.Errorf("write raw disk: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("write raw disk: %w", err)
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		// By way of zero, so that the file is one hole.
		if err := f.Truncate(0); err != nil {
			return nil, fmt.Errorf("write raw disk: empty the file: %w", err)
		}
		if err := f.Truncate(capacity); err != nil {
			return nil, fmt.Errorf("write raw disk: set the file's size to %d bytes: %w", capacity, err)
		}
		return newWriter(ctx, file{f}, capacity, true, opts), nil
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return nil, fmt.Errorf("write raw disk: find the size of the device: %w", err)
		}
		if err := allowDevice(size, capacity, opts); err != nil {
			return nil, fmt.Errorf("write raw disk to %s: %w", f.Name(), err)
		}
		return newWriter(ctx, file{f}, capacity, false, opts), nil
	default:
		return nil, fmt.Errorf("write raw disk: %s is neither a regular file nor a block device", f.Name())
	}
}

// Errors of NewWriter about a block device.
var (
	// ErrDevice means that Options.Whole does not allow to overwrite it.
	ErrDevice = errors.New("it is a block device, and overwriting one was not asked for")
	// ErrDeviceSize means that it is smaller than the disk.
	ErrDeviceSize = errors.New("block device is too small")
)

func allowDevice(size, capacity int64, opts Options) error {
	if !opts.Whole {
		return ErrDevice
	}
	if size < capacity {
		return fmt.Errorf("%w: it has %d bytes, the disk %d", ErrDeviceSize, size, capacity)
	}
	return nil
}

func newWriter(ctx context.Context, out target, capacity int64, sparse bool, opts Options) *Writer {
	return &Writer{
		out:      out,
		pool:     pool.New(ctx, out, pool.Options{Workers: opts.Workers, WriteZeros: !sparse}),
		capacity: capacity,
		sparse:   sparse,
		done:     ctx.Done(),
		cause:    func() error { return context.Cause(ctx) },
	}
}

// WriteExtent is image.Writer's.
func (w *Writer) WriteExtent(e image.Extent) error {
	if w.err != nil {
		return w.err
	}
	if err := w.extent(e); err != nil {
		w.err = fmt.Errorf("write raw disk: %w", err)
	}
	return w.err
}

func (w *Writer) extent(e image.Extent) error {
	if err := e.Check(w.end, w.capacity); err != nil {
		return err
	}
	if err := w.gap(w.end, e.Start); err != nil {
		return err
	}
	w.end = e.End()
	piece := pool.Piece{Task: pool.Store, At: e.Start, Extent: e}
	if e.Compressed {
		piece.Task, piece.Padded = pool.Inflate, w.end == w.capacity
		return w.pool.Put(piece, e.Data)
	}
	for data := e.Data; len(data) > 0; {
		n := int(min(holeUnit-piece.At%holeUnit, int64(len(data))))
		if !w.sparse || !pool.AllZero(data[:n]) {
			if err := w.pool.Put(piece, data[:n]); err != nil {
				return err
			}
		}
		piece.At += int64(n)
		data = data[n:]
	}
	return nil
}

const (
	// zeroStep is how much is zeroed in one call of the system, so that a
	// cancelled writer ends soon.
	zeroStep = 1 << 30
	// zeroWrite is how many zeros are written at once where that must be.
	zeroWrite = 256 << 10
)

// gap makes the bytes from from to to zeros.
func (w *Writer) gap(from, to int64) error {
	if w.sparse {
		return nil
	}
	for from < to && !w.byHand {
		select {
		case <-w.done:
			return w.cause()
		default:
		}
		n := min(to-from, zeroStep)
		err := w.out.zero(from, n)
		switch {
		case err == nil:
			from += n
		case errors.Is(err, errors.ErrUnsupported):
			w.byHand = true
		default:
			return fmt.Errorf("zero %d bytes at byte %d: %w", n, from, err)
		}
	}
	if from >= to {
		return nil
	}
	zeros := make([]byte, zeroWrite)
	for from < to {
		n := min(to-from, zeroWrite)
		if err := w.pool.Put(pool.Piece{Task: pool.Store, At: from}, zeros[:n]); err != nil {
			return err
		}
		from += n
	}
	return nil
}

// Finish is image.Writer's.
func (w *Writer) Finish(ctx context.Context) error {
	defer w.pool.Close()
	if w.err != nil {
		return w.err
	}
	err := w.gap(w.end, w.capacity)
	if err == nil {
		_, err = w.pool.Drain(ctx)
	}
	if err != nil {
		w.err = fmt.Errorf("write raw disk: %w", err)
		return w.err
	}
	w.err = fmt.Errorf("write raw disk: %w", image.ErrEnded)
	return nil
}

// Abort is image.Writer's.
func (w *Writer) Abort() error {
	w.pool.Close()
	if w.err == nil {
		w.err = fmt.Errorf("write raw disk: %w", image.ErrEnded)
	}
	return nil
}

// file is a target in the file system.
type file struct{ *os.File }
