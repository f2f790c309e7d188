package vmdk

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"testing"
)

// disk is a Content made of pieces at offsets; the rest is zeros.
type disk struct {
	size   int64
	pieces []piece
}

type piece struct {
	off  int64
	data []byte
}

func (d *disk) Size() int64 { return d.size }

func (d *disk) Extents() []Range {
	var out []Range
	for _, p := range d.pieces {
		out = append(out, Range{p.off, int64(len(p.data))})
	}
	return out
}

func (d *disk) ReadAt(b []byte, off int64) (int, error) {
	n := int(min(int64(len(b)), d.size-off))
	clear(b[:n])
	first := sort.Search(len(d.pieces), func(i int) bool { return d.pieces[i].off+int64(len(d.pieces[i].data)) > off })
	for _, p := range d.pieces[first:] {
		if p.off >= off+int64(n) {
			break
		}
		if p.off >= off {
			copy(b[p.off-off:n], p.data)
		} else {
			copy(b[:n], p.data[off-p.off:])
		}
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

// text is data that compresses to about a third.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "line %d of %d: %x\n", b.Len(), n, r.Uint32())
	}
	return b.Bytes()[:n]
}

func encode(t testing.TB, c Content, opts EncodeOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Encode(&b, c, opts); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// qemuImg runs qemu-img, which judges this package; a missing qemu-img fails
// the test.
func qemuImg(t testing.TB, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "qemu-img", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("qemu-img %q: %v\n%s%s", args, err, out, stderr.Bytes())
	}
	return out
}

func writeFile(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// writeRaw writes c as a sparse raw file.
func writeRaw(t testing.TB, c *disk) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := f.Truncate(c.size); err != nil {
		t.Fatal(err)
	}
	for _, p := range c.pieces {
		if _, err := f.WriteAt(p.data, p.off); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// compareQemu checks with qemu-img that the VMDK at path holds d. Of a disk
// too large to be read in a test, it reads a MiB around each piece.
func compareQemu(t testing.TB, path string, d *disk) {
	t.Helper()
	if d.size <= gib {
		qemuImg(t, "compare", "-f", "vmdk", "-F", "raw", path, writeRaw(t, d))
		return
	}
	part := filepath.Join(t.TempDir(), "part.raw")
	for _, r := range append(d.Extents(), Range{d.size / 3, 1}, Range{d.size - 1, 1}) {
		off := max(0, r.Off-mib/2) &^ (SectorSize - 1)
		n := min(mib, d.size-off)
		qemuImg(t, "dd", "-f", "vmdk", "-O", "raw", "bs=512", fmt.Sprintf("skip=%d", off/512),
			fmt.Sprintf("count=%d", (off+n)/512), "if="+path, "of="+part)
		got, err := os.ReadFile(part)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, n)
		if _, err := d.ReadAt(want, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("qemu-img reads %d other bytes at %d than were encoded", len(got), off)
		}
	}
}

// virtualSize is the capacity qemu-img reads in an image, in bytes.
func virtualSize(t testing.TB, path string) int64 {
	t.Helper()
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(qemuImg(t, "info", "-f", "vmdk", "--output=json", path), &info); err != nil {
		t.Fatal(err)
	}
	return info.Size
}

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

// disks are the shapes a stream can take.
func disks() map[string]*disk {
	return map[string]*disk{
		"empty":             {size: 8 * mib},
		"one sector":        {size: 512, pieces: []piece{{0, random(1, 512)}}},
		"one sector, zero":  {size: 512},
		"one grain":         {size: 64 * kib, pieces: []piece{{0, text(2, 64*kib)}}},
		"short last grain":  {size: 1*mib + 512, pieces: []piece{{0, text(3, 10)}, {mib, random(3, 512)}}},
		"short last, empty": {size: 1*mib + 1536, pieces: []piece{{5, []byte{1}}}},
		"incompressible":    {size: 3*mib + 4096, pieces: []piece{{0, random(4, 3*mib+4096)}}},
		"full":              {size: 2 * mib, pieces: []piece{{0, text(5, 2*mib)}}},
		"several tables": {size: 200 * mib, pieces: []piece{
			{31 * mib, text(6, 2*mib)}, {96 * mib, text(7, 300*kib)}, {200*mib - 7, []byte("the end")}}},
		"shared grain": {size: mib, pieces: []piece{{100, []byte("a")}, {200, []byte("b")}, {70000, []byte("c")}}},
		"zero pieces":  {size: mib, pieces: []piece{{0, make([]byte, 200*kib)}, {300 * kib, text(8, 100)}}},
		"thin 2 TiB":   {size: 2 * tib, pieces: []piece{{0, text(9, 100*kib)}, {tib + 12345, text(10, kib)}, {2*tib - 512, random(11, 512)}}},
		"thin 2 TiB, odd": {size: 2*tib - 512, pieces: []piece{
			{63 * gib, random(12, 70*kib)}, {2*tib - 1024, random(13, 512)}}},
	}
}
