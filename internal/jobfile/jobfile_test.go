package jobfile

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const full = `# a job
name: "example-vm-export"
vm_path: "/data/vm/some-vm"
output_path: "/tmp/export-test-vm"
options:
  parallel_downloads: 4
  remove_cdrom: true
  show_individual_progress: false
  format: ovf
  compress: true
  snapshot: yes
  shutdown: false
  include_media: true
  overwrite: true
vcenter:
  server: vc.example.org
  username: admin
  password: "*secret"
  insecure: true
`

func TestBandwidth(t *testing.T) {
	for value, want := range map[string]models.Bandwidth{
		`"50MB/s"`: 50e6, `50000000`: 50e6, `"50M"`: 50e6, `0`: 0, `"0"`: 0, `"1.5 GiB/s"`: 3 << 29,
	} {
		for _, syntax := range []string{"application/json", "application/yaml"} {
			entries, err := Parse([]byte(`{"vm_path": "a", "output_path": "/o", "options": {"bandwidth": `+value+`}}`), syntax, "")
			if err != nil || entries[0].Err != nil || *entries[0].Definition.Options.Bandwidth != want {
				t.Errorf("%s %s: %+v, %v", syntax, value, entries, err)
			}
		}
	}
}

func TestFull(t *testing.T) {
	want := models.Definition{
		Name: "example-vm-export", VMPath: "/data/vm/some-vm", OutputPath: "/tmp/export-test-vm",
		Options: models.Options{
			ParallelDownloads: new(4), RemoveCDROM: new(true), ShowIndividualProgress: new(false), Format: new(models.OVF),
			Compress: new(true), Snapshot: new(true), Shutdown: new(false), IncludeMedia: new(true), Overwrite: new(true),
		},
		VCenter: &models.VCenter{Server: "vc.example.org", Username: "admin", Password: "*secret", Insecure: new(true)},
	}
	json := `{"name":"example-vm-export","vm_path":"/data/vm/some-vm","output_path":"/tmp/export-test-vm/",
	"options":{"parallel_downloads":4,"remove_cdrom":true,"show_individual_progress":false,"format":"ovf","compress":true,"snapshot":true,
	"shutdown":false,"include_media":true,"overwrite":true},
	"vcenter":{"server":"vc.example.org","username":"admin","password":"*secret","insecure":true}}`
	yaml := strings.Replace(full, "yes", "true", 1)
	for _, c := range []struct{ data, contentType string }{
		{yaml, ""}, {yaml, "application/yaml"}, {yaml, "text/x-yaml; charset=UTF-8"}, {json, ""}, {json, "application/json"},
		{"\ufeff" + json, ""}, {strings.ReplaceAll(json, "\t", " "), "application/yaml"},
	} {
		entries, err := Parse([]byte(c.data), c.contentType, "")
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) != 1 || entries[0].Err != nil || !reflect.DeepEqual(entries[0].Definition, want) {
			t.Errorf("%q: %+v", c.contentType, entries)
		}
	}
}

// TestExamples: the files that the README tells people to begin with.
func TestExamples(t *testing.T) {
	for _, name := range []string{"example-job.yaml", "example-batch.yaml"} {
		data, err := os.ReadFile("../../" + name)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := Parse(data, "", name)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Err != nil {
				t.Error(e.Err)
			}
		}
	}
}

// TestOptionKeys: an option added to the wire type is one of job files.
func TestOptionKeys(t *testing.T) {
	typ := reflect.TypeFor[models.Options]()
	known := strings.Join(optionKeys, " ") + " "
	fields := optionFields(&models.Options{})
	for i := range typ.NumField() {
		key, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		if !strings.Contains(known, key+" ") || fields[key] == nil {
			t.Errorf("option %s is not read", key)
		}
	}
}

