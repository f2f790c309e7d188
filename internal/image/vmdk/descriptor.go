package vmdk

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// maxDescriptor bounds a descriptor's text, in bytes. VMware's room for
	// one inside a sparse file is 10 KiB.
	maxDescriptor = 64 << 10
	// maxExtents bounds a disk's files: 8 TiB in pieces of 2 GiB.
	maxExtents = 4096
	// maxName is the longest name file systems take, in bytes.
	maxName = 255
	// maxSectors is MaxCapacity in sectors.
	maxSectors = MaxCapacity / SectorSize
	// maxDescriptorVersion is the highest version of a descriptor in use.
	maxDescriptorVersion = 4
)

// descriptorHead is the first line of every descriptor.
const descriptorHead = "# Disk DescriptorFile"

// noParent as ParentCID is what a disk has that stands on no other.
const noParent = 0xffffffff

// Access says what a guest may do with an extent.
type Access string

// The kinds of Access.
const (
	ReadWrite Access = "RW"
	ReadOnly  Access = "RDONLY"
	NoAccess  Access = "NOACCESS"
)

// ExtentType says in which form an extent's bytes are kept.
type ExtentType string

// The extent types that can be read.
const (
	Flat   ExtentType = "FLAT"   // the bytes as they are
	VMFS   ExtentType = "VMFS"   // the same, on an ESXi host
	Sparse ExtentType = "SPARSE" // grains with tables
	Zero   ExtentType = "ZERO"   // no file, zeros only
)

// Descriptor is what a VMDK's descriptor says about its disk.
type Descriptor struct {
	Version    int // 1 to 4
	CID        uint32
	CreateType string
	// Extents are the disk's pieces from its beginning on, one at least.
	Extents []DescriptorExtent
}

// DescriptorExtent is one piece of a disk.
type DescriptorExtent struct {
	Access  Access
	Sectors int64 // of the disk, 1 at least
	Type    ExtentType
	// Name is a plain file name beside the descriptor; empty for Zero.
	Name string
	// Offset is where in a Flat or VMFS file the extent begins, in sectors.
	Offset int64
}

// Capacity is the disk's size in bytes, MaxCapacity at most.
func (d Descriptor) Capacity() int64 {
	n := int64(0)
	for _, e := range d.Extents {
		n += e.Sectors * SectorSize
	}
	return n
}

// createTypes are the forms of a whole disk that can be read. What is refused
// with advice is in refuseCreateType.
var createTypes = []string{
	"monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat",
	"2GbMaxExtentSparse", "2GbMaxExtentFlat", // as the specification spells them
	"vmfs", "vmfsThin", "vmfsPreallocated", "vmfsEagerZeroedThick", "streamOptimized", "custom",
}

// ParseDescriptor reads the text that describes a disk: a file of its own, or
// the part of a sparse file kept for it. It ends at the first NUL. Of 64 KiB,
// 4096 extents and MaxCapacity, none may be exceeded.
//
// A line that is neither a comment, an extent nor "key = value" is an error,
// and so are keys of importance given twice and extents that use the same
// bytes of a file twice. Unknown keys are passed over. Names of files are
// plain: none leads out of the folder the descriptor is in.
//
// The error is a *DiskError, or an *UnsupportedError for a disk that is right
// but can not be read: a snapshot's, an encrypted one, a raw device.
func ParseDescriptor(text []byte) (Descriptor, error) {
	if len(text) > maxDescriptor {
		return Descriptor{}, bad("descriptor has more than %d bytes", maxDescriptor)
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	if !isDescriptor(text) {
		return Descriptor{}, bad("descriptor does not begin with %q", descriptorHead)
	}
	p := descriptorParser{keys: map[string]string{}}
	n := 0
	for line := range strings.Lines(strings.TrimPrefix(string(text), byteOrderMark)) {
		n++
		if err := p.line(strings.TrimSpace(line)); err != nil {
			return Descriptor{}, fmt.Errorf("descriptor line %d: %w", n, err)
		}
	}
	return p.finish()
}

const byteOrderMark = "\ufeff"

// isDescriptor says whether text begins as a descriptor does.
func isDescriptor(text []byte) bool {
	text = bytes.TrimSpace(bytes.TrimPrefix(text, []byte(byteOrderMark)))
	n := len(descriptorHead)
	return len(text) >= n && strings.EqualFold(string(text[:n]), descriptorHead)
}

type descriptorParser struct {
	d    Descriptor
	keys map[string]string // those of importance, in lower case
}

func (p *descriptorParser) line(line string) error {
	if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return bad("it has control characters")
	}
	if line == "" || line[0] == '#' {
		return nil
	}
	if access, rest := cutWord(line); isAccess(access) {
		if len(p.d.Extents) == maxExtents {
			return bad("more than %d extents", maxExtents)
		}
		e, err := parseExtent(Access(access), rest)
		if err != nil {
			return err
		}
		p.d.Extents = append(p.d.Extents, e)
		return nil
	}
	key, value, ok := strings.Cut(line, "=")
	if !ok {
		return bad("%s is neither a comment, an extent nor key = value", quote(line))
	}
	key = strings.ToLower(strings.TrimSpace(key))
	value = strings.TrimSpace(value)
	if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
		value = value[1 : n-1]
	}
	return p.key(key, value)
}

