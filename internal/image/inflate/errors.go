package inflate

import (
	"errors"
	"fmt"
)

// What can be wrong with a stream. Inflate and Zlib return an *Error that
// wraps one of these.
var (
	// ErrCorrupt means that the stream breaks RFC 1951.
	ErrCorrupt = errors.New("corrupt deflate stream")
	// ErrTruncated means that the stream goes on after the input's end.
	ErrTruncated = errors.New("deflate stream ends early")
	// ErrTooLong means that the stream inflates to more than there is room for.
	ErrTooLong = errors.New("deflate stream inflates to more than the output has room for")
	// ErrHeader means that the first two bytes are no acceptable zlib header.
	ErrHeader = errors.New("bad zlib header")
	// ErrChecksum means that the data is not what was compressed.
	ErrChecksum = errors.New("adler-32 mismatch")
	// ErrTrailing means that something follows the zlib stream.
	ErrTrailing = errors.New("data after the end of the zlib stream")
)

// Error says what is wrong with a stream, and where.
type Error struct {
	// Err is one of the Err values of this package.
	Err error
	// Offset is the byte of the input in which the offending symbol or field
	// begins.
	Offset int
	// Written is how many bytes had been inflated before it.
	Written int
	// What tells more: the rule that is broken, or wanted and got.
	What string
}

// Error names what is wrong and the place in the input.
func (e *Error) Error() string {
	s := e.Err.Error()
	if e.What != "" {
		s += ": " + e.What
	}
	return fmt.Sprintf("%s (at byte %d of the stream, %d bytes inflated)", s, e.Offset, e.Written)
}

// Unwrap gives the cause to errors.Is.
func (e *Error) Unwrap() error { return e.Err }
