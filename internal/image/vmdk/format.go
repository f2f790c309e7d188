package vmdk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
)

// SectorSize is the unit of every offset and size in the format, in bytes.
const SectorSize = 512

// Limits of what is accepted. They are wider than anything vSphere makes (its
// disks end at 62 TiB, its streams use grains of 64 KiB) and keep hostile
// numbers from deciding how much memory or arithmetic is spent.
const (
	// MaxCapacity is the largest disk, in bytes.
	MaxCapacity = 64 << 40
	// MinGrainSectors and MaxGrainSectors bound the grain size, a power of two.
	MinGrainSectors = 8
	MaxGrainSectors = 2048
	// MaxOverheadSectors bounds the room in front of the first grain: 128 in
	// VMware's layout. qemu-img keeps two sets of tables there, 1/8192 of the
	// capacity in all; twice that for the largest disk is the bound.
	MaxOverheadSectors = MaxCapacity / 4096 / SectorSize
	// maxDescriptorSectors bounds the embedded descriptor text.
	maxDescriptorSectors = 2048
)

// EntriesPerTable is the number of entries of a grain table. The format has a
// field for it, and 512 is the only value in use.
const EntriesPerTable = 512

// tableSectors is the size of one grain table.
const tableSectors = EntriesPerTable * 4 / SectorSize

// GDAtEnd as Header.GDOffset says that the grain directory stands behind the
// grains; the footer says where.
const GDAtEnd = 1<<64 - 1

// Bits of Header.Flags ("Virtual Disk Format 5.0", SparseExtentHeader.flags).
const (
	FlagNewlineTest    = 1 << 0  // the newline check bytes are valid
	FlagRedundantTable = 1 << 1  // RGDOffset names a second grain directory
	FlagZeroedGrain    = 1 << 2  // a table entry of 1 is a grain of zeros
	FlagCompressed     = 1 << 16 // grains are compressed
	FlagMarkers        = 1 << 17 // markers say what each block is
)

const knownFlags = FlagNewlineTest | FlagRedundantTable | FlagZeroedGrain | FlagCompressed | FlagMarkers

// compressDeflate is the only compression algorithm of the format: RFC 1950.
const compressDeflate = 1

// Offsets of the header's fields in its sector. The structure is packed: the
// fields behind numGTEsPerGT are not aligned.
const (
	offMagic       = 0  // uint32 "KDMV"
	offVersion     = 4  // uint32
	offFlags       = 8  // uint32
	offCapacity    = 12 // uint64 sectors
	offGrainSize   = 20 // uint64 sectors
	offDescOffset  = 28 // uint64 sectors
	offDescSize    = 36 // uint64 sectors
	offNumGTEs     = 44 // uint32
	offRGDOffset   = 48 // uint64 sectors
	offGDOffset    = 56 // uint64 sectors
	offOverhead    = 64 // uint64 sectors
	offUnclean     = 72 // uint8 bool
	offNewlines    = 73 // four bytes that a text-mode transfer would change
	offCompression = 77 // uint16
	headerEnd      = 79 // the rest of the sector is padding
)

const (
	magic    = "KDMV"
	newlines = "\n \r\n"
)

// Types of the metadata markers (MARKER_* of the specification).
const (
	markerEndOfStream = 0
	markerGrainTable  = 1
	markerDirectory   = 2
	markerFooter      = 3
)

// Offsets in a marker's sector: uint64 value, uint32 size, then either the
// compressed grain (size > 0) or a uint32 type.
const (
	offMarkerSize   = 8
	offMarkerType   = 12
	grainMarkerSize = 12 // bytes in front of a grain's zlib stream
	metaMarkerSize  = 16 // meaningful bytes of a metadata marker
)

// zeroedGrain as a table entry is a grain of zeros, with FlagZeroedGrain.
const zeroedGrain = 1

// ErrTruncated means that a stream ended before its structure was complete.
// Fetching it again can help.
var ErrTruncated = errors.New("stream ends early")

// IsDamage tells a stream that does not hold what it should, by its structure
// or, as a Writer found, by what is in its grains, from everything else that
// can end a conversion.
func IsDamage(err error) bool {
	if _, ok := errors.AsType[*FormatError](err); ok {
		return true
	}
	_, ok := errors.AsType[*image.ExtentError](err)
	return ok || errors.Is(err, ErrTruncated)
}

