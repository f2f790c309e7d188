package raw

import (
	"errors"
	"syscall"
)

// Modes of fallocate(2); package syscall has no names for them.
const (
	keepSize  = 0x01 // FALLOC_FL_KEEP_SIZE
	punchHole = 0x02 // FALLOC_FL_PUNCH_HOLE
	zeroRange = 0x10 // FALLOC_FL_ZERO_RANGE
)

// zero deallocates the range where the device can, else lets it write zeros.
// The kernel answers for it that the range reads as zeros.
func (f file) zero(off, n int64) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	for _, mode := range []uint32{punchHole | keepSize, zeroRange | keepSize} {
		var result error
		if err := conn.Control(func(fd uintptr) {
			for {
				result = syscall.Fallocate(int(fd), mode, off, n)
				if !errors.Is(result, syscall.EINTR) {
					return
				}
			}
		}); err != nil {
			return err
		}
		if result == nil {
			return nil
		}
		// EINVAL is a range that is not aligned to the device's blocks.
		if !errors.Is(result, errors.ErrUnsupported) && !errors.Is(result, syscall.EINVAL) && !errors.Is(result, syscall.ENODEV) {
			return result
		}
	}
	return errors.ErrUnsupported
}
