package raw

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
	"github.com/hyper2kvm/hyper2kvm/internal/image/inflate"
	"github.com/hyper2kvm/hyper2kvm/internal/image/qemutest"
	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdktest"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// transfer sends the grains of a VMDK stream to w.
func transfer(ctx context.Context, r io.Reader, w image.Writer) error {
	if err := image.Copy(ctx, w, vmdk.NewDecoder(r), nil); err != nil {
		return err
	}
	return w.Finish(ctx)
}

// used is how much of a file is allocated, in bytes.
func used(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Skip("this system does not tell what a file has allocated")
	}
	return st.Blocks * 512
}

func TestFile(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]*qemutest.Disk{
		"empty":          {Capacity: 8 * mib},
		"one sector":     {Capacity: 512, Pieces: []qemutest.Piece{{Off: 0, Data: qemutest.Random(1, 512)}}},
		"short last":     {Capacity: mib + 512, Pieces: []qemutest.Piece{{Off: 0, Data: qemutest.Text(3, 10)}, {Off: mib, Data: qemutest.Random(3, 512)}}},
		"incompressible": {Capacity: 3*mib + 4*kib, Pieces: []qemutest.Piece{{Off: 0, Data: qemutest.Random(4, 3*mib+4*kib)}}},
		"mixed":          {Capacity: 10 * mib, Pieces: []qemutest.Piece{{Off: 12345, Data: qemutest.Mixed(6, 5*mib)}}},
		"sparse 2 TiB": {Capacity: 2 * tib, Pieces: []qemutest.Piece{
			{Off: 0, Data: qemutest.Text(9, 100*kib)}, {Off: tib + 12345, Data: qemutest.Text(10, kib)}, {Off: 2*tib - 512, Data: qemutest.Random(11, 512)}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := d.Raw(t)
			streams := map[string][]byte{"level 0": vmdktest.Stream(t, d, 0), "level 6": vmdktest.Stream(t, d, 6)}
			var err error
			if streams["qemu"], err = os.ReadFile(qemutest.Convert(t, "raw", want, "vmdk", "-o", "subformat=streamOptimized")); err != nil {
				t.Fatal(err)
			}
			for stream, data := range streams {
				path := filepath.Join(t.TempDir(), "out.raw")
				// What an earlier run left must not show in the holes.
				if err := os.WriteFile(path, qemutest.Random(9, 2*mib), 0o600); err != nil {
					t.Fatal(err)
				}
				f, err := os.OpenFile(path, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				w, err := NewWriter(t.Context(), f, d.Capacity, Options{Workers: 1 + len(stream)%3})
				if err != nil {
					t.Fatal(err)
				}
				defer w.Abort()
				if err := transfer(t.Context(), bytes.NewReader(data), w); err != nil {
					t.Fatalf("%s: %v", stream, err)
				}
				qemutest.Compare(t, "raw", path, "raw", want)
				if n, most := used(t, path), used(t, want)+int64(len(d.Pieces)+1)*128*kib; n > most {
					t.Errorf("%s: the file takes %d bytes, want %d at most", stream, n, most)
				}
			}
		})
	}
}

// memory is a target with something in it.
type memory struct {
	mu     sync.Mutex
	data   []byte
	zeroed int64 // bytes zeroed without writing
	err    error // of zero
	full   int64 // where writing fails, if not 0
}

func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.full > 0 && off+int64(len(b)) > m.full {
		return 0, syscall.ENOSPC
	}
	return copy(m.data[off:], b), nil
}

func (m *memory) zero(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	clear(m.data[off : off+n])
	m.zeroed += n
	return nil
}

