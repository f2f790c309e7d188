package output

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// sumBuffer is the unit in which a file is read to be hashed: small enough
	// to be hashed while it is in the processor's cache.
	sumBuffer = 256 << 10
	// dataBlock is the unit of Sums.Data.
	dataBlock = 64 << 10
	// maxHoles is how much of a file may be holes for its plain hash to be
	// computed. Zeros are hashed at 1 to 2 GiB a second and core: this is about
	// half a minute, where a thin disk of terabytes would take an hour.
	maxHoles = 64 << 30
)

// Sums are the hashes of a file, of which one is set, in lower-case
// hexadecimal.
type Sums struct {
	// SHA256 is that of the file.
	SHA256 string
	// Data is the SHA-256 of the file's size and of each of its blocks of 64 KiB
	// that is not all zeros, with its offset in front; the numbers are unsigned
	// 64-bit ones, big-endian. It does not depend on where the file has holes.
	Data string
}

// sum hashes a file: plainly, or its data when it has more holes than maxHoles.
func sum(ctx context.Context, f *os.File, onRead func(n int)) (size int64, s Sums, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, Sums{}, err
	}
	held, err := heldBytes(f)
	if err != nil {
		return 0, Sums{}, err
	}
	return sumAs(ctx, f, info.Size(), info.Size()-held > maxHoles, onRead)
}

// sumAs hashes a file's data or all of it.
func sumAs(ctx context.Context, f *os.File, length int64, data bool, onRead func(n int)) (size int64, s Sums, err error) {
	h := sha256.New()
	if data {
		err = sumData(ctx, h, f, length, onRead)
		s.Data = hex.EncodeToString(h.Sum(nil))
	} else {
		err = sumPlain(ctx, h, f, length, onRead)
		s.SHA256 = hex.EncodeToString(h.Sum(nil))
	}
	if err != nil {
		return 0, Sums{}, err
	}
	return length, s, nil
}

// heldBytes is how much of a file its file system holds.
func heldBytes(f *os.File) (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return st.Blocks * 512, nil
}

// sumPlain feeds h the whole file. Holes are not read.
func sumPlain(ctx context.Context, h hash.Hash, f *os.File, size int64, onRead func(n int)) error {
	buf := make([]byte, sumBuffer)
	var zeros []byte
	return extents(f, size, func(from, to int64, hole bool) error {
		for at := from; at < to; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			n := int(min(sumBuffer, to-at))
			if hole {
				if zeros == nil {
					zeros = make([]byte, sumBuffer)
				}
				h.Write(zeros[:n])
			} else {
				if err := readFull(f, buf[:n], at); err != nil {
					return err
				}
				h.Write(buf[:n])
			}
			at += int64(n)
			onRead(n)
		}
		return nil
	})
}

// sumData feeds h what Sums.Data is made of.
func sumData(ctx context.Context, h hash.Hash, f *os.File, size int64, onRead func(n int)) error {
	number := func(n int64) {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], uint64(n))
		h.Write(b[:])
	}
	number(size)
	buf := make([]byte, dataBlock)
	zeros := make([]byte, dataBlock)
	next := int64(0) // of the blocks to look at
	return extents(f, size, func(from, to int64, hole bool) error {
		if hole {
			onRead(int(to - from))
			return nil
		}
		for at := max(next, from/dataBlock*dataBlock); at < to; at += dataBlock {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			block := buf[:min(dataBlock, size-at)]
			if err := readFull(f, block, at); err != nil {
				return err
			}
			if !bytes.Equal(block, zeros[:len(block)]) {
				number(at)
				h.Write(block)
			}
			next = at + dataBlock
		}
		onRead(int(to - from))
		return nil
	})
}

func readFull(f *os.File, p []byte, at int64) error {
	n, err := f.ReadAt(p, at)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF // it has become shorter meanwhile
	}
	return err
}

// extents goes through a file's holes and what lies between them, in order.
func extents(f *os.File, size int64, visit func(from, to int64, hole bool) error) error {
	for at := int64(0); at < size; {
		data, end := extent(f, at, size)
		if data > at {
			if err := visit(at, data, true); err != nil {
				return err
			}
		}
		if end > data {
			if err := visit(data, end, false); err != nil {
				return err
			}
		}
		at = end
	}
	return nil
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
