package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// transport answers requests without a network.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(status int, contentType, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {contentType}}, Body: io.NopCloser(strings.NewReader(body))}
}

func TestAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"": "http://localhost:8080", "localhost:9": "http://localhost:9", "https://h/": "https://h", "http://[::1]:1/x/": "http://[::1]:1/x",
		"ftp://h": "", "http://u:topsecret@h": "", "http://": "", "http://h?x": "", "http://h\x7f:topsecret": "",
	} {
		u, err := parseBase(in)
		if want == "" {
			if problem.KindOf(err) != problem.Invalid || err == nil || strings.Contains(err.Error(), "topsecret") {
				t.Errorf("%q: %v, %v", in, u, err)
			}
			continue
		}
		if err != nil || u.String() != want {
			t.Errorf("%q: %v, %v", in, u, err)
		}
	}
}

func TestUnixSocket(t *testing.T) {
	for in, want := range map[string]string{
		"unix:///run/a.sock": "/run/a.sock", "http+unix://%2Frun%2Fa.sock": "/run/a.sock", "http+unix:///run/a b": "/run/a b",
		"http://h": "", "h:1": "", "": "",
	} {
		if got, err := parseSocket(in); got != want || err != nil {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"unix://run/a", "unix://", "unix:///a?x", "http+unix://%2", "unix:///a%00"} {
		if _, err := (&Client{BaseURL: in}).Health(t.Context()); problem.KindOf(err) != problem.Invalid || !strings.Contains(err.Error(), "unix:///run/") {
			t.Errorf("%q: %v", in, err)
		}
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "localhost" || r.Header.Get("Authorization") != "Bearer t0ken" {
			t.Errorf("host %q, header %v", r.Host, r.Header)
		}
		fmt.Fprint(w, `{"status":"healthy"}`)
	}))
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	defer srv.Close()
	// A token may go over a socket: nobody else hears it.
	c := &Client{BaseURL: "unix://" + path, Token: "t0ken"}
	defer c.Close()
	if h, err := c.Health(t.Context()); err != nil || h.Status != "healthy" {
		t.Errorf("%+v, %v", h, err)
	}
	gone := &Client{BaseURL: "unix://" + path + "x"}
	if _, err := gone.Health(t.Context()); problem.KindOf(err) != problem.Unreachable || !strings.Contains(err.Error(), "unix://"+path+"x") {
		t.Errorf("no socket: %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	c := &Client{BaseURL: addr}
	for name, err := range map[string]error{
		"status": func() error { _, err := c.Status(t.Context()); return err }(),
		"watch":  c.Watch(t.Context(), "cafe", 0, nil),
	} {
		if problem.KindOf(err) != problem.Unreachable || !strings.Contains(err.Error(), "http://"+addr) || !strings.Contains(err.Error(), "start hyper2kvmd") {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) || problem.KindOf(err) != problem.Cancelled {
		t.Errorf("cancelled: %v", err)
	}
}

func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		resp *http.Response
		kind problem.Kind
		text string
	}{
		"html":      {answer(200, "text/html", "<html>"), problem.Failed, "names a hyper2kvmd"},
		"html 404":  {answer(404, "text/html", "<html>"), problem.NotFound, "the daemon answered 404 Not Found (check that"},
		"redirect":  {answer(302, "text/html", ""), problem.Failed, "302 Found"},
		"gateway":   {answer(503, "", ""), problem.Unreachable, "503"},
		"forbidden": {answer(403, "application/json", `{"error":{"code":"forbidden","message":"no"}}`), problem.Unauthorized, "no"},
		"conflict":  {answer(409, "application/json", `{"error":{"code":"conflict","message":"m","details":"d"}}`), problem.Conflict, "ask for the daemon's status: m (d)"},
		"code":      {answer(400, "application/json", `{"error":{"code":"conflict","message":"m"}}`), problem.Conflict, "m"},
		"cut":       {answer(200, "application/json", `{"version":`), problem.Failed, "read answer of 11 bytes"},
	} {
		cl := &Client{Transport: transport(func(*http.Request) (*http.Response, error) { return c.resp, nil })}
		_, err := cl.Status(t.Context())
		if err == nil || problem.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v (kind %d)", name, err, problem.KindOf(err))
		}
	}
}

