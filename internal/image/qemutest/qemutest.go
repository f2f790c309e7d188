// Package qemutest makes disks and lets qemu-img judge images of them. It is
// imported by tests only. A missing qemu-img fails the test: an image that
// nobody has judged proves nothing.
package qemutest

import (
	"bytes"
	"compress/zlib"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"testing"
)

// Run runs qemu-img and returns its standard output. Failing ends the test.
func Run(t testing.TB, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "qemu-img", args...) //nolint:gosec // for tests
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("qemu-img %q: %v\n%s%s", args, err, out, stderr.Bytes())
	}
	return out
}

// Create makes an image of size bytes in a folder of the test.
func Create(t testing.TB, format string, size int64, options ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk."+format)
	args := []string{"create", "-q", "-f", format}
	for _, o := range options {
		args = append(args, "-o", o)
	}
	Run(t, append(args, path, strconv.FormatInt(size, 10))...)
	return path
}

// Convert converts an image into a new one in a folder of the test. args go
// in front of the file names: "-c", "-o", "subformat=streamOptimized".
func Convert(t testing.TB, fromFormat, from, toFormat string, args ...string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "converted."+toFormat)
	Run(t, slices.Concat([]string{"convert", "-f", fromFormat, "-O", toFormat}, args, []string{from, to})...)
	return to
}

// CheckReport is what qemu-img check counts.
type CheckReport struct {
	ImageEndOffset     int64 `json:"image-end-offset"`
	TotalClusters      int64 `json:"total-clusters"`
	AllocatedClusters  int64 `json:"allocated-clusters"`
	CompressedClusters int64 `json:"compressed-clusters"`
	Corruptions        int64 `json:"corruptions"`
	Leaks              int64 `json:"leaks"`
	CheckErrors        int64 `json:"check-errors"`
}

// Check wants qemu-img check to find nothing wrong.
func Check(t testing.TB, format, path string) CheckReport {
	t.Helper()
	var report CheckReport
	out := Run(t, "check", "-f", format, "--output=json", path)
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("qemu-img check: %v\n%s", err, out)
	}
	if report.Corruptions != 0 || report.Leaks != 0 || report.CheckErrors != 0 {
		t.Fatalf("qemu-img check %s: %s", path, out)
	}
	return report
}

// Compare wants two images to be the same to a guest, their sizes included.
// What is allocated and what is a hole may differ.
func Compare(t testing.TB, formatA, a, formatB, b string) {
	t.Helper()
	if sizeA, sizeB := VirtualSize(t, formatA, a), VirtualSize(t, formatB, b); sizeA != sizeB {
		t.Fatalf("%s is a disk of %d bytes, %s one of %d", a, sizeA, b, sizeB)
	}
	Run(t, "compare", "-f", formatA, "-F", formatB, a, b)
}

// MapEntry is one range of qemu-img map.
type MapEntry struct {
	Start      int64  `json:"start"`
	Length     int64  `json:"length"`
	Depth      int    `json:"depth"`
	Present    bool   `json:"present"`
	Zero       bool   `json:"zero"`
	Data       bool   `json:"data"`
	Compressed bool   `json:"compressed"`
	Offset     *int64 `json:"offset"`
}

// Map lists what an image holds.
func Map(t testing.TB, format, path string) []MapEntry {
	t.Helper()
	var entries []MapEntry
	out := Run(t, "map", "-f", format, "--output=json", path)
	if err := json.Unmarshal(out, &entries); err != nil {
		t.Fatalf("qemu-img map: %v\n%s", err, out)
	}
	return entries
}

// VirtualSize is the size of the disk in an image, in bytes.
func VirtualSize(t testing.TB, format, path string) int64 {
	t.Helper()
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	out := Run(t, "info", "-f", format, "--output=json", path)
	if err := json.Unmarshal(out, &info); err != nil {
		t.Fatalf("qemu-img info: %v\n%s", err, out)
	}
	return info.Size
}

// Disk is a disk's content made of pieces in rising order; the rest is zeros.
type Disk struct {
	Capacity int64
	Pieces   []Piece
}

// Piece is some of a Disk's bytes.
type Piece struct {
	Off  int64
	Data []byte
}

// Size is the disk's capacity in bytes.
func (d *Disk) Size() int64 { return d.Capacity }

// Deflated is data as a zlib stream, as it is in a grain.
func Deflated(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zlib.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// ReadAt reads the disk's bytes, as io.ReaderAt.
func (d *Disk) ReadAt(b []byte, off int64) (int, error) {
	n := int(max(0, min(int64(len(b)), d.Capacity-off)))
	clear(b[:n])
	end := off + int64(n)
	first := sort.Search(len(d.Pieces), func(i int) bool { return d.Pieces[i].Off+int64(len(d.Pieces[i].Data)) > off })
	for _, p := range d.Pieces[first:] {
		switch {
		case p.Off >= end:
		case p.Off >= off:
			copy(b[p.Off-off:n], p.Data)
		default:
			copy(b[:n], p.Data[off-p.Off:])
		}
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// Raw writes d as a sparse file in a folder of the test.
func (d *Disk) Raw(t testing.TB) string {
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
	if err := f.Truncate(d.Capacity); err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Pieces {
		if _, err := f.WriteAt(p.Data, p.Off); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// Random is n bytes that do not compress, the same ones for the same seed.
func Random(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = r.Read(b) // never fails
	return b
}

// Text is n bytes that compress to about a third.
func Text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // for tests
	b := make([]byte, 0, n+100)
	for len(b) < n {
		b = strconv.AppendInt(b, int64(len(b)), 10)
		b = append(b, ": sector "...)
		b = strconv.AppendUint(b, uint64(r.Uint32()), 16)
		b = append(b, " of the disk has "...)
		b = strconv.AppendInt(b, r.Int64N(100), 10)
		b = append(b, " errors\n"...)
	}
	return b[:n]
}

// Mixed is n bytes as they are found on disks: text, noise, tables of numbers
// and zeros by turns.
func Mixed(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 2)) //nolint:gosec // for tests
	var b bytes.Buffer
	for b.Len() < n {
		k := 1 + r.IntN(64<<10)
		switch r.IntN(4) {
		case 0:
			b.Write(Random(r.Uint64(), k))
		case 1:
			b.Write(make([]byte, k))
		case 2:
			for i := range k / 8 {
				b.Write([]byte{byte(i), byte(i >> 8), 0, 0, byte(r.IntN(8)), 0, 0, 0x80})
			}
		default:
			b.Write(Text(r.Uint64(), k))
		}
	}
	return b.Bytes()[:n]
}
