package vmdk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync/atomic"
)

// Scanner checks the structure of a stream-optimized VMDK while it passes, in
// pieces of any size. It looks at headers, markers and tables and skips the
// grains' bodies, so it costs next to nothing beside the network; what the
// grains hold is for CheckGrains.
//
// Two layouts are accepted. In VMware's, every grain comes before its table
// (at once or at the end), then directory, footer and end-of-stream marker,
// and not one byte behind that. In qemu-img's, directory and tables stand in
// front of the first grain and there is no end marker; the stream is complete
// when every grain of the tables has come. qemu-img pads a short last grain
// with zeros to a full one, and these may be missing.
//
// In both, grains must come in rising order, once each, and the tables must
// name exactly the grains seen. Not looked at: descriptor text, the padding
// of sectors, the table offsets that qemu-img's layout leaves unused.
//
// Write and Finish belong to one goroutine; Position, Capacity and Offset may
// be called by any. Memory is 8 bytes for each grain table seen (16 MiB for a
// full disk of 64 TiB), and 16 more for one whose table is still to come.
type Scanner struct {
	offset   atomic.Int64
	position atomic.Int64
	capacity atomic.Int64

	err   error
	state scanState
	skip  int64 // bytes to pass over before the next structure
	want  int   // bytes of the structure now collected in buf
	have  int
	buf   [SectorSize]byte
	done  int64 // stream bytes handled, including those in buf

	header Header
	passed int64 // sectors of the disk passed, the grain in transfer excluded
	ahead  int64 // the same with that grain

	lastLBA int64 // of the last grain, -1 before the first
	seen    tableSum

	// VMware's layout.
	phase      scanPhase
	group      int64          // grain table the last grains belong to, -1 for none open
	closed     int64          // no grain of this table or one below may come any more
	pending    []pendingTable // in rising order
	pendingAt  int            // of pending, the first that has no table yet
	tables     []tableRef     // tables with grains, in rising order of both fields
	empty      []uint32       // sectors of tables without any
	dirSector  int64
	dirEntries int64 // entries of the directory checked so far
	dirTables  int   // of tables, those the directory has named
	dirEmpty   int   // of empty, those the directory has passed

	// A table in transfer, in either layout.
	left      int64 // sectors to come
	startedAt int64 // sector of its beginning
	listed    tableSum

	// qemu-img's layout.
	fronts   []int64 // sectors of the directories in front, in rising order
	expected digest  // of the grains that the tables in front name
	tail     int64   // zeros that may still follow the last grain
}

// scanState says what the bytes being collected are.
type scanState uint8

const (
	inHeader scanState = iota
	inMarker
	inTable
	inDirectory
	inFooter
	inFrontDirectory
	inFrontTables
	inTail
	inEnd
)

func (s scanState) String() string {
	return [...]string{"header", "grains", "a grain table", "the grain directory", "the footer",
		"the grain directory", "the grain tables", "the padding", "the end"}[s]
}

// scanPhase says which metadata VMware's layout allows next.
type scanPhase uint8

const (
	phaseGrains scanPhase = iota // grains, tables, directory
	phaseFooter
	phaseEndOfStream
)

// tableSum gathers table entries: their number and a hash of their places and
// values, so that a table can be compared with the grains it should name
// without either being kept. The hash is seeded at random, so no stream can
// be made to fool it.
type tableSum struct {
	hash  maphash.Hash
	count int64
}

// digest is what a tableSum has gathered.
type digest struct {
	hash  uint64
	count int64
}

func (t *tableSum) add(index int64, sector uint32) {
	var b [12]byte
	binary.LittleEndian.PutUint64(b[:], uint64(index))
	binary.LittleEndian.PutUint32(b[8:], sector)
	_, _ = t.hash.Write(b[:]) // a maphash never fails
	t.count++
}

// take returns what has been gathered and begins anew.
func (t *tableSum) take() digest {
	d := digest{t.hash.Sum64(), t.count}
	t.hash.Reset()
	t.count = 0
	return d
}

// pendingTable stands for grains seen whose table has not come yet.
type pendingTable struct {
	digest
	group int64
}

// tableRef is a grain table seen.
type tableRef struct {
	group  int32
	sector uint32
}

