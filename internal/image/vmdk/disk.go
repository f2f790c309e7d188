package vmdk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
)

// Kinds of disks, as Info.Kind.
const (
	KindStream = "stream-optimized"
	KindSparse = "sparse"
	KindFlat   = "flat"
	KindMixed  = "mixed" // files of both
	KindZero   = "zero"  // no file at all
)

// Info says what a disk was found to be.
type Info struct {
	// Kind is one of the constants above.
	Kind string
	// Compressed says that extents come compressed.
	Compressed bool
	// Capacity is the disk's size in bytes.
	Capacity int64
}

// OpenDisk recognises the VMDK in r, a file of size bytes, and returns a
// Decoder for its disk: a stream-optimized file, a monolithic sparse one, or a
// descriptor whose extents are in files beside it (flat and sparse ones, and
// zeros, in any mix). beside opens those by their plain names, each once, and
// says how many bytes they have; it must not follow names out of the folder.
// Closing what it opened is its own concern, after the last call of Next.
//
// A sparse file that was not closed properly is refused, as its tables may
// lack what the guest wrote last; repairing it is up to VMware's tools.
//
// Headers and sizes of all files are checked here; directories and tables of
// sparse files when Next comes to them. Errors about the files are a
// *DiskError, an *UnsupportedError with advice, or for a stream those of
// Decoder; else what a reader or beside returned. The descriptor inside a
// stream is not looked at: a stream holds all of its disk.
//
// The Decoder belongs to one goroutine. It reads with ReadAt only, except that
// the offset of an *os.File is moved to find its holes. Next may read far to
// find something other than zeros; what ends it early is that a file is
// closed. Memory is 1 MiB and what the file in turn needs: see Scanner, or for
// a sparse file 24 MiB at most for its directories and 4 MiB for 2 TiB of
// grains of 64 KiB. A hostile one, with its tables scattered and tiny grains,
// can make that 170 MiB.
func OpenDisk(r io.ReaderAt, size int64, beside func(name string) (io.ReaderAt, int64, error)) (image.Decoder, Info, error) {
	d, info, err := openDisk(file{r: r, size: size}, beside)
	if err != nil {
		return nil, Info{}, fmt.Errorf("open vmdk: %w", err)
	}
	return d, info, nil
}

func openDisk(f file, beside func(name string) (io.ReaderAt, int64, error)) (image.Decoder, Info, error) {
	begin := make([]byte, max(0, min(f.size, SectorSize)))
	if err := f.read(begin, 0); err != nil {
		return nil, Info{}, err
	}
	switch {
	case bytes.HasPrefix(begin, []byte(magic)):
		if len(begin) == SectorSize && binary.LittleEndian.Uint32(begin[offFlags:])&FlagCompressed != 0 {
			return openStream(f)
		}
		return openMonolithic(f)
	case isDescriptor(begin):
		return openDescribed(f, beside)
	case bytes.HasPrefix(begin, []byte("COWD")):
		return nil, Info{}, snapshot("the file is the sparse extent of an ESXi host, which it uses for snapshots")
	case bytes.HasPrefix(begin, []byte{0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0}):
		return nil, Info{}, snapshot("the file is a space-efficient sparse extent, which ESXi hosts use for snapshots")
	default:
		return nil, Info{}, &UnsupportedError{What: "the file is neither a VMDK nor the descriptor of one",
			Advice: "if it is NAME-flat.vmdk, give NAME.vmdk beside it"}
	}
}

// openMonolithic opens a sparse file that is a whole disk.
func openMonolithic(f file) (image.Decoder, Info, error) {
	h, err := readSparseHeader(f)
	if err != nil {
		return nil, Info{}, err
	}
	var text []byte
	if h.DescriptorSize > 0 {
		// The room for it is larger than any descriptor.
		text = make([]byte, min(h.DescriptorSize*SectorSize, maxDescriptor))
		if err := f.read(text, h.DescriptorOffset*SectorSize); err != nil {
			return nil, Info{}, err
		}
	}
	if len(text) == 0 || text[0] == 0 {
		return nil, Info{}, &UnsupportedError{What: "the file is one extent of a disk that has several",
			Advice: "give the descriptor, which is the small .vmdk file beside it without a number in its name"}
	}
	desc, err := ParseDescriptor(text)
	if err != nil {
		return nil, Info{}, fmt.Errorf("at byte %d: %w", h.DescriptorOffset*SectorSize, err)
	}
	// The name in it is what the file had when it was made.
	e := desc.Extents[0]
	if len(desc.Extents) > 1 || e.Type != Sparse || !strings.EqualFold(desc.CreateType, "monolithicSparse") {
		return nil, Info{}, f.bad(h.DescriptorOffset*SectorSize, "descriptor in a sparse file has createType %q and %d extents, the first of type %s, want %q and one of type %s",
			desc.CreateType, len(desc.Extents), e.Type, "monolithicSparse", Sparse)
	}
	s, err := newSparse(f, h, 0, e.Sectors)
	if err != nil {
		return nil, Info{}, err
	}
	return &chain{capacity: desc.Capacity(), parts: []loader{s}}, Info{Kind: KindSparse, Capacity: desc.Capacity()}, nil
}

