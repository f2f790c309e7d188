// Package jobfile reads job files: one job or a batch, YAML or JSON, as the
// contract fixes their keys. It refuses what it does not know, with line and
// key, before anything runs. It checks values by models.Definition.Check and
// knows nothing of VMs or folders.
package jobfile

import (
	"errors"
	"fmt"
	"mime"
	"path"
	"strings"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/jobfile/strict"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const (
	// MaxSize is the largest job file that is read, in bytes.
	MaxSize = strict.MaxSize
	// MaxJobs is the largest batch.
	MaxJobs = 1000

	maxFaults = 10 // per job; more would not be read
)

// ErrContentType says that a content type is neither JSON nor YAML.
var ErrContentType = errors.New("the content type is neither application/json nor application/yaml")

// Entry is one job of a file. Either Definition holds or Err says why not.
type Entry struct {
	Index      int    // from 0
	Name       string // the job's name, or its VM path; may be empty
	Line       int    // where the job begins, from 1
	Definition models.Definition
	Err        error // a problem.Invalid that names the job, lines and keys
}

// Parse reads a job file. ContentType may be empty: then both syntaxes are
// tried. Source is put before the errors, for instance a file's name; it may
// be empty. The error is a problem.Invalid for a file that cannot be read as a
// whole (or matches ErrContentType); faults of single jobs are in the entries.
func Parse(data []byte, contentType, source string) ([]Entry, error) {
	const what = "read job file"
	whole := func(err error) error {
		if source != "" {
			err = fmt.Errorf("%s: %w", source, err)
		}
		return problem.New(problem.Invalid, what, err, "write one job, or a batch under \"jobs\", in YAML or JSON, as example-job.yaml and example-batch.yaml do")
	}
	syntax, err := syntaxOf(contentType)
	if err != nil {
		return nil, whole(err)
	}
	root, err := strict.Parse(data, syntax)
	if err != nil {
		return nil, whole(err)
	}
	if root.Kind != strict.Map {
		return nil, whole(&strict.Error{Line: root.Line, Msg: fmt.Sprintf("the file holds %s, want a job, or a batch under \"jobs\"", root.Kind)})
	}
	items := []*strict.Node{root}
	batch := false
	for _, p := range root.Pairs {
		if p.Key != "jobs" {
			continue
		}
		batch = true
		switch {
		case p.Kind != strict.List:
			return nil, whole(&strict.Error{Line: p.Line, Msg: fmt.Sprintf("jobs: is %s, want a list", p.Kind)})
		case len(p.Items) == 0:
			return nil, whole(&strict.Error{Line: p.Line, Msg: "jobs: the list is empty"})
		case len(p.Items) > MaxJobs:
			return nil, whole(&strict.Error{Line: p.Line, Msg: fmt.Sprintf("jobs: holds %d jobs, at most %d are taken", len(p.Items), MaxJobs)})
		}
		items = p.Items
	}
	if batch && len(root.Pairs) > 1 {
		for _, p := range root.Pairs {
			if p.Key != "jobs" {
				return nil, whole(&strict.Error{Line: p.Line, Msg: fmt.Sprintf("unknown key %s beside \"jobs\"", show(p.Key))})
			}
		}
	}
	entries := make([]Entry, len(items))
	outputs := map[string]int{}
	for i, n := range items {
		e := job(n)
		e.Index = i
		if len(e.faults) == 0 {
			// The daemon would refuse the second one as well, without its line.
			if first, ok := outputs[e.Definition.OutputPath]; ok {
				e.fail(e.at("output_path"), "output_path: job %d of this file has it already", first+1)
			} else {
				outputs[e.Definition.OutputPath] = i
			}
		}
		entries[i] = e.finish(batch, source, what)
	}
	return entries, nil
}

func syntaxOf(contentType string) (strict.Syntax, error) {
	if contentType == "" {
		return strict.Either, nil
	}
	t, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return 0, ErrContentType
	}
	if c := params["charset"]; c != "" && !strings.EqualFold(c, "utf-8") {
		return 0, ErrContentType
	}
	switch t {
	case "application/json":
		return strict.JSON, nil
	case "application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml":
		return strict.YAML, nil
	case "application/x-www-form-urlencoded":
		return strict.Either, nil // what curl -d says of every body
	}
	return 0, ErrContentType
}

// show quotes a key for an error, shortened.
func show(key string) string {
	if r := []rune(key); len(r) > 40 {
		key = string(r[:40]) + "…"
	}
	return fmt.Sprintf("%q", key)
}

// reader collects one job and its faults.
type reader struct {
	Entry
	lines  map[string]int  // where a key stands
	broken map[string]bool // keys, or "vcenter", whose fault has been named
	faults []string
}