// directorySlack is by how many sectors a grain directory may be longer than
// the disk needs, for writers that round it up to a grain.
const directorySlack = 128

// NewScanner returns a Scanner at the beginning of a stream.
func NewScanner() *Scanner {
	s := &Scanner{state: inHeader, want: SectorSize, lastLBA: -1, group: -1, closed: -1}
	seed := maphash.MakeSeed()
	s.seen.hash.SetSeed(seed)
	s.listed.hash.SetSeed(seed)
	return s
}

// Header returns the stream's header once it has been read. It must not be
// called while Write runs.
func (s *Scanner) Header() (Header, bool) {
	return s.header, s.capacity.Load() > 0
}

// Capacity is the size of the guest's disk in bytes, 0 until the header has
// been read.
func (s *Scanner) Capacity() int64 { return s.capacity.Load() }

// Position is how far the stream has come in the guest's address space, in
// bytes: the end of the last grain that has passed whole. It equals Capacity
// once the stream is complete. Up to one call of Write lies between the two
// moments.
func (s *Scanner) Position() int64 { return s.position.Load() }

// Offset is the number of bytes of the stream taken.
func (s *Scanner) Offset() int64 { return s.offset.Load() }

// Write checks the next bytes of the stream. Its error is a *FormatError, and
// stays: every later Write and Finish returns it again. The count is then how
// many bytes of p were right, up to the structure that was not.
func (s *Scanner) Write(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	begin := s.done
	rest := p
	for len(rest) > 0 && s.err == nil {
		if s.skip > 0 {
			n := min(s.skip, int64(len(rest)))
			s.skip -= n
			s.done += n
			rest = rest[n:]
			continue
		}
		if s.have == 0 && len(rest) >= s.want && s.state != inHeader {
			b := rest[:s.want]
			s.done += int64(s.want)
			rest = rest[s.want:]
			s.err = s.step(b)
			continue
		}
		n := copy(s.buf[s.have:s.want], rest)
		s.have += n
		s.done += int64(n)
		rest = rest[n:]
		if s.state == inHeader {
			// A short page of HTML is told from a header that was cut.
			if m := s.buf[:min(s.have, len(magic))]; !strings.HasPrefix(magic, string(m)) {
				s.err = &FormatError{LBA: -1, What: fmt.Sprintf("magic is not %q", magic)}
			}
		}
		if s.have == s.want && s.err == nil {
			s.have = 0
			s.err = s.step(s.buf[:s.want])
		}
	}
	if s.skip == 0 && s.have == 0 {
		s.passed = s.ahead
	}
	s.offset.Store(s.done)
	s.position.Store(s.passed * SectorSize)
	if f, ok := errors.AsType[*FormatError](s.err); ok {
		return int(max(0, min(f.Offset-begin, int64(len(p))))), s.err
	}
	return len(p), nil
}

// Finish says whether the stream is complete, after its last byte. The error
// is ErrTruncated, or the *FormatError that Write returned.
func (s *Scanner) Finish() error {
	if s.err != nil {
		return s.err
	}
	if s.skip == 0 && (s.state == inTail || s.state == inEnd) {
		return nil
	}
	return fmt.Errorf("vmdk stream of %d bytes lacks its end, last seen were %s: %w", s.done, s.state, ErrTruncated)
}

// fail makes a FormatError for the structure of n bytes just collected.
func (s *Scanner) fail(n int, lba int64, format string, args ...any) error {
	return &FormatError{Offset: s.done - int64(n), LBA: lba, What: fmt.Sprintf(format, args...)}
}

// next says what is collected after skip bytes.
func (s *Scanner) next(state scanState, want int, skip int64) {
	s.state, s.want, s.skip = state, want, skip
}

// step handles one whole structure and says what comes next. It must not keep
// b.
func (s *Scanner) step(b []byte) error {
	switch s.state {
	case inHeader:
		return s.stepHeader(b)
	case inMarker:
		return s.stepMarker(b)
	case inTable:
		return s.stepTable(b)
	case inDirectory:
		return s.stepDirectory(b)
	case inFooter:
		return s.stepFooter(b)
	case inFrontDirectory:
		return s.stepFrontDirectory(b)
	case inFrontTables:
		return s.stepFrontTables(b)
	case inTail:
		if s.tail == 0 || b[0] != 0 {
			return s.fail(len(b), -1, "unexpected bytes after the last grain")
		}
		s.tail--
		return nil
	default:
		return s.fail(len(b), -1, "unexpected bytes after the end-of-stream marker")
	}
}

