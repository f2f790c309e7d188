package api_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/daemon/api"
	"github.com/hyper2kvm/hyper2kvm/daemon/auth"
	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/daemon/store/memory"
	"github.com/hyper2kvm/hyper2kvm/internal/logging"
)

// TestProfilesAreForThisMachine: to everybody else the path does not exist,
// whatever their role.
func TestProfilesAreForThisMachine(t *testing.T) {
	m := jobs.NewManager(jobs.Options{Runner: &fake{}, Store: memory.New(0)})
	defer func() {
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	out := &lockedBuffer{}
	h := api.NewHandler(api.Options{Manager: m, VMs: &fake{}, Access: &gate{}, Audit: slog.New(logging.New(out, slog.LevelInfo, ""))})
	ask := func(path, remote, token string, header ...string) (int, string) {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
		req.Host, req.RemoteAddr = "localhost", remote
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		return rec.Code, rec.Body.String()
	}
	const here = "127.0.0.1:99"
	for name, c := range map[string]struct {
		remote, token string
		header        []string
		status        int
	}{
		"operator":          {here, operatorToken, nil, 200},
		"IPv6":              {"[::1]:99", operatorToken, nil, 200},
		"IPv4 in IPv6":      {"[::ffff:127.0.0.1]:99", operatorToken, nil, 200},
		"viewer":            {here, viewerToken, nil, 403},
		"nobody":            {here, "", nil, 401},
		"elsewhere":         {"192.0.2.1:99", operatorToken, nil, 404},
		"elsewhere, IPv6":   {"[2001:db8::1]:99", operatorToken, nil, 404},
		"viewer elsewhere":  {"192.0.2.1:99", viewerToken, nil, 404},
		"nobody elsewhere":  {"192.0.2.1:99", "", nil, 401}, // as for any path
		"no address":        {"@", operatorToken, nil, 404},
		"X-Forwarded-For":   {here, operatorToken, []string{"X-Forwarded-For", "127.0.0.1"}, 404},
		"an empty one":      {here, operatorToken, []string{"X-Forwarded-For", ""}, 404},
		"Forwarded":         {here, operatorToken, []string{"forwarded", "for=127.0.0.1"}, 404},
		"X-Forwarded-Proto": {here, operatorToken, []string{"X-Forwarded-Proto", "https"}, 404},
		"X-Real-IP":         {here, operatorToken, []string{"X-Real-IP", "127.0.0.1"}, 404},
		"Via":               {here, operatorToken, []string{"Via", "1.1 proxy"}, 404},
	} {
		for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/goroutine?debug=1", "/debug/pprof/cmdline"} {
			status, body := ask(path, c.remote, c.token, c.header...)
			if status != c.status {
				t.Errorf("%s, %s: %d %.80q, want %d", name, path, status, body, c.status)
			}
			if _, other := ask("/debug/nothing", c.remote, c.token, c.header...); c.status == 404 && strings.ReplaceAll(body, strings.Split(path, "?")[0], "") != strings.ReplaceAll(other, "/debug/nothing", "") {
				t.Errorf("%s: it can be told from a path that does not exist: %s", name, body)
			}
		}
	}
	if _, body := ask("/debug/pprof/goroutine?debug=1", here, operatorToken); !strings.Contains(body, "goroutine profile: total") {
		t.Errorf("%.100q", body)
	}
	if text := out.String(); !strings.Contains(text, "who=token:ci") || !strings.Contains(text, `action=take profile, jobs="", outcome=done: heap`) {
		t.Errorf("the audit log is %.500s", text)
	}
}

// TestProfilesOverTheSocket: whoever may open it is an operator of this
// machine, unless a proxy stands between.
func TestProfilesOverTheSocket(t *testing.T) {
	m := jobs.NewManager(jobs.Options{Runner: &fake{}, Store: memory.New(0)})
	log := slog.New(slog.DiscardHandler)
	who, err := auth.NewAuthenticator(auth.Options{TokenFile: filepath.Join(t.TempDir(), "tokens")})
	if err != nil {
		t.Fatal(err)
	}
	srv := api.NewServer(api.NewHandler(api.Options{Manager: m, VMs: &fake{}, Access: socketGate{who: who}}), log)
	path := filepath.Join(t.TempDir(), "s")
	l, err := auth.ListenUnix(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
	defer func() {
		transport.CloseIdleConnections()
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-served
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	for header, want := range map[string]int{"": 200, "X-Forwarded-For": 404, "Forwarded": 404} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://localhost/debug/pprof/heap", nil)
		if err != nil {
			t.Fatal(err)
		}
		if header != "" {
			req.Header.Set(header, "x")
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Error(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("with %q: %d, want %d", header, resp.StatusCode, want)
		}
	}
}

// socketGate asks a real authenticator.
type socketGate struct {
	hosts
	who *auth.Authenticator
}

func (g socketGate) Identify(r *http.Request) (auth.Identity, error) { return g.who.Identify(r) }
