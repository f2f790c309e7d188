// Package pool inflates pieces of a disk and writes them to an output on all
// cores. It is the part that the writers of images have in common, and knows
// no format.
package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
	"github.com/hyper2kvm/hyper2kvm/internal/image/inflate"
)

// Task is what is done with the bytes of a piece.
type Task uint8

// The tasks.
const (
	// Store writes the bytes.
	Store Task = iota
	// Inflate takes the bytes as a zlib stream, checks it, and writes what it
	// inflates to, unless that is all zeros.
	Inflate
	// Verify takes the bytes as a deflate stream, inflates it to see that it
	// has Length bytes with the checksum Adler, and writes the stream.
	Verify
)

// Piece says what to do with some bytes.
type Piece struct {
	Task Task
	// At is where in the output they go, in bytes.
	At int64
	// Extent is where they come from. Of Data and Compressed no use is made.
	Extent image.Extent
	// Padded, for Inflate, allows zeros behind the Length bytes.
	Padded bool
	// Adler, for Verify, is the checksum of what the stream inflates to.
	Adler uint32
}

// Options says how a Pool works.
type Options struct {
	// Workers is how many goroutines it has; 0 is one for each processor, 8
	// at most.
	Workers int
	// WriteZeros writes zeros that a stream inflates to as well, for an
	// output that may hold something else.
	WriteZeros bool
}

// Batches are what goes to a worker at once. They bound the memory of a Pool:
// about batchBytes for each worker and two more, and spanBytes for each worker.
const (
	batchBytes = 256 << 10 // of input, from where on a batch is full
	spanBytes  = 512 << 10 // of output, likewise, and the largest single write
	maxWorkers = 8
)

// Pool writes pieces. New, Put, Drain and Close belong to one goroutine.
type Pool struct {
	out        io.WriterAt
	writeZeros bool
	done       <-chan struct{}
	cause      func() error

	current *batch
	batches int
	free    chan *batch
	work    chan *batch
	workers sync.WaitGroup
	closed  bool

	mu   sync.Mutex
	err  error // the first one
	zero []Piece
}

type batch struct {
	data   []byte
	pieces []entry
	span   int64 // bytes that the pieces may become
}

type entry struct {
	Piece
	from, to int // in data
}

// New starts a pool that writes to out. Close must be called to end its
// goroutines. Once ctx is cancelled, nothing more is written.
func New(ctx context.Context, out io.WriterAt, opts Options) *Pool {
	n := opts.Workers
	if n <= 0 {
		n = min(runtime.GOMAXPROCS(0), maxWorkers)
	}
	p := &Pool{
		out:        out,
		writeZeros: opts.WriteZeros,
		done:       ctx.Done(),
		cause:      func() error { return context.Cause(ctx) },
		batches:    n + 2, // one is being filled, one waits
		work:       make(chan *batch, 1),
	}
	p.free = make(chan *batch, p.batches)
	for range p.batches {
		p.free <- new(batch)
	}
	for range n {
		p.workers.Go(p.serve)
	}
	return p
}

// Put takes a piece and its bytes, which it copies; without any there is
// nothing to do. It waits while all batches are in work,
// and returns the first error any worker met.
func (p *Pool) Put(piece Piece, data []byte) error {
	piece.Extent.Data = nil // it is the caller's
	for len(data) > 0 {
		b, err := p.batch()
		if err != nil {
			return err
		}
		part := data
		if piece.Task == Store {
			part = data[:min(len(data), spanBytes)]
		}
		from := len(b.data)
		b.data = append(b.data, part...)
		b.pieces = append(b.pieces, entry{piece, from, len(b.data)})
		b.span += int64(len(part))
		if piece.Task == Inflate {
			b.span += piece.Extent.Length
		}
		if len(b.data) >= batchBytes || b.span >= spanBytes {
			if err := p.submit(); err != nil {
				return err
			}
		}
		data = data[len(part):]
		piece.At += int64(len(part))
	}
	return nil
}

// batch is the one being filled.
func (p *Pool) batch() (*batch, error) {
	if err := p.failed(); err != nil {
		return nil, err
	}
	if p.closed {
		return nil, image.ErrEnded
	}
	if p.current == nil {
		select {
		case p.current = <-p.free:
		case <-p.done:
			return nil, p.cause()
		}
	}
	return p.current, nil
}

// submit hands the current batch to the workers.
func (p *Pool) submit() error {
	select {
	case p.work <- p.current:
		p.current = nil
		return nil
	case <-p.done:
		return p.cause()
	}
}

// Drain waits until everything taken is written, and returns the pieces that
// were not because they inflated to zeros, in no order. An error is the first
// any worker met, or the cause of ctx or of the pool's own context.
func (p *Pool) Drain(ctx context.Context) (zero []Piece, err error) {
	if err := p.failed(); err != nil {
		return nil, err
	}
	if p.closed {
		return nil, image.ErrEnded
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx) // else chance would decide below
	}
	var idle []*batch
	defer func() {
		for _, b := range idle {
			p.free <- b // there is room for all batches
		}
	}()
	if p.current != nil {
		if err := p.submit(); err != nil {
			return nil, err
		}
	}
	for len(idle) < p.batches {
		select {
		case b := <-p.free:
			idle = append(idle, b)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-p.done:
			return nil, p.cause()
		}
	}
	if err := p.failed(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	zero, p.zero = p.zero, nil
	return zero, nil
}