func (s *Scanner) stepHeader(b []byte) error {
	h, err := ParseHeader(b)
	if err != nil {
		return err
	}
	s.header = h
	if h.GDOffset == GDAtEnd {
		s.next(inMarker, metaMarkerSize, h.Overhead*SectorSize-s.done)
	} else if err := s.beginFront(); err != nil {
		return err
	}
	s.capacity.Store(h.CapacityBytes())
	return nil
}

func (s *Scanner) stepMarker(b []byte) error {
	s.passed = s.ahead
	le := binary.LittleEndian
	value, size := le.Uint64(b), le.Uint32(b[offMarkerSize:])
	if size > 0 {
		return s.stepGrain(b, value, int64(size))
	}
	if len(s.fronts) > 0 {
		return s.fail(len(b), -1, "metadata marker among the grains, want %d more grains", s.expected.count-s.seen.count)
	}
	const body = SectorSize - metaMarkerSize
	s.startedAt = (s.done + body) / SectorSize
	kind := le.Uint32(b[offMarkerType:])
	phase := phaseGrains
	switch kind {
	case markerGrainTable:
		if value != tableSectors {
			return s.fail(len(b), -1, "grain table has %d sectors, want %d", value, tableSectors)
		}
		if int64(len(s.tables)+len(s.empty)) >= s.header.Tables() {
			return s.fail(len(b), -1, "more than the disk's %d grain tables", s.header.Tables())
		}
		s.left = tableSectors
		s.next(inTable, SectorSize, body)
	case markerDirectory:
		need := uint64(s.header.directorySectors())
		if value < need || value > need+directorySlack {
			return s.fail(len(b), -1, "grain directory has %d sectors, want %d", value, need)
		}
		s.closeGroup()
		if n := len(s.pending) - s.pendingAt; n > 0 {
			return s.fail(len(b), -1, "grain directory comes before the tables of %d groups of grains", n)
		}
		s.left, s.dirSector = int64(value), s.startedAt
		s.next(inDirectory, SectorSize, body)
	case markerFooter:
		phase = phaseFooter
		if value > 1 {
			return s.fail(len(b), -1, "footer has %d sectors, want 1", value)
		}
		s.next(inFooter, SectorSize, body)
	case markerEndOfStream:
		phase = phaseEndOfStream
		if value != 0 {
			return s.fail(len(b), -1, "end-of-stream marker has %d sectors, want 0", value)
		}
		s.ahead = s.header.Capacity
		s.next(inEnd, 1, body)
	default:
		return s.fail(len(b), -1, "unknown marker type %d", kind)
	}
	if phase != s.phase {
		return s.fail(len(b), -1, "marker of type %d is out of order", kind)
	}
	return nil
}

func (s *Scanner) stepGrain(b []byte, value uint64, size int64) error {
	h := &s.header
	if value >= uint64(h.Capacity) {
		return s.fail(len(b), -1, "grain at sector %d is beyond the disk's %d sectors", value, h.Capacity)
	}
	lba := int64(value)
	switch {
	case s.phase != phaseGrains:
		return s.fail(len(b), lba, "grain after the grain directory")
	case lba%h.GrainSize != 0:
		return s.fail(len(b), lba, "grain is not aligned to %d sectors", h.GrainSize)
	case lba <= s.lastLBA:
		return s.fail(len(b), lba, "grain follows the one at sector %d", s.lastLBA)
	case size < minCompressed || size > h.maxCompressed():
		return s.fail(len(b), lba, "compressed grain has %d bytes, want %d to %d", size, minCompressed, h.maxCompressed())
	}
	if what := checkZlibHeader(b[grainMarkerSize], b[grainMarkerSize+1]); what != "" {
		return s.fail(len(b), lba, "%s", what)
	}
	s.lastLBA = lba
	s.ahead = min(lba+h.GrainSize, h.Capacity)

	index, at := lba/h.GrainSize, s.done-int64(len(b))
	// Entries are 32 bits wide; of a stream beyond 2 TiB the low ones are
	// compared, as nothing better can have been written.
	sector := uint32(at / SectorSize)
	skip := size + grainMarkerSize - int64(len(b)) + padTo(size+grainMarkerSize)
	if len(s.fronts) > 0 {
		s.seen.add(index, sector)
		if s.seen.count < s.expected.count {
			s.next(inMarker, metaMarkerSize, skip)
			return nil
		}
		s.tail = max(0, h.GrainBytes()-skip-int64(len(b)))
		return s.endFront(b, skip)
	}
	if group := index / EntriesPerTable; group != s.group {
		s.closeGroup()
		if group <= s.closed {
			return s.fail(len(b), lba, "grain comes after its grain table")
		}
		s.group = group
	}
	s.seen.add(index%EntriesPerTable, sector)
	s.next(inMarker, metaMarkerSize, skip)
	return nil
}

