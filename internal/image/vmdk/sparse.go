package vmdk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sort"
)

// maxTables bounds the directory of a sparse file, and with it memory: a disk
// of MaxCapacity with grains of 64 KiB has as many tables.
const maxTables = MaxCapacity / (EntriesPerTable * defaultGrainSectors * SectorSize)

const tableBytes = tableSectors * SectorSize

// sparse reads a hosted sparse extent: a directory of tables of grains, which
// are in the file in any order ("Virtual Disk Format 5.0", "Hosted Sparse
// Extents").
//
// Every structure must be within the file, and none may overlap another: not
// the header, descriptor, directories and tables, nor a grain one of these,
// nor may two grains begin less than a grain from each other within the same
// piece of the file of a grain's size. So no grain is read twice, and grains
// that are aligned alike, as all known writers have them, can not overlap.
// Two of different alignment that overlap from one such piece into the next
// are not found. A second directory, where the header has one, must list
// exactly the same grains: nothing tells which of two is right.
//
// Not looked at: entries behind the disk's last grain, and what no entry names.
//
// Memory is 4 bytes for each table, twice with a second directory, 16 for each
// run of tables (one, as known writers lay them out), 1 bit for each grain in
// the file, and the window.
type sparse struct {
	f      file
	header Header
	start  int64 // of the extent on the disk, in bytes
	length int64 // of the extent, in bytes; less than a grain below the header's capacity

	directory, redundant []uint32 // nil until the first load; redundant may stay so
	meta                 []span   // where no grain may be, in rising order
	taken                slots
	grain                int64 // the next one
	table                [tableBytes]byte
	second               [tableBytes]byte
	loaded               int64 // number of the table in table, -1 for none
}

// span is a range of sectors of a file.
type span struct{ from, to int64 }

// readSparseHeader reads and checks the header of a sparse extent that is not
// compressed.
func readSparseHeader(f file) (Header, error) {
	sector := make([]byte, SectorSize)
	if f.size < SectorSize {
		return Header{}, f.bad(0, "file has %d bytes, less than a header", f.size)
	}
	if err := f.read(sector, 0); err != nil {
		return Header{}, err
	}
	if m := string(sector[:len(magic)]); m != magic {
		return Header{}, f.bad(0, "magic is %q, want %q", m, magic)
	}
	le := binary.LittleEndian
	flags, compression := le.Uint32(sector[offFlags:]), le.Uint16(sector[offCompression:])
	if flags&(FlagCompressed|FlagMarkers) != 0 || compression != 0 {
		return Header{}, &UnsupportedError{Name: f.name, What: "the file is stream-optimized, where the disk wants a sparse one",
			Advice: "give that file itself when it is the whole disk"}
	}
	// But for this, the header is a stream's.
	le.PutUint32(sector[offFlags:], flags|FlagCompressed|FlagMarkers)
	le.PutUint16(sector[offCompression:], compressDeflate)
	h, err := ParseHeader(sector)
	if e, ok := errors.AsType[*FormatError](err); ok {
		return Header{}, f.bad(0, "header: %s", e.What)
	} else if err != nil {
		return Header{}, err
	}
	h.Flags = flags
	// The tables of a disk in use are behind its grains, and which are right
	// is known to the writer only: reading on would make holes of what the
	// guest wrote last.
	if h.UncleanShutdown {
		return Header{}, &UnsupportedError{Name: f.name, What: "the disk is in use, or was not closed when it last was",
			Advice: "shut the VM down; if it is off, repair the disk with vmware-vdiskmanager -R, or start and shut down the VM once"}
	}
	if !f.holds(0, h.Overhead*SectorSize) {
		return Header{}, f.bad(-1, "it has %d bytes, and %d is where its grains begin: it was cut", f.size, h.Overhead*SectorSize)
	}
	if h.Tables() > maxTables {
		return Header{}, f.bad(0, "header: %d grain tables, more than %d", h.Tables(), maxTables)
	}
	offsets := []uint64{h.GDOffset}
	if h.Flags&FlagRedundantTable != 0 {
		offsets = append(offsets, h.RGDOffset)
	}
	for _, o := range offsets {
		if o < 1 || o > uint64(f.size/SectorSize) || !f.holds(int64(o)*SectorSize, h.Tables()*4) {
			return Header{}, f.bad(0, "header: grain directory of %d tables at sector %d, and the file has %d bytes", h.Tables(), o, f.size)
		}
	}
	return h, nil
}