// openDescribed opens a descriptor and the files it names.
func openDescribed(f file, beside func(name string) (io.ReaderAt, int64, error)) (image.Decoder, Info, error) {
	if f.size > maxDescriptor {
		return nil, Info{}, f.bad(-1, "descriptor has %d bytes, more than %d", f.size, maxDescriptor)
	}
	text := make([]byte, f.size)
	if err := f.read(text, 0); err != nil {
		return nil, Info{}, err
	}
	desc, err := ParseDescriptor(text)
	if err != nil {
		return nil, Info{}, err
	}
	d := &chain{capacity: desc.Capacity()}
	info := Info{Capacity: d.capacity, Kind: KindZero}
	files := map[string]file{}
	start := int64(0)
	for _, e := range desc.Extents {
		if e.Type != Zero {
			extent, ok := files[e.Name]
			if !ok {
				if extent, err = openBeside(e.Name, beside); err != nil {
					return nil, Info{}, err
				}
				files[e.Name] = extent
			}
			part, kind, err := openExtent(extent, e, start)
			if err != nil {
				return nil, Info{}, err
			}
			if info.Kind != KindZero && info.Kind != kind {
				kind = KindMixed
			}
			info.Kind = kind
			d.parts = append(d.parts, part)
		}
		start += e.Sectors * SectorSize
	}
	return d, info, nil
}

func openBeside(name string, beside func(name string) (io.ReaderAt, int64, error)) (file, error) {
	r, size, err := beside(name)
	if err != nil {
		return file{}, fmt.Errorf("open the disk's file %s: %w", quote(name), err)
	}
	return file{r: r, size: size, name: name}, nil
}

// openExtent opens e, which begins at byte start of the disk and is in f.
func openExtent(f file, e DescriptorExtent, start int64) (loader, string, error) {
	if e.Type != Sparse {
		part, err := newFlat(f, e.Offset*SectorSize, start, e.Sectors*SectorSize)
		return part, KindFlat, err
	}
	h, err := readSparseHeader(f)
	if err != nil {
		return nil, "", err
	}
	part, err := newSparse(f, h, start, e.Sectors)
	return part, KindSparse, err
}

// loader reads one extent of a disk.
type loader interface {
	// load puts the next piece that may hold something into w. The error is
	// io.EOF behind the last.
	load(w *window) error
}

// chain yields one extent of a disk after another. It is an image.Decoder.
type chain struct {
	capacity int64
	parts    []loader // the rest of them
	window   *window  // nil before the first Next
	err      error    // stays
}

// Capacity is image.Decoder's.
func (d *chain) Capacity() (int64, error) { return d.capacity, nil }

// Next is image.Decoder's.
func (d *chain) Next() (image.Extent, error) {
	if d.window == nil {
		d.window = new(window)
	}
	for d.err == nil {
		if e, ok := d.window.next(); ok {
			return e, nil
		}
		d.err = d.load()
	}
	return image.Extent{}, d.err
}

func (d *chain) load() error {
	if len(d.parts) == 0 {
		return io.EOF
	}
	err := d.parts[0].load(d.window)
	if err == io.EOF {
		d.parts[0] = nil // with its tables
		d.parts = d.parts[1:]
		return nil
	}
	if err != nil {
		return fmt.Errorf("read vmdk: %w", err)
	}
	return nil
}

// openStream opens a stream-optimized file.
func openStream(f file) (image.Decoder, Info, error) {
	d := NewDecoder(io.NewSectionReader(f.r, 0, f.size))
	capacity, err := d.Capacity()
	if err != nil {
		return nil, Info{}, err
	}
	return d, Info{Kind: KindStream, Compressed: true, Capacity: capacity}, nil
}
