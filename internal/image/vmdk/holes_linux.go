package vmdk

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// Values of lseek(2)'s whence; package syscall has no names for them.
const (
	seekData = 3 // SEEK_DATA
	seekHole = 4 // SEEK_HOLE
)

// nextData finds the first range of f that is no hole between from and end,
// in bytes. When there is none, both results are end. It moves f's offset.
//
// Where the file system or the device knows no holes, or fails to tell them,
// everything is data: reading it is right in any case, and tells what is wrong
// with it.
func nextData(f *os.File, from, end int64) (start, stop int64) {
	start, err := f.Seek(from, seekData)
	if errors.Is(err, syscall.ENXIO) {
		// Nothing but holes up to the file's end, which must not have come
		// nearer since its size was taken.
		if size, err := f.Seek(0, io.SeekEnd); err == nil && size >= end {
			return end, end
		}
		return from, end
	}
	if err != nil || start < from {
		return from, end
	}
	if start >= end {
		return end, end
	}
	stop, err = f.Seek(start, seekHole)
	if err != nil || stop <= start {
		return start, end
	}
	return start, min(stop, end)
}