// newSparse returns a sparse for a file whose header was read, as the extent
// of so many sectors at byte start of the disk.
//
// The capacity in the header may be rounded up to a whole grain. What the
// descriptor says is the extent's size.
func newSparse(f file, h Header, start, sectors int64) (*sparse, error) {
	if sectors > h.Capacity || h.Capacity-sectors >= h.GrainSize {
		return nil, f.bad(0, "header: capacity is %d sectors, and the descriptor has %d", h.Capacity, sectors)
	}
	return &sparse{f: f, header: h, start: start, length: sectors * SectorSize, loaded: -1}, nil
}

// load puts the next piece of the extent into w. The error is io.EOF behind
// the last.
func (d *sparse) load(w *window) error {
	if d.directory == nil {
		if err := d.open(); err != nil {
			return err
		}
	}
	for d.grain < d.header.Grains() {
		if t := d.grain / EntriesPerTable; t != d.loaded {
			if d.directory[t] == 0 {
				d.grain = (t + 1) * EntriesPerTable
				continue
			}
			if err := d.loadTable(t); err != nil {
				return err
			}
			if allZero(d.table[:]) { // of a thin disk, most tables are
				d.grain = (t + 1) * EntriesPerTable
				continue
			}
		}
		sector, err := d.take(d.grain)
		if err != nil {
			return err
		}
		if sector > 0 {
			return d.loadRun(w, sector)
		}
		d.grain++
	}
	return io.EOF
}

// loadRun loads the next grain, which was taken and is at sector of the file,
// and those that follow it on the disk and in the file.
func (d *sparse) loadRun(w *window, sector int64) error {
	first, n := d.grain, d.grainLength(d.grain)
	for d.grain++; d.grain < d.header.Grains() && d.grain/EntriesPerTable == d.loaded; d.grain++ {
		if d.entry(d.grain) != sector+(d.grain-first)*d.header.GrainSize || n+d.grainLength(d.grain) > loadSize {
			break
		}
		if _, err := d.take(d.grain); err != nil {
			return err
		}
		n += d.grainLength(d.grain)
	}
	return w.load(d.f, sector*SectorSize, d.start+first*d.header.GrainBytes(), n)
}

// grainLength is how many bytes of the disk grain i holds.
func (d *sparse) grainLength(i int64) int64 {
	size := d.header.GrainBytes()
	return min(size, d.length-i*size)
}

// entry is what the loaded table says of grain i.
func (d *sparse) entry(i int64) int64 {
	return int64(binary.LittleEndian.Uint32(d.table[i%EntriesPerTable*4:]))
}

// take says where grain i is in the file, in sectors, and checks that it may
// be there; 0 is nowhere. It is called once for each grain.
func (d *sparse) take(i int64) (int64, error) {
	h := &d.header
	v := d.entry(i)
	if v == 0 || v == zeroedGrain && h.Flags&FlagZeroedGrain != 0 {
		return 0, nil
	}
	at := int64(d.directory[d.loaded])*SectorSize + i%EntriesPerTable*4
	n := d.grainLength(i)
	if !d.f.holds(v*SectorSize, n) {
		return 0, d.f.bad(at, "grain table has the grain for sector %d at sector %d, and the file has %d bytes: it was cut, or is damaged",
			i*h.GrainSize, v, d.f.size)
	}
	if overlaps(d.meta, span{v, v + n/SectorSize}) {
		return 0, d.f.bad(at, "grain table has the grain for sector %d at sector %d, where the file's own tables are", i*h.GrainSize, v)
	}
	if !d.taken.take(v / h.GrainSize) {
		return 0, d.f.bad(at, "grain table has the grain for sector %d at sector %d, which overlaps another grain", i*h.GrainSize, v)
	}
	return v, nil
}

// loadTable reads table t.
func (d *sparse) loadTable(t int64) error {
	off := int64(d.directory[t]) * SectorSize
	if err := d.f.read(d.table[:], off); err != nil {
		return err
	}
	d.loaded = t
	if d.redundant == nil {
		return nil
	}
	if err := d.f.read(d.second[:], int64(d.redundant[t])*SectorSize); err != nil {
		return err
	}
	if !bytes.Equal(d.table[:], d.second[:]) {
		return d.f.bad(off, "the two copies of grain table %d differ: the disk is damaged; repair it with vmware-vdiskmanager -R", t)
	}
	return nil
}