// closeGroup ends the group of grains that await the same table.
func (s *Scanner) closeGroup() {
	if s.group < 0 {
		return
	}
	s.pending = append(s.pending, pendingTable{s.seen.take(), s.group})
	s.closed, s.group = s.group, -1
}

// list adds the entries of one sector of a grain table to s.listed, the first
// of which belongs to grain or slot number first.
func (s *Scanner) list(b []byte, first int64) {
	for i := 0; i < len(b); i += 4 {
		v := binary.LittleEndian.Uint32(b[i:])
		if v == 0 || v == zeroedGrain && s.header.Flags&FlagZeroedGrain != 0 {
			continue
		}
		s.listed.add(first+int64(i/4), v)
	}
}

// stepTable takes a sector of a grain table in VMware's layout.
func (s *Scanner) stepTable(b []byte) error {
	s.list(b, (tableSectors-s.left)*(SectorSize/4))
	if s.left--; s.left > 0 {
		return nil
	}
	s.next(inMarker, metaMarkerSize, 0)
	listed := s.listed.take()
	if listed.count == 0 {
		s.empty = append(s.empty, uint32(s.startedAt))
		return nil
	}
	const size = tableSectors * SectorSize
	s.closeGroup()
	if s.pendingAt == len(s.pending) {
		return s.fail(size, -1, "grain table names %d grains, and none await a table", listed.count)
	}
	p := s.pending[s.pendingAt]
	if s.pendingAt++; s.pendingAt == len(s.pending) {
		s.pending, s.pendingAt = s.pending[:0], 0
	}
	if p.digest != listed {
		return s.fail(size, -1, "grain table %d names %d grains, which are not the %d seen", p.group, listed.count, p.count)
	}
	s.tables = append(s.tables, tableRef{group: int32(p.group), sector: uint32(s.startedAt)})
	return nil
}

// stepDirectory takes a sector of the grain directory in VMware's layout.
func (s *Scanner) stepDirectory(b []byte) error {
	for i := 0; i < len(b); i += 4 {
		v := binary.LittleEndian.Uint32(b[i:])
		n := s.dirEntries
		s.dirEntries++
		if s.dirTables < len(s.tables) && int64(s.tables[s.dirTables].group) == n {
			if want := s.tables[s.dirTables].sector; v != want {
				return s.fail(len(b), -1, "grain directory has table %d at sector %d, it is at %d", n, v, want)
			}
			s.dirTables++
			continue
		}
		if v == 0 {
			continue
		}
		if n >= s.header.Tables() {
			return s.fail(len(b), -1, "grain directory has an entry %d, want %d entries", n, s.header.Tables())
		}
		// A table without grains may be named, and more than once.
		for s.dirEmpty < len(s.empty) && s.empty[s.dirEmpty] != v {
			s.dirEmpty++
		}
		if s.dirEmpty == len(s.empty) {
			return s.fail(len(b), -1, "grain directory has table %d at sector %d, where none is", n, v)
		}
	}
	if s.left--; s.left == 0 {
		s.phase = phaseFooter
		s.next(inMarker, metaMarkerSize, 0)
	}
	return nil
}

