package output

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// sumBuffer is the unit in which a file is read to be hashed: small enough to
// be hashed while it is in the processor's cache.
const sumBuffer = 256 << 10

// sum hashes a file from its beginning. Holes are hashed without being read.
func sum(ctx context.Context, f *os.File, onRead func(n int)) (size int64, hash string, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, "", err
	}
	size = info.Size()
	h := sha256.New()
	buf := make([]byte, sumBuffer)
	var zeros []byte
	for at := int64(0); at < size; {
		data, end := extent(f, at, size)
		for ; at < data; onRead(len(zeros)) {
			if ctx.Err() != nil {
				return 0, "", context.Cause(ctx)
			}
			if zeros == nil {
				zeros = make([]byte, sumBuffer)
			}
			zeros = zeros[:min(int64(cap(zeros)), data-at)]
			h.Write(zeros)
			at += int64(len(zeros))
		}
		for at < end {
			if ctx.Err() != nil {
				return 0, "", context.Cause(ctx)
			}
			n, err := f.ReadAt(buf[:min(int64(len(buf)), end-at)], at)
			h.Write(buf[:n])
			at += int64(n)
			onRead(n)
			if errors.Is(err, io.EOF) && at < end {
				err = io.ErrUnexpectedEOF
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return 0, "", err
			}
		}
	}
	return size, hex.EncodeToString(h.Sum(nil)), nil
}

// extent gives the first run of bytes from at on that a file's file system
// holds; what lies before it is a hole. A file system that does not say, and a
// file that changes meanwhile, are read in full.
func extent(f *os.File, at, size int64) (data, end int64) {
	fd := int(f.Fd())
	data, err := unix.Seek(fd, at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size // nothing but a hole from here on
	}
	if err != nil || data < at || data > size {
		return at, size
	}
	end, err = unix.Seek(fd, data, unix.SEEK_HOLE)
	if err != nil || end <= data || end > size {
		return data, size
	}
	return data, end
}