// TestDevice: everything up to the capacity is overwritten, zeros included,
// and nothing behind it.
func TestDevice(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 1))
		d := &qemutest.Disk{Capacity: 512 * (1 + r.Int64N(8000))}
		m := &memory{data: qemutest.Random(seed, int(d.Capacity)+5000)}
		before := bytes.Clone(m.data)
		if seed%2 == 0 {
			m.err = errors.ErrUnsupported
		}
		w := newWriter(t.Context(), m, d.Capacity, false, Options{})
		for at := r.Int64N(500 * kib); at < d.Capacity; at += r.Int64N(500 * kib) {
			n := min(1+r.Int64N(100*kib), d.Capacity-at)
			data := qemutest.Mixed(r.Uint64(), int(n))
			if r.IntN(3) == 0 {
				clear(data)
			}
			d.Pieces = append(d.Pieces, qemutest.Piece{Off: at, Data: data})
			e := image.Extent{Start: at, Length: n, Data: data}
			if r.IntN(2) == 0 {
				e.Compressed, e.Data = true, qemutest.Deflated(t, data, 1)
			}
			if err := w.WriteExtent(e); err != nil {
				t.Fatal(err)
			}
			at += n
		}
		if err := w.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, d.Capacity)
		if _, err := d.ReadAt(want, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(m.data[:d.Capacity], want) {
			t.Errorf("seed %d: the device differs", seed)
		}
		if !bytes.Equal(m.data[d.Capacity:], before[d.Capacity:]) {
			t.Errorf("seed %d: something was written behind the disk", seed)
		}
		if (m.zeroed > 0) != (m.err == nil) {
			t.Errorf("seed %d: %d bytes were zeroed with error %v", seed, m.zeroed, m.err)
		}
	}
	m := &memory{data: make([]byte, mib), err: syscall.EIO}
	if err := newWriter(t.Context(), m, mib, false, Options{}).Finish(t.Context()); !errors.Is(err, syscall.EIO) {
		t.Errorf("got error %v, want %v", err, syscall.EIO)
	}
}

func TestAllowDevice(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		size int64
		opts Options
		want error
	}{
		{gib, Options{}, ErrDevice},
		{gib, Options{Whole: true}, nil},
		{gib + 512, Options{Whole: true}, nil},
		{gib - 512, Options{Whole: true}, ErrDeviceSize},
	} {
		if err := allowDevice(c.size, gib, c.opts); !errors.Is(err, c.want) {
			t.Errorf("device of %d bytes with %+v: got error %v, want %v", c.size, c.opts, err, c.want)
		}
	}
}