func (r *reader) fail(line int, format string, args ...any) {
	r.faults = append(r.faults, (&strict.Error{Line: line, Msg: fmt.Sprintf(format, args...)}).Error())
}

// at gives the line of a key, or of the job when the key is not there.
func (r *reader) at(key string) int {
	if line, ok := r.lines[key]; ok {
		return line
	}
	return r.Line
}

func (r *reader) finish(batch bool, source, what string) Entry {
	if r.faults == nil {
		return r.Entry
	}
	var b strings.Builder
	if source != "" {
		b.WriteString(source + ": ")
	}
	if batch {
		fmt.Fprintf(&b, "job %d", r.Index+1)
		if r.Name != "" {
			fmt.Fprintf(&b, " (%s)", show(r.Name))
		}
		b.WriteString(": ")
	}
	if n := len(r.faults); n > maxFaults {
		r.faults = append(r.faults[:maxFaults], fmt.Sprintf("and %d more", n-maxFaults))
	}
	b.WriteString(strings.Join(r.faults, "; "))
	r.Err = problem.New(problem.Invalid, what, errors.New(b.String()), "")
	r.Definition = models.Definition{}
	return r.Entry
}

// fields maps the keys of a map to what reads their values.
type fields map[string]func(*strict.Node) error

// read walks a map. Where names the map in errors, "" for the job itself.
// ShowUnknown says whether an unknown key may be repeated though it resembles
// no known one.
func (r *reader) read(n *strict.Node, where string, known []string, f fields, showUnknown bool) {
	in := ""
	if where != "" {
		in = " in " + where
	}
	if n.Kind != strict.Map {
		r.broken[where] = true
		r.fail(n.Line, "%s: is %s, want a map", orJob(where), n.Kind)
		return
	}
	for _, p := range n.Pairs {
		key := p.Key
		if where == "vcenter" {
			key = where + "." + key
		}
		take, ok := f[p.Key]
		if !ok {
			r.broken[where] = true
			suggestion := strict.Suggest(p.Key, known)
			switch {
			case suggestion != "":
				r.fail(p.Line, "unknown key %s%s (did you mean %q?)", show(p.Key), in, suggestion)
			case showUnknown:
				r.fail(p.Line, "unknown key %s%s (known: %s)", show(p.Key), in, strings.Join(known, ", "))
			default:
				r.fail(p.Line, "unknown key%s (known: %s)", in, strings.Join(known, ", "))
			}
			continue
		}
		if before, twice := r.lines[key]; twice {
			r.fail(p.Line, "%s: is given twice, in options and beside it (line %d)", key, before)
			continue
		}
		r.lines[key] = p.Line
		if err := take(p.Node); err != nil {
			r.broken[key] = true
			if where == "vcenter" {
				r.broken[where] = true
			}
			if e, ok := errors.AsType[*strict.Error](err); ok {
				r.fail(e.Line, "%s: %s", key, e.Msg)
			} else {
				r.fail(p.Line, "%s: %s", key, err.Error())
			}
		}
	}
}

func orJob(where string) string {
	if where == "" {
		return "the job"
	}
	return where
}

var (
	jobKeys    = []string{"name", "vm_path", "output_path", "options", "vcenter", "format", "compress", "snapshot", "overwrite"}
	optionKeys = []string{"parallel_downloads", "remove_cdrom", "show_individual_progress", "format", "compress", "snapshot", "shutdown", "include_media", "overwrite", "skip_space_check",
		"keep_vmdk", "verify_grains", "hardware", "nvme", "networks", "priority", "bandwidth"}
	vcenterKeys = []string{"name", "server", "username", "password", "insecure"}
)

func job(n *strict.Node) *reader {
	r := &reader{Entry: Entry{Line: n.Line}, lines: map[string]int{}, broken: map[string]bool{}}
	d := &r.Definition
	options := optionFields(&d.Options)
	f := fields{
		"name":        text(&d.Name),
		"vm_path":     text(&d.VMPath),
		"output_path": text(&d.OutputPath),
		"options": func(n *strict.Node) error {
			if n.Kind == strict.Null {
				return nil // the key with nothing behind it
			}
			r.read(n, "options", optionKeys, options, true)
			return nil
		},
		"vcenter": func(n *strict.Node) error {
			d.VCenter = &models.VCenter{}
			// An unknown key here is shown only when it resembles a known one: in
			// braces, a password with a comma in it would turn into a key.
			r.read(n, "vcenter", vcenterKeys, fields{
				"name":     text(&d.VCenter.Name),
				"server":   text(&d.VCenter.Server),
				"username": text(&d.VCenter.Username),
				"password": text(&d.VCenter.Password),
				"insecure": ptr(&d.VCenter.Insecure, (*strict.Node).Bool),
			}, false)
			return nil
		},
	}
	for _, key := range []string{"format", "compress", "snapshot", "overwrite"} {
		f[key] = options[key]
	}
	r.read(n, "", jobKeys, f, true)
	r.Name = d.Name
	if r.Name == "" {
		r.Name = d.VMPath
	}
	for _, p := range d.Check() {
		block, _, _ := strings.Cut(p.Field, ".")
		if n.Kind != strict.Map || r.broken[p.Field] || r.broken[block] {
			continue // its fault has been named, or follows from another one
		}
		r.fail(r.at(p.Field), "%s", p.Error())
	}
	if len(r.faults) == 0 {
		d.OutputPath = path.Clean(d.OutputPath)
	}
	return r
}

