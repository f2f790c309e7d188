package config

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

func file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func env(pairs ...string) func(string) string {
	return func(key string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == key {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestPrecedence(t *testing.T) {
	path := file(t, "c.yaml", "addr: localhost:1\nstate_dir: /var/lib/x\nmax_running_jobs: 7\nlog_format: json\ndefaults:\n  parallel_downloads: 8\n  overwrite: true\n")
	c, err := Load(Flags{}, env())
	if err != nil || c.Addr != DefaultAddr || c.MaxRunning != DefaultMaxRunning || c.LogFormat != "text" || c.File != "" {
		t.Errorf("defaults: %+v, %v", c, err)
	}
	c, err = Load(Flags{}, env("H2KVMD_CONFIG", path))
	if err != nil || c.Addr != "localhost:1" || c.MaxRunning != 7 || c.LogFormat != "json" || c.StateDir != "/var/lib/x" ||
		*c.Defaults.ParallelDownloads != 8 || !*c.Defaults.Overwrite || c.Defaults.Format != nil {
		t.Errorf("file: %+v, %v", c, err)
	}
	c, err = Load(Flags{ConfigFile: path}, env("H2KVMD_CONFIG", "/nowhere", "H2KVMD_ADDR", "localhost:2"))
	if err != nil || c.Addr != "localhost:2" {
		t.Errorf("environment: %+v, %v", c, err)
	}
	c, err = Load(Flags{ConfigFile: path, Addr: "localhost:3", StateDir: "/s", MaxRunning: 1, LogFormat: "text", Debug: true}, env("H2KVMD_ADDR", "localhost:2"))
	if err != nil || c.Addr != "localhost:3" || c.StateDir != "/s" || c.MaxRunning != 1 || c.LogFormat != "text" || !c.Debug {
		t.Errorf("flags: %+v, %v", c, err)
	}
}

func TestVCenters(t *testing.T) {
	path := file(t, "c.yaml", "vcenters:\n  prod:\n    server: vc1\n    username: u\n    password_file: pw\n    datacenter: DC\n    ca_certs: [ca.pem, /etc/ca.pem]\n    known_hosts: kh\n"+
		"  lab:\n    server: https://vc2/sdk\n    username: u\n    password: t0psecret\n    insecure: true\n    ca_certs: one.pem\n")
	dir := filepath.Dir(path)
	if err := os.WriteFile(filepath.Join(dir, "pw"), []byte(" from file \r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(Flags{ConfigFile: path}, env())
	if err != nil {
		t.Fatal(err)
	}
	p, l := c.VCenters["prod"], c.VCenters["lab"]
	if p.Server != "vc1" || p.Password.Reveal() != " from file " || p.Datacenter != "DC" || p.CACerts[0] != filepath.Join(dir, "ca.pem") ||
		p.CACerts[1] != "/etc/ca.pem" || p.KnownHosts != filepath.Join(dir, "kh") || p.Insecure {
		t.Errorf("prod: %+v", p)
	}
	if l.Password.Reveal() != "t0psecret" || !l.Insecure || l.CACerts[0] != filepath.Join(dir, "one.pem") || len(c.Warnings) != 0 {
		t.Errorf("lab: %+v, %v", l, c.Warnings)
	}
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	all := string(data) + fmt.Sprintf("%v %+v %#v %s %q", c, c, c, l.Password, l.Password)
	if strings.Contains(all, "t0psecret") || strings.Contains(all, "from file") {
		t.Errorf("a password shows: %s", all)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if c, err = Load(Flags{ConfigFile: path}, env()); err != nil || len(c.Warnings) != 1 {
		t.Errorf("readable by others: %v, %v", c.Warnings, err)
	}
}

func TestFaults(t *testing.T) {
	v := "vcenters:\n  a:\n    server: s\n    username: u\n"
	for name, c := range map[string]struct{ in, want string }{
		"unknown":        {"adr: x\n", `line 1: unknown key "adr" (did you mean "addr"?)`},
		"unknown far":    {"addr: localhost:1\nzzzzz: x\n", "line 2: unknown key (known: addr, "},
		"type":           {"max_running_jobs: many\n", "line 1: max_running_jobs: is text, want a whole number"},
		"range":          {"\nmax_running_jobs: 0\n", "line 2: max_running_jobs: is 0, want 1 to 64"},
		"addr":           {"addr: localhost\n", "want HOST:PORT"},
		"format":         {"log_format: xml\n", "log_format is"},
		"defaults":       {"defaults:\n  parallel_download: 3\n", `line 2: unknown key "parallel_download" in defaults (did you mean "parallel_downloads"?)`},
		"default range":  {"defaults:\n  parallel_downloads: 30\n", "line 2: parallel_downloads: is 30"},
		"default type":   {"defaults: 3\n", "line 1: defaults: is a whole number, want a map"},
		"vcenters":       {"vcenters: [a]\n", "line 1: vcenters: want a map of names"},
		"vcenter":        {"vcenters: {a: b}\n", "line 1: vcenters.a is text, want a map"},
		"vcenter key":    {v + "    pasword: topsecret\n", `line 5: unknown key "pasword" in vcenters.a (did you mean "password"?)`},
		"vcenter flow":   {"vcenters: {a: {server: s, username: u, password: x, topsecret}}\n", "line 1: unknown key in vcenters.a"},
		"vcenter type":   {v + "    password: [topsecret]\n", "line 5: vcenters.a.password: is a list, want text"},
		"no password":    {v, "line 2: vcenters.a: password or password_file is missing"},
		"two passwords":  {v + "    password: topsecret\n    password_file: x\n", "line 6: vcenters.a: give password or password_file, not both"},
		"password file":  {v + "    password_file: nowhere\n", "line 5: vcenters.a: password_file: open"},
		"empty password": {v + "    password: \"\"\n", "line 2: vcenters.a: the password is empty"},
		"credentials":    {"vcenters:\n  a:\n    server: u:topsecret@s\n", "line 2: vcenters.a: server holds credentials"},
		"no server":      {"vcenters:\n  a:\n    username: u\n", "line 2: vcenters.a: server is missing"},
		"alias":          {"addr: *topsecret\n", "aliases are not taken"},
		"empty":          {"", "the document is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(Flags{ConfigFile: file(t, "c.yaml", c.in)}, env())
			if err == nil || !strings.Contains(err.Error(), c.want) || problem.KindOf(err) != problem.Invalid || strings.Contains(err.Error(), "topsecret") {
				t.Errorf("error is %v, want %q", err, c.want)
			}
		})
	}
	if _, err := Load(Flags{ConfigFile: "/nowhere/c.yaml"}, env()); problem.KindOf(err) != problem.Invalid {
		t.Errorf("missing file: %v", err)
	}
}