// TestLoopDevice writes to a real block device, where the test may make one.
func TestLoopDevice(t *testing.T) {
	t.Parallel()
	backing := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(backing, qemutest.Random(1, 16*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", backing).Output()
	if err != nil {
		t.Skipf("no loop device: %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	f, err := os.OpenFile(device, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := &qemutest.Disk{Capacity: 10*mib + 512, Pieces: []qemutest.Piece{{Off: 3 * mib, Data: qemutest.Mixed(1, mib)}, {Off: 9*mib + 100, Data: []byte("x")}}}
	if _, err := NewWriter(t.Context(), f, d.Capacity, Options{}); !errors.Is(err, ErrDevice) {
		t.Errorf("got error %v, want %v", err, ErrDevice)
	}
	if _, err := NewWriter(t.Context(), f, gib, Options{Whole: true}); !errors.Is(err, ErrDeviceSize) {
		t.Errorf("got error %v, want %v", err, ErrDeviceSize)
	}
	w, err := NewWriter(t.Context(), f, d.Capacity, Options{Whole: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := transfer(t.Context(), bytes.NewReader(vmdktest.Stream(t, d, 1)), w); err != nil {
		t.Fatal(err)
	}
	got, want := make([]byte, 16*mib), qemutest.Random(1, 16*mib)
	if _, err := d.ReadAt(want[:d.Capacity], 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the device differs, error %v", err)
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	create := func() *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), "out.raw"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	for _, capacity := range []int64{0, -512, 100, image.MaxCapacity + 512} {
		if _, err := NewWriter(t.Context(), create(), capacity, Options{}); err == nil {
			t.Errorf("a disk of %d bytes was accepted", capacity)
		}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := NewWriter(t.Context(), null, 512, Options{Whole: true}); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("a character device: got error %v", err)
	}
	readOnly, err := os.Open(create().Name())
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	if _, err := NewWriter(t.Context(), readOnly, 512, Options{}); err == nil {
		t.Error("a file that cannot be written was accepted")
	}

	good := qemutest.Deflated(t, qemutest.Text(1, 64*kib), 6)
	sum := bytes.Clone(good)
	sum[len(sum)-1] ^= 1
	for name, c := range map[string]struct {
		e    image.Extent
		is   error
		what string
	}{
		"order":     {image.Extent{Start: 10, Length: 1, Data: []byte{1}}, image.ErrOrder, ""},
		"beyond":    {image.Extent{Start: mib, Length: 1, Data: []byte{1}}, image.ErrOrder, ""},
		"checksum":  {image.Extent{Start: 128 * kib, Length: 64 * kib, Data: sum, Compressed: true, StreamOffset: 99}, inflate.ErrChecksum, "sector 256 of the disk, byte 99 of the stream"},
		"too short": {image.Extent{Start: 128 * kib, Length: 65 * kib, Data: good, Compressed: true}, nil, "inflates to 65536 bytes, want 66560"},
		"too long":  {image.Extent{Start: 128 * kib, Length: 63 * kib, Data: good, Compressed: true}, inflate.ErrTooLong, ""},
		"padding":   {image.Extent{Start: mib - 63*kib, Length: 63 * kib, Data: good, Compressed: true}, nil, "inflates to 65536 bytes, want 64512"},
	} {
		w, err := NewWriter(t.Context(), create(), mib, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteExtent(image.Extent{Start: 0, Length: 64 * kib, Data: good, Compressed: true}); err != nil {
			t.Fatal(err)
		}
		first := w.WriteExtent(c.e)
		err = w.Finish(t.Context())
		if err == nil || first != nil && !errors.Is(err, first) || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.what) {
			t.Errorf("%s: got error %v, want %v with %q", name, err, c.is, c.what)
		}
		if e, ok := errors.AsType[*image.ExtentError](err); !ok || e.Start != c.e.Start {
			t.Errorf("%s: error %v names another place", name, err)
		}
	}
}

func TestEnds(t *testing.T) {
	t.Parallel()
	why := errors.New("enough")
	for _, sparse := range []bool{true, false} {
		m := &memory{data: make([]byte, 4*mib), full: 2 * mib}
		w := newWriter(t.Context(), m, 4*mib, sparse, Options{})
		err := w.WriteExtent(image.Extent{Start: 0, Length: 4 * mib, Data: qemutest.Random(1, 4*mib)})
		if last := w.Finish(t.Context()); !errors.Is(last, syscall.ENOSPC) || err != nil && !errors.Is(last, err) {
			t.Errorf("got errors %v and %v, want %v", err, last, syscall.ENOSPC)
		}

		ctx, cancel := context.WithCancelCause(t.Context())
		m = &memory{data: make([]byte, 4*mib)}
		w = newWriter(ctx, m, 4*mib, sparse, Options{})
		cancel(why)
		if err := w.WriteExtent(image.Extent{Start: mib, Length: mib, Data: qemutest.Random(1, mib)}); !errors.Is(err, why) {
			t.Errorf("got error %v, want %v", err, why)
		}
		if err := w.Abort(); err != nil {
			t.Error(err)
		}

		w = newWriter(t.Context(), m, 4*mib, sparse, Options{})
		if err := w.Finish(ctx); !errors.Is(err, why) {
			t.Errorf("got error %v, want %v", err, why)
		}

		w = newWriter(t.Context(), m, 4*mib, sparse, Options{})
		if err := w.Finish(t.Context()); err != nil {
			t.Error(err)
		}
		for _, err := range []error{w.Finish(t.Context()), w.WriteExtent(image.Extent{Start: 0, Length: 1, Data: []byte{1}})} {
			if !errors.Is(err, image.ErrEnded) {
				t.Errorf("got error %v, want %v", err, image.ErrEnded)
			}
		}
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
	}
}