func optionFields(o *models.Options) fields {
	return fields{
		"parallel_downloads":       ptr(&o.ParallelDownloads, (*strict.Node).Int),
		"remove_cdrom":             ptr(&o.RemoveCDROM, (*strict.Node).Bool),
		"show_individual_progress": ptr(&o.ShowIndividualProgress, (*strict.Node).Bool),
		"compress":                 ptr(&o.Compress, (*strict.Node).Bool),
		"snapshot":                 ptr(&o.Snapshot, (*strict.Node).Bool),
		"shutdown":                 ptr(&o.Shutdown, (*strict.Node).Bool),
		"include_media":            ptr(&o.IncludeMedia, (*strict.Node).Bool),
		"overwrite":                ptr(&o.Overwrite, (*strict.Node).Bool),
		"skip_space_check":         ptr(&o.SkipSpaceCheck, (*strict.Node).Bool),
		"keep_vmdk":                ptr(&o.KeepVMDK, (*strict.Node).Bool),
		"nvme":                     ptr(&o.NVMe, (*strict.Node).Bool),
		"verify_grains":            ptr(&o.VerifyGrains, (*strict.Node).Bool),
		"hardware": ptr(&o.Hardware, func(n *strict.Node) (models.Hardware, error) {
			s, err := n.Text()
			return models.Hardware(s), err
		}),
		"priority":  ptr(&o.Priority, (*strict.Node).Int),
		"bandwidth": ptr(&o.Bandwidth, Bandwidth),
		"networks": func(n *strict.Node) (err error) {
			o.Networks, err = texts(n)
			return err
		},
		"format": ptr(&o.Format, func(n *strict.Node) (models.Format, error) {
			s, err := n.Text()
			return models.Format(s), err
		}),
	}
}

// Options reads a map of job options, as the daemon's configuration holds them
// under "defaults". The error names all faults with their lines.
func Options(n *strict.Node, where string) (models.Options, error) {
	r := &reader{Entry: Entry{Line: n.Line}, lines: map[string]int{}, broken: map[string]bool{}}
	var o models.Options
	r.read(n, where, optionKeys, optionFields(&o), true)
	// Check wants a whole job: this one has no other faults.
	for _, p := range (models.Definition{VMPath: "x", OutputPath: "/x", Options: o}).Check() {
		if r.broken[p.Field] {
			continue
		}
		r.fail(r.at(p.Field), "%s", p.Error())
	}
	if r.faults != nil {
		return models.Options{}, errors.New(strings.Join(r.faults, "; "))
	}
	return o, nil
}

func text(to *string) func(*strict.Node) error {
	return func(n *strict.Node) error {
		s, err := n.Text()
		*to = s
		return err
	}
}

// Bandwidth reads a rate: text with a unit, or a number of bytes per second.
// Whether it is in range is not looked at.
func Bandwidth(n *strict.Node) (models.Bandwidth, error) {
	if n.Kind != strict.String && n.Kind != strict.Int {
		return 0, &strict.Error{Line: n.Line, Msg: fmt.Sprintf("is %s, want a rate like \"50MB/s\" or a whole number of bytes per second", n.Kind)}
	}
	b, err := models.ParseBandwidth(n.Value)
	if err != nil {
		return 0, &strict.Error{Line: n.Line, Msg: err.Error()}
	}
	return b, nil
}

// texts reads a map of texts.
func texts(n *strict.Node) (map[string]string, error) {
	if n.Kind != strict.Map {
		return nil, fmt.Errorf("is %s, want a map", n.Kind)
	}
	m := make(map[string]string, len(n.Pairs))
	for _, p := range n.Pairs {
		s, err := p.Text()
		if err != nil {
			return nil, err
		}
		m[p.Key] = s
	}
	return m, nil
}

func ptr[T any](to **T, get func(*strict.Node) (T, error)) func(*strict.Node) error {
	return func(n *strict.Node) error {
		v, err := get(n)
		if err == nil {
			*to = &v
		}
		return err
	}
}