// FormatError says that a stream is not a stream-optimized VMDK, or a damaged
// one.
type FormatError struct {
	// Offset is where in the stream the offending structure begins, in bytes.
	Offset int64
	// LBA is the first sector of the grain concerned, or -1 when it is no grain.
	LBA int64
	// What is wrong, wanted and got.
	What string
}

// Error names the place and what is wrong there.
func (e *FormatError) Error() string {
	if e.LBA >= 0 {
		return fmt.Sprintf("bad vmdk stream at byte %d, grain at sector %d: %s", e.Offset, e.LBA, e.What)
	}
	return fmt.Sprintf("bad vmdk stream at byte %d: %s", e.Offset, e.What)
}

// Header is the sparse extent header, the stream's first sector; the footer
// has the same form. Sizes and offsets are in sectors, as on disk.
type Header struct {
	Version          uint32 // 1 to 3; VMware and qemu-img write 3
	Flags            uint32
	Capacity         int64 // size of the guest's disk
	GrainSize        int64
	DescriptorOffset int64 // 0 when there is no descriptor
	DescriptorSize   int64
	RGDOffset        uint64 // second grain directory, with FlagRedundantTable
	GDOffset         uint64 // grain directory, or GDAtEnd
	Overhead         int64  // where the first grain or marker stands
	UncleanShutdown  bool
}

// CapacityBytes is the size of the guest's disk in bytes.
func (h Header) CapacityBytes() int64 { return h.Capacity * SectorSize }

// GrainBytes is the size of a full grain in bytes.
func (h Header) GrainBytes() int64 { return h.GrainSize * SectorSize }

// Grains is the number of grains that cover the disk; the last may be short.
func (h Header) Grains() int64 { return ceilDiv(h.Capacity, h.GrainSize) }

// Tables is the number of grain tables that cover the disk, which is the
// number of entries of the grain directory.
func (h Header) Tables() int64 { return ceilDiv(h.Grains(), EntriesPerTable) }

// directorySectors is the size of the grain directory.
func (h Header) directorySectors() int64 { return ceilDiv(h.Tables()*4, SectorSize) }

// grainLength is how many bytes of the disk the grain at lba holds: a full
// grain, or the rest of the disk for a short last one.
func (h Header) grainLength(lba int64) int64 {
	return min(h.GrainSize, h.Capacity-lba) * SectorSize
}

// maxCompressed is the largest zlib stream a full grain may have, in bytes:
// what zlib's deflateBound promises for any level, window and memory setting.
// A writer that meets a grain which will not compress stores it and adds far
// less than this.
func (h Header) maxCompressed() int64 {
	n := h.GrainBytes()
	return n + (n+7)/8 + (n+63)/64 + 5 + 6
}

// minCompressed is the smallest zlib stream: header, one empty block, Adler-32.
const minCompressed = 2 + 2 + 4

