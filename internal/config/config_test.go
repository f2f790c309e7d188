package config

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
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
	if err != nil || c.StreamsPerHost != 8 || c.Addr != DefaultAddr || c.MaxRunning != DefaultMaxRunning || c.LogFormat != "text" || c.File != "" {
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
	if err != nil || c.Addr != "localhost:3" || c.StateDir != "/s" || c.MaxRunning != 1 || c.LogFormat != "text" || c.LogLevel != slog.LevelDebug {
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
		"streams":        {"streams_per_host: -1\n", "line 1: streams_per_host: is -1, want 0 to 1024"},
		"bandwidth":      {"addr: localhost:1\nbandwidth: fast\n", "line 2: bandwidth: is no rate"},
		"bandwidth low":  {"bandwidth: 200\n", "bandwidth is 200 bytes per second, want 0 (no limit) or 65536"},
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
		"no password":    {v, "line 2: vcenters.a: password is missing: give password, password_file, password_credential, password_env"},
		"two passwords":  {v + "    password: topsecret\n    password_file: x\n", "line 6: vcenters.a: give one of password and password_file, not both"},
		"password file":  {v + "    password_file: nowhere\n", "line 5: vcenters.a: password_file: open"},
		"empty password": {v + "    password: \"\"\n", "line 5: vcenters.a: password: the password is empty"},
		"credentials":    {"vcenters:\n  a:\n    server: u:topsecret@s\n", "line 2: vcenters.a: server holds credentials"},
		"env unset":      {v + "    password_env: topsecret\n", "line 5: vcenters.a: password_env: the environment variable is not set"},
		"env name":       {v + "    password_env: a=topsecret\n", "line 5: vcenters.a: password_env: it is not the name"},
		"no credentials": {v + "    password_credential: topsecret\n", "line 5: vcenters.a: password_credential: CREDENTIALS_DIRECTORY is not set"},
		"no username":    {"vcenters:\n  a:\n    server: s\n", "line 2: vcenters.a: username is missing: give username, username_file"},
		"two usernames":  {v + "    username_env: X\n    password: topsecret\n", "line 5: vcenters.a: give one of username and username_env, not both"},
		"half of tls":    {"tls: {cert: a}\n", "tls: cert and key belong together"},
		"ca alone":       {"tls: {client_ca: a}\n", "tls: client_ca needs cert and key"},
		"viewers alone":  {"tls: {cert: a, key: b, viewers: [x]}\n", "tls: viewers needs client_ca"},
		"tls key":        {"tls:\n  crt: a\n", `line 2: unknown key "crt" in tls (did you mean "cert"?)`},
		"tls type":       {"tls: yes please\n", "line 1: tls is text, want a map"},
		"rate":           {"rate_limit:\n  per_second: -1\n", "line 2: rate_limit.per_second: is -1, want 0 to 1000000"},
		"burst":          {"rate_limit:\n  burst: 0\n", "line 2: rate_limit.burst: is 0, want 1 to 1000000"},
		"level":          {"log_level: loud\n", `line 1: log_level: is "loud", want debug, info, warn or error`},
		"empty root":     {"output_roots:\n- /a\n- \"\"\n", "line 3: output_roots: is empty"},
		"root type":      {"output_roots: [3]\n", "line 1: output_roots: is a whole number, want text"},
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

func TestAccessSettings(t *testing.T) {
	path := file(t, "c.yaml", "unix_socket: run/sock\nhosts: [KVM1.example.com]\noutput_roots: [/srv/a, /srv/b]\ntokens_file: tokens\n"+
		"tls:\n  cert: /t/c.pem\n  key: k.pem\n  client_ca: ca.pem\n  viewers: board\nrate_limit:\n  per_second: 5\nlog_level: warn\nstreams_per_host: 6\nmax_streams: 20\nbandwidth: 200MB/s\nretention:\n  days: 90\n  jobs: 500\n")
	dir := filepath.Dir(path)
	c, err := Load(Flags{ConfigFile: path, DefaultState: "/d/state"}, env())
	want := Config{
		Addr: DefaultAddr, StateDir: "/d/state", UnixSocket: dir + "/run/sock", Hosts: []string{"kvm1.example.com"}, MaxRunning: DefaultMaxRunning,
		StreamsPerHost: 6, MaxStreams: 20, Bandwidth: 200e6,
		OutputRoots: []string{"/srv/a", "/srv/b"}, TokensFile: dir + "/tokens",
		TLS:       TLS{Cert: "/t/c.pem", Key: dir + "/k.pem", ClientCA: dir + "/ca.pem", Viewers: []string{"board"}},
		RateLimit: RateLimit{5, DefaultBurst}, Retention: Retention{90, 500}, LogFormat: "text", LogLevel: slog.LevelWarn, File: path,
	}
	if err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("file: %+v, %v", c, err)
	}
	vars := env("H2KVMD_UNIX_SOCKET", "/e/s", "H2KVMD_STATE", "/e/state", "H2KVMD_TOKENS_FILE", "/e/t", "H2KVMD_TLS_CERT", "/e/c", "H2KVMD_TLS_KEY", "/e/k",
		"H2KVMD_TLS_CLIENT_CA", "/e/ca", "H2KVMD_OUTPUT_ROOTS", "/e/1:/e/2", "H2KVMD_MAX_RUNNING_JOBS", "9",
		"H2KVMD_STREAMS_PER_HOST", "0", "H2KVMD_MAX_STREAMS", "21", "H2KVMD_BANDWIDTH", "100M", "H2KVMD_LOG_FORMAT", "json", "H2KVMD_LOG_LEVEL", "error")
	c, err = Load(Flags{ConfigFile: path}, vars)
	want.UnixSocket, want.StateDir, want.TokensFile, want.OutputRoots = "/e/s", "/e/state", "/e/t", []string{"/e/1", "/e/2"}
	want.TLS = TLS{"/e/c", "/e/k", "/e/ca", []string{"board"}}
	want.StreamsPerHost, want.MaxStreams, want.Bandwidth = 0, 21, 100e6
	want.MaxRunning, want.LogFormat, want.LogLevel = 9, "json", slog.LevelError
	if err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("environment: %+v, %v", c, err)
	}
	t.Chdir(dir)
	c, err = Load(Flags{ConfigFile: path, UnixSocket: "s", TokensFile: "/f/t", TLS: TLS{Cert: "/f/c", Key: "/f/k"}, OutputRoots: []string{"/f/1"}, MaxRunning: 2,
		StreamsPerHost: "7", MaxStreams: "0", Bandwidth: "0"}, vars)
	want.StreamsPerHost, want.MaxStreams, want.Bandwidth = 7, 0, 0
	want.UnixSocket, want.TokensFile, want.OutputRoots, want.MaxRunning = dir+"/s", "/f/t", []string{"/f/1"}, 2
	want.TLS.Cert, want.TLS.Key = "/f/c", "/f/k"
	if err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("flags: %+v, %v", c, err)
	}
	for name, value := range map[string]string{"H2KVMD_MAX_RUNNING_JOBS": "many", "H2KVMD_LOG_LEVEL": "loud",
		"H2KVMD_STREAMS_PER_HOST": "x", "H2KVMD_BANDWIDTH": "1Mb/s"} {
		if _, err := Load(Flags{}, env(name, value)); problem.KindOf(err) != problem.Invalid || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c, err := Load(Flags{ConfigFile: "c.yaml"}, env()); err != nil || c.File != path || c.TokensFile != dir+"/tokens" {
		t.Errorf("relative: %+v, %v", c, err)
	}
	// The default file: read when it is there, an error when it cannot be read.
	if c, err := Load(Flags{DefaultFile: path}, env()); err != nil || c.File != path {
		t.Errorf("default file: %+v, %v", c, err)
	}
	if c, err := Load(Flags{DefaultFile: dir + "/nowhere"}, env()); err != nil || c.File != "" {
		t.Errorf("no default file: %+v, %v", c, err)
	}
	if _, err := Load(Flags{DefaultFile: dir}, env()); problem.KindOf(err) != problem.Invalid {
		t.Errorf("default file that is a folder: %v", err)
	}
}

