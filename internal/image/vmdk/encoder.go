package vmdk

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// Range is a run of bytes of a disk.
type Range struct{ Off, Len int64 }

// Content is what a disk holds. ReadAt is called within Size only and by one
// goroutine at a time.
type Content interface {
	io.ReaderAt
	// Size is the disk's capacity in bytes, a positive multiple of SectorSize.
	Size() int64
	// Extents lists the ranges that may hold something other than zeros, in
	// rising order without overlap. What lies outside is not read, so that a
	// large thin disk costs only what it holds.
	Extents() []Range
}

// EncodeOptions says how Encode writes. The zero value stores grains without
// compressing them.
type EncodeOptions struct {
	// Level is the zlib level: 0 stores, 1 is fastest, 9 smallest; -1 and -2
	// as in compress/zlib.
	Level int
	// CID is the content id in the embedded descriptor.
	CID uint32
	// Variant other than 0 compresses the same content into other bytes, as a
	// host does that compresses anew on every read: each grain's stream is
	// flushed once at a place that depends on Variant modulo 251.
	Variant int
}

const (
	defaultGrainSectors   = 128 // 64 KiB, the only grain size VMware streams use
	defaultOverhead       = 128
	descriptorSectors     = 20
	maxStreamSectors      = math.MaxUint32 // table entries are 32 bits wide
	encodeBufferSize      = 256 << 10
	variants              = 251
	streamOptimizedName   = "generated-stream.vmdk" // what ESXi writes for a file that has no name yet
	descriptorHeads       = 255
	descriptorTrackLength = 63
)

// Encode writes c as a stream-optimized VMDK in VMware's layout: header,
// descriptor, the grains that are not all zeros with each table behind its
// grains, directory, footer, end-of-stream marker. The last grain is short
// when the capacity is no multiple of 64 KiB. The same content and options
// give the same bytes. Memory does not grow with the disk, but for 4 bytes
// for each 32 MiB of capacity.
func Encode(w io.Writer, c Content, opts EncodeOptions) error {
	e, err := prepare(w, c, opts)
	if err != nil {
		return fmt.Errorf("encode vmdk: %w", err)
	}
	if err := e.run(opts.CID); err != nil {
		return fmt.Errorf("encode vmdk: %w", err)
	}
	return nil
}

// prepare returns an encoder that has not written anything.
func prepare(w io.Writer, c Content, opts EncodeOptions) (*encoder, error) {
	size := c.Size()
	if size <= 0 || size > MaxCapacity || size%SectorSize != 0 {
		return nil, fmt.Errorf("capacity is %d bytes, want a positive multiple of %d up to %d",
			size, SectorSize, int64(MaxCapacity))
	}
	e := &encoder{
		header: Header{
			Version:          3,
			Flags:            FlagNewlineTest | FlagCompressed | FlagMarkers,
			Capacity:         size / SectorSize,
			GrainSize:        defaultGrainSectors,
			DescriptorOffset: 1,
			DescriptorSize:   descriptorSectors,
			GDOffset:         GDAtEnd,
			Overhead:         defaultOverhead,
		},
		w:       bufio.NewWriterSize(w, encodeBufferSize),
		content: c,
		table:   -1,
	}
	e.directory = make([]uint32, e.header.Tables())
	e.grain = make([]byte, e.header.GrainBytes())
	variant := (opts.Variant%variants + variants) % variants
	e.cut = variant * len(e.grain) / variants
	var err error
	e.zlib, err = zlib.NewWriterLevel(io.Discard, opts.Level)
	return e, err
}

// encoder holds the state of one Encode.
type encoder struct {
	header  Header
	w       *bufio.Writer
	content Content
	sector  int64 // where the next byte goes; writes are whole sectors

	directory []uint32
	table     int64 // index of the grain table being filled, -1 before the first
	entries   [EntriesPerTable]uint32

	grain  []byte // one grain, uncompressed
	packed bytes.Buffer
	zlib   *zlib.Writer
	cut    int // where a grain's stream is flushed; 0 for nowhere
}

func (e *encoder) run(cid uint32) error {
	if err := e.begin(cid); err != nil {
		return err
	}
	next := int64(0) // first grain that has not been dealt with
	last := int64(0) // end of the previous extent
	for _, r := range e.content.Extents() {
		if r.Off < last || r.Len < 0 || r.Len > e.content.Size()-r.Off {
			return fmt.Errorf("extent of %d bytes at %d is out of order or beyond the disk's %d bytes", r.Len, r.Off, e.content.Size())
		}
		last = r.Off + r.Len
		if r.Len == 0 {
			continue
		}
		// Two extents may share a grain: it is encoded with the first.
		size := e.header.GrainBytes()
		for i := max(next, r.Off/size); i <= (last-1)/size; i++ {
			if err := e.encodeGrain(i); err != nil {
				return err
			}
			next = i + 1
		}
	}
	return e.finish()
}

// begin writes everything in front of the first grain.
func (e *encoder) begin(cid uint32) error {
	front := make([]byte, e.header.Overhead*SectorSize)
	e.header.put(front)
	text := descriptor(e.header, cid)
	if len(text) > descriptorSectors*SectorSize {
		return fmt.Errorf("descriptor has %d bytes, more than the %d there is room for", len(text), descriptorSectors*SectorSize)
	}
	copy(front[e.header.DescriptorOffset*SectorSize:], text)
	return e.write(front)
}

