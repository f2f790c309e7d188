// Package house holds the rules of who may import whom, as a test. Each rule
// carries its reason; a rule that stands in the way is changed here and in
// docs/design.md, openly.
package house

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/hyper2kvm/hyper2kvm"

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
	Standard   bool
	Module     *struct{ Path string }
}

func load(t *testing.T) map[string]pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", "-json=ImportPath,Imports,Deps,Standard,Module", module+"/...").Output()
	if err != nil {
		if ee, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("go list: %s", ee.Stderr)
		}
		t.Fatal(err)
	}
	pkgs := map[string]pkg{}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs[p.ImportPath] = p
	}
}

func ours(path string) bool { return path == module || strings.HasPrefix(path, module+"/") }

func room(path string) string { return strings.TrimPrefix(path, module+"/") }

func under(path string, rooms ...string) bool {
	return slices.ContainsFunc(rooms, func(r string) bool { return path == r || strings.HasPrefix(path, r+"/") })
}

// TestForeignImports: which rooms may import a library from outside.
func TestForeignImports(t *testing.T) {
	rules := []struct {
		library string
		allowed []string
		why     string
	}{
		{"github.com/vmware/govmomi", []string{"vsphere", "internal/lab"}, "everything else gets plain Go values"},
		{"github.com/pterm/pterm", []string{"internal/cli"}, "pterm writes escapes into pipes unless it sits behind the terminal check"},
		{"github.com/urfave/cli/v3", []string{"internal/cli"}, "only command lines parse flags"},
		{"golang.org/x/time", []string{"daemon/auth", "internal/pace"}, "clients are limited in one place, streams in another"},
		{"github.com/getkin/kin-openapi", nil, "the description of the API is checked in tests, the daemon serves it as it is"},
		{"github.com/prometheus/client_golang", []string{"daemon/metrics"}, "what is counted is named in one place"},
		{"libvirt.org/go/libvirtxml", []string{"internal/libvirt"}, "domain XML is made in one place"},
		{"gopkg.in/yaml.v3", []string{"internal/jobfile", "internal/config"}, "YAML is an input format, read strictly in one place each"},
	}
	for path, p := range load(t) {
		if !ours(path) {
			continue
		}
		for _, imp := range p.Imports {
			for _, r := range rules {
				if under(imp, r.library) && !under(room(path), r.allowed...) {
					t.Errorf("%s imports %s: only %v may, because %s", room(path), imp, r.allowed, r.why)
				}
			}
		}
	}
}

// TestRooms: what a room may import of this project; nil is nothing.
func TestRooms(t *testing.T) {
	rules := map[string]struct {
		may []string
		why string
	}{
		"internal/problem":      {nil, "errors are a leaf"},
		"internal/spelling":     {nil, "words are a leaf"},
		"daemon/models":         {nil, "wire types are shared by daemon and clients"},
		"internal/image":        {[]string{"internal/image"}, "formats are proved by themselves"},
		"internal/ovf":          {[]string{"internal/problem"}, "a file format"},
		"internal/stream":       {nil, "bytes and time only"},
		"internal/pace":         {nil, "a host is a name, bytes are a number"},
		"internal/output":       {[]string{"internal/problem"}, "the folder knows nothing of what is in the files"},
		"internal/export":       {[]string{"internal/image", "internal/output", "internal/ovf", "internal/problem", "internal/stream", "progress"}, "the pipeline takes interfaces: no vSphere, no daemon"},
		"vsphere":               {[]string{"internal/problem"}, "it answers plain Go values"},
		"daemon/auth":           {[]string{"internal/problem"}, "who a client is has nothing to do with routes and jobs"},
		"daemon/roots":          {[]string{"internal/problem"}, "it judges paths"},
		"daemon/metrics":        {[]string{"daemon/models"}, "it counts what it is told"},
		"daemon/client":         {[]string{"daemon/models", "internal/problem"}, "h2kvmctl must stay small"},
		"daemon/jobs":           {[]string{"daemon/models", "daemon/store", "internal/logging", "internal/pace", "internal/problem", "progress"}, "the queue knows neither vSphere nor SQL"},
		"internal/boottest":     {nil, "it reads domain XML as QEMU's side does, not as the code that wrote it meant it"},
		"internal/cli/h2kvmctl": {[]string{"daemon/client", "daemon/models", "internal/cli", "internal/problem", "progress"}, "it talks to the daemon only"},
	}
	for path, p := range load(t) {
		if !ours(path) {
			continue
		}
		for where, rule := range rules {
			if !under(room(path), where) {
				continue
			}
			for _, imp := range p.Imports {
				if ours(imp) && !under(room(imp), append(rule.may, where)...) {
					t.Errorf("%s imports %s: it may import %v, because %s", room(path), room(imp), rule.may, rule.why)
				}
			}
		}
	}
}

// TestLeavesUseTheStandardLibrary: leaves that programs of others may copy.
func TestLeavesUseTheStandardLibrary(t *testing.T) {
	pkgs := load(t)
	for path, p := range pkgs {
		if !ours(path) || !under(room(path), "daemon/models", "internal/problem", "internal/image", "internal/ovf", "internal/stream") {
			continue
		}
		for _, imp := range p.Imports {
			if !ours(imp) && !pkgs[imp].Standard {
				t.Errorf("%s imports %s: it uses the standard library only", room(path), imp)
			}
		}
	}
}

// TestTestRooms: rooms that only tests may import.
func TestTestRooms(t *testing.T) {
	rooms := map[string]string{
		"internal/boottest":       "it starts virtual machines",
		"internal/jsondoc":        "it holds a document to its word",
		"internal/image/qemutest": "it runs qemu-img and fails a test",
		"internal/image/vmdktest": "it fails a test",
	}
	for path, p := range load(t) { // it lists what is imported outside of test files
		if _, ok := rooms[room(path)]; ok {
			continue
		}
		for _, imp := range p.Imports {
			for room, why := range rooms {
				if imp == module+"/"+room {
					t.Errorf("%s imports %s: only test files may, because %s", path, room, why)
				}
			}
		}
	}
}

// TestBinaries: what must not be linked into a binary that is shipped.
func TestBinaries(t *testing.T) {
	pkgs := load(t)
	for _, r := range []struct{ binary, library, why string }{
		{"cmd/h2kvmctl", "github.com/vmware/govmomi", "it talks to the daemon only"},
		{"cmd/h2kvmctl", "modernc.org/sqlite", "it has no store"},
		{"cmd/h2kvmctl", module + "/internal/lab", "the simulator is for tests"},
		{"cmd/hyper2kvm", module + "/internal/lab", "the simulator is for tests"},
		{"cmd/hyper2kvm", "modernc.org/sqlite", "it has no store"},
		{"cmd/hyper2kvm", "github.com/vmware/govmomi/simulator", "the simulator is for tests"},
		{"cmd/hyper2kvmd", module + "/internal/lab", "the simulator is for tests"},
		{"cmd/hyper2kvmd", "github.com/vmware/govmomi/simulator", "the simulator is for tests"},
	} {
		p, ok := pkgs[module+"/"+r.binary]
		if !ok {
			t.Errorf("there is no %s", r.binary)
			continue
		}
		for _, dep := range p.Deps {
			if under(dep, r.library) {
				t.Errorf("%s links %s: it must not, because %s", r.binary, dep, r.why)
			}
		}
	}
}
