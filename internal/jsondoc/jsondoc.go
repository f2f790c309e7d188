// Package jsondoc holds docs/json.md to its word: it reads the tables of
// fields there and compares them with Go types and with what a command
// printed. Tests only.
//
// Each section of the document has one table with the columns field, type and
// meaning. Types are string, time, integer, number, boolean, object, "list of"
// or "map of" one of these, or a link to another section; a question mark says
// that the field may be absent.
package jsondoc

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Doc is the document.
type Doc struct{ sections map[string]map[string]string } // section, field path, type

var (
	row  = regexp.MustCompile("^\\| `([^`]+)` \\| ([^|]+) \\| ([^|]+) \\|$")
	link = regexp.MustCompile(`\[[^\]]+\]\(#([a-z-]+)\)`)
)

// Read reads the document.
func Read(file string) (*Doc, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	d := &Doc{sections: map[string]map[string]string{}}
	section := ""
	for i, line := range strings.Split(string(data), "\n") {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			section = strings.ToLower(strings.ReplaceAll(title, " ", "-"))
			continue
		}
		if section == "" || !strings.HasPrefix(line, "| `") {
			continue
		}
		m := row.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("%s, line %d: want | `field` | type | meaning |", file, i+1)
		}
		if d.sections[section] == nil {
			d.sections[section] = map[string]string{}
		}
		if _, twice := d.sections[section][m[1]]; twice {
			return nil, fmt.Errorf("%s, line %d: %s is there twice", file, i+1, m[1])
		}
		d.sections[section][m[1]] = link.ReplaceAllString(strings.TrimSpace(m[2]), "@$1")
	}
	return d, nil
}

// Compare says how a section differs from a Go type. Types among known, by the
// name of their section, are links there.
func (d *Doc) Compare(section string, t reflect.Type, known map[reflect.Type]string) (differences []string) {
	want := map[string]string{}
	if t.Kind() != reflect.Struct {
		return []string{section + ": " + t.String() + " is no struct"}
	}
	describe(want, "", t, known)
	got := d.sections[section]
	for _, path := range slices.Sorted(maps.Keys(want)) {
		switch {
		case got[path] == "":
			differences = append(differences, fmt.Sprintf("%s: %s (%s) is not described", section, path, want[path]))
		case got[path] != want[path]:
			differences = append(differences, fmt.Sprintf("%s: %s is described as %s, it is %s", section, path, got[path], want[path]))
		}
	}
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if want[path] == "" {
			differences = append(differences, fmt.Sprintf("%s: %s is described and does not exist", section, path))
		}
	}
	return differences
}

// describe fills in the fields of a struct.
func describe(into map[string]string, prefix string, t reflect.Type, known map[reflect.Type]string) {
	for f := range fields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			describe(into, prefix, f.Type, known)
			continue
		}
		if name == "-" || !f.IsExported() {
			continue
		}
		text := typeOf(f.Type, known)
		path := prefix + name
		inner := f.Type
		for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		for inner.Kind() == reflect.Map {
			inner = inner.Elem()
		}
		if strings.HasSuffix(text, "object") && inner.Kind() == reflect.Struct {
			sub := path + "."
			switch {
			case strings.HasPrefix(text, "list"):
				sub = path + "[]."
			case strings.HasPrefix(text, "map"):
				sub = path + ".*."
			}
			describe(into, sub, inner, known)
		}
		if strings.Contains(options, "omitempty") {
			text += "?"
		}
		into[path] = text
	}
}

func fields(t reflect.Type) func(func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if !yield(t.Field(i)) {
				return
			}
		}
	}
}

func typeOf(t reflect.Type, known map[reflect.Type]string) string {
	if name := known[t]; name != "" {
		return "@" + name
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeOf(t.Elem(), known)
	case reflect.Slice:
		return "list of " + typeOf(t.Elem(), known)
	case reflect.Map:
		return "map of " + typeOf(t.Elem(), known)
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Float64:
		return "number"
	case reflect.Int, reflect.Int64, reflect.Uint64:
		return "integer"
	}
	if t == reflect.TypeFor[time.Time]() {
		return "time"
	}
	return "object"
}

// Check says how a JSON document differs from a section: fields that are not
// described, that are missing without a question mark, and values of another
// type. Null is a value of no type.
func (d *Doc) Check(section string, data []byte) (differences []string) {
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return []string{section + ": " + err.Error()}
	}
	return d.value(section, "", "object", v)
}

// value compares v, which is at path of a section, with a type.
func (d *Doc) value(section, path, want string, v any) []string {
	bad := func(format string, args ...any) []string {
		return []string{fmt.Sprintf("%s: %s "+format, append([]any{section, path}, args...)...)}
	}
	want = strings.TrimSuffix(want, "?")
	if to, ok := strings.CutPrefix(want, "@"); ok {
		if d.sections[to] == nil {
			return bad("leads to %q, which is not there", to)
		}
		return d.value(to, "", "object", v)
	}
	if of, ok := strings.CutPrefix(want, "list of "); ok {
		list, ok := v.([]any)
		if !ok {
			return bad("is %T, want a list", v)
		}
		for _, e := range list {
			if diff := d.value(section, path+"[]", of, e); diff != nil {
				return diff
			}
		}
		return nil
	}
	if of, ok := strings.CutPrefix(want, "map of "); ok {
		m, ok := v.(map[string]any)
		if !ok {
			return bad("is %T, want a map", v)
		}
		for _, e := range m {
			if diff := d.value(section, path+".*", of, e); diff != nil {
				return diff
			}
		}
		return nil
	}
	var ok bool
	switch want {
	case "object":
		m, isObject := v.(map[string]any)
		if !isObject {
			return bad("is %T, want an object", v)
		}
		return d.object(section, path, m)
	case "string":
		_, ok = v.(string)
	case "boolean":
		_, ok = v.(bool)
	case "number":
		_, ok = v.(float64)
	case "integer":
		n, isNumber := v.(float64)
		ok = isNumber && n == float64(int64(n))
	case "time":
		s, isText := v.(string)
		t, err := time.Parse(time.RFC3339, s)
		ok = isText && err == nil && t.Location() == time.UTC
	default:
		return bad("has the unknown type %q", want)
	}
	if !ok {
		return bad("is %v, want %s", v, want)
	}
	return nil
}

func (d *Doc) object(section, path string, m map[string]any) (differences []string) {
	prefix := path
	if prefix != "" {
		prefix += "."
	}
	described := d.sections[section]
	for name, v := range m {
		want := described[prefix+name]
		if want == "" {
			differences = append(differences, fmt.Sprintf("%s: %s%s is not described", section, prefix, name))
			continue
		}
		differences = append(differences, d.value(section, prefix+name, want, v)...)
	}
	for p, want := range described {
		rest, ok := strings.CutPrefix(p, prefix)
		if !ok || strings.ContainsAny(rest, ".") || strings.HasSuffix(want, "?") {
			continue
		}
		if _, there := m[rest]; !there {
			differences = append(differences, fmt.Sprintf("%s: %s is missing", section, p))
		}
	}
	slices.Sort(differences)
	return differences
}
