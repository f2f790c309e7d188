package export

import (
	"context"
	"crypto/sha1" //nolint:gosec // the hash that lease manifests are made of
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
	"github.com/hyper2kvm/hyper2kvm/internal/output"
	"github.com/hyper2kvm/hyper2kvm/internal/stream"
)

// body is where the bytes of a stream go as they come. It belongs to one
// goroutine.
type body interface {
	io.Writer
	io.ReaderAt // at least the last stream.Overlap bytes
	// Size is how many bytes it has taken.
	Size() int64
	// Reader reads all of them again; nil when they are not kept.
	Reader() io.Reader
	// Reset drops them.
	Reset() error
	// Commit makes them durable and gives them their place.
	Commit() error
	// Close keeps them for a later run. It may be called again and after the
	// others.
	Close() error
	// Discard drops them for good.
	Discard() error
}

// download is a stream.Target: what becomes of a stream, with its hashes and,
// for a disk, its structure.
type download struct {
	task    *task
	body    body
	image   *conversion   // nil unless the disk becomes an image
	scanner *vmdk.Scanner // nil for files that are no disks
	sha256  hashState
	sha1    hashState // nil when not needed
	hashed  int64
	dropped bool  // Reset was called
	broken  error // the local failure that ended it
}

type hashState interface {
	io.Writer
	Sum([]byte) []byte
	Reset()
}

func newDownload(t *task, b body, c *conversion, withSHA1 bool) *download {
	d := &download{task: t, body: b, image: c, sha256: sha256.New()}
	if withSHA1 {
		d.sha1 = sha1.New() //nolint:gosec // see the import
	}
	d.restart()
	return d
}

func (d *download) restart() {
	if d.task.item.Role == output.RoleDisk {
		d.scanner = vmdk.NewScanner()
	}
	d.sha256.Reset()
	if d.sha1 == nil && d.task.distrusted {
		d.sha1 = sha1.New() //nolint:gosec // see the import
	}
	if d.sha1 != nil {
		d.sha1.Reset()
	}
	d.hashed = 0
}

// close ends the download. What an earlier run can continue is kept: the bytes
// of the stream, but no image, whose making cannot be taken up again.
func (d *download) close() error {
	err := d.body.Close()
	if d.image != nil {
		err = errors.Join(err, d.image.discard())
	}
	return err
}

// discard ends the download and keeps nothing.
func (d *download) discard() error {
	err := d.body.Discard()
	if d.image != nil {
		err = errors.Join(err, d.image.discard())
	}
	return err
}

// Write checks, hashes, stores and converts the next bytes. The hashes run
// beside the rest.
func (d *download) Write(p []byte) (int, error) {
	if err := d.scan(p); err != nil {
		return 0, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.hash(p)
	}()
	n, err := d.body.Write(p)
	if err != nil {
		d.broken = err
	} else {
		err = d.convert(p)
	}
	<-done
	if err != nil {
		return n, err
	}
	d.task.handle.Holds(d.Offset(), d.position())
	return n, nil
}

func (d *download) scan(p []byte) error {
	if d.scanner == nil {
		return nil
	}
	if _, err := d.scanner.Write(p); err != nil {
		return &stream.DamageError{Err: err}
	}
	if c := d.scanner.Capacity(); c > 0 {
		d.task.handle.SetCapacity(c)
	}
	return nil
}

// hash feeds both hashes; they take about as long as the write they run
// beside.
func (d *download) hash(p []byte) {
	_, _ = d.sha256.Write(p) // a hash never fails
	if d.sha1 != nil {
		_, _ = d.sha1.Write(p)
	}
	d.hashed += int64(len(p))
}

func (d *download) convert(p []byte) error {
	if d.image == nil {
		return nil
	}
	if _, err := d.image.Write(p); err != nil {
		return d.imageFailed(err)
	}
	return nil
}

// imageFailed tells a damaged stream from trouble on this side.
func (d *download) imageFailed(err error) error {
	if vmdk.IsDamage(err) {
		return &stream.DamageError{Err: err}
	}
	d.broken = d.image.partial.Wrote(err)
	return d.broken
}

func (d *download) position() int64 {
	if d.scanner != nil {
		return d.scanner.Position()
	}
	return d.body.Size()
}

// Offset is part of stream.Target.
func (d *download) Offset() int64 { return d.body.Size() }

