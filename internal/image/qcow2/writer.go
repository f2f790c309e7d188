package qcow2

import (
	"context"
	"fmt"
	"io"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
	"github.com/hyper2kvm/hyper2kvm/internal/image/inflate"
	"github.com/hyper2kvm/hyper2kvm/internal/image/pool"
)

// Output is what an image is written to; *os.File is one. WriteAt is called
// by several goroutines at once, for parts that do not overlap. Each part is
// written once, but for gaps that are never written and must read as zeros.
type Output interface {
	io.WriterAt
	// Truncate sets the size; bytes added read as zeros.
	Truncate(size int64) error
}

// Options says how a Writer works. The zero value writes normal clusters.
type Options struct {
	// Compress keeps compressed grains compressed. It compresses nothing
	// itself: extents that come uncompressed are stored as they are.
	Compress bool
	// VerifyGrains inflates also what is kept compressed and checks its
	// Adler-32. Without it, of such a grain only the zlib header is looked at.
	VerifyGrains bool
	// Workers is how many goroutines inflate and write; 0 is one for each
	// processor, 8 at most.
	Workers int
}

// tiny is up to which length a deflate stream is inflated at once, to see
// whether it is all zeros: for a grain of zeros, zlib and compress/flate make
// 78 to 305 bytes at every level that compresses. It also keeps clusters from
// being so small that more of them share one than a reference count can hold.
const tiny = 320

// Writer writes one image. It is an image.Writer.
type Writer struct {
	out      Output
	pool     *pool.Pool
	opts     Options
	capacity int64
	err      error // stays

	end   int64 // of the extents taken
	alloc allocator
	l1    []uint64
	table []uint64 // second-level table being filled
	index int64    // which one

	// A cluster that extents cover in parts.
	cluster []byte
	number  int64 // -1 for none
	origin  image.Extent

	in   inflate.Inflater
	flat []byte
}

var _ image.Writer = (*Writer)(nil)

// NewWriter begins an image of a disk of capacity bytes, a multiple of 512.
// What out holds is dropped. Once ctx is cancelled, nothing more is written.
// Abort or Finish must be called to end the writer's goroutines.
func NewWriter(ctx context.Context, out Output, capacity int64, opts Options) (*Writer, error) {
	if err := image.ValidCapacity(capacity); err != nil {
		return nil, fmt.Errorf("write qcow2: %w", err)
	}
	// What is left of an earlier image must not look like a part of this one.
	if err := out.Truncate(0); err != nil {
		return nil, fmt.Errorf("write qcow2: empty the image: %w", err)
	}
	w := &Writer{
		out:      out,
		pool:     pool.New(ctx, out, pool.Options{Workers: opts.Workers}),
		opts:     opts,
		capacity: capacity,
		l1:       make([]uint64, (capacity+tableSpan-1)/tableSpan),
		table:    make([]uint64, tableEntries),
		cluster:  make([]byte, ClusterSize),
		number:   -1,
		flat:     make([]byte, ClusterSize),
	}
	w.alloc.whole(1) // the header
	return w, nil
}

// WriteExtent is image.Writer's. An extent that is compressed, covers exactly
// one cluster and is shorter than that stays compressed with
// Options.Compress; everything else becomes normal clusters.
func (w *Writer) WriteExtent(e image.Extent) error {
	if w.err != nil {
		return w.err
	}
	if err := w.extent(e); err != nil {
		w.err = fmt.Errorf("write qcow2: %w", err)
	}
	return w.err
}

func (w *Writer) extent(e image.Extent) error {
	if err := e.Check(w.end, w.capacity); err != nil {
		return err
	}
	w.end = e.End()
	if !e.Compressed {
		return w.plain(e, e.Data)
	}
	if e.Start&clusterMask == 0 && e.Length == ClusterSize {
		return w.grain(e)
	}
	if e.Length > int64(len(w.flat)) {
		w.flat = make([]byte, e.Length)
	}
	flat := w.flat[:e.Length]
	if err := pool.Expand(&w.in, flat, e.Data, e.End() == w.capacity); err != nil {
		return e.Bad(err)
	}
	return w.plain(e, flat)
}

// grain takes a compressed extent that is a cluster.
func (w *Writer) grain(e image.Extent) error {
	stream, sum, err := inflate.Unwrap(e.Data)
	if err != nil {
		return e.Bad(err)
	}
	padded := e.End() == w.capacity
	if len(stream) <= tiny {
		flat := w.flat[:ClusterSize]
		if err := pool.Expand(&w.in, flat, e.Data, padded); err != nil {
			return e.Bad(err)
		}
		if pool.AllZero(flat) {
			return nil
		}
	}
	number := e.Start >> clusterBits
	if err := w.reach(number); err != nil {
		return err
	}
	piece := pool.Piece{Extent: e, Adler: sum}
	size := int64(len(stream))
	if !w.opts.Compress || size >= ClusterSize {
		piece.Task, piece.At, piece.Padded = pool.Inflate, w.alloc.whole(1), padded
		w.table[number&(tableEntries-1)] = flagCopied | uint64(piece.At)
		return w.pool.Put(piece, e.Data)
	}
	piece.Task, piece.At = pool.Store, w.alloc.packed(size)
	if w.opts.VerifyGrains {
		piece.Task = pool.Verify
	}
	w.table[number&(tableEntries-1)] = compressedEntry(piece.At, size)
	return w.pool.Put(piece, stream)
}