func TestCredentials(t *testing.T) {
	creds := t.TempDir()
	for name, content := range map[string]string{"berlin": "from systemd\n", "user": "u1\r\n", "big": strings.Repeat("x", maxSecret+1)} {
		if err := os.WriteFile(filepath.Join(creds, name), []byte(content), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	path := file(t, "c.yaml", "tokens_file: t\nvcenters:\n  a:\n    server: s\n    username_file: "+creds+"/user\n    password_credential: berlin\n"+
		"  b:\n    server: s\n    username_credential: user\n    password_env: PW\n"+
		"  c:\n    server: s\n    username_env: USER1\n    password_file: "+creds+"/berlin\n")
	vars := env("CREDENTIALS_DIRECTORY", creds, "PW", "from env", "USER1", "u2")
	c, err := Load(Flags{ConfigFile: path}, vars)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]string{"a": {"u1", "from systemd"}, "b": {"u1", "from env"}, "c": {"u2", "from systemd"}} {
		if v := c.VCenters[name]; v.Username != want[0] || v.Password.Reveal() != want[1] {
			t.Errorf("%s: %s %s", name, v.Username, v.Password.Reveal())
		}
	}
	if len(c.Warnings) != 0 {
		t.Error(c.Warnings)
	}
	if err := os.Chmod(creds+"/berlin", 0o444); err != nil {
		t.Fatal(err)
	}
	if c, err = Load(Flags{ConfigFile: path}, vars); err != nil || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "chmod o=") {
		t.Errorf("readable by all: %v, %v", c.Warnings, err)
	}
	// From a shell the service's credentials are not there: a check says so
	// and goes on.
	c, err = Load(Flags{ConfigFile: path, NoCredentials: true}, env("PW", "x", "USER1", "y"))
	if err != nil || len(c.Warnings) != 3 || !strings.Contains(c.Warnings[0], "password_credential of vcenters.a") {
		t.Errorf("lenient: %v, %v", c.Warnings, err)
	}
	// Managing tokens reads no secret at all.
	if f, err := TokensFile(Flags{ConfigFile: path}, env()); err != nil || f != filepath.Join(filepath.Dir(path), "t") {
		t.Errorf("tokens file: %q, %v", f, err)
	}
	for in, want := range map[string]string{"../berlin": "without its folder", "..": "without its folder", "nowhere": "no such file", "big": "larger than"} {
		path := file(t, "c.yaml", "vcenters:\n  a:\n    server: s\n    username: u\n    password_credential: \""+in+"\"\n")
		if _, err := Load(Flags{ConfigFile: path}, vars); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", in, err)
		}
	}
}