// open reads the directories and finds out where no grain may be.
func (d *sparse) open() error {
	h := &d.header
	fixed := []span{{0, 1}}
	if h.DescriptorSize > 0 {
		fixed = append(fixed, span{h.DescriptorOffset, h.DescriptorOffset + h.DescriptorSize})
	}
	var err error
	sectors := h.directorySectors()
	if d.directory, err = d.readDirectory(h.GDOffset); err != nil {
		return err
	}
	fixed = append(fixed, span{int64(h.GDOffset), int64(h.GDOffset) + sectors})
	if h.Flags&FlagRedundantTable != 0 {
		if d.redundant, err = d.readDirectory(h.RGDOffset); err != nil {
			return err
		}
		fixed = append(fixed, span{int64(h.RGDOffset), int64(h.RGDOffset) + sectors})
	}
	fixed, disjoint := joinSpans(fixed)
	if !disjoint {
		return d.f.bad(0, "header: descriptor and grain directories overlap")
	}
	meta := slices.Clone(fixed)
	for _, directory := range [][]uint32{d.directory, d.redundant} {
		for t, v := range directory {
			if (v == 0) != (d.directory[t] == 0) {
				return d.f.bad(-1, "only one of the two grain directories has a grain table %d: the disk is damaged; repair it with vmware-vdiskmanager -R", t)
			}
			if v == 0 {
				continue
			}
			s := span{int64(v), int64(v) + tableSectors}
			if !d.f.holds(s.from*SectorSize, tableBytes) {
				return d.f.bad(-1, "grain directory has grain table %d at sector %d, and the file has %d bytes: it was cut, or is damaged", t, v, d.f.size)
			}
			if overlaps(fixed, s) {
				return d.f.bad(-1, "grain directory has grain table %d at sector %d, where the header, descriptor or a directory is", t, v)
			}
			// Writers put the tables in a row.
			if last := &meta[len(meta)-1]; last.to == s.from {
				last.to = s.to
			} else {
				meta = append(meta, s)
			}
		}
	}
	// Tables without grains may be one and the same; of others, the grains
	// would be found twice.
	d.meta, _ = joinSpans(meta)
	d.taken = newSlots(d.f.size / h.GrainBytes())
	return nil
}

// readDirectory reads the directory at sector, which is within the file.
func (d *sparse) readDirectory(sector uint64) ([]uint32, error) {
	b := make([]byte, d.header.Tables()*4)
	if err := d.f.read(b, int64(sector)*SectorSize); err != nil {
		return nil, err
	}
	entries := make([]uint32, d.header.Tables())
	for i := range entries {
		entries[i] = binary.LittleEndian.Uint32(b[i*4:])
	}
	return entries, nil
}

// joinSpans sorts spans, joins those that touch or overlap, and says whether
// none overlapped.
func joinSpans(spans []span) (joined []span, disjoint bool) {
	slices.SortFunc(spans, func(a, b span) int { return int(a.from - b.from) })
	joined, disjoint = spans[:1], true
	for _, s := range spans[1:] {
		last := &joined[len(joined)-1]
		if s.from > last.to {
			joined = append(joined, s)
			continue
		}
		disjoint = disjoint && s.from == last.to
		last.to = max(last.to, s.to)
	}
	return joined, disjoint
}

// overlaps says whether s has a sector in common with one of spans, which are
// in rising order and do not overlap.
func overlaps(spans []span, s span) bool {
	i := sort.Search(len(spans), func(i int) bool { return spans[i].to > s.from })
	return i < len(spans) && spans[i].from < s.to
}

// slots is a set of numbers. It costs memory only about those in it.
type slots struct{ pages [][]uint64 }

const slotsPerPage = 1 << 15

// newSlots returns a set of numbers up to most.
func newSlots(most int64) slots {
	// Entries of tables have 32 bits, and a grain has 8 sectors at least.
	most = min(most, 1<<32/MinGrainSectors)
	return slots{make([][]uint64, most/slotsPerPage+1)}
}

// take puts n into the set and says whether it is new there.
func (s *slots) take(n int64) bool {
	page := &s.pages[n/slotsPerPage]
	if *page == nil {
		*page = make([]uint64, slotsPerPage/64)
	}
	word, bit := &(*page)[n%slotsPerPage/64], uint64(1)<<(n%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}
