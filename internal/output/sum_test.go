package output

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
)

// TestSums: holes count as zeros, and where they are changes nothing.
func TestSums(t *testing.T) {
	const size = 3<<20 + 12345
	content := make([]byte, size)
	for i := range content {
		if i/dataBlock%3 == 1 || i > 3<<20 {
			content[i] = byte(i * 7)
		}
	}
	plain := sha256.Sum256(content)
	h := sha256.New()
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], size)
	h.Write(b[:])
	for at := 0; at < size; at += dataBlock {
		block := content[at:min(size, at+dataBlock)]
		zero := true
		for _, c := range block {
			zero = zero && c == 0
		}
		if !zero {
			binary.BigEndian.PutUint64(b[:], uint64(at))
			h.Write(b[:])
			h.Write(block)
		}
	}
	want := Sums{hex.EncodeToString(plain[:]), hex.EncodeToString(h.Sum(nil))}
	for name, write := range map[string]func(f *os.File) error{
		"full": func(f *os.File) error { _, err := f.Write(content); return err },
		"holes": func(f *os.File) error {
			for at := 0; at < size; at += 4096 {
				page := content[at:min(size, at+4096)]
				for _, c := range page {
					if c != 0 {
						if _, err := f.WriteAt(page, int64(at)); err != nil {
							return err
						}
						break
					}
				}
			}
			return f.Truncate(size)
		},
	} {
		f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := write(f); err != nil {
			t.Fatal(err)
		}
		for _, data := range []bool{false, true} {
			var read int
			n, got, err := sumAs(t.Context(), f, size, data, func(n int) { read += n })
			if err != nil || n != size || read != size {
				t.Errorf("%s, data %v: %d bytes, %d passed, %v", name, data, n, read, err)
			}
			if data && got != (Sums{Data: want.Data}) || !data && got != (Sums{SHA256: want.SHA256}) {
				t.Errorf("%s, data %v: %+v, want %+v", name, data, got, want)
			}
		}
	}
}

// TestSumOfHoles: a thin disk of terabytes takes no longer than its data.
func TestSumOfHoles(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("data"), 1<<40); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 42); err != nil {
		t.Fatal(err)
	}
	size, s, err := sum(t.Context(), f, func(int) {})
	if err != nil || size != 1<<42 || s.SHA256 != "" || len(s.Data) != 64 {
		t.Errorf("%d, %+v, %v", size, s, err)
	}
}
