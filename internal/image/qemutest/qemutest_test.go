package qemutest

import (
	"bytes"
	"io"
	"os"
	"testing"
)

func TestDisk(t *testing.T) {
	t.Parallel()
	d := &Disk{Capacity: 1 << 20, Pieces: []Piece{{100, Text(1, 5000)}, {70000, Random(2, 10)}, {1<<20 - 3, []byte("end")}}}
	want := make([]byte, d.Capacity)
	for _, p := range d.Pieces {
		copy(want[p.Off:], p.Data)
	}
	got, err := io.ReadAll(io.NewSectionReader(d, 0, d.Capacity))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d other bytes, error %v", len(got), err)
	}
	part := make([]byte, 50)
	if n, err := d.ReadAt(part, d.Capacity-20); n != 20 || err != io.EOF || !bytes.Equal(part[:n], want[len(want)-20:]) {
		t.Errorf("at the end: %d bytes, error %v", n, err)
	}
	file, err := os.ReadFile(d.Raw(t))
	if err != nil || !bytes.Equal(file, want) {
		t.Errorf("file has %d other bytes, error %v", len(file), err)
	}
}

func TestTools(t *testing.T) {
	t.Parallel()
	d := &Disk{Capacity: 3<<20 + 512, Pieces: []Piece{{1 << 20, Mixed(1, 300<<10)}}}
	raw := d.Raw(t)
	q := Convert(t, "raw", raw, "qcow2", "-c")
	if r := Check(t, "qcow2", q); r.AllocatedClusters == 0 || r.CompressedClusters == 0 {
		t.Errorf("check reports %+v", r)
	}
	Compare(t, "qcow2", q, "raw", raw)
	var mapped int64
	for _, e := range Map(t, "qcow2", q) {
		mapped += e.Length
	}
	if mapped != d.Capacity || VirtualSize(t, "qcow2", q) != d.Capacity {
		t.Errorf("mapped %d bytes of %d", mapped, d.Capacity)
	}
	if got := VirtualSize(t, "qcow2", Create(t, "qcow2", 1<<30, "cluster_size=65536")); got != 1<<30 {
		t.Errorf("created a disk of %d bytes", got)
	}
}
