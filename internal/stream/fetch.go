package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

const (
	// maxRetryAfter bounds what a server may ask for: a lease lives only as
	// long as somebody holds it.
	maxRetryAfter = 10 * time.Minute
	// Overlap is how much of what is held is read again to prove that a
	// continued stream is the same one. A grain is at most 64 KiB, so this
	// covers several grains with their positions; what is not stored has so
	// much of itself in memory, where it should stay in the processor's cache.
	Overlap = 256 << 10
	// bufferSize is the unit in which a stream is taken. It is small enough to
	// be checked, hashed and written while it is in the processor's cache;
	// 1 MiB cost a tenth more.
	bufferSize = 256 << 10
)

// Target takes the bytes of a stream in order. Its methods are called by one
// goroutine.
type Target interface {
	// Write takes the next bytes. An error other than a *DamageError ends
	// the transfer: the trouble is on this side.
	Write(p []byte) (int, error)
	// Offset is how many bytes of the stream are held.
	Offset() int64
	// Tail reads the last len(p) bytes held.
	Tail(p []byte) error
	// Reset drops all bytes held.
	Reset() error
	// Finish says whether the bytes held are a whole stream; nil when they
	// are. It is asked at a clean end of the body, with the size that the
	// server announced, -1 when it announced none.
	Finish(size int64) error
}

// DamageError says that the bytes received are not what the stream should
// hold. The stream is dropped and taken again.
type DamageError struct{ Err error }

func (e *DamageError) Error() string { return "damaged stream: " + e.Err.Error() }

// Unwrap gives the cause.
func (e *DamageError) Unwrap() error { return e.Err }

// ErrShort says that a stream ended before it was whole. The bytes held are
// good and can be continued.
var ErrShort = errors.New("the stream ended early")

// ErrEmpty says that the host answered with an empty body.
var ErrEmpty = errors.New("the host answered with an empty stream")

// ErrStalled says that no byte came for the stall timeout.
var ErrStalled = errors.New("no data from the host")

// PermanentError is a failure that trying again cannot mend.
type PermanentError struct{ Err error }

func (e *PermanentError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *PermanentError) Unwrap() error { return e.Err }

// Retry describes an attempt that failed and the one that follows.
type Retry struct {
	Attempt int   // number of the attempt that follows; the first of all is 1
	Offset  int64 // bytes held
	Err     error // why the last attempt ended
	Wait    time.Duration
}

// Options tune a Fetch. The zero value of a field takes the default.
type Options struct {
	Attempts     int           // attempts in a row that bring nothing new before giving up; default 3
	Base         time.Duration // first wait, doubled each time; default 1 s
	Max          time.Duration // longest wait; default 30 s
	StallTimeout time.Duration // longest wait for a byte; default 60 s
	OnRetry      func(Retry)   // hears of every retry before its wait
	OnRead       func(n int)   // hears of every n bytes taken from the network
	OnReset      func()        // hears that the bytes held were dropped
	// Pace is asked after every n bytes taken whether more may be, and waits
	// until then: this side's wish to go slowly is no stall of the host. Its
	// error ends the transfer.
	Pace func(ctx context.Context, n int) error
}

func (o Options) withDefaults() Options {
	if o.Attempts <= 0 {
		o.Attempts = 3
	}
	if o.Base <= 0 {
		o.Base = time.Second
	}
	if o.Max <= 0 {
		o.Max = 30 * time.Second
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = time.Minute
	}
	if o.OnRetry == nil {
		o.OnRetry = func(Retry) {}
	}
	if o.OnRead == nil {
		o.OnRead = func(int) {}
	}
	if o.OnReset == nil {
		o.OnReset = func() {}
	}
	if o.Pace == nil {
		o.Pace = func(context.Context, int) error { return nil }
	}
	return o
}

// Supplier gives the Source for the next attempt. last is why the attempt
// before it ended, nil for the first. Its error ends the transfer.
type Supplier func(ctx context.Context, last error) (Source, error)