func (s *Scanner) stepFooter(b []byte) error {
	f, err := ParseHeader(b)
	if e, ok := errors.AsType[*FormatError](err); ok {
		return s.fail(len(b), -1, "footer: %s", e.What)
	}
	h := &s.header
	for _, c := range []struct {
		what      string
		got, want uint64
		zero      bool // some writers leave the field out
	}{
		{"version", uint64(f.Version), uint64(h.Version), false},
		{"flags", uint64(f.Flags), uint64(h.Flags), false},
		{"capacity", uint64(f.Capacity), uint64(h.Capacity), false},
		{"grain size", uint64(f.GrainSize), uint64(h.GrainSize), false},
		{"overhead", uint64(f.Overhead), uint64(h.Overhead), false},
		{"descriptor offset", uint64(f.DescriptorOffset), uint64(h.DescriptorOffset), true},
		{"descriptor size", uint64(f.DescriptorSize), uint64(h.DescriptorSize), true},
		{"grain directory offset", f.GDOffset, uint64(s.dirSector), false},
	} {
		if c.got != c.want && (c.got != 0 || !c.zero) {
			return s.fail(len(b), -1, "footer has %s %d, want %d", c.what, c.got, c.want)
		}
	}
	s.phase = phaseEndOfStream
	s.next(inMarker, metaMarkerSize, 0)
	return nil
}

// beginFront checks where qemu-img's layout has its directories and goes to
// the first.
func (s *Scanner) beginFront() error {
	h := &s.header
	offsets := []uint64{h.GDOffset}
	if h.Flags&FlagRedundantTable != 0 {
		offsets = append(offsets, h.RGDOffset)
		slices.Sort(offsets)
	}
	size := h.directorySectors() + h.Tables()*tableSectors
	end := int64(1)
	for _, o := range offsets {
		if o < uint64(end) || o > MaxOverheadSectors || int64(o)+size > h.Overhead {
			return s.fail(SectorSize, -1, "grain directory at sector %d with %d sectors of tables does not fit in front of the first grain at %d", o, size, h.Overhead)
		}
		s.fronts = append(s.fronts, int64(o))
		end = int64(o) + size
	}
	s.nextFront(0)
	return nil
}

// nextFront goes to front directory i.
func (s *Scanner) nextFront(i int) {
	s.startedAt = s.fronts[i]
	s.left = s.header.directorySectors()
	s.dirEntries = 0
	s.next(inFrontDirectory, SectorSize, s.startedAt*SectorSize-s.done)
}

func (s *Scanner) stepFrontDirectory(b []byte) error {
	first := s.startedAt + s.header.directorySectors()
	for i := 0; i < len(b); i += 4 {
		want := uint32(0)
		if s.dirEntries < s.header.Tables() {
			want = uint32(first + s.dirEntries*tableSectors)
		}
		if v := binary.LittleEndian.Uint32(b[i:]); v != want {
			return s.fail(len(b), -1, "grain directory has table %d at sector %d, want %d", s.dirEntries, v, want)
		}
		s.dirEntries++
	}
	if s.left--; s.left == 0 {
		s.left = s.header.Tables() * tableSectors
		s.next(inFrontTables, SectorSize, 0)
	}
	return nil
}

func (s *Scanner) stepFrontTables(b []byte) error {
	h := &s.header
	s.list(b, (h.Tables()*tableSectors-s.left)*(SectorSize/4))
	if s.left--; s.left > 0 {
		return nil
	}
	listed := s.listed.take()
	if s.startedAt == s.fronts[0] {
		s.expected = listed
	} else if s.expected != listed {
		return s.fail(len(b), -1, "the two sets of grain tables differ: %d and %d grains", s.expected.count, listed.count)
	}
	if n := len(s.fronts); s.startedAt != s.fronts[n-1] {
		s.nextFront(n - 1)
		return nil
	}
	if s.expected.count > h.Grains() {
		return s.fail(len(b), -1, "grain tables name %d grains, the disk has %d", s.expected.count, h.Grains())
	}
	skip := h.Overhead*SectorSize - s.done
	if s.expected.count == 0 {
		return s.endFront(b, skip)
	}
	s.next(inMarker, metaMarkerSize, skip)
	return nil
}

// endFront ends qemu-img's layout, skip bytes behind the structure b.
func (s *Scanner) endFront(b []byte, skip int64) error {
	if seen := s.seen.take(); seen != s.expected {
		return s.fail(len(b), s.lastLBA, "the %d grains seen are not those the grain tables name", seen.count)
	}
	s.ahead = s.header.Capacity
	s.next(inTail, 1, skip)
	return nil
}
