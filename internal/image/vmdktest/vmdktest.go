// Package vmdktest makes VMDK streams of qemutest's disks. It is imported by
// tests only.
package vmdktest

import (
	"bytes"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/internal/image/qemutest"
	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
)

// Content makes a disk something vmdk.Encode takes.
func Content(d *qemutest.Disk) vmdk.Content { return content{d} }

type content struct{ *qemutest.Disk }

func (c content) Extents() []vmdk.Range {
	out := make([]vmdk.Range, len(c.Pieces))
	for i, p := range c.Pieces {
		out[i] = vmdk.Range{Off: p.Off, Len: int64(len(p.Data))}
	}
	return out
}

// Stream is d as a stream-optimized VMDK, with grains deflated at a level of
// compress/zlib.
func Stream(t testing.TB, d *qemutest.Disk, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := vmdk.Encode(&b, Content(d), vmdk.EncodeOptions{Level: level}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
