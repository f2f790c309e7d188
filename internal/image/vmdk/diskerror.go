package vmdk

import (
	"errors"
	"fmt"
	"io"
)

// DiskError says that a disk's files are damaged, do not fit together or are
// no VMDK.
type DiskError struct {
	// Name is the extent's file as the descriptor names it, or empty for the
	// file that was opened.
	Name string
	// Offset is where in the file the offending structure begins, in bytes,
	// or -1 when there is no such place.
	Offset int64
	// What is wrong, wanted and got.
	What string
}

// Error names the file, the place and what is wrong there.
func (e *DiskError) Error() string {
	return place(e.Name, e.Offset) + e.What
}

// place says where in a disk's files something is, with a colon behind it.
func place(name string, offset int64) string {
	switch {
	case name != "" && offset >= 0:
		return fmt.Sprintf("file %s at byte %d: ", quote(name), offset)
	case name != "":
		return fmt.Sprintf("file %s: ", quote(name))
	case offset >= 0:
		return fmt.Sprintf("at byte %d: ", offset)
	}
	return ""
}

// UnsupportedError says that a disk is in a form or a state in which it is not
// read, and what can be done about it.
type UnsupportedError struct {
	// Name is DiskError.Name.
	Name   string
	What   string
	Advice string
}

// Error joins the parts on one line.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s%s (%s)", place(e.Name, -1), e.What, e.Advice)
}

// bad makes a DiskError without a place.
func bad(format string, args ...any) error {
	return &DiskError{Offset: -1, What: fmt.Sprintf(format, args...)}
}

// file is one of a disk's files.
type file struct {
	r    io.ReaderAt
	size int64  // bytes
	name string // as the descriptor has it, empty for the file that was opened
}

// bad makes a DiskError about the structure at off, or the whole file for -1.
func (f file) bad(off int64, format string, args ...any) error {
	return &DiskError{Name: f.name, Offset: off, What: fmt.Sprintf(format, args...)}
}

// holds says whether n bytes at off are within the file.
func (f file) holds(off, n int64) bool {
	return off >= 0 && n >= 0 && off <= f.size && n <= f.size-off
}

// read fills b from off. The error is never io.EOF, which would be taken for
// the disk's end.
func (f file) read(b []byte, off int64) error {
	n, err := f.r.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("%sread %d bytes: %w", place(f.name, off), len(b), io.ErrUnexpectedEOF)
	default:
		return fmt.Errorf("%sread %d bytes: %w", place(f.name, off), len(b), err)
	}
}