// ParseHeader reads a header or footer from a sector. It checks each field by
// itself and against the others; the error is a *FormatError with offset 0.
func ParseHeader(sector []byte) (Header, error) {
	bad := func(format string, args ...any) (Header, error) {
		return Header{}, &FormatError{LBA: -1, What: fmt.Sprintf(format, args...)}
	}
	if len(sector) < SectorSize {
		return bad("header has %d bytes, want %d", len(sector), SectorSize)
	}
	le := binary.LittleEndian
	if m := string(sector[offMagic : offMagic+4]); m != magic {
		return bad("magic is %q, want %q", m, magic)
	}
	h := Header{
		Version:   le.Uint32(sector[offVersion:]),
		Flags:     le.Uint32(sector[offFlags:]),
		RGDOffset: le.Uint64(sector[offRGDOffset:]),
		GDOffset:  le.Uint64(sector[offGDOffset:]),
	}
	if h.Version < 1 || h.Version > 3 {
		return bad("version is %d, want 1 to 3", h.Version)
	}
	if h.Flags&^uint32(knownFlags) != 0 {
		return bad("flags are %#x, of which %#x are unknown", h.Flags, h.Flags&^uint32(knownFlags))
	}
	if h.Flags&FlagCompressed == 0 || h.Flags&FlagMarkers == 0 {
		return bad("flags are %#x: grains are not compressed with markers, so the disk is not stream-optimized", h.Flags)
	}
	if c := le.Uint16(sector[offCompression:]); c != compressDeflate {
		return bad("compression algorithm is %d, want %d", c, compressDeflate)
	}
	if h.Flags&FlagNewlineTest != 0 {
		if n := string(sector[offNewlines : offNewlines+4]); n != newlines {
			return bad("newline check is %q, want %q: the file was changed by a text-mode transfer", n, newlines)
		}
	}
	switch u := sector[offUnclean]; u {
	case 0, 1:
		h.UncleanShutdown = u == 1
	default:
		return bad("unclean shutdown is %d, want 0 or 1", u)
	}
	capacity := le.Uint64(sector[offCapacity:])
	if capacity == 0 || capacity > MaxCapacity/SectorSize {
		return bad("capacity is %d sectors, want 1 to %d", capacity, uint64(MaxCapacity/SectorSize))
	}
	h.Capacity = int64(capacity)
	grain := le.Uint64(sector[offGrainSize:])
	if grain < MinGrainSectors || grain > MaxGrainSectors || bits.OnesCount64(grain) != 1 {
		return bad("grain size is %d sectors, want a power of two from %d to %d", grain, MinGrainSectors, MaxGrainSectors)
	}
	h.GrainSize = int64(grain)
	if n := le.Uint32(sector[offNumGTEs:]); n != EntriesPerTable {
		return bad("grain table has %d entries, want %d", n, EntriesPerTable)
	}
	overhead := le.Uint64(sector[offOverhead:])
	if overhead < 1 || overhead > MaxOverheadSectors {
		return bad("overhead is %d sectors, want 1 to %d", overhead, MaxOverheadSectors)
	}
	h.Overhead = int64(overhead)
	descOffset, descSize := le.Uint64(sector[offDescOffset:]), le.Uint64(sector[offDescSize:])
	if descOffset != 0 || descSize != 0 {
		if descOffset < 1 || descOffset > overhead || descSize > maxDescriptorSectors || descOffset+descSize > overhead {
			return bad("descriptor is %d sectors at sector %d, want it between sector 1 and the overhead's end at %d",
				descSize, descOffset, overhead)
		}
	}
	h.DescriptorOffset, h.DescriptorSize = int64(descOffset), int64(descSize)
	return h, nil
}

// put writes h into a zeroed sector. It is the inverse of ParseHeader and
// checks nothing.
func (h Header) put(sector []byte) {
	le := binary.LittleEndian
	copy(sector[offMagic:], magic)
	le.PutUint32(sector[offVersion:], h.Version)
	le.PutUint32(sector[offFlags:], h.Flags)
	le.PutUint64(sector[offCapacity:], uint64(h.Capacity))
	le.PutUint64(sector[offGrainSize:], uint64(h.GrainSize))
	le.PutUint64(sector[offDescOffset:], uint64(h.DescriptorOffset))
	le.PutUint64(sector[offDescSize:], uint64(h.DescriptorSize))
	le.PutUint32(sector[offNumGTEs:], EntriesPerTable)
	le.PutUint64(sector[offRGDOffset:], h.RGDOffset)
	le.PutUint64(sector[offGDOffset:], h.GDOffset)
	le.PutUint64(sector[offOverhead:], uint64(h.Overhead))
	if h.UncleanShutdown {
		sector[offUnclean] = 1
	}
	copy(sector[offNewlines:], newlines)
	le.PutUint16(sector[offCompression:], compressDeflate)
}

// checkZlibHeader checks the two bytes a grain's stream begins with (RFC 1950,
// section 2.2) and says what is wrong, or nothing. A preset dictionary is
// refused: the format has nowhere to keep one.
func checkZlibHeader(cmf, flg byte) string {
	switch {
	case cmf&0x0f != 8:
		return fmt.Sprintf("zlib method is %d, want 8", cmf&0x0f)
	case cmf>>4 > 7:
		return fmt.Sprintf("zlib window is 2^%d, want at most 2^15", cmf>>4+8)
	case flg&0x20 != 0:
		return "zlib stream wants a preset dictionary"
	case (uint(cmf)<<8|uint(flg))%31 != 0:
		return fmt.Sprintf("zlib header %02x%02x fails its check", cmf, flg)
	}
	return ""
}

func ceilDiv(a, b int64) int64 { return (a + b - 1) / b }

// padTo is how many bytes follow n up to a sector's end.
func padTo(n int64) int64 { return -n & (SectorSize - 1) }
