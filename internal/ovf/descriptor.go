package ovf

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// namespaces of the envelope: OVF 1.x, which vSphere writes, and 2.x.
var namespaces = []string{
	"http://schemas.dmtf.org/ovf/envelope/1",
	"http://schemas.dmtf.org/ovf/envelope/2",
}

// Bounds of what is kept of a descriptor. A VM has at most 256 disks.
const (
	maxFiles = 4096
	maxDepth = 64
	maxPath  = 256 // bytes of element names; what is looked for is far shorter
)

// Descriptor is what an export needs of an OVF envelope (DSP0243).
type Descriptor struct {
	Files   []File
	Disks   []Disk
	Systems []System
}

// File is a References/File element.
type File struct {
	ID   string
	Href string // as it stands there; File.Name is what it names
	// Size is in bytes, -1 when there is no such attribute.
	Size int64
}

// Name is the name of the file that Href refers to: an href is a URI
// reference, so it may be percent-encoded.
func (f File) Name() string { return unescape(f.Href) }

// Disk is a DiskSection/Disk element.
type Disk struct {
	ID      string // ovf:diskId
	FileRef string // File.ID, empty for a disk without contents
	// Capacity is in bytes, the allocation units multiplied out.
	Capacity int64
	// PopulatedSize is in bytes, -1 when there is no such attribute.
	PopulatedSize int64
	Format        string // a URI
}

// System is a VirtualSystem element.
type System struct {
	ID   string
	Name string // empty when there is no Name element
}

