package jsondoc

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"
)

const sample = "# Title\n\n## A thing\n\nWords.\n\n| field | type | meaning |\n| --- | --- | --- |\n" +
	"| `name` | string | what it is called |\n| `at` | time? | when |\n| `parts` | list of object | its parts |\n" +
	"| `parts[].n` | integer | how many |\n| `others` | list of [part](#part)? | more |\n| `rates` | map of number? | by name |\n" +
	"\n## Part\n\n| `ok` | boolean | so |\n"

type part struct {
	OK bool `json:"ok"`
}

type thing struct {
	Name  string     `json:"name"`
	At    *time.Time `json:"at,omitempty"`
	Parts []struct {
		N int `json:"n"`
	} `json:"parts"`
	Others []part             `json:"others,omitempty"`
	Rates  map[string]float64 `json:"rates,omitempty"`
	Secret string             `json:"-"`
}

func read(t *testing.T, text string) *Doc {
	t.Helper()
	file := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := Read(file)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestCompare(t *testing.T) {
	known := map[reflect.Type]string{reflect.TypeFor[part](): "part"}
	d := read(t, sample)
	if diff := d.Compare("a-thing", reflect.TypeFor[thing](), known); diff != nil {
		t.Error(diff)
	}
	if diff := d.Compare("part", reflect.TypeFor[part](), nil); diff != nil {
		t.Error(diff)
	}
	type grown struct {
		thing
		Extra bool `json:"extra"`
	}
	if diff := d.Compare("a-thing", reflect.TypeFor[grown](), known); !slices.Equal(diff, []string{"a-thing: extra (boolean) is not described"}) {
		t.Error(diff)
	}
	type other struct {
		Name int `json:"name"`
	}
	if diff := d.Compare("a-thing", reflect.TypeFor[other](), known); len(diff) != 6 || diff[0] != "a-thing: name is described as string, it is integer" {
		t.Error(diff)
	}
}

func TestCheck(t *testing.T) {
	d := read(t, sample)
	for in, want := range map[string]string{
		`{"name":"a","parts":[]}`: "",
		`{"name":"a","at":"2026-01-02T03:04:05Z","parts":[{"n":1}],"others":[{"ok":true}],"rates":{"x":1.5}}`: "",
		`{"parts":[]}`:                                   "a-thing: name is missing",
		`{"name":"a","parts":null}`:                      "a-thing: parts is <nil>, want a list",
		`{"name":"a","parts":[{"n":1.5}]}`:               "a-thing: parts[].n is 1.5, want integer",
		`{"name":"a","parts":[{}]}`:                      "a-thing: parts[].n is missing",
		`{"name":"a","parts":[],"others":[{"ok":1}]}`:    "part: ok is 1, want boolean",
		`{"name":"a","parts":[],"x":1}`:                  "a-thing: x is not described",
		`{"name":"a","parts":[],"at":"yesterday"}`:       "a-thing: at is yesterday, want time",
		`{"name":"a","parts":[],"rates":{"x":"y"}}`:      "a-thing: rates.* is y, want number",
		`{"name":"a","parts":[],"rates":[]}`:             "a-thing: rates is []interface {}, want a map",
		`[]`:                                             "a-thing:  is []interface {}, want an object",
		`{"name":"a","parts":[]} {}`:                     "a-thing: invalid character '{' after top-level value",
		`{"name":"a","parts":[],"others":[{"ok":null}]}`: "part: ok is <nil>, want boolean",
	} {
		got := d.Check("a-thing", []byte(in))
		if want == "" && got != nil || want != "" && !slices.Equal(got, []string{want}) {
			t.Errorf("%s: %q", in, got)
		}
	}
}

func TestRead(t *testing.T) {
	for _, text := range []string{"## S\n| `a` | string |\n", "## S\n| `a` | string | x |\n| `a` | string | x |\n"} {
		file := filepath.Join(t.TempDir(), "doc.md")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(file); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