func (p *descriptorParser) key(key, value string) error {
	switch {
	case strings.Contains(key, "encrypt"), strings.Contains(key, "keysafe"),
		key == "ddb.iofilters" && strings.Contains(strings.ToLower(value), "vmcrypt"):
		return &UnsupportedError{What: "the disk is encrypted", Advice: "decrypt the VM where it is registered, then take its disks again"}
	case key == "isnativesnapshot" && !strings.EqualFold(value, "no"):
		return snapshot("the disk is a native snapshot of its storage")
	}
	switch key {
	case "version", "cid", "parentcid", "createtype", "encoding":
		if _, twice := p.keys[key]; twice {
			return bad("%s is given twice", key)
		}
		p.keys[key] = value
	}
	return nil
}

// finish checks what only the whole text can tell.
func (p *descriptorParser) finish() (Descriptor, error) {
	for _, key := range []string{"version", "CID", "parentCID", "createType"} {
		if _, ok := p.keys[strings.ToLower(key)]; !ok {
			return Descriptor{}, bad("descriptor has no %s", key)
		}
	}
	var err error
	d := &p.d
	if d.Version, err = strconv.Atoi(p.keys["version"]); err != nil || d.Version < 1 || d.Version > maxDescriptorVersion {
		return Descriptor{}, bad("descriptor's version is %s, want 1 to %d", quote(p.keys["version"]), maxDescriptorVersion)
	}
	if d.CID, err = parseCID("CID", p.keys["cid"]); err != nil {
		return Descriptor{}, err
	}
	parent, err := parseCID("parentCID", p.keys["parentcid"])
	if err != nil {
		return Descriptor{}, err
	}
	if parent != noParent {
		return Descriptor{}, snapshot(fmt.Sprintf("the disk holds only what changed since the disk with CID %08x", parent))
	}
	d.CreateType = p.keys["createtype"]
	if err := refuseCreateType(d.CreateType); err != nil {
		return Descriptor{}, err
	}
	if len(d.Extents) == 0 {
		return Descriptor{}, bad("descriptor has no extents")
	}
	if err := p.checkExtents(); err != nil {
		return Descriptor{}, err
	}
	return *d, nil
}

// checkExtents checks the extents against each other.
func (p *descriptorParser) checkExtents() error {
	encoding := p.keys["encoding"]
	asUTF8 := encoding == "" || strings.EqualFold(encoding, "UTF-8")
	var sectors int64
	for _, e := range p.d.Extents {
		if sectors += e.Sectors; sectors > maxSectors {
			return bad("disk has more than %d bytes", int64(MaxCapacity))
		}
		if asUTF8 && !utf8.ValidString(e.Name) {
			return bad("file name %s is not UTF-8", quote(e.Name))
		}
		// A name in another code page would have to be translated, and the
		// file may have been renamed on its way to this system.
		if !asUTF8 && !isASCII(e.Name) {
			return &UnsupportedError{
				What:   fmt.Sprintf("the name %s in the descriptor is encoded as %s", quote(e.Name), quote(encoding)),
				Advice: "rename the file, and change its name in the descriptor",
			}
		}
	}
	files := slices.DeleteFunc(slices.Clone(p.d.Extents), func(e DescriptorExtent) bool { return e.Type == Zero })
	slices.SortFunc(files, func(a, b DescriptorExtent) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Offset, b.Offset))
	})
	for i := 1; i < len(files); i++ {
		a, b := files[i-1], files[i]
		if a.Name == b.Name && (a.Type == Sparse || b.Type == Sparse || a.Offset+a.Sectors > b.Offset) {
			return bad("two extents use the same bytes of %s", quote(a.Name))
		}
	}
	return nil
}

// refuseCreateType gives advice on the forms that can not be read.
func refuseCreateType(t string) error {
	if slices.ContainsFunc(createTypes, func(known string) bool { return strings.EqualFold(t, known) }) {
		return nil
	}
	switch strings.ToLower(t) {
	case "vmfssparse", "sesparse", "vsansparse":
		return snapshot(fmt.Sprintf("the disk's createType is %q, a snapshot's", t))
	case "vmfsrdm", "vmfsrdmp", "vmfsrawdevicemap", "vmfspassthroughrawdevicemap", "vmfsraw", "fulldevice", "partitioneddevice":
		return rawDevice(fmt.Sprintf("the disk's createType is %q, a raw device", t))
	}
	return bad("descriptor's createType %s is unknown", quote(t))
}

