package models

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// The range of parallel_downloads. One host gives about 48 streams in all, so
// that 16 leave room for others.
const (
	MinParallel = 1
	MaxParallel = 16
)

// MaxPriority bounds a job's priority on both sides of 0.
const MaxPriority = 100

// maxText bounds names and paths of a job, in bytes (PATH_MAX of Linux).
const maxText = 4096

// maxNetworks bounds a job's map of networks.
const maxNetworks = 256

// FieldProblem is what is wrong with one field of a Definition. Field is the
// key as job files spell it; a value is never repeated, except that of a format or a hardware.
type FieldProblem struct {
	Field   string
	Problem string
}

// Error joins both parts.
func (p FieldProblem) Error() string { return p.Field + ": " + p.Problem }

// Check says what is wrong with the values of d, in the order of the fields;
// nil means that the daemon can take it. Whether the VM and the folder exist
// is not looked at.
func (d Definition) Check() []FieldProblem {
	var out []FieldProblem
	add := func(field, format string, args ...any) {
		out = append(out, FieldProblem{field, fmt.Sprintf(format, args...)})
	}
	text := func(field, s string) bool {
		switch {
		case len(s) > maxText:
			add(field, "is longer than %d bytes", maxText)
		case !utf8.ValidString(s):
			add(field, "is not valid UTF-8")
		case strings.ContainsFunc(s, isControl):
			add(field, "holds a control character")
		default:
			return true
		}
		return false
	}
	text("name", d.Name)
	if strings.TrimSpace(d.VMPath) == "" {
		add("vm_path", "is missing")
	} else {
		text("vm_path", d.VMPath)
	}
	switch {
	case d.OutputPath == "":
		add("output_path", "is missing")
	case !text("output_path", d.OutputPath):
	case !path.IsAbs(d.OutputPath):
		add("output_path", "is not absolute")
	case path.Clean(d.OutputPath) != strings.TrimRight(d.OutputPath, "/"):
		// A single slash at the end is how shells complete a folder.
		add("output_path", `holds ".", ".." or an empty part, or is the root folder`)
	}
	if p := d.Options.ParallelDownloads; p != nil && (*p < MinParallel || *p > MaxParallel) {
		add("parallel_downloads", "is %d, want %d to %d", *p, MinParallel, MaxParallel)
	}
	if p := d.Options.Priority; p != nil && (*p < -MaxPriority || *p > MaxPriority) {
		add("priority", "is %d, want %d to %d", *p, -MaxPriority, MaxPriority)
	}
	if b := d.Options.Bandwidth; b != nil {
		if bad := b.Check(); bad != "" {
			add("bandwidth", "%s", bad)
		}
	}
	if f := d.Options.Format; f != nil {
		switch *f {
		case OVF, OVA, QCOW2, Raw:
		default:
			add("format", "%.40q is unknown, want %q, %q, %q or %q", *f, OVF, OVA, QCOW2, Raw)
		}
	}
	if h := d.Options.Hardware; h != nil && *h != SameHardware && *h != VirtioHardware {
		add("hardware", "%.40q is unknown, want %q or %q", *h, SameHardware, VirtioHardware)
	}
	if n := len(d.Options.Networks); n > maxNetworks {
		add("networks", "has %d entries, at most %d are allowed", n, maxNetworks)
	}
	for _, name := range slices.Sorted(maps.Keys(d.Options.Networks)) {
		target := d.Options.Networks[name]
		switch {
		case name == "" || target == "":
			add("networks", "has an entry without a name or a target")
		case text("networks", name):
			text("networks", target)
		}
	}
	if v := d.VCenter; v != nil {
		text("vcenter.name", v.Name)
		text("vcenter.server", v.Server)
		text("vcenter.username", v.Username)
		switch {
		case v.Name == "" && v.Server == "":
			add("vcenter", "needs a name, or server, username and password")
		case v.Name != "" && (v.Server != "" || v.Username != "" || v.Password != "" || v.Insecure != nil):
			add("vcenter", "takes either a name alone, or server, username, password and insecure")
		case v.Name == "" && v.Username == "":
			add("vcenter.username", "is missing")
		case v.Name == "" && v.Password == "":
			add("vcenter.password", "is missing")
		}
		if strings.Contains(v.Server, "@") {
			// Credentials in the address would be stored and given back.
			add("vcenter.server", "holds credentials: use username and password")
		}
	}
	return out
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) }

// String shows where the vCenter is; never the password.
func (v VCenter) String() string {
	if v.Name != "" {
		return v.Name
	}
	return v.Username + "@" + v.Server
}

// GoString is String, so that %#v shows no password either.
func (v VCenter) GoString() string { return v.String() }
