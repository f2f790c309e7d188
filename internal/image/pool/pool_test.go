package pool

import (
	"bytes"
	"compress/zlib"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
	"github.com/hyper2kvm/hyper2kvm/internal/image/inflate"
	"github.com/hyper2kvm/hyper2kvm/internal/image/qemutest"
)

const grain = 64 << 10

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is an output that counts its writes. It waits for gate, if there is
// one, before each.
type memory struct {
	mu     sync.Mutex
	data   []byte
	writes int
	gate   chan struct{}
	begun  chan struct{}
}

func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	if m.gate != nil {
		select {
		case m.begun <- struct{}{}:
		default:
		}
		<-m.gate
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	return copy(m.data[off:], b), nil
}

func TestTasks(t *testing.T) {
	t.Parallel()
	for _, writeZeros := range []bool{false, true} {
		junk := bytes.Repeat([]byte{0xaa}, 8*grain)
		m := &memory{data: bytes.Clone(junk)}
		p := New(t.Context(), m, Options{Workers: 2, WriteZeros: writeZeros})
		defer p.Close()
		text, noise := qemutest.Text(1, grain), qemutest.Random(1, 3*grain)
		packed := qemutest.Deflated(t, text, zlib.DefaultCompression)
		stream, sum, err := inflate.Unwrap(packed)
		if err != nil {
			t.Fatal(err)
		}
		at := func(i int64) image.Extent { return image.Extent{Start: i * grain, Length: grain} }
		short := image.Extent{Start: 6 * grain, Length: 100}
		for _, c := range []struct {
			piece Piece
			data  []byte
		}{
			{Piece{Task: Store, At: 0, Extent: at(0)}, noise},
			{Piece{Task: Inflate, At: 3 * grain, Extent: at(3)}, packed},
			{Piece{Task: Inflate, At: 4 * grain, Extent: at(4)}, qemutest.Deflated(t, make([]byte, grain), zlib.DefaultCompression)},
			{Piece{Task: Verify, At: 5 * grain, Extent: at(5), Adler: sum}, stream},
			{Piece{Task: Inflate, At: 6 * grain, Extent: short, Padded: true}, qemutest.Deflated(t, append(bytes.Clone(text[:100]), make([]byte, 900)...), zlib.DefaultCompression)},
			{Piece{Task: Store, At: 7 * grain}, nil},
		} {
			if err := p.Put(c.piece, c.data); err != nil {
				t.Fatal(err)
			}
		}
		zero, err := p.Drain(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(junk)
		copy(want, noise)
		copy(want[3*grain:], text)
		if writeZeros {
			clear(want[4*grain : 5*grain])
		}
		copy(want[5*grain:], stream)
		copy(want[6*grain:], text[:100])
		if !bytes.Equal(m.data, want) {
			t.Errorf("zeros %v: the output differs", writeZeros)
		}
		if writeZeros && len(zero) != 0 || !writeZeros && (len(zero) != 1 || zero[0].Extent.Start != 4*grain) {
			t.Errorf("zeros %v: drained %+v", writeZeros, zero)
		}
		if zero, err = p.Drain(t.Context()); len(zero) != 0 || err != nil {
			t.Errorf("zeros %v: drained %+v again, error %v", writeZeros, zero, err)
		}
	}
}

// TestFewWrites: neighbours are written together.
func TestFewWrites(t *testing.T) {
	t.Parallel()
	m := &memory{data: make([]byte, 64*grain)}
	p := New(t.Context(), m, Options{})
	defer p.Close()
	packed := qemutest.Deflated(t, qemutest.Text(1, grain), zlib.DefaultCompression)
	for i := range int64(64) {
		if err := p.Put(Piece{Task: Inflate, At: i * grain, Extent: image.Extent{Start: i * grain, Length: grain}}, packed); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.writes > 64*grain/(spanBytes/2) {
		t.Errorf("%d writes for 64 grains", m.writes)
	}
}

func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	text := qemutest.Text(1, grain)
	stream, sum, err := inflate.Unwrap(qemutest.Deflated(t, text, zlib.DefaultCompression))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		length int64
		data   []byte
		adler  uint32
		is     error
	}{
		"sum":      {grain, stream, sum + 1, inflate.ErrChecksum},
		"cut":      {grain, stream[:1000], sum, inflate.ErrTruncated},
		"trailing": {grain, append(bytes.Clone(stream), 0), sum, inflate.ErrTrailing},
		"long":     {grain - 1, stream, sum, inflate.ErrTooLong},
		"short":    {grain + 1, stream, sum, nil},
	} {
		m := &memory{data: make([]byte, 2*grain)}
		p := New(t.Context(), m, Options{Workers: 1})
		if err := p.Put(Piece{Task: Verify, Extent: image.Extent{Start: 512, Length: c.length, StreamOffset: 7}, Adler: c.adler}, c.data); err != nil {
			t.Fatal(err)
		}
		_, err := p.Drain(t.Context())
		if e, ok := errors.AsType[*image.ExtentError](err); !ok || e.Start != 512 || e.StreamOffset != 7 || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: got error %v, want %v", name, err, c.is)
		}
		if m.writes != 0 {
			t.Errorf("%s: it was written", name)
		}
		p.Close()
		p.Close()
	}
}

// TestCancel: neither a full pool nor a drain outlives its context.
func TestCancel(t *testing.T) {
	t.Parallel()
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	m := &memory{data: make([]byte, 64<<20), gate: make(chan struct{}), begun: make(chan struct{}, 1)}
	p := New(ctx, m, Options{Workers: 1})
	go func() {
		<-m.begun
		cancel(why)
	}()
	var err error
	for at := int64(0); err == nil; at += spanBytes {
		err = p.Put(Piece{At: at % (60 << 20)}, make([]byte, spanBytes))
	}
	if !errors.Is(err, why) {
		t.Errorf("got error %v, want %v", err, why)
	}
	if _, err := p.Drain(t.Context()); !errors.Is(err, why) {
		t.Errorf("got error %v, want %v", err, why)
	}
	close(m.gate)
	p.Close()
	if m.writes > 1 {
		t.Errorf("%d writes after it was cancelled", m.writes)
	}

	// A drain has a context of its own.
	m = &memory{data: make([]byte, grain), gate: make(chan struct{})}
	p = New(t.Context(), m, Options{Workers: 1})
	if err := p.Put(Piece{}, []byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Drain(ctx); !errors.Is(err, why) {
		t.Errorf("got error %v, want %v", err, why)
	}
	close(m.gate)
	if _, err := p.Drain(t.Context()); err != nil || m.data[0] != 1 {
		t.Errorf("after a drain that was cancelled: error %v", err)
	}
	p.Close()
	if err := p.Put(Piece{}, []byte{1}); !errors.Is(err, image.ErrEnded) {
		t.Errorf("got error %v, want %v", err, image.ErrEnded)
	}
	if _, err := p.Drain(t.Context()); !errors.Is(err, image.ErrEnded) {
		t.Errorf("got error %v, want %v", err, image.ErrEnded)
	}
}

func TestAllZero(t *testing.T) {
	t.Parallel()
	b := make([]byte, 10000)
	for n := range b {
		if n%97 == 0 && !AllZero(b[:n]) {
			t.Errorf("%d zeros are none", n)
		}
	}
	for i := range b {
		b[i] = 1
		if AllZero(b) {
			t.Errorf("byte %d was not seen", i)
		}
		b[i] = 0
	}
}

var _ io.WriterAt = (*memory)(nil)