// ParseDescriptor reads an envelope of at most MaxDescriptor bytes. It wants
// well-formed XML and right numbers, and knows nothing of what it does not
// return. Prefixes do not matter; attributes may be without one.
func ParseDescriptor(data []byte) (*Descriptor, error) {
	d := &Descriptor{}
	err := walk(data, func(e element) error {
		switch e.path {
		case "Envelope/References/File":
			return d.addFile(e)
		case "Envelope/DiskSection/Disk":
			return d.addDisk(e)
		case "Envelope/VirtualSystem", "Envelope/VirtualSystemCollection/VirtualSystem":
			if len(d.Systems) == maxFiles {
				return fmt.Errorf("more than %d virtual systems", maxFiles)
			}
			id, _, err := e.attr("id")
			d.Systems = append(d.Systems, System{ID: id})
			return err
		}
		return nil
	}, func(path, text string) error {
		switch path {
		case "Envelope/VirtualSystem/Name", "Envelope/VirtualSystemCollection/VirtualSystem/Name":
			s := &d.Systems[len(d.Systems)-1]
			if len(s.Name)+len(text) > maxName {
				return fmt.Errorf("name of virtual system %q has more than %d bytes", s.ID, maxName)
			}
			s.Name += text
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("parse descriptor: %w", err)
	}
	for i := range d.Systems {
		d.Systems[i].Name = strings.TrimSpace(d.Systems[i].Name)
	}
	return d, nil
}

func (d *Descriptor) addFile(e element) error {
	if len(d.Files) == maxFiles {
		return fmt.Errorf("more than %d files", maxFiles)
	}
	f := File{}
	var err error
	if f.ID, _, err = e.attr("id"); err != nil {
		return err
	}
	if f.Href, _, err = e.attr("href"); err != nil {
		return err
	}
	if f.Size, err = e.number("size"); err != nil {
		return err
	}
	d.Files = append(d.Files, f)
	return nil
}

func (d *Descriptor) addDisk(e element) error {
	if len(d.Disks) == maxFiles {
		return fmt.Errorf("more than %d disks", maxFiles)
	}
	k := Disk{}
	units := "byte"
	for name, to := range map[string]*string{
		"diskId": &k.ID, "fileRef": &k.FileRef, "format": &k.Format, "capacityAllocationUnits": &units,
	} {
		v, ok, err := e.attr(name)
		if err != nil {
			return err
		}
		if ok {
			*to = v
		}
	}
	capacity, err := e.number("capacity")
	if err != nil {
		return err
	}
	if capacity < 0 {
		return fmt.Errorf("disk %q has no capacity", k.ID)
	}
	unit, err := parseUnits(units)
	if err != nil {
		return fmt.Errorf("disk %q: %w", k.ID, err)
	}
	if capacity > math.MaxInt64/unit {
		return fmt.Errorf("disk %q: capacity of %d times %q is too large", k.ID, capacity, units)
	}
	k.Capacity = capacity * unit
	if k.PopulatedSize, err = e.number("populatedSize"); err != nil {
		return err
	}
	d.Disks = append(d.Disks, k)
	return nil
}

// parseUnits reads capacityAllocationUnits, a programmatic unit of DSP0004
// made of bytes: "byte", "byte * 2^30", "byte*10^9", "byte * 1024".
func parseUnits(s string) (int64, error) {
	factors := strings.Split(s, "*")
	if base := strings.TrimSpace(factors[0]); base != "byte" {
		return 0, fmt.Errorf("allocation unit is %q, want bytes", s)
	}
	unit := int64(1)
	multiply := func(by int64) bool {
		if by < 1 || unit > math.MaxInt64/by {
			return false
		}
		unit *= by
		return true
	}
	for _, f := range factors[1:] {
		base, exponent, power := strings.Cut(f, "^")
		n, err := strconv.ParseInt(strings.TrimSpace(base), 10, 64)
		times := int64(1)
		if err == nil && power {
			times, err = strconv.ParseInt(strings.TrimSpace(exponent), 10, 64)
		}
		ok := err == nil && n >= 1 && times >= 0 && times < 64
		for ; ok && times > 0; times-- {
			ok = multiply(n)
		}
		if !ok {
			return 0, fmt.Errorf("allocation unit %q is not understood, or too large", s)
		}
	}
	return unit, nil
}

// Check compares the descriptor with the files that lie beside it, by name
// and size in bytes: it must name each of them once, with its size, and
// nothing else; hrefs must be plain file names, and every disk's fileRef must
// be the id of one file. The error lists all that is wrong.
func (d *Descriptor) Check(files map[string]int64) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	ids := map[string]bool{}
	named := map[string]bool{}
	for _, f := range d.Files {
		if f.ID == "" || ids[f.ID] {
			bad("file id %q is missing or used twice", f.ID)
		}
		ids[f.ID] = true
		name, size, ok := find(files, f.Href)
		if err := checkName(name); err != nil {
			bad("href %q is no plain file name: %w", f.Href, err)
			continue
		}
		switch {
		case !ok:
			bad("file %q is not there", name)
		case named[name]:
			bad("file %q is referenced twice", name)
		case f.Size != size:
			bad("file %q has size %d in the descriptor, want %d", name, f.Size, size)
		}
		named[name] = true
	}
	for _, k := range d.Disks {
		if k.FileRef != "" && !ids[k.FileRef] {
			bad("disk %q refers to file id %q, which is not there", k.ID, k.FileRef)
		}
	}
	var left []string
	for name := range files {
		if !named[name] {
			left = append(left, name)
		}
	}
	slices.Sort(left)
	for _, name := range left {
		bad("file %q is not referenced", name)
	}
	if len(errs) > 0 {
		return fmt.Errorf("check descriptor: %w", errors.Join(errs...))
	}
	return nil
}

// find looks an href up in files: as it stands, then decoded. It returns the
// name that was found, or the decoded one.
func find(files map[string]int64, href string) (string, int64, bool) {
	if size, ok := files[href]; ok {
		return href, size, true
	}
	name := unescape(href)
	size, ok := files[name]
	return name, size, ok
}

// unescape decodes an href; one that is not well encoded stays as it is.
func unescape(href string) string {
	if name, err := url.PathUnescape(href); err == nil {
		return name
	}
	return href
}

// SetFileSizes returns the envelope with the size attribute of each
// References/File set to the size, in bytes, that sizes has for its href (as
// it stands, or decoded). Where it is right already, and where sizes has
// nothing, and in every other respect, the bytes stay as they are. A missing
// attribute is added behind href.
func SetFileSizes(data []byte, sizes map[string]int64) ([]byte, error) {
	var out bytes.Buffer
	kept := 0 // of data, what has been copied or replaced
	err := walk(data, func(e element) error {
		if e.path != "Envelope/References/File" {
			return nil
		}
		href, hasHref, err := e.attr("href")
		if err != nil || !hasHref {
			return err
		}
		name, size, ok := find(sizes, href)
		if !ok {
			return nil
		}
		if size < 0 {
			return fmt.Errorf("size of %q is %d", name, size)
		}
		old, err := e.number("size")
		if err != nil || old == size {
			return err
		}
		raw, err := rawAttrs(data[e.from:e.to])
		if err != nil || len(raw) != len(e.Attr) {
			return fmt.Errorf("start tag at byte %d is not understood", e.from)
		}
		if i := e.index("size"); i >= 0 {
			out.Write(data[kept : e.from+raw[i].value])
			fmt.Fprintf(&out, "%d", size)
			kept = e.from + raw[i].end - 1 // at the closing quote
			return nil
		}
		h := raw[e.index("href")]
		prefix, _, qualified := strings.Cut(string(data[e.from+h.name:e.from+h.nameEnd]), ":")
		if qualified {
			prefix += ":"
		} else {
			prefix = ""
		}
		out.Write(data[kept : e.from+h.end])
		fmt.Fprintf(&out, ` %ssize="%d"`, prefix, size)
		kept = e.from + h.end
		return nil
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("set file sizes: %w", err)
	}
	out.Write(data[kept:])
	return out.Bytes(), nil
}

// rawAttr is where an attribute stands in its start tag. The value's end is
// one before end, where the closing quote is.
type rawAttr struct{ name, nameEnd, value, end int }

// rawAttrs finds the attributes of a start tag that the XML decoder has
// accepted, in their order.
func rawAttrs(tag []byte) ([]rawAttr, error) {
	const space = " \t\r\n"
	at := 0
	skip := func(stop func(c byte) bool) {
		for at < len(tag) && !stop(tag[at]) {
			at++
		}
	}
	isSpace := func(c byte) bool { return strings.IndexByte(space, c) >= 0 }
	notSpace := func(c byte) bool { return !isSpace(c) }
	skip(func(c byte) bool { return isSpace(c) || c == '>' || c == '/' }) // "<name"
	var out []rawAttr
	for {
		skip(notSpace)
		if at >= len(tag) {
			return nil, io.ErrUnexpectedEOF
		}
		if tag[at] == '>' || tag[at] == '/' {
			return out, nil
		}
		a := rawAttr{name: at}
		skip(func(c byte) bool { return isSpace(c) || c == '=' })
		a.nameEnd = at
		skip(func(c byte) bool { return c == '"' || c == '\'' })
		if at >= len(tag) {
			return nil, io.ErrUnexpectedEOF
		}
		quote := tag[at]
		at++
		a.value = at
		skip(func(c byte) bool { return c == quote })
		if at >= len(tag) {
			return nil, io.ErrUnexpectedEOF
		}
		at++
		a.end = at
		out = append(out, a)
	}
}

// element is a start tag on the way through an envelope.
type element struct {
	xml.StartElement
	path     string // local names from the root, joined by "/"
	from, to int    // where the start tag stands
}

// index is the place of an attribute in e.Attr, -1 when there is none.
func (e element) index(name string) int {
	return slices.IndexFunc(e.Attr, func(a xml.Attr) bool { return isAttr(a, name) })
}

func isAttr(a xml.Attr, name string) bool {
	return a.Name.Local == name && (a.Name.Space == "" || slices.Contains(namespaces, a.Name.Space))
}

// attr is the value of an attribute and whether there is one. Two of the same
// name, with a prefix and without, are an error.
func (e element) attr(name string) (string, bool, error) {
	i := e.index(name)
	if i < 0 {
		return "", false, nil
	}
	if slices.ContainsFunc(e.Attr[i+1:], func(a xml.Attr) bool { return isAttr(a, name) }) {
		return "", false, fmt.Errorf("%s at byte %d has two attributes %q", e.path, e.from, name)
	}
	return e.Attr[i].Value, true, nil
}

// number is the value of an attribute that is a number of 0 or more, -1 when
// there is none.
func (e element) number(name string) (int64, error) {
	s, ok, err := e.attr(name)
	if err != nil || !ok {
		return -1, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil || n < 0 {
		return -1, fmt.Errorf("%s at byte %d has %s %q, want a number of 0 or more", e.path, e.from, name, s)
	}
	return n, nil
}

// walk goes through an envelope to its end. It calls start for every element
// whose ancestors all belong to the envelope's namespace, and text, if that
// is not nil, for their text.
func walk(data []byte, start func(element) error, text func(path, text string) error) error {
	if len(data) > MaxDescriptor {
		return fmt.Errorf("it has %d bytes, at most %d are allowed", len(data), MaxDescriptor)
	}
	d := xml.NewDecoder(bytes.NewReader(data))
	var paths []string // of the open elements; empty for foreign ones
	roots := 0
	for {
		from := int(d.InputOffset())
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			if roots == 0 {
				return errors.New("there is no element in it")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("read XML at byte %d: %w", from, err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			ours := slices.Contains(namespaces, t.Name.Space)
			path := t.Name.Local
			if len(paths) == 0 {
				if roots++; roots > 1 || !ours || path != "Envelope" {
					return fmt.Errorf("element %q of namespace %q at byte %d, want one OVF envelope", path, t.Name.Space, from)
				}
			} else {
				parent := paths[len(paths)-1]
				ours = ours && parent != "" && len(parent)+len(path) < maxPath
				if ours {
					path = parent + "/" + path
				}
			}
			if len(paths) == maxDepth {
				return fmt.Errorf("more than %d elements inside one another at byte %d", maxDepth, from)
			}
			if !ours {
				paths = append(paths, "")
				continue
			}
			paths = append(paths, path)
			if err := start(element{StartElement: t, path: path, from: from, to: int(d.InputOffset())}); err != nil {
				return err
			}
		case xml.EndElement:
			paths = paths[:len(paths)-1]
		case xml.CharData:
			if text != nil && len(paths) > 0 {
				if err := text(paths[len(paths)-1], string(t)); err != nil {
					return err
				}
			}
		}
	}
}
