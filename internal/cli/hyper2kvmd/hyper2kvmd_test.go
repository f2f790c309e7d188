package hyper2kvmd

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hyper2kvm/hyper2kvm/daemon/client"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// logs is a standard error that can be waited for.
type logs struct {
	mu   sync.Mutex
	b    bytes.Buffer
	news chan struct{}
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.news <- struct{}{}:
	default:
	}
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func none(string) string { return "" }

func streams(getenv func(string) string) (term.IO, *bytes.Buffer, *logs) {
	out, log := &bytes.Buffer{}, &logs{news: make(chan struct{}, 1)}
	return term.IO{In: strings.NewReader(""), Out: out, Err: log, Getenv: getenv}, out, log
}

func TestServe(t *testing.T) {
	for name, line := range map[string]string{"text": `addr=(127\.0\.0\.1:\d+)`, "json": `"addr":"(127\.0\.0\.1:\d+)"`} {
		t.Run(name, func(t *testing.T) {
			io, out, log := streams(none)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			code := make(chan int, 1)
			go func() {
				code <- Run(ctx, []string{"-addr", "127.0.0.1:0", "--state", t.TempDir(), "-log-format=" + name, "-debug"}, io)
			}()
			var addr []string
			for addr == nil {
				select {
				case <-log.news:
					addr = regexp.MustCompile(line).FindStringSubmatch(log.String())
				case <-time.After(10 * time.Second):
					t.Fatalf("it does not listen:\n%s", log)
				}
			}
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			resp, err := client.Get("http://" + addr[1] + "/health")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("health: %s", resp.Status)
			}
			stop()
			if c := <-code; c != 0 {
				t.Errorf("exit code %d\n%s", c, log)
			}
			if out.Len() > 0 {
				t.Errorf("standard output: %q", out)
			}
			if name == "text" {
				for l := range strings.Lines(log.String()) {
					if !regexp.MustCompile(`^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] (DEBUG|INFO|WARN|ERROR): [^\x1b]*\n$`).MatchString(l) {
						t.Errorf("not a log line: %q", l)
					}
				}
			}
		})
	}
}

func TestWrongUsage(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("vcenters:\n  lab:\n    server: 'https://user:se cret@x/'\n    username: u\n    password: secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args []string
		code int
		says string
	}{
		"port in use":      {[]string{"-addr", taken.Addr().String()}, 1, "-addr"},
		"not loopback":     {[]string{"-addr", "0.0.0.0:0"}, 2, "loopback"},
		"bad address":      {[]string{"-addr", "nonsense"}, 2, "HOST:PORT"},
		"unknown flag":     {[]string{"-adr", "x"}, 2, `did you mean "-addr"?`},
		"argument":         {[]string{"start"}, 2, `unknown command "start"`},
		"log format":       {[]string{"-log-format", "xml"}, 2, "log_format"},
		"no such config":   {[]string{"-config", "/nonexistent"}, 2, "/nonexistent"},
		"bad vCenter":      {[]string{"-config", config, "-addr", "127.0.0.1:0"}, 2, "vcenter"},
		"flag given twice": {[]string{"-addr", "a:1", "-addr", "b:1"}, 2, "addr"},
	} {
		t.Run(name, func(t *testing.T) {
			io, out, log := streams(none)
			if code := Run(t.Context(), tc.args, io); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if !strings.Contains(strings.ToLower(log.String()), strings.ToLower(tc.says)) || strings.Contains(log.String(), "cret") {
				t.Errorf("standard error: %q", log)
			}
			if out.Len() > 0 {
				t.Errorf("standard output: %q", out)
			}
		})
	}
	io, out, log := streams(none)
	if code := Run(t.Context(), []string{"-help"}, io); code != 0 || !strings.Contains(out.String(), "-log-format") || log.String() != "" {
		t.Errorf("-help: exit code %d\n%s%s", code, out, log)
	}
}

// TestHangup: the signal reloads level, tokens and vCenters; a file that is
// broken changes nothing.
func TestHangup(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "c.yaml")
	write := func(content string) {
		if err := os.WriteFile(conf, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("log_level: error\n")
	io, _, log := streams(none)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	sock := filepath.Join(dir, "s")
	code := make(chan int, 1)
	go func() {
		code <- Run(ctx, []string{"-addr", "127.0.0.1:0", "-config", conf, "-unix-socket", sock, "-state", filepath.Join(dir, "state")}, io)
	}()
	waitFor := func(what string, ok func() bool) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for !ok() {
			select {
			case <-log.news:
			case <-time.After(10 * time.Millisecond):
			case <-deadline:
				t.Fatalf("%s:\n%s", what, log)
			}
		}
	}
	c := &client.Client{BaseURL: "unix://" + sock}
	defer c.Close()
	// It is served only after the signal is handled.
	waitFor("it does not serve", func() bool { _, err := c.Health(t.Context()); return err == nil })
	hangup := func(content, outcome string, times int) {
		t.Helper()
		write(content)
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		waitFor("no reload", func() bool {
			return strings.Count(log.String(), "action=reload configuration, outcome="+outcome) == times
		})
	}
	if log.String() != "" {
		t.Errorf("the level is error: %s", log)
	}
	hangup("log_level: debug\nvcenters:\n  a:\n    server: 127.0.0.1:1\n    username: u\n    password: topsecret\n", "done", 1)
	r, err := c.SubmitDefinition(t.Context(), models.Definition{VMPath: "x", OutputPath: filepath.Join(dir, "out"), VCenter: &models.VCenter{Name: "a"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Watch(t.Context(), r.JobIDs[0], 0, func(models.Event) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if j, err := c.Job(t.Context(), r.JobIDs[0]); err != nil || !strings.Contains(j.Error, "127.0.0.1:1") {
		t.Errorf("the new vCenter is not asked: %+v, %v", j, err)
	}
	hangup("log_level: loud\n", "failed", 1)
	if text := log.String(); !strings.Contains(text, `log_level: is \"loud\"`) || !strings.Contains(text, "DEBUG: request") || !strings.Contains(text, "who=uid:") || strings.Contains(text, "topsecret") {
		t.Errorf("log: %s", text)
	}
	stop()
	if c := <-code; c != 0 {
		t.Errorf("exit code %d\n%s", c, log)
	}
}

// TestLogIsJSONToTheEnd: also the error that ends the daemon.
func TestLogIsJSONToTheEnd(t *testing.T) {
	code, _, log := run(t, none, "-log-format", "json", "-addr", "0.0.0.0:0", "-state", t.TempDir())
	if code != 2 || !strings.Contains(log, "it is not a loopback address") {
		t.Errorf("code %d: %s", code, log)
	}
	for line := range strings.Lines(log) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
}