// Fetch takes a whole stream into target, which may hold a part of it from
// before. When an attempt ends early the next one continues by a range
// request, but only after the last bytes held have been read again and found
// the same; a server that ignores ranges, or whose bytes differ, is taken from
// the beginning. It gives up after Options.Attempts attempts in a row that
// did not get further than the furthest before them, or that brought damaged
// bytes, and at once on a
// *PermanentError, on a status that will not change, on an error of the
// target, and when ctx ends.
func Fetch(ctx context.Context, supply Supplier, target Target, opts Options) error {
	opts = opts.withDefaults()
	f := fetcher{target: target, opts: opts, furthest: target.Offset()}
	var last error
	fruitless := 0
	for attempt := 1; ; attempt++ {
		before := f.furthest
		src, err := supply(ctx, last)
		if err == nil {
			err = f.attempt(ctx, src)
			if err == nil {
				return nil
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !retryable(err) {
			return err
		}
		if _, damaged := errors.AsType[*DamageError](err); f.furthest > before && !damaged {
			fruitless = 0
		} else {
			fruitless++
		}
		if fruitless >= opts.Attempts {
			return fmt.Errorf("gave up after %d attempts without progress at byte %d: %w", fruitless, target.Offset(), err)
		}
		wait := opts.wait(fruitless, err)
		opts.OnRetry(Retry{Attempt: attempt + 1, Offset: target.Offset(), Err: err, Wait: wait})
		if err := sleep(ctx, wait); err != nil {
			return err
		}
		last = err
	}
}

type fetcher struct {
	target   Target
	opts     Options
	furthest int64
	buf      []byte
}

// attempt opens the source once and takes what it gives.
func (f *fetcher) attempt(ctx context.Context, src Source) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := newStallWatch(f.opts.StallTimeout, cancel)
	defer watch.stop()

	held := f.target.Offset()
	from := max(0, held-Overlap)
	watch.start()
	body, err := src.Open(ctx, from)
	watch.stop()
	if errors.Is(err, ErrRange) {
		// The server's ranges are of no use; the next attempt asks for all.
		if rerr := f.reset(); rerr != nil {
			return rerr
		}
		return stalledOr(ctx, err)
	}
	if err != nil {
		return stalledOr(ctx, err)
	}
	defer body.Close()
	if f.buf == nil {
		f.buf = make([]byte, bufferSize)
	}
	switch {
	case held == 0:
	case body.Offset == 0 && from > 0:
		// The whole stream again: nothing says that it is the same one, so
		// what is held is of no more use.
		if err := f.reset(); err != nil {
			return err
		}
	default:
		if err := f.proveOverlap(ctx, watch, body, int(held-from)); err != nil {
			return err
		}
	}
	return f.take(ctx, watch, body)
}

// proveOverlap reads the last n bytes held again and compares them.
func (f *fetcher) proveOverlap(ctx context.Context, watch *stallWatch, body *Body, n int) error {
	have := make([]byte, n)
	if err := f.target.Tail(have); err != nil {
		return &PermanentError{fmt.Errorf("read back what is held: %w", err)}
	}
	for at := 0; at < n; {
		k, err := f.read(body, f.buf[:min(len(f.buf), n-at)], watch)
		if !bytes.Equal(f.buf[:k], have[at:at+k]) {
			if rerr := f.reset(); rerr != nil {
				return rerr
			}
			return errors.New("the host sends other bytes than before; starting again")
		}
		at += k
		if err != nil && at < n {
			if err == io.EOF {
				err = ErrShort
			}
			return stalledOr(ctx, err)
		}
		if err := f.pace(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

func (f *fetcher) take(ctx context.Context, watch *stallWatch, body *Body) error {
	for {
		n, err := f.read(body, f.buf, watch)
		if n > 0 {
			if _, werr := f.target.Write(f.buf[:n]); werr != nil {
				return f.writeFailed(werr)
			}
			f.furthest = max(f.furthest, f.target.Offset())
			if perr := f.pace(ctx, n); perr != nil {
				return perr
			}
		}
		switch {
		case err == nil:
		case err != io.EOF:
			return stalledOr(ctx, err)
		case f.target.Offset() == 0 && body.Size != 0:
			return ErrEmpty
		default:
			ferr := f.target.Finish(body.Size)
			if ferr == nil || errors.Is(ferr, ErrShort) {
				return ferr
			}
			return f.writeFailed(ferr)
		}
	}
}

// pace waits outside the stall watch.
func (f *fetcher) pace(ctx context.Context, n int) error {
	if err := f.opts.Pace(ctx, n); err != nil {
		return &PermanentError{fmt.Errorf("wait for bandwidth: %w", err)}
	}
	return nil
}

// writeFailed drops a damaged stream; any other error of the target is final.
func (f *fetcher) writeFailed(err error) error {
	if _, damaged := errors.AsType[*DamageError](err); damaged {
		if rerr := f.reset(); rerr != nil {
			return rerr
		}
		return err
	}
	return &PermanentError{err}
}

// reset is for a target of no bytes too: it may have seen some and refused
// them.
func (f *fetcher) reset() error {
	held := f.target.Offset() > 0
	if err := f.target.Reset(); err != nil {
		return &PermanentError{fmt.Errorf("drop what is held: %w", err)}
	}
	if held {
		f.opts.OnReset()
	}
	return nil
}

// read fills buf unless the stream ends or breaks before. The stall watch runs
// only here: a slow disk on this side is no stall of the host.
func (f *fetcher) read(r io.Reader, buf []byte, watch *stallWatch) (int, error) {
	defer watch.stop()
	n := 0
	for n < len(buf) {
		watch.start()
		k, err := r.Read(buf[n:])
		n += k
		f.opts.OnRead(k)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// stalledOr names the stall when it was the stall watch that cut the
// connection.
func stalledOr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && errors.Is(cause, ErrStalled) {
		return cause
	}
	return err
}

func retryable(err error) bool {
	if _, ok := errors.AsType[*PermanentError](err); ok {
		return false
	}
	if s, ok := errors.AsType[*StatusError](err); ok {
		return s.Temporary()
	}
	return true
}

// wait is the pause before the next attempt: exponential with full jitter in
// its upper half, or what the server asked for when that is longer.
func (o Options) wait(fruitless int, err error) time.Duration {
	d := o.Base
	for range fruitless {
		if d >= o.Max {
			break
		}
		d *= 2
	}
	d = min(d, o.Max)
	d = d/2 + rand.N(d/2+1) //nolint:gosec // jitter is no secret
	if s, ok := errors.AsType[*StatusError](err); ok {
		d = max(d, s.RetryAfter)
	}
	return d
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// stallWatch cancels an attempt when it has been running for its timeout.
type stallWatch struct {
	timeout time.Duration
	timer   *time.Timer
}

func newStallWatch(timeout time.Duration, cancel context.CancelCauseFunc) *stallWatch {
	w := &stallWatch{timeout: timeout, timer: time.AfterFunc(timeout, func() {
		cancel(fmt.Errorf("%w for %s", ErrStalled, timeout))
	})}
	w.stop()
	return w
}

func (w *stallWatch) start() { w.timer.Reset(w.timeout) }
func (w *stallWatch) stop()  { w.timer.Stop() }