// plain takes the uncompressed bytes of e.
func (w *Writer) plain(e image.Extent, data []byte) error {
	for at := e.Start; len(data) > 0; {
		number, from := at>>clusterBits, at&clusterMask
		n := min(ClusterSize-from, int64(len(data)))
		var err error
		if n == ClusterSize {
			err = w.store(number, e, data[:n])
		} else {
			if number != w.number {
				if err = w.flush(); err != nil {
					return err
				}
				clear(w.cluster)
				w.number, w.origin = number, e
			}
			copy(w.cluster[from:], data[:n])
		}
		if err != nil {
			return err
		}
		at += n
		data = data[n:]
	}
	return nil
}

// store takes a whole cluster of bytes.
func (w *Writer) store(number int64, e image.Extent, data []byte) error {
	if pool.AllZero(data) {
		return nil
	}
	if err := w.reach(number); err != nil {
		return err
	}
	at := w.alloc.whole(1)
	w.table[number&(tableEntries-1)] = flagCopied | uint64(at)
	return w.pool.Put(pool.Piece{Task: pool.Store, At: at, Extent: e}, data)
}

// flush stores the cluster that was covered in parts, if there is one.
func (w *Writer) flush() error {
	number := w.number
	if number < 0 {
		return nil
	}
	w.number = -1
	return w.store(number, w.origin, w.cluster)
}

// reach is called before cluster number gets its entry: everything below it
// is known then.
func (w *Writer) reach(number int64) error {
	if w.number >= 0 && w.number < number {
		if err := w.flush(); err != nil {
			return err
		}
	}
	index := number >> tableBits
	if index == w.index {
		return nil
	}
	// The pool has the writer's context.
	if err := w.endTable(context.Background()); err != nil {
		return err
	}
	w.index = index
	return nil
}

// endTable writes the current table of the second level, and the blocks of
// reference counts that are final.
func (w *Writer) endTable(ctx context.Context) error {
	zero, err := w.pool.Drain(ctx)
	if err != nil {
		return err
	}
	// Clusters found to be zeros leave a hole in the image.
	for _, p := range zero {
		w.table[p.Extent.Start>>clusterBits&(tableEntries-1)] = 0
		w.alloc.refer(p.At>>clusterBits, -1)
	}
	used := false
	for _, v := range w.table {
		used = used || v != 0
	}
	if used {
		at := w.alloc.whole(1)
		if err := w.write(putEntries(w.table), at); err != nil {
			return err
		}
		w.l1[w.index] = flagCopied | uint64(at)
		clear(w.table)
	}
	for {
		at, block, ok := w.alloc.settled()
		if !ok {
			return nil
		}
		if err := w.write(block, at); err != nil {
			return err
		}
	}
}

func (w *Writer) write(b []byte, at int64) error {
	if _, err := w.out.WriteAt(b, at); err != nil {
		return fmt.Errorf("write %d bytes at byte %d of the image: %w", len(b), at, err)
	}
	return nil
}

// Finish is image.Writer's.
func (w *Writer) Finish(ctx context.Context) error {
	defer w.pool.Close()
	if w.err != nil {
		return w.err
	}
	if err := w.finish(ctx); err != nil {
		w.err = fmt.Errorf("write qcow2: %w", err)
		return w.err
	}
	w.err = fmt.Errorf("write qcow2: %w", image.ErrEnded)
	return nil
}

func (w *Writer) finish(ctx context.Context) error {
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.endTable(ctx); err != nil {
		return err
	}
	l1 := putEntries(w.l1)
	h := header{size: w.capacity, l1Entries: len(w.l1)}
	h.l1Offset = w.alloc.whole(clusters(int64(len(l1))))
	if err := w.write(l1, h.l1Offset); err != nil {
		return err
	}
	next, table, tableClusters := w.alloc.close()
	for ; next < table; next += ClusterSize {
		at, block := w.alloc.takeBlock(next)
		if err := w.write(block, at); err != nil {
			return err
		}
	}
	if err := w.write(putEntries(w.alloc.written), table); err != nil {
		return err
	}
	if err := w.out.Truncate(w.alloc.next << clusterBits); err != nil {
		return fmt.Errorf("set the image's size: %w", err)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	h.refcountOffset, h.refcountClusters = table, tableClusters
	first := make([]byte, ClusterSize)
	h.put(first)
	return w.write(first, 0)
}

// Abort is image.Writer's.
func (w *Writer) Abort() error {
	w.pool.Close()
	if w.err == nil {
		w.err = fmt.Errorf("write qcow2: %w", image.ErrEnded)
	}
	return nil
}