// encodeGrain writes grain i, unless it is all zeros.
func (e *encoder) encodeGrain(i int64) error {
	lba := i * e.header.GrainSize
	data := e.grain[:e.header.grainLength(lba)]
	if n, err := e.content.ReadAt(data, lba*SectorSize); n < len(data) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read grain at sector %d: %w", lba, err)
	}
	if allZero(data) {
		return nil
	}
	if t := i / EntriesPerTable; t != e.table {
		if err := e.endTable(); err != nil {
			return err
		}
		e.table = t
	}

	var marker [grainMarkerSize]byte
	e.packed.Reset()
	e.packed.Write(marker[:])
	e.zlib.Reset(&e.packed)
	head := data[:min(e.cut, len(data))]
	if _, err := e.zlib.Write(head); err != nil {
		return fmt.Errorf("compress grain at sector %d: %w", lba, err)
	}
	if e.cut > 0 {
		if err := e.zlib.Flush(); err != nil {
			return fmt.Errorf("compress grain at sector %d: %w", lba, err)
		}
	}
	if _, err := e.zlib.Write(data[len(head):]); err != nil {
		return fmt.Errorf("compress grain at sector %d: %w", lba, err)
	}
	if err := e.zlib.Close(); err != nil {
		return fmt.Errorf("compress grain at sector %d: %w", lba, err)
	}
	size := e.packed.Len() - grainMarkerSize
	e.packed.Write(zeros[:padTo(int64(e.packed.Len()))])
	block := e.packed.Bytes()
	binary.LittleEndian.PutUint64(block, uint64(lba))
	binary.LittleEndian.PutUint32(block[offMarkerSize:], uint32(size))

	at, err := e.at()
	if err != nil {
		return err
	}
	e.entries[i%EntriesPerTable] = at
	return e.write(block)
}

// endTable writes the grain table of the grains written since the last one,
// if there were any.
func (e *encoder) endTable() error {
	if e.table < 0 {
		return nil
	}
	if err := e.marker(markerGrainTable, tableSectors); err != nil {
		return err
	}
	at, err := e.at()
	if err != nil {
		return err
	}
	e.directory[e.table] = at
	err = e.write(putEntries(e.entries[:], tableSectors))
	e.entries = [EntriesPerTable]uint32{}
	return err
}

// finish writes everything behind the last grain.
func (e *encoder) finish() error {
	if err := e.endTable(); err != nil {
		return err
	}
	n := e.header.directorySectors()
	if err := e.marker(markerDirectory, n); err != nil {
		return err
	}
	footer := e.header
	footer.GDOffset = uint64(e.sector)
	if err := e.write(putEntries(e.directory, n)); err != nil {
		return err
	}
	if err := e.marker(markerFooter, 1); err != nil {
		return err
	}
	sector := make([]byte, SectorSize)
	footer.put(sector)
	if err := e.write(sector); err != nil {
		return err
	}
	if err := e.marker(markerEndOfStream, 0); err != nil {
		return err
	}
	if err := e.w.Flush(); err != nil {
		return fmt.Errorf("write stream: %w", err)
	}
	return nil
}

// marker writes a metadata marker for what follows it.
func (e *encoder) marker(kind uint32, sectors int64) error {
	var m [SectorSize]byte
	binary.LittleEndian.PutUint64(m[:], uint64(sectors))
	binary.LittleEndian.PutUint32(m[offMarkerType:], kind)
	return e.write(m[:])
}

// at is the current place as a table entry.
func (e *encoder) at() (uint32, error) {
	if e.sector > maxStreamSectors {
		return 0, fmt.Errorf("stream is longer than the %d sectors a grain table can address", int64(maxStreamSectors))
	}
	return uint32(e.sector), nil
}

// write appends whole sectors.
func (e *encoder) write(p []byte) error {
	if _, err := e.w.Write(p); err != nil {
		return fmt.Errorf("write stream: %w", err)
	}
	e.sector += int64(len(p)) / SectorSize
	return nil
}

// putEntries encodes table entries, padded to sectors.
func putEntries(entries []uint32, sectors int64) []byte {
	b := make([]byte, sectors*SectorSize)
	for i, v := range entries {
		binary.LittleEndian.PutUint32(b[i*4:], v)
	}
	return b
}

var zeros [64 << 10]byte

// allZero reports whether p, at most MaxGrainSectors long, holds zeros only.
func allZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// descriptor is the text that describes the disk to VMware's tools, with the
// fields ESXi writes into a stream.
func descriptor(h Header, cid uint32) string {
	cylinders := max(1, h.Capacity/(descriptorHeads*descriptorTrackLength))
	return fmt.Sprintf(`# Disk DescriptorFile
version=1
CID=%08x
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RDONLY %d SPARSE "%s"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "%d"
ddb.geometry.sectors = "%d"
ddb.virtualHWVersion = "13"
`, cid, h.Capacity, streamOptimizedName, cylinders, descriptorHeads, descriptorTrackLength)
}
