package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/api"
	"github.com/hyper2kvm/hyper2kvm/daemon/auth"
	"github.com/hyper2kvm/hyper2kvm/daemon/client"
	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store/memory"
	"github.com/hyper2kvm/hyper2kvm/internal/logging"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const (
	operatorToken = "h2k_operator-0123456789"
	viewerToken   = "h2k_viewer-0123456789"
)

// gate knows two tokens, and refuses the clients in tired.
type gate struct {
	hosts
	tired []string
}

func (*gate) Identify(r *http.Request) (auth.Identity, error) {
	switch r.Header.Get("Authorization") {
	case "Bearer " + operatorToken:
		return auth.Identity{Who: "token:ci", ID: "token:1", Role: auth.Operator}, nil
	case "Bearer " + viewerToken:
		return auth.Identity{Who: "token:board", ID: "token:2", Role: auth.Viewer}, nil
	case "":
		return auth.Identity{}, auth.ErrMissing
	case "Bearer broken":
		return auth.Identity{}, errors.New("internal detail")
	}
	return auth.Identity{}, auth.ErrUnknown
}

func (g *gate) Allow(client string) (time.Duration, bool) {
	if slices.Contains(g.tired, client) {
		return 1500 * time.Millisecond, false
	}
	return 0, true
}

func TestAccess(t *testing.T) {
	f := &fake{release: make(chan struct{})}
	out := &lockedBuffer{}
	log := slog.New(logging.New(out, slog.LevelDebug, ""))
	m := jobs.NewManager(jobs.Options{Runner: f, Store: memory.New(0), Logger: log})
	g := &gate{}
	srv := httptest.NewUnstartedServer(nil)
	srv.Config = api.NewServer(api.NewHandler(api.Options{Manager: m, VMs: f, Logger: log, Audit: log, Access: g}), log)
	srv.Start()
	defer func() {
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
		srv.Close()
	}()
	do := func(method, path, token, body string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(data)
	}

	// What each may ask for, in the order no token, wrong token, viewer, operator.
	for _, c := range []struct {
		method, path, body string
		want               [4]int
	}{
		{"GET", "/health", "", [4]int{200, 200, 200, 200}},
		{"HEAD", "/health", "", [4]int{200, 200, 200, 200}},
		{"GET", "/status", "", [4]int{401, 401, 200, 200}},
		{"GET", "/vms", "", [4]int{401, 401, 200, 200}},
		{"POST", "/jobs/query", `{"all":true}`, [4]int{401, 401, 200, 200}},
		{"GET", "/jobs/cafecafe", "", [4]int{401, 401, 404, 404}},
		{"GET", "/jobs/cafecafe/logs", "", [4]int{401, 401, 404, 404}},
		{"GET", "/jobs/cafecafe/events", "", [4]int{401, 401, 404, 404}},
		{"GET", "/nothing/here", "", [4]int{401, 401, 404, 404}},
		{"GET", "/", "", [4]int{401, 401, 404, 404}},
		{"POST", "/health", "", [4]int{405, 405, 405, 405}},
		{"POST", "/jobs/submit", "vm_path: a\noutput_path: /o\n", [4]int{401, 401, 403, 200}},
		{"POST", "/jobs/cancel", `{"job_ids":["cafecafe"]}`, [4]int{401, 401, 403, 200}},
		{"POST", "/jobs/submit", strings.Repeat("#", api.MaxBody+1), [4]int{401, 401, 403, 413}},
		{"GET", "/status", strings.Repeat("#", api.MaxBody+1), [4]int{401, 401, 413, 413}},
	} {
		for i, token := range []string{"", "h2k_wrong", viewerToken, operatorToken} {
			resp, body := do(c.method, c.path, token, c.body)
			if resp.StatusCode != c.want[i] {
				t.Errorf("%s %s as %d: %d %s, want %d", c.method, c.path, i, resp.StatusCode, body, c.want[i])
			}
			if (resp.Header.Get("WWW-Authenticate") != "") != (resp.StatusCode == http.StatusUnauthorized) {
				t.Errorf("%s: WWW-Authenticate is %q", c.path, resp.Header.Get("WWW-Authenticate"))
			}
			for name, want := range map[string]string{
				"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
				"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Cross-Origin-Resource-Policy": "same-origin",
			} {
				if got := resp.Header.Get(name); got != want {
					t.Errorf("%s %s: %s is %q", c.method, c.path, name, got)
				}
			}
			if strings.Contains(body, "h2k_") {
				t.Errorf("%s: the answer holds a token: %s", c.path, body)
			}
		}
	}
	if resp, body := do("GET", "/status", "broken", ""); resp.StatusCode != http.StatusInternalServerError || strings.Contains(body, "internal detail") {
		t.Errorf("an authenticator that fails: %d %s", resp.StatusCode, body)
	}

	// The client turns both into what exits with 6.
	for token, want := range map[string]string{"": "the request carries no token", viewerToken: "the role viewer may not do this"} {
		c := &client.Client{BaseURL: srv.URL, Token: token}
		_, err := c.Cancel(t.Context(), []string{"cafecafe"})
		if problem.KindOf(err) != problem.Unauthorized || !strings.Contains(err.Error(), want) {
			t.Errorf("client with %q: %v", token, err)
		}
		c.Close()
	}

	// Too many requests, of one client; what it asks for and whether its
	// token is good does not matter.
	g.tired = []string{"token:2"}
	resp, body := do("GET", "/status", viewerToken, "")
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "2" || !strings.Contains(body, `"code":"too_many_requests"`) {
		t.Errorf("%d, Retry-After %q: %s", resp.StatusCode, resp.Header.Get("Retry-After"), body)
	}
	if resp, _ := do("GET", "/status", operatorToken, ""); resp.StatusCode != http.StatusOK {
		t.Errorf("another client: %d", resp.StatusCode)
	}
	g.tired = []string{"address:127.0.0.1"}
	for _, path := range []string{"/health", "/status"} {
		if resp, _ := do("GET", path, "", ""); resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "2" {
			t.Errorf("%s without a token: %d", path, resp.StatusCode)
		}
	}
	if resp, _ := do("GET", "/status", operatorToken, ""); resp.StatusCode != http.StatusOK {
		t.Errorf("the operator at the same address: %d", resp.StatusCode)
	}
	g.tired = nil

	// The audit log: every change with who, from where, what and how it ended.
	_, body = do("POST", "/jobs/submit", operatorToken, "jobs:\n- {vm_path: b, output_path: /p}\n- {vm_path: c, output_path: q}\n")
	id := body[strings.Index(body, `["`)+2:][:36]
	do("POST", "/jobs/cancel", operatorToken, `{"job_ids":[]}`)
	do("POST", "/jobs/retry", operatorToken, `{`)
	do("POST", "/limits/change", operatorToken, `{"max_streams":12}`)
	do("GET", "/jobs/retry", operatorToken, "")
	g.tired = []string{"token:1"}
	for range 3 {
		do("POST", "/jobs/cancel", operatorToken, `{"job_ids":["cafecafe"]}`)
	}
	g.tired = nil
	for header, value := range map[string]string{"Host": "evil.example.com", "Origin": "https://evil.example.com"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/jobs/cancel", strings.NewReader(`{"job_ids":["cafecafe"]}`))
		if err != nil {
			t.Fatal(err)
		}
		if req.Header.Set(header, value); header == "Host" {
			req.Host = value
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %d", header, resp.StatusCode)
		}
	}
	for _, path := range []string{"//status", "/./status", "/jobs/../status", "/status/"} {
		if resp, body := do("GET", path, "", ""); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s without a token: %d %s", path, resp.StatusCode, body)
		}
		if resp, body := do("GET", path, operatorToken, ""); resp.StatusCode != http.StatusNotFound || !strings.Contains(body, `"code":"not_found"`) {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	text := out.String()
	if n := strings.Count(text, "this client sends too many requests"); n != 1 {
		t.Errorf("%d lines tell of too many requests, want one that sums up", n)
	}
	for _, want := range []string{
		"INFO: audit | who=token:ci, id=token:1, role=operator, remote=127.0.0.1:",
		fmt.Sprintf(`, action=submit, jobs=%s, outcome="accepted 1, rejected 1"`, id),
		`, action=cancel, jobs="", outcome="cancelled 0, failed 1"`,
		`, action=cancel, jobs="", outcome=failed: cancel jobs: no job id was given`,
		`, action=retry, jobs="", outcome=failed: read request: unexpected EOF`,
		`, action=retry, jobs="", outcome="failed: /jobs/retry does not take \"GET\""`,
		`, action=change limits, jobs="", outcome=done: max_streams 0 to 12`,
		`, action=submit, jobs="", outcome=failed: the body is larger than`,
		`, action=cancel, jobs="", outcome=denied: this client sends too many requests`,
		`, action=cancel, jobs="", outcome="denied: the host \"evil.example.com\" is not this daemon's"`,
		`, action=cancel, jobs="", outcome="denied: the origin \"https://evil.example.com\" is not this daemon's"`,
		`who=unknown, id="", role="", remote=127.0.0.1:`,
		`, action=submit, jobs="", outcome=denied: the request carries no token`,
		`, action=cancel, jobs="", outcome=denied: the token or certificate is unknown or has expired`,
		`who=token:board, id=token:2, role=viewer, remote=127.0.0.1:`,
		`, action=submit, jobs="", outcome=denied: the role viewer may not do this`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %q", want)
		}
	}
	if strings.Contains(text, "h2k_") {
		t.Error("a token is in the log")
	}
	if strings.Contains(text, "action=query") || strings.Contains(text, "action=/") {
		t.Error("what changes nothing is audited")
	}
}

