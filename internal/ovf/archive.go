package ovf

import (
	"archive/tar"
	"bytes"
	"fmt"
	"time"
)

// Sizes of what an OVA consists of besides its files (POSIX ustar), in bytes.
const (
	// HeaderSize is what stands in front of each file, and the unit to which
	// the files are padded.
	HeaderSize = 512
	// TrailerSize is what ends the archive: two blocks of zeros.
	TrailerSize = 2 * HeaderSize
)

// maxOctal is the largest size that a ustar header has digits for. Larger
// files have theirs in base 256, which GNU tar, libarchive and ovftool read.
const maxOctal = 1<<33 - 1

// maxMemberName is what fits into a header's name field.
const maxMemberName = 100

// Padding is how many zeros follow a file of size bytes.
func Padding(size int64) int64 { return -size & (HeaderSize - 1) }

// MemberHeader is the header of a plain file in an OVA (DSP0243, section on
// distribution as a single file: ustar). It is HeaderSize bytes for every size;
// a name that would need more, because it is longer than 100 bytes or not
// ASCII, is an error.
func MemberHeader(name string, size int64) ([]byte, error) {
	if len(name) > maxMemberName || !isASCII(name) {
		return nil, fmt.Errorf("name %q does not fit into an archive: it is not ASCII, or has more than %d bytes", name, maxMemberName)
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	if size > maxOctal {
		h.Format = tar.FormatGNU
	}
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
		return nil, fmt.Errorf("describe %q in an archive: %w", name, err)
	}
	if b.Len() != HeaderSize {
		return nil, fmt.Errorf("header of %q in an archive has %d bytes, want %d", name, b.Len(), HeaderSize)
	}
	return b.Bytes(), nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
