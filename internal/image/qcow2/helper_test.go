package qcow2

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
	"github.com/hyper2kvm/hyper2kvm/internal/image/qemutest"
	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// capacityOf reads a stream's header.
func capacityOf(t testing.TB, stream []byte) int64 {
	t.Helper()
	h, err := vmdk.ParseHeader(stream)
	if err != nil {
		t.Fatal(err)
	}
	return h.CapacityBytes()
}

// transfer sends the grains of a VMDK stream to w.
func transfer(ctx context.Context, r io.Reader, w image.Writer) error {
	if err := image.Copy(ctx, w, vmdk.NewDecoder(r), nil); err != nil {
		return err
	}
	return w.Finish(ctx)
}

// convert makes a qcow2 file of a VMDK stream.
func convert(t testing.TB, stream []byte, opts Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := NewWriter(t.Context(), f, capacityOf(t, stream), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := transfer(t.Context(), bytes.NewReader(stream), w); err != nil {
		t.Fatal(err)
	}
	return path
}

// memory is an Output that sees to it that nothing is written twice.
type memory struct {
	mu      sync.Mutex
	data    []byte
	written map[int64]bool // sectors, by number; streams share some
	twice   bool
	log     []string
}

func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log = append(m.log, fmt.Sprintf("write %d at %d", len(b), off))
	if m.written == nil {
		m.written = map[int64]bool{}
	}
	first, last := off, off+int64(len(b))
	// Only sectors that are wholly covered count.
	for s := (first + 511) / 512; (s+1)*512 <= last; s++ {
		m.twice = m.twice || m.written[s]
		m.written[s] = true
	}
	if int64(len(m.data)) < last {
		m.data = append(m.data, make([]byte, last-int64(len(m.data)))...)
	}
	copy(m.data[off:], b)
	return len(b), nil
}

func (m *memory) Truncate(size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log = append(m.log, fmt.Sprintf("truncate %d", size))
	if size <= int64(len(m.data)) {
		m.data = m.data[:size]
	} else {
		m.data = append(m.data, make([]byte, size-int64(len(m.data)))...)
	}
	return nil
}

// read is a reader of qcow2 that knows nothing of the writer: it takes an
// image apart by the specification, counts every reference, and returns the
// disk's clusters that are not holes.
func read(img []byte) (size int64, disk map[int64][]byte, err error) {
	be := binary.BigEndian
	if len(img) < 104 || string(img[:4]) != "QFI\xfb" || be.Uint32(img[4:]) != 3 {
		return 0, nil, errors.New("no header")
	}
	if be.Uint32(img[20:]) != 16 || be.Uint32(img[96:]) != 4 || be.Uint32(img[100:]) != 104 || be.Uint64(img[72:]) != 0 {
		return 0, nil, errors.New("unexpected header")
	}
	if len(img)%65536 != 0 {
		return 0, nil, fmt.Errorf("image has %d bytes", len(img))
	}
	size = int64(be.Uint64(img[24:]))
	refs := make([]int, len(img)/65536)
	refer := func(off, n uint64) error {
		if n == 0 || off+n > uint64(len(img)) {
			return fmt.Errorf("%d bytes at %d are outside", n, off)
		}
		for c := off / 65536; c <= (off+n-1)/65536; c++ {
			refs[c]++
		}
		return nil
	}
	if err := refer(0, 65536); err != nil {
		return 0, nil, err
	}
	l1n, l1 := uint64(be.Uint32(img[36:])), be.Uint64(img[40:])
	if want := (uint64(size) + 1<<29 - 1) >> 29; l1n != want {
		return 0, nil, fmt.Errorf("level 1 table has %d entries, want %d", l1n, want)
	}
	if err := refer(l1, l1n*8); err != nil {
		return 0, nil, err
	}
	disk = map[int64][]byte{}
	for i := range l1n {
		l1e := be.Uint64(img[l1+i*8:])
		if l1e == 0 {
			continue
		}
		l2 := l1e &^ (1 << 63)
		if l1e>>63 != 1 || l2%65536 != 0 {
			return 0, nil, fmt.Errorf("level 1 entry is %#x", l1e)
		}
		if err := refer(l2, 65536); err != nil {
			return 0, nil, err
		}
		for j := range uint64(8192) {
			e := be.Uint64(img[l2+j*8:])
			if e == 0 {
				continue
			}
			at := int64(i*8192+j) * 65536
			if at >= size {
				return 0, nil, fmt.Errorf("cluster at %d is beyond the disk's %d bytes", at, size)
			}
			switch e >> 62 {
			case 2:
				off := e &^ (1 << 63)
				if off%65536 != 0 {
					return 0, nil, fmt.Errorf("cluster entry is %#x", e)
				}
				if err := refer(off, 65536); err != nil {
					return 0, nil, err
				}
				disk[at] = img[off : off+65536]
			case 1:
				off := e & (1<<54 - 1)
				n := (e>>54&0xff+1)*512 - off%512
				if err := refer(off, n); err != nil {
					return 0, nil, err
				}
				b := make([]byte, 65536)
				if _, err := io.ReadFull(flate.NewReader(bytes.NewReader(img[off:off+n])), b); err != nil {
					return 0, nil, fmt.Errorf("compressed cluster at %d: %w", at, err)
				}
				disk[at] = b
			default:
				return 0, nil, fmt.Errorf("cluster entry is %#x", e)
			}
		}
	}
	table, tableN := be.Uint64(img[48:]), uint64(be.Uint32(img[56:]))*65536
	if err := refer(table, tableN); err != nil {
		return 0, nil, err
	}
	var blocks []uint64
	for i := range tableN / 8 {
		if off := be.Uint64(img[table+i*8:]); off != 0 {
			if i != uint64(len(blocks)) {
				return 0, nil, errors.New("refcount table has a gap")
			}
			blocks = append(blocks, off)
			if err := refer(off, 65536); err != nil {
				return 0, nil, err
			}
		}
	}
	for c := range len(blocks) * 32768 {
		want := 0
		if c < len(refs) {
			want = refs[c]
		}
		if got := int(be.Uint16(img[blocks[c/32768]+uint64(c%32768)*2:])); got != want {
			return 0, nil, fmt.Errorf("cluster %d has refcount %d, want %d", c, got, want)
		}
	}
	if len(refs) > len(blocks)*32768 {
		return 0, nil, errors.New("clusters without refcount")
	}
	return size, disk, nil
}

// same wants an image to hold d. It reports how many clusters are allocated.
func same(t testing.TB, img []byte, d *qemutest.Disk) int {
	t.Helper()
	size, disk, err := read(img)
	if err != nil {
		t.Fatal(err)
	}
	if size != d.Capacity {
		t.Fatalf("disk has %d bytes, want %d", size, d.Capacity)
	}
	// Every cluster of the image, and every one that has a piece.
	todo := map[int64]bool{}
	for at := range disk {
		todo[at] = true
	}
	for _, p := range d.Pieces {
		for at := p.Off &^ clusterMask; at < p.Off+int64(len(p.Data)); at += ClusterSize {
			todo[at] = true
		}
	}
	zero := make([]byte, ClusterSize)
	for at := range todo {
		want := make([]byte, ClusterSize)
		if n, err := d.ReadAt(want, at); err != nil && (!errors.Is(err, io.EOF) || at+int64(n) != d.Capacity) {
			t.Fatal(err)
		}
		got := disk[at]
		if got == nil {
			got = zero
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("cluster at %d differs", at)
		}
	}
	return len(disk)
}