func TestToken(t *testing.T) {
	for base, ok := range map[string]bool{"http://127.0.0.1:1": true, "http://localhost": true, "https://far": true, "http://far": false} {
		sent := ""
		c := &Client{BaseURL: base, Token: "t0ken", Transport: transport(func(r *http.Request) (*http.Response, error) {
			sent = r.Header.Get("Authorization")
			return answer(200, "application/json", "{}"), nil
		})}
		_, err := c.Health(t.Context())
		if (err == nil) != ok || (sent == "Bearer t0ken") != ok || err != nil && strings.Contains(err.Error(), "t0ken") {
			t.Errorf("%s: sent %q, %v", base, sent, err)
		}
	}
}

func TestTLS(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"status":"healthy"}`) }))
	defer srv.Close()
	c := &Client{BaseURL: srv.URL}
	if _, err := c.Health(t.Context()); problem.KindOf(err) != problem.Unreachable || !strings.Contains(err.Error(), "-ca-cert") {
		t.Errorf("unknown CA: %v", err)
	}
	c = &Client{BaseURL: srv.URL, RootCAs: srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
	defer c.Close()
	if h, err := c.Health(t.Context()); err != nil || h.Status != "healthy" {
		t.Errorf("known CA: %+v, %v", h, err)
	}
	c = &Client{BaseURL: strings.Replace(srv.URL, "https:", "http:", 1)}
	defer c.Close()
	if _, err := c.Health(t.Context()); err == nil || !strings.Contains(err.Error(), "give its address as https://") {
		t.Errorf("plain HTTP to a daemon with TLS: %v", err)
	}
	plain := httptest.NewServer(srv.Config.Handler)
	defer plain.Close()
	c = &Client{BaseURL: strings.Replace(plain.URL, "http:", "https:", 1)}
	if _, err := c.Health(t.Context()); problem.KindOf(err) != problem.Unreachable || !strings.Contains(err.Error(), "give its address as http://") {
		t.Errorf("TLS to a daemon without it: %v", err)
	}
}

func TestRequests(t *testing.T) {
	var got string
	c := &Client{Transport: transport(func(r *http.Request) (*http.Response, error) {
		body, err := io.ReadAll(r.Body)
		got = fmt.Sprintf("%s %s [%s] %s", r.Method, r.URL.RequestURI(), r.Header.Get("Content-Type"), body)
		return answer(200, "application/json", "{}"), err
	})}
	ctx := t.Context()
	for want, call := range map[string]func() error{
		"POST /jobs/submit [] name: x": func() error { _, err := c.Submit(ctx, []byte("name: x"), ""); return err },
		`POST /jobs/submit [application/json] {"vm_path":"a","output_path":"/b","options":{},"vcenter":{"server":"s","username":"u","password":"p"}}`: func() error {
			_, err := c.SubmitDefinition(ctx, models.Definition{VMPath: "a", OutputPath: "/b", VCenter: &models.VCenter{Server: "s", Username: "u", Password: "p"}})
			return err
		},
		`POST /jobs/submit [application/json] {"vm_path":"a","output_path":"/b","options":{}}`: func() error {
			_, err := c.SubmitDefinition(ctx, models.Definition{VMPath: "a", OutputPath: "/b"})
			return err
		},
		`POST /jobs/query [application/json] {"status":["running"],"limit":3}`: func() error {
			_, err := c.Query(ctx, models.QueryRequest{Status: []models.Status{models.Running}, Limit: 3})
			return err
		},
		"GET /jobs/cafe [] ":                   func() error { _, err := c.Job(ctx, "cafe"); return err },
		"GET /jobs/cafe/logs [] ":              func() error { _, err := c.Logs(ctx, "cafe"); return err },
		"GET /vms [] ":                         func() error { _, err := c.VMs(ctx, "", ""); return err },
		"GET /vms?pattern=a%26b&vcenter=v [] ": func() error { _, err := c.VMs(ctx, "a&b", "v"); return err },
	} {
		if err := call(); err != nil || got != want {
			t.Errorf("sent %q, want %q (%v)", got, want, err)
		}
	}
	got = ""
	for _, id := range []string{"", "..", "a/b", "a?b", "ä"} {
		if _, err := c.Job(ctx, id); problem.KindOf(err) != problem.Invalid {
			t.Errorf("id %q: %v", id, err)
		}
	}
	if _, err := c.Submit(ctx, make([]byte, MaxBody+1), ""); problem.KindOf(err) != problem.Invalid || got != "" {
		t.Errorf("large body: %v, sent %q", err, got)
	}
}

func TestRefusedSubmission(t *testing.T) {
	c := &Client{Transport: transport(func(*http.Request) (*http.Response, error) {
		return answer(400, "application/json", `{"job_ids":[],"accepted":0,"rejected":1,"errors":["why"],"error":{"code":"invalid","message":"why"}}`), nil
	})}
	r, err := c.Submit(t.Context(), []byte("x"), "")
	if problem.KindOf(err) != problem.Invalid || r.Rejected != 1 || !slices.Equal(r.Errors, []string{"why"}) || err.Error() != "submit job: why" {
		t.Errorf("%+v, %v", r, err)
	}
}

func event(id uint64, status models.Status) string {
	e := models.Event{ID: id, Type: models.StateEvent, JobID: "cafe", Job: &models.Job{ID: "cafe", Status: status}}
	if status == "" {
		e = models.Event{ID: id, Type: models.LogEvent, JobID: "cafe", Log: &models.LogLine{Message: "m"}}
	}
	data, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf("id: %d\nevent: %s\ndata: %s\n\n", id, e.Type, data)
}

// hanging is a body that says something and then nothing until its request
// ends.
type hanging struct {
	io.Reader
	ctx context.Context
}

func (h *hanging) Read(p []byte) (int, error) {
	if n, err := h.Reader.Read(p); n > 0 || err == nil {
		return n, err
	}
	<-h.ctx.Done()
	return 0, context.Cause(h.ctx)
}
func (h *hanging) Close() error { return nil }

// TestWatchReconnects: cut off, refused, silent, restarted: the events arrive
// once each, in order, and Watch ends with the job.
func TestWatchReconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sse = "text/event-stream"
		var asked []string
		steps := []func(*http.Request) (*http.Response, error){
			func(*http.Request) (*http.Response, error) {
				return answer(200, sse, ": hello\n\n"+event(7, models.Pending)+event(8, "")+"id: 9\ndata: {\"cut"), nil
			},
			func(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") },
			func(*http.Request) (*http.Response, error) { return answer(502, "text/html", "starting"), nil },
			func(r *http.Request) (*http.Response, error) {
				resp := answer(200, sse, "")
				resp.Body = &hanging{strings.NewReader(event(9, models.Running)), r.Context()}
				return resp, nil
			},
			func(*http.Request) (*http.Response, error) {
				return answer(200, sse, strings.ReplaceAll(event(10, ""), "\n", "\r\n")+event(11, models.Failed)+event(12, "")), nil
			},
		}
		c := &Client{Transport: transport(func(r *http.Request) (*http.Response, error) {
			asked = append(asked, r.URL.Path+" "+r.Header.Get("Last-Event-ID"))
			step := steps[0]
			steps = steps[1:]
			return step(r)
		})}
		began := time.Now()
		var ids []uint64
		if err := c.Watch(t.Context(), "cafe", 0, func(e models.Event) error { ids = append(ids, e.ID); return nil }); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(ids, []uint64{7, 8, 9, 10, 11}) {
			t.Errorf("events %v", ids)
		}
		if want := []string{"/jobs/cafe/events ", "/jobs/cafe/events 8", "/jobs/cafe/events 8", "/jobs/cafe/events 8", "/jobs/cafe/events 9"}; !slices.Equal(asked, want) {
			t.Errorf("asked %q", asked)
		}
		if took := time.Since(began); took < silence || took > silence+5*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

// TestWatchGivesUp: after a minute without success, not before; at once for an
// answer that will not change.
func TestWatchGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		c := &Client{Transport: transport(func(*http.Request) (*http.Response, error) {
			n++
			if n == 1 {
				return answer(200, "text/event-stream", event(7, models.Running)), nil
			}
			return nil, errors.New("connection refused")
		})}
		began := time.Now()
		err := c.Watch(t.Context(), "cafe", 0, func(models.Event) error { return nil })
		if took := time.Since(began); problem.KindOf(err) != problem.Unreachable || took < patience || took > patience+maxDelay || n < 10 || n > 40 {
			t.Errorf("after %s and %d tries: %v", took, n, err)
		}
		n = 0
		c = &Client{Transport: transport(func(*http.Request) (*http.Response, error) {
			n++
			return answer(200, "text/event-stream", ": hello\n\n"), nil
		})}
		began = time.Now()
		err = c.Watch(t.Context(), "cafe", 0, nil)
		if took := time.Since(began); problem.KindOf(err) != problem.Unreachable || took > patience+maxDelay || n < 10 || n > 40 {
			t.Errorf("streams that say nothing: after %s and %d tries: %v", took, n, err)
		}
		n = 0
		c = &Client{Transport: transport(func(*http.Request) (*http.Response, error) {
			n++
			if n == 1 {
				return answer(200, "text/event-stream", event(7, models.Running)), nil
			}
			return answer(404, "application/json", `{"error":{"code":"not_found","message":"gone"}}`), nil
		})}
		if err := c.Watch(t.Context(), "cafe", 0, func(models.Event) error { return nil }); problem.KindOf(err) != problem.NotFound || n != 2 {
			t.Errorf("after %d tries: %v", n, err)
		}
	})
}

func TestWatchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Client{Transport: transport(func(r *http.Request) (*http.Response, error) {
			resp := answer(200, "text/event-stream", "")
			resp.Body = &hanging{strings.NewReader(event(7, models.Completed)), r.Context()}
			return resp, nil
		})}
		own := errors.New("own")
		if err := c.Watch(t.Context(), "cafe", 0, func(models.Event) error { return own }); !errors.Is(err, own) {
			t.Errorf("error of fn: %v", err)
		}
		// All jobs: a final state is not the end, the context is.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		n := 0
		if err := c.Watch(ctx, "", 0, func(models.Event) error { n++; return nil }); !errors.Is(err, context.DeadlineExceeded) || n != 1 {
			t.Errorf("%d events, %v", n, err)
		}
		for name, body := range map[string]string{"no JSON": "data: x\n\n", "endless": "data: " + strings.Repeat("x", maxEvent+10)} {
			c := &Client{Transport: transport(func(*http.Request) (*http.Response, error) { return answer(200, "text/event-stream", body), nil })}
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			if err := c.Watch(ctx, "cafe", 0, func(models.Event) error { return nil }); err == nil || ctx.Err() != nil {
				t.Errorf("%s: %v", name, err)
			}
			cancel()
		}
		c = &Client{Transport: transport(func(*http.Request) (*http.Response, error) { return answer(200, "text/html", "<html>"), nil })}
		if err := c.Watch(t.Context(), "cafe", 0, nil); err == nil || !strings.Contains(err.Error(), "no event stream") {
			t.Errorf("html: %v", err)
		}
	})
}
