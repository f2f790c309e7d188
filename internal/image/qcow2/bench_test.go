package qcow2

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
	"github.com/hyper2kvm/hyper2kvm/internal/image/qemutest"
	"github.com/hyper2kvm/hyper2kvm/internal/image/raw"
	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdktest"
)

// BenchmarkConvert converts a stream-optimized VMDK in a file to a file, with
// this package and with qemu-img beside it. The rate is that of the guest's
// data. Neither side syncs.
func BenchmarkConvert(b *testing.B) {
	const data = 512 * mib
	d := &qemutest.Disk{Capacity: 2 * gib}
	for i := range uint64(8) {
		make := qemutest.Text
		if i%2 == 0 {
			make = qemutest.Mixed
		}
		d.Pieces = append(d.Pieces, qemutest.Piece{Off: int64(i) * 256 * mib, Data: make(i, data/8)})
	}
	path := filepath.Join(b.TempDir(), "disk.vmdk")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	if err := vmdk.Encode(f, vmdktest.Content(d), vmdk.EncodeOptions{Level: 6}); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}

	out := filepath.Join(b.TempDir(), "out")
	// Removing the last result can wait for it to reach the disk, which is no
	// part of the next run.
	remove := func(b *testing.B) {
		b.StopTimer()
		defer b.StartTimer()
		if err := os.Remove(out); err != nil && !os.IsNotExist(err) {
			b.Fatal(err)
		}
	}
	ours := func(newWriter func(ctx context.Context, f *os.File) (image.Writer, error)) func(*testing.B) {
		return func(b *testing.B) {
			b.SetBytes(data)
			for b.Loop() {
				remove(b)
				in, err := os.Open(path)
				if err != nil {
					b.Fatal(err)
				}
				f, err := os.Create(out)
				if err != nil {
					b.Fatal(err)
				}
				w, err := newWriter(b.Context(), f)
				if err != nil {
					b.Fatal(err)
				}
				if err := transfer(b.Context(), bufio.NewReaderSize(in, mib), w); err != nil {
					b.Fatal(err)
				}
				if err := w.Abort(); err != nil {
					b.Fatal(err)
				}
				in.Close()
				if err := f.Close(); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	qcow := func(opts Options) func(*testing.B) {
		return ours(func(ctx context.Context, f *os.File) (image.Writer, error) {
			return NewWriter(ctx, f, d.Capacity, opts)
		})
	}
	qemu := func(args ...string) func(*testing.B) {
		return func(b *testing.B) {
			b.SetBytes(data)
			for b.Loop() {
				remove(b)
				cmd := exec.CommandContext(b.Context(), "qemu-img", append(append([]string{"convert", "-f", "vmdk"}, args...), path, out)...)
				if msg, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("qemu-img: %v: %s", err, msg)
				}
			}
		}
	}
	b.Run("compressed/this", qcow(Options{Compress: true}))
	b.Run("compressed/this-verify", qcow(Options{Compress: true, VerifyGrains: true}))
	b.Run("plain/this", qcow(Options{}))
	b.Run("plain/qemu-img", qemu("-O", "qcow2"))
	b.Run("plain/qemu-img-m16-W", qemu("-m", "16", "-W", "-O", "qcow2"))
	b.Run("raw/this", ours(func(ctx context.Context, f *os.File) (image.Writer, error) {
		return raw.NewWriter(ctx, f, d.Capacity, raw.Options{})
	}))
	b.Run("raw/qemu-img-m16-W", qemu("-m", "16", "-W", "-O", "raw"))
	if !testing.Short() {
		b.Run("compressed/qemu-img-c", qemu("-c", "-O", "qcow2"))
	}
}