func TestFaults(t *testing.T) {
	base := "vm_path: /dc/vm/a\noutput_path: /out/a\n"
	for name, c := range map[string]struct{ in, want string }{
		"unknown in options":    {base + "options:\n  remove_cdrom: true\n  parallel_download: 4\n", `line 5: unknown key "parallel_download" in options (did you mean "parallel_downloads"?)`},
		"unknown at top":        {base + "zzz: 1\n", `line 3: unknown key "zzz" (known: name, `},
		"top level format":      {base + "format: vhd\n", `line 3: format: "vhd" is unknown, want "ovf", "ova", "qcow2" or "raw"`},
		"networks":              {base + "options:\n  networks: br0\n", `line 4: networks: is text, want a map`},
		"network target":        {base + "options:\n  networks:\n    VM Network: 7\n", `line 5: networks: is a whole number, want text`},
		"no network target":     {base + "options:\n  networks:\n    VM Network: ''\n", `networks: has an entry without a name or a target`},
		"hardware":              {base + "options:\n  hardware: fast\n", `line 4: hardware: "fast" is unknown, want "same" or "virtio"`},
		"bandwidth":             {base + "options:\n  bandwidth: fast\n", `line 4: bandwidth: is no rate: want bytes per second, like "50MB/s"`},
		"bandwidth in bits":     {base + "options:\n  bandwidth: 50Mb/s\n", `line 4: bandwidth: may be meant in bits`},
		"bandwidth too small":   {base + "options:\n  bandwidth: 50\n", `line 4: bandwidth: is 50 bytes per second, want 0 (no limit) or 65536 to 1000000000000`},
		"bandwidth true":        {base + "options:\n  bandwidth: true\n", `line 4: bandwidth: is true or false, want a rate like "50MB/s"`},
		"unknown format":        {base + "options: {format: vhd}\n", `line 3: format: "vhd" is unknown, want "ovf"`},
		"both":                  {base + "compress: true\noptions:\n  compress: true\n", `line 5: compress: is given twice, in options and beside it (line 3)`},
		"missing vm":            {"output_path: /out/a\n", "line 1: vm_path: is missing"},
		"missing output":        {"vm_path: a\n", "line 1: output_path: is missing"},
		"relative output":       {"vm_path: a\noutput_path: out\n", "line 2: output_path: is not absolute"},
		"dots":                  {"vm_path: a\noutput_path: /out/../etc\n", "line 2: output_path: holds"},
		"root":                  {"vm_path: a\noutput_path: /\n", "line 2: output_path: holds"},
		"nul":                   {"vm_path: a\noutput_path: \"/out\\0\"\n", "line 2: output_path: holds a control character"},
		"escape":                {"vm_path: \"\\e[31m\"\noutput_path: /o\n", "line 1: vm_path: holds a control character"},
		"parallel 0":            {base + "options:\n  parallel_downloads: 0\n", "line 4: parallel_downloads: is 0, want 1 to 16"},
		"parallel 17":           {base + "options:\n  parallel_downloads: 17\n", "is 17, want 1 to 16"},
		"parallel text":         {base + "options:\n  parallel_downloads: \"4\"\n", "line 4: parallel_downloads: is text, want a whole number"},
		"parallel huge":         {base + "options: {parallel_downloads: 99999999999999999999}\n", "line 3: parallel_downloads: is"},
		"bool text":             {base + "overwrite: \"true\"\n", "line 3: overwrite: is text, want true or false"},
		"name number":           {base + "name: 123\n", "line 3: name: is a whole number, want text (put it in quotes)"},
		"name date":             {base + "name: 2026-01-16\n", "line 3: name: is a date, want text"},
		"name null":             {base + "name:\n", "line 3: name: is nothing, want text"},
		"name list":             {base + "name: [a]\n", "line 3: name: is a list, want text"},
		"options list":          {base + "options: [a]\n", "line 3: options: is a list, want a map"},
		"double key":            {base + "vm_path: b\n", "line 3: a key stands twice in one map (before on line 1)"},
		"alias":                 {"vm_path: &a x\noutput_path: *a\n", "anchors and aliases are not taken"},
		"merge":                 {base + "<<: {name: x}\n", "line 3: merge keys are not taken"},
		"tag":                   {base + "name: !!str 5\n", "line 3: tags are not taken"},
		"binary":                {base + "name: !!binary aGk=\n", "line 3: tags are not taken"},
		"second document":       {base + "---\nname: x\n", "a second document begins here"},
		"syntax":                {base + "name: [\n", "not valid YAML"},
		"tab":                   {"\tvm_path: x\n", "not valid YAML"},
		"list":                  {"- a\n", "line 1: the file holds a list"},
		"scalar":                {"hello\n", "line 1: the file holds text"},
		"empty":                 {" \n", "the document is empty"},
		"comment only":          {"# x\n", "the document is empty"},
		"null":                  {"null\n", "line 1: the file holds nothing"},
		"not utf-8":             {"vm_path: \xff\n", "not valid UTF-8"},
		"empty batch":           {"jobs: []\n", "line 1: jobs: the list is empty"},
		"batch map":             {"jobs: {a: b}\n", "line 1: jobs: is a map, want a list"},
		"batch with more":       {"jobs: [{}]\nname: x\n", `line 2: unknown key "name" beside "jobs"`},
		"two faults":            {"vm_path: a\noutput_path: b\nnme: x\n", `line 3: unknown key "nme" (did you mean "name"?); line 2: output_path: is not absolute`},
		"vcenter empty":         {base + "vcenter: {}\n", "line 3: vcenter: needs a name, or server"},
		"vcenter both":          {base + "vcenter: {name: a, server: b}\n", "line 3: vcenter: takes either"},
		"vcenter no user":       {base + "vcenter:\n  server: b\n", "vcenter.username: is missing"},
		"vcenter url with user": {base + "vcenter:\n  server: https://u:topsecret@vc/sdk\n  username: u\n  password: topsecret\n", "line 4: vcenter.server: holds credentials"},
		"key number":            {base + "5: x\n", "line 3: a key is a whole number, want text"},
		"json number":           {`{"vm_path":1,` + "\n" + `"output_path":"/o"}`, "line 1: vm_path: is a whole number"},
		"json float":            {`{"vm_path":"a","output_path":"/o",` + "\n\n" + `"options":{"parallel_downloads":4.0}}`, "line 3: parallel_downloads: is a number, want a whole number"},
		"json unknown":          {"{\n\"vm_path\":\"a\",\n\"output_path\":\"/o\",\n\"options\":{\n\"remove_cdrm\":true}}", `line 5: unknown key "remove_cdrm" in options (did you mean "remove_cdrom"?)`},
		"json double":           {"{\"vm_path\":\"a\",\n\"vm_path\":\"b\"}", "line 2: a key stands twice in one map (before on line 1)"},
		"json cut":              {"{\n\"vm_path\":", "line 2: not valid JSON"},
		"json trailing":         {"{}\n{}", "not valid"},
		"depth":                 {base + "name: " + strings.Repeat("[", 100) + strings.Repeat("]", 100), "nested deeper than"},
		"json depth":            {`{"name":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + "}", "nested deeper than"},
		"many":                  {base + "name: [" + strings.Repeat("1,", 300_000) + "]", "more than 200000 values"},
		"big":                   {base + "#" + strings.Repeat("x", MaxSize), "at most 1048576 are read"},
	} {
		t.Run(name, func(t *testing.T) {
			entries, err := Parse([]byte(c.in), "", "job.yaml")
			if err == nil {
				if len(entries) != 1 {
					t.Fatalf("%d entries", len(entries))
				}
				err = entries[0].Err
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "job.yaml: ") {
				t.Fatalf("error is %v, want %q", err, c.want)
			}
			if problem.KindOf(err) != problem.Invalid || strings.Contains(err.Error(), "topsecret") {
				t.Errorf("error is %#v", err)
			}
		})
	}
}

func TestBatch(t *testing.T) {
	in := "jobs:\n- name: good\n  vm_path: a\n  output_path: /a\n- name: bad\n  vm_path: b\n  output_path: /b\n  option: {}\n" +
		"- 5\n- vm_path: c\n  output_path: /a/\n- vm_path: d\n  output_path: /d\n  options:\n"
	entries, err := Parse([]byte(in), "application/yaml", "")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"", `read job file: job 2 ("bad"): line 8: unknown key "option" (did you mean "options"?)`,
		"read job file: job 3: line 9: the job: is a whole number, want a map",
		`read job file: job 4 ("c"): line 11: output_path: job 1 of this file has it already`, ""}
	for i, e := range entries {
		got := ""
		if e.Err != nil {
			got = e.Err.Error()
		}
		if e.Index != i || (want[i] == "") != (got == "") || !strings.HasPrefix(got, want[i]) {
			t.Errorf("job %d: %q, want %q", i, got, want[i])
		}
	}
	if entries[0].Line != 2 || entries[4].Line != 12 || entries[4].Definition.VMPath != "d" {
		t.Errorf("entries are %+v", entries)
	}
}

func TestContentType(t *testing.T) {
	for _, c := range []string{"text/plain", "multipart/form-data", "application/json; charset=utf-16", "a b"} {
		if _, err := Parse([]byte("{}"), c, ""); !errors.Is(err, ErrContentType) {
			t.Errorf("%s: %v", c, err)
		}
	}
}

// TestCurlsContentType: curl -d calls every body a form.
func TestCurlsContentType(t *testing.T) {
	for _, body := range []string{"vm_path: a\noutput_path: /b\n", `{"vm_path":"a","output_path":"/b"}`} {
		entries, err := Parse([]byte(body), "application/x-www-form-urlencoded", "")
		if err != nil || len(entries) != 1 || entries[0].Err != nil || entries[0].Definition.VMPath != "a" {
			t.Errorf("%s: %+v, %v", body, entries, err)
		}
	}
}

// TestPasswordsStaySecret: however a password breaks the file, the error does
// not repeat it.
func TestPasswordsStaySecret(t *testing.T) {
	for _, p := range []string{"*hunter2", "&hunter2 x", "!hunter2 x", "!h!unter2 x", "%hunter2", "@hunter2", "`hunter2", "a, hunter2", "a, hunter2: b", "{hunter2: 1}", "{hunter2", "[hunter2]",
		"[hunter2", "a: hunter2", "'hunter2", `"hunter2`, `"\hunter2"`, `"a" hunter2`, "- hunter2", "? hunter2", "|hunter2", ">\n hunter2", "a\n hunter2: b", "hunter2: b",
		"{<<: hunter2}", "a, <<: hunter2", "!!binary hunter2", "!!int hunter2", "hunter2\x00", "\thunter2", "a #hunter2", "a}hunter2", "a, password: hunter2, hunter2: b, hunter2: c",
		"a\n---\nhunter2", "a\n...\nhunter2", "%YAML hunter2", "a\n%hunter2", "0xhunter2"} {
		for _, f := range []string{"vm_path: a\noutput_path: b\nvcenter:\n  server: vc\n  username: u\n  password: ", "{vm_path: a, output_path: b, vcenter: {server: vc, password: ",
			`{"vm_path":"a","output_path":"b","vcenter":{"server":"vc","password":`} {
			for _, end := range []string{"", "\n", "}}", "\"}}", "}}\n"} {
				for _, c := range []string{"", "application/json", "application/yaml"} {
					entries, err := Parse([]byte(f+p+end), c, "")
					for _, e := range entries {
						if err == nil {
							err = e.Err
						}
					}
					if err == nil {
						t.Errorf("%q is accepted", f+p+end)
						continue
					}
					if strings.Contains(err.Error(), "unter2") {
						t.Errorf("%q as %q: %v", f+p+end, c, err)
					}
				}
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full), "")
	f.Add([]byte(`{"jobs":[{"vm_path":"a","output_path":"/a"},{"options":{"format":"raw"}}]}`), "application/json")
	f.Add([]byte("jobs:\n- &a {vm_path: x}\n- *a\n- <<: *a\n"), "application/yaml")
	f.Add([]byte("a: !!binary x\n? [b]\n: |\n  c\n--- \n"), "")
	f.Fuzz(func(t *testing.T, data []byte, contentType string) {
		entries, err := Parse(data, contentType, "")
		if err != nil {
			if problem.KindOf(err) != problem.Invalid || entries != nil {
				t.Errorf("error %v with %d entries", err, len(entries))
			}
			return
		}
		if len(entries) == 0 {
			t.Error("neither error nor entries")
		}
		for _, e := range entries {
			if e.Line < 1 {
				t.Errorf("line is %d", e.Line)
			}
			if e.Err == nil && e.Definition.Check() != nil {
				t.Errorf("accepted, but: %v", e.Definition.Check())
			}
		}
	})
}
