package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
	"github.com/hyper2kvm/hyper2kvm/internal/image/qcow2"
	"github.com/hyper2kvm/hyper2kvm/internal/image/raw"
	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
	"github.com/hyper2kvm/hyper2kvm/internal/output"
)

// conversion makes an image of a stream while that passes. Its methods belong
// to one goroutine; another one, which it owns, decodes.
type conversion struct {
	ctx     context.Context //nolint:containedctx // the life of the goroutine that Write starts
	partial *output.Partial
	open    func(ctx context.Context, f *os.File, capacity int64) (image.Writer, error)
	checked func() bool // whether every grain is inflated and checked as it is written

	pipe *io.PipeWriter // nil while nothing runs
	done chan struct{}
	err  error // of what ran, once done is closed
}

var errStopped = errors.New("conversion stopped")

// conversion makes the plan's image of a stream in partial. Verify is asked
// whether each grain has to be inflated and checked even where it could stay as
// it is, whenever a stream begins.
func (p Plan) conversion(ctx context.Context, partial *output.Partial, verify func() bool) *conversion {
	c := &conversion{ctx: ctx, partial: partial, checked: func() bool { return p.Format == Raw || !p.Compress || verify() }}
	c.open = func(ctx context.Context, f *os.File, capacity int64) (image.Writer, error) {
		if p.Format == Raw {
			return raw.NewWriter(ctx, f, capacity, raw.Options{})
		}
		return qcow2.NewWriter(ctx, f, capacity, qcow2.Options{Compress: p.Compress, VerifyGrains: verify()})
	}
	return c
}

func (c *conversion) Write(p []byte) (int, error) {
	if c.pipe == nil {
		r, w := io.Pipe()
		c.pipe, c.done = w, make(chan struct{})
		go func() {
			defer close(c.done)
			c.err = c.run(r)
			// Ends a Write that waits, and those that follow.
			_ = r.CloseWithError(c.err) // never fails
		}()
	}
	return c.pipe.Write(p)
}

func (c *conversion) run(r io.Reader) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("internal error: %v\n%s", v, debug.Stack())
		}
	}()
	d := vmdk.NewDecoder(r)
	capacity, err := d.Capacity()
	if err != nil {
		return err
	}
	w, err := c.open(c.ctx, c.partial.File(), capacity)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	if err := image.Copy(c.ctx, w, d, nil); err != nil {
		return err
	}
	return w.Finish(c.ctx)
}

// finish waits until the image of a stream that has ended is whole.
func (c *conversion) finish() error {
	if c.pipe == nil {
		return errStopped
	}
	err := c.pipe.Close()
	<-c.done
	c.pipe = nil
	return errors.Join(err, c.err)
}

// stop drops what was made. The next Write begins anew.
func (c *conversion) stop() {
	if c.pipe == nil {
		return
	}
	_ = c.pipe.CloseWithError(errStopped) // never fails
	<-c.done
	c.pipe = nil
}

// discard stops and removes the image, unless it has its name already.
func (c *conversion) discard() error {
	c.stop()
	return c.partial.Discard()
}