// fading knows nobody any more once its time is over.
type fading struct {
	hosts
	until time.Time
}

func (f fading) Identify(r *http.Request) (auth.Identity, error) {
	if time.Now().After(f.until) {
		return auth.Identity{}, auth.ErrUnknown
	}
	return f.hosts.Identify(r)
}

// TestStreamOfARemovedToken: an event stream ends soon after its token.
func TestStreamOfARemovedToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		m := jobs.NewManager(jobs.Options{Runner: f, Store: memory.New(0)})
		h := api.NewHandler(api.Options{Manager: m, VMs: f, Access: fading{until: time.Now().Add(40 * time.Second)}})
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/events", nil)
		req.Host = "localhost"
		rec := httptest.NewRecorder()
		began := time.Now()
		h.ServeHTTP(rec, req)
		if took := time.Since(began); took != 45*time.Second || !strings.Contains(rec.Body.String(), "heartbeat") {
			t.Errorf("it ended after %s: %s", took, rec.Body)
		}
		if err := m.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestAliasBombs: small documents that would become huge, in the shapes that
// are known, are refused at once.
func TestAliasBombs(t *testing.T) {
	s := start(t)
	var laughs strings.Builder
	laughs.WriteString("a0: &a0 [lol,lol,lol,lol,lol,lol,lol,lol,lol]\n")
	for i := 1; i < 10; i++ {
		fmt.Fprintf(&laughs, "a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d,", i-1), 8), i-1)
	}
	for name, body := range map[string]string{
		"billion laughs": laughs.String() + "jobs: *a9\n",
		"merge":          "a: &a {vm_path: x, output_path: /x}\njobs:\n- <<: *a\n",
		"itself":         "jobs: &a [*a]\n",
		"flow depth":     strings.Repeat("[", 100_000),
		"block depth":    strings.Repeat("- ", 100_000),
		"many keys":      strings.Repeat("{a: 1}\n---\n", 50_000),
	} {
		began := time.Now()
		_, err := s.client.Submit(t.Context(), []byte(body), "application/yaml")
		e, ok := errors.AsType[*client.Error](err)
		if !ok || e.Status != http.StatusBadRequest || time.Since(began) > 5*time.Second {
			t.Errorf("%s: %v after %s", name, err, time.Since(began))
		}
	}
	q, err := s.client.Query(t.Context(), models.QueryRequest{All: true})
	if err != nil || q.Total != 0 {
		t.Errorf("%d jobs, %v", q.Total, err)
	}
}

// TestOriginOverTLS: over TLS a page from the same host without TLS is
// foreign.
func TestOriginOverTLS(t *testing.T) {
	f := &fake{}
	m := jobs.NewManager(jobs.Options{Runner: f, Store: memory.New(0)})
	srv := httptest.NewTLSServer(api.NewHandler(api.Options{Manager: m, VMs: f}))
	defer func() {
		srv.Close()
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	host := strings.TrimPrefix(srv.URL, "https://")
	for origin, want := range map[string]int{"https://" + host: 200, "http://" + host: 403, "https://evil.example": 403, "file://" + host: 403} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Origin", origin)
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", origin, resp.StatusCode, want)
		}
	}
}