// parseExtent reads an extent line behind its first word.
func parseExtent(access Access, rest string) (DescriptorExtent, error) {
	e := DescriptorExtent{Access: access}
	fail := func(err error) (DescriptorExtent, error) { return DescriptorExtent{}, err }
	count, rest := cutWord(rest)
	kind, rest := cutWord(rest)
	var ok bool
	if e.Sectors, ok = parseSectors(count); !ok || e.Sectors == 0 {
		return fail(bad("extent has %s sectors, want 1 to %d", quote(count), int64(maxSectors)))
	}
	switch e.Type = ExtentType(kind); e.Type {
	case Flat, VMFS, Sparse:
	case Zero:
		if rest != "" {
			return fail(bad("unexpected %s behind an extent of zeros", quote(rest)))
		}
		return e, nil
	case "VMFSSPARSE", "SESPARSE", "VSANSPARSE":
		return fail(snapshot(fmt.Sprintf("the disk has an extent of type %s, a snapshot's", kind)))
	case "VMFSRDM", "VMFSRAW":
		return fail(rawDevice(fmt.Sprintf("the disk has an extent of type %s, a raw device", kind)))
	default:
		return fail(bad("extent type %s is unknown", quote(kind)))
	}
	// What the guest was never shown can not be part of the copy, and to
	// make zeros of it would be a guess.
	if access == NoAccess {
		return fail(&UnsupportedError{What: fmt.Sprintf("the disk has an extent of type %s that its guest may not read", kind),
			Advice: "clone the disk to one of its own files first"})
	}
	if !strings.HasPrefix(rest, `"`) {
		return fail(bad("extent of type %s has no file name in quotes", kind))
	}
	if e.Name, rest, ok = strings.Cut(rest[1:], `"`); !ok {
		return fail(bad("extent's file name has no end"))
	}
	if err := checkName(e.Name); err != nil {
		return fail(err)
	}
	if rest = strings.TrimSpace(rest); rest == "" {
		return e, nil
	}
	if e.Type == Sparse {
		return fail(bad("unexpected %s behind a sparse extent's file name", quote(rest)))
	}
	if e.Offset, ok = parseSectors(rest); !ok {
		return fail(bad("extent begins at sector %s of its file, want 0 to %d", quote(rest), int64(maxSectors)))
	}
	return e, nil
}

// checkName wants a name that can be nothing but a file beside the descriptor,
// on any system.
func checkName(name string) error {
	lower := strings.ToLower(name)
	switch {
	case strings.HasPrefix(lower, "/dev/"), strings.HasPrefix(lower, `\\.\`):
		return rawDevice(fmt.Sprintf("the disk has the device %s as an extent", quote(name)))
	case name == "", name == ".", name == "..", len(name) > maxName:
		return bad("%s is no name of a file", quote(name))
	case strings.ContainsAny(name, `/\`):
		return &UnsupportedError{What: fmt.Sprintf("the descriptor names the file %s in another folder", quote(name)),
			Advice: "put the file beside the descriptor, and let the descriptor name it without the folder"}
	}
	return nil
}

func isAccess(word string) bool {
	switch Access(word) {
	case ReadWrite, ReadOnly, NoAccess:
		return true
	}
	return false
}

// cutWord takes the first word off line.
func cutWord(line string) (word, rest string) {
	i := strings.IndexAny(line, " \t")
	if i < 0 {
		return line, ""
	}
	return line[:i], strings.TrimSpace(line[i:])
}

func parseSectors(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err == nil && n <= maxSectors
}

// parseCID reads a content id: hexadecimal, with or without leading zeros.
func parseCID(key, s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 16, 32)
	if err != nil || len(s) > 8 {
		return 0, bad("descriptor's %s is %s, want up to 8 hexadecimal digits", key, quote(s))
	}
	return uint32(n), nil
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

// quote quotes a descriptor's words for an error, so that they neither fill
// it nor control a terminal.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return strconv.QuoteToASCII(s[:most]) + "…"
	}
	return strconv.QuoteToASCII(s)
}

func snapshot(what string) error {
	return &UnsupportedError{What: what, Advice: "consolidate or delete the VM's snapshots where it is registered, or clone it, then take the whole disk"}
}

func rawDevice(what string) error {
	return &UnsupportedError{What: what, Advice: "clone the disk to a file first, with vmkfstools -i on the host"}
}
