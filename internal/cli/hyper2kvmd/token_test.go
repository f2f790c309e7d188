package hyper2kvmd

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// run runs hyper2kvmd and gives code, standard output and error.
func run(t *testing.T, getenv func(string) string, args ...string) (int, string, string) {
	t.Helper()
	io, out, log := streams(getenv)
	code := Run(t.Context(), args, io)
	return code, out.String(), log.String()
}

func TestTokenCommands(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "tokens")
	conf := filepath.Join(dir, "c.yaml")
	// Managing tokens needs none of the secrets that the configuration names.
	if err := os.WriteFile(conf, []byte("tokens_file: tokens\nvcenters:\n  a:\n    server: s\n    username: u\n    password_credential: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, log := run(t, none, "token", "add", "-name", "ci", "-role", "operator", "-config", conf, "-expires", "90d")
	if code != 0 || !regexp.MustCompile(`^h2k_[A-Za-z0-9_-]{43}\n$`).MatchString(out) || !strings.Contains(log, "Added token ci (") || strings.Contains(log, "h2k_") {
		t.Fatalf("add: code %d, %q, %q", code, out, log)
	}
	secret := strings.TrimSpace(out)
	viaEnv := func(key string) string {
		if key == "H2KVMD_TOKENS_FILE" {
			return file
		}
		return ""
	}
	if code, out, log := run(t, viaEnv, "token", "add", "--role=viewer", "--name=wall"); code != 0 || len(out) != len(secret)+1 {
		t.Fatalf("add by environment: code %d, %q, %q", code, out, log)
	}
	code, out, log = run(t, none, "-tokens-file", file, "token", "list")
	if code != 0 || !strings.Contains(out, "│ ci   │ operator │") || !strings.Contains(out, "│ never ") || !strings.Contains(out, " SUCCESS  Found 2 token(s) in "+file) || log != "" {
		t.Errorf("list: code %d\n%s%s", code, out, log)
	}
	code, jsonOut, _ := run(t, none, "token", "list", "-json", "-tokens-file", file)
	var all struct {
		Tokens []struct {
			Name, Role string
			Expires    *time.Time
			Expired    bool
		}
	}
	if err := json.Unmarshal([]byte(jsonOut), &all); err != nil || code != 0 || len(all.Tokens) != 2 || all.Tokens[0].Name != "ci" || all.Tokens[0].Expires == nil || all.Tokens[1].Expires != nil {
		t.Errorf("list -json: %v, %s", err, jsonOut)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out+jsonOut+string(data), secret[4:]) {
		t.Error("the secret shows again")
	}
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"same name":    {[]string{"add", "-name", "ci", "-role", "viewer"}, 1, `there is a token named "ci"`},
		"no name":      {[]string{"add", "-role", "viewer"}, 2, "-name and -role are needed"},
		"no role":      {[]string{"add", "-name", "x"}, 2, "-name and -role are needed"},
		"role":         {[]string{"add", "-name", "x", "-role", "admin"}, 2, "viewer or operator"},
		"bad name":     {[]string{"add", "-name", "x y", "-role", "viewer"}, 2, "letters, digits"},
		"expires":      {[]string{"add", "-name", "x", "-role", "viewer", "-expires", "soon"}, 2, "neither a time nor a date"},
		"past":         {[]string{"add", "-name", "x", "-role", "viewer", "-expires", "2020-01-01"}, 2, "is past"},
		"no time":      {[]string{"add", "-name", "x", "-role", "viewer", "-expires", "0d"}, 2, "1 to 36500 days"},
		"argument":     {[]string{"add", "ci"}, 2, "unexpected argument"},
		"unknown":      {[]string{"remove", secret}, 1, "no token has this id or name"},
		"which":        {[]string{"remove"}, 2, "0 tokens are named"},
		"two":          {[]string{"remove", "a", "b"}, 2, "2 tokens are named"},
		"no command":   {nil, 2, "no command was given"},
		"bad command":  {[]string{"ad"}, 2, `did you mean "add"?`},
		"unknown flag": {[]string{"add", "-nam", "x"}, 2, `did you mean "-name"?`},
	} {
		code, out, log := run(t, viaEnv, append([]string{"token"}, c.args...)...)
		if code != c.code || !strings.Contains(log, c.says) || out != "" || strings.Contains(log, secret) {
			t.Errorf("%s: code %d, want %d; %q %q, want %q", name, code, c.code, out, log, c.says)
		}
	}
	if code, _, log := run(t, none, "token", "list"); code != 2 || !strings.Contains(log, "no token file is configured") {
		t.Errorf("no file: code %d, %q", code, log)
	}
	if code, out, log := run(t, viaEnv, "token", "remove", "ci"); code != 0 || !strings.Contains(out, "Removed token ci (") {
		t.Errorf("remove: code %d, %q, %q", code, out, log)
	}
}

func TestExpiry(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 5, time.UTC)
	for in, want := range map[string]time.Time{
		"": {}, "1d": now.Add(24 * time.Hour).Truncate(time.Second), "90m": now.Add(90 * time.Minute).Truncate(time.Second),
		"2027-01-31": time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC), "2026-05-01T14:30:00+02:00": time.Date(2026, 5, 1, 12, 30, 0, 0, time.UTC),
	} {
		if got, err := expiry(in, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"d", "-1d", "99999d", "1s", "-5h", "2026-05-01", "31.1.2027", "1e9d"} {
		if got, err := expiry(in, now); err == nil {
			t.Errorf("%q: %s", in, got)
		}
	}
}

func TestCheckConfig(t *testing.T) {
	dir := t.TempDir()
	write := func(content string) string {
		path := filepath.Join(dir, "c.yaml")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	vc := "vcenters:\n  a:\n    server: vc.example\n    username: u\n"
	for name, c := range map[string]struct {
		in   string
		code int
		says string
	}{
		"good":        {"output_roots: [" + dir + "]\n" + vc + "    password: secret\n", 0, " SUCCESS  The configuration is good: " + dir + "/c.yaml"},
		"credential":  {vc + "    password_credential: x\n", 0, " WARNING  password_credential of vcenters.a is there for the service only"},
		"unknown key": {"adr: x\n", 2, `line 1: unknown key "adr"`},
		"exposed":     {"addr: 0.0.0.0:8080\n", 2, "neither tokens nor TLS"},
		"no cert":     {"tls: {cert: nowhere.pem, key: k.pem}\n", 2, "read TLS certificate " + dir + "/nowhere.pem"},
		"root":        {"output_roots: [/usr/x]\n", 2, "/usr is a system folder"},
		"vcenter":     {"vcenters:\n  a:\n    server: 'ftp://x'\n    username: u\n    password: secret\n", 2, `vCenter "a"`},
	} {
		code, out, log := run(t, none, "-check-config", "-config", write(c.in))
		if code != c.code || !strings.Contains(out+log, c.says) || strings.Contains(out+log, "secret") {
			t.Errorf("%s: code %d, want %d\n%s%s\nwant %q", name, code, c.code, out, log, c.says)
		}
	}
	// The service itself has the credentials: there a missing one is an error.
	service := func(key string) string {
		if key == "CREDENTIALS_DIRECTORY" {
			return dir
		}
		return ""
	}
	if code, _, log := run(t, service, "-check-config", "-config", write(vc+"    password_credential: x\n")); code != 2 || !strings.Contains(log, "no such file") {
		t.Errorf("in the service: code %d, %s", code, log)
	}
	if code, _, log := run(t, none, "-max-running-jobs", "0"); code != 2 || !strings.Contains(log, "give 1 to 64") {
		t.Errorf("no jobs: code %d, %s", code, log)
	}
}
