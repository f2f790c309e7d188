package vmdk

import (
	"io"
	"os"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
)

const (
	// loadSize is how much is read of a disk's files at once, in bytes.
	loadSize = 1 << 20
	// zeroUnit is the size and alignment on the disk of the pieces left out
	// when they hold zeros only, in bytes: a cluster of qcow2.
	zeroUnit = 64 << 10
)

// window is a part of a disk that has been read and not yet handed out. One
// serves all files of a disk.
type window struct {
	buf   [loadSize]byte
	rest  []byte // of buf
	start int64  // of rest on the disk, in bytes
}

// load reads n bytes, loadSize at most, that are at byte off of f and at byte
// start of the disk.
func (w *window) load(f file, off, start, n int64) error {
	b := w.buf[:n]
	if err := f.read(b, off); err != nil {
		return err
	}
	w.rest, w.start = b, start
	return nil
}

// next hands out the next run of units that are not all zeros.
func (w *window) next() (image.Extent, bool) {
	run := 0
	for run < len(w.rest) {
		n := int(min(zeroUnit-(w.start+int64(run))%zeroUnit, int64(len(w.rest)-run)))
		if allZero(w.rest[run : run+n]) {
			if run > 0 {
				break
			}
			w.skip(n)
			continue
		}
		run += n
	}
	if run == 0 {
		return image.Extent{}, false
	}
	e := image.Extent{Start: w.start, Length: int64(run), Data: w.rest[:run]}
	w.skip(run)
	return e, true
}

func (w *window) skip(n int) {
	w.rest = w.rest[n:]
	w.start += int64(n)
}

// flat reads an extent that is kept as it is. Holes of the file are passed
// over where the system tells them; all-zero units are left out.
type flat struct {
	f     file
	shift int64 // from a byte of the disk to that of the file
	at    int64 // first byte of the disk not dealt with
	end   int64 // of the extent on the disk
	known int64 // up to here the file holds data, or so it must be taken
}

// newFlat returns a flat for n bytes that begin at byte off of f and at byte
// start of the disk.
func newFlat(f file, off, start, n int64) (*flat, error) {
	if !f.holds(off, n) {
		return nil, f.bad(-1, "it has %d bytes, and the descriptor wants %d bytes of it from byte %d on: it was cut, or is not the disk's",
			f.size, n, off)
	}
	return &flat{f: f, shift: off - start, at: start, end: start + n}, nil
}

// load puts the next piece of the extent into w. The error is io.EOF behind
// the last.
func (d *flat) load(w *window) error {
	if d.at < d.end && d.at >= d.known {
		from, to := d.at+d.shift, d.end+d.shift
		if f, ok := d.f.r.(*os.File); ok {
			from, to = nextData(f, from, to)
		}
		d.at, d.known = from-d.shift, to-d.shift
	}
	if d.at >= d.end {
		return io.EOF
	}
	n := min(loadSize-d.at%loadSize, d.known-d.at)
	if err := w.load(d.f, d.at+d.shift, d.at, n); err != nil {
		return err
	}
	d.at += n
	return nil
}