// Close ends the workers and waits for them: at most for the batches they
// have, of which no further piece is begun. What was not drained may not be
// written. It may be called again.
func (p *Pool) Close() {
	if p.closed {
		return
	}
	p.closed = true
	p.fail(image.ErrEnded)
	close(p.work)
	p.workers.Wait()
}

// fail keeps the first error.
func (p *Pool) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
}

func (p *Pool) failed() error {
	select {
	case <-p.done:
		return p.cause()
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// skipped notes a piece that inflated to zeros.
func (p *Pool) skipped(piece Piece) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.zero = append(p.zero, piece)
}

// serve is one worker.
func (p *Pool) serve() {
	w := worker{pool: p}
	for b := range p.work {
		if err := w.batch(b); err != nil {
			p.fail(err)
		}
		b.data, b.pieces, b.span = b.data[:0], b.pieces[:0], 0
		p.free <- b // there is room for all batches
	}
}

// worker has the buffers of one goroutine.
type worker struct {
	pool  *Pool
	in    inflate.Inflater
	out   []byte // what a batch inflates to
	check []byte // what is inflated only to be checked
}

// run is bytes to be written in one go: those from from to to of src.
type run struct {
	src      []byte
	from, to int
	at       int64
	inflated bool // src is worker.out
}

// continues reports whether r goes on with next, in memory and in the output.
func (r run) continues(next run) bool {
	n := r.to - r.from
	return n > 0 && next.inflated == r.inflated && next.from == r.to && next.at == r.at+int64(n)
}

// batch does what b's pieces ask for. Pieces that follow each other both in
// the output and in memory are written together.
func (w *worker) batch(b *batch) error {
	var room int64
	for i := range b.pieces {
		if b.pieces[i].Task == Inflate {
			room += b.pieces[i].Extent.Length
		}
	}
	if room > int64(len(w.out)) {
		w.out = make([]byte, max(room, spanBytes))
	}
	used := 0 // of w.out
	var pending run
	for i := range b.pieces {
		if err := w.pool.failed(); err != nil {
			return err
		}
		e := &b.pieces[i]
		next := run{b.data, e.from, e.to, e.At, false}
		switch e.Task {
		case Inflate:
			next = run{w.out, used, used + int(e.Extent.Length), e.At, true}
			dst := w.out[next.from:next.to]
			if err := Expand(&w.in, dst, b.data[e.from:e.to], e.Padded); err != nil {
				return e.Extent.Bad(err)
			}
			if !w.pool.writeZeros && AllZero(dst) {
				w.pool.skipped(e.Piece)
				continue
			}
			used = next.to
		case Verify:
			if err := w.verify(e.Extent.Length, b.data[e.from:e.to], e.Adler); err != nil {
				return e.Extent.Bad(err)
			}
		case Store:
		}
		if pending.continues(next) {
			pending.to = next.to
			continue
		}
		if err := w.write(pending); err != nil {
			return err
		}
		pending = next
	}
	return w.write(pending)
}

func (w *worker) write(r run) error {
	if r.from == r.to {
		return nil
	}
	if err := w.pool.failed(); err != nil {
		return err
	}
	if _, err := w.pool.out.WriteAt(r.src[r.from:r.to], r.at); err != nil {
		return fmt.Errorf("write %d bytes at byte %d of the image: %w", r.to-r.from, r.at, err)
	}
	return nil
}

// verify inflates a deflate stream, which must have length bytes, and checks
// the sum.
func (w *worker) verify(length int64, data []byte, adler uint32) error {
	if length > int64(len(w.check)) {
		w.check = make([]byte, length)
	}
	dst := w.check[:length]
	n, used, err := w.in.Inflate(dst, data)
	switch {
	case err != nil:
		return err
	case n != len(dst):
		return fmt.Errorf("it inflates to %d bytes, want %d", n, len(dst))
	case used != len(data):
		return &inflate.Error{Err: inflate.ErrTrailing, Offset: used, Written: n}
	}
	if got := inflate.Adler32(dst); got != adler {
		return &inflate.Error{Err: inflate.ErrChecksum, Offset: used, Written: n, What: fmt.Sprintf("want %08x, got %08x", adler, got)}
	}
	return nil
}

// Expand inflates the zlib stream data, which must fill dst. With padded it
// may go on with zeros, up to image.MaxGrain bytes in all.
func Expand(in *inflate.Inflater, dst, data []byte, padded bool) error {
	n, err := in.Zlib(dst, data)
	if padded && errors.Is(err, inflate.ErrTooLong) {
		all := make([]byte, image.MaxGrain)
		if n, err = in.Zlib(all, data); err == nil && AllZero(all[len(dst):n]) {
			copy(dst, all)
			return nil
		}
	}
	if err != nil {
		return err
	}
	if n != len(dst) {
		return fmt.Errorf("it inflates to %d bytes, want %d", n, len(dst))
	}
	return nil
}

var zeros [4 << 10]byte

// AllZero reports whether p holds zeros only.
func AllZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