// Tail is part of stream.Target.
func (d *download) Tail(p []byte) error {
	_, err := d.body.ReadAt(p, d.body.Size()-int64(len(p)))
	return err
}

// Reset is part of stream.Target.
func (d *download) Reset() error {
	d.restart()
	d.dropped = true
	d.task.handle.Holds(0, 0)
	if d.image != nil {
		d.image.stop()
	}
	if err := d.body.Reset(); err != nil {
		d.broken = err
		return err
	}
	return nil
}

// Finish is part of stream.Target.
func (d *download) Finish(size int64) error {
	held := d.Offset()
	if size >= 0 && held < size {
		return fmt.Errorf("%w: %d of %d bytes", stream.ErrShort, held, size)
	}
	if size >= 0 && held > size {
		return &stream.DamageError{Err: fmt.Errorf("%d bytes are held, the stream has %d", held, size)}
	}
	if want := d.task.item.Size; d.scanner == nil && want > 0 && held != want {
		if held < want {
			return fmt.Errorf("%w: %d of %d bytes", stream.ErrShort, held, want)
		}
		return &stream.DamageError{Err: fmt.Errorf("%d bytes are held, the lease says %d", held, want)}
	}
	if d.scanner == nil {
		return nil
	}
	switch err := d.scanner.Finish(); {
	case err == nil:
	case errors.Is(err, vmdk.ErrTruncated):
		return fmt.Errorf("%w: %w", stream.ErrShort, err)
	default:
		return &stream.DamageError{Err: err}
	}
	if d.image == nil {
		return nil
	}
	if err := d.image.finish(); err != nil {
		return d.imageFailed(err)
	}
	return nil
}

// replay feeds what an earlier run left through the hashes, the structure
// check and the conversion.
func (d *download) replay(ctx context.Context) error {
	return d.readBack(ctx, func(p []byte) error {
		if err := d.scan(p); err != nil {
			return err
		}
		d.hash(p)
		if err := d.convert(p); err != nil {
			return err
		}
		d.task.handle.Holds(d.hashed, d.position())
		return nil
	})
}

// sumSHA1 gives the SHA-1 of the stream, read back if it was not computed on
// the way; false when neither is possible.
func (d *download) sumSHA1(ctx context.Context) (sum string, ok bool, err error) {
	if d.sha1 == nil {
		if d.body.Reader() == nil {
			return "", false, nil
		}
		h := sha1.New() //nolint:gosec // see the import
		err := d.readBack(ctx, func(p []byte) error {
			_, err := h.Write(p)
			return err
		})
		if err != nil {
			return "", false, err
		}
		d.sha1 = h
	}
	return hex.EncodeToString(d.sha1.Sum(nil)), true, nil
}

// readBack hands all that is held to take, in order.
func (d *download) readBack(ctx context.Context, take func([]byte) error) error {
	buf := make([]byte, 1<<20)
	in := d.body.Reader()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := in.Read(buf)
		if terr := take(buf[:n]); terr != nil {
			return terr
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read it back: %w", err)
		}
	}
}

// tail is a body that keeps only what a continued stream is compared with.
type tail struct {
	size int64
	ring []byte // stream.Overlap bytes; byte i of the stream is at i modulo that
}

func newTail() *tail { return &tail{ring: make([]byte, stream.Overlap)} }

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	if skip := n - len(t.ring); skip > 0 {
		t.size += int64(skip)
		p = p[skip:]
	}
	for len(p) > 0 {
		k := copy(t.ring[t.size%int64(len(t.ring)):], p)
		t.size += int64(k)
		p = p[k:]
	}
	return n, nil
}

func (t *tail) ReadAt(p []byte, off int64) (int, error) {
	if off < max(0, t.size-int64(len(t.ring))) || off+int64(len(p)) > t.size {
		return 0, fmt.Errorf("%d bytes at %d are not kept of %d", len(p), off, t.size)
	}
	for n := 0; n < len(p); {
		at := (off + int64(n)) % int64(len(t.ring))
		n += copy(p[n:], t.ring[at:])
	}
	return len(p), nil
}

func (t *tail) Size() int64       { return t.size }
func (t *tail) Reader() io.Reader { return nil }
func (t *tail) Reset() error      { t.size = 0; return nil }
func (t *tail) Commit() error     { return nil }
func (t *tail) Close() error      { return nil }
func (t *tail) Discard() error    { return nil }
