package api_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/hyper2kvm/hyper2kvm/daemon/api"
	"github.com/hyper2kvm/hyper2kvm/daemon/auth"
	"github.com/hyper2kvm/hyper2kvm/daemon/client"
	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store/memory"
	"github.com/hyper2kvm/hyper2kvm/internal/logging"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a Runner whose jobs end as their name says, and a VMLister.
type fake struct{ release chan struct{} }

func (f *fake) Run(ctx context.Context, s jobs.Spec, sink progress.Sink) (models.Result, error) {
	sink.Report(progress.Event{Kind: progress.Remark, Level: slog.LevelInfo, Message: "starting download", Attrs: []slog.Attr{slog.Int("files", 1)},
		Snapshot: progress.Snapshot{Phase: progress.Exporting, Percent: 50, Remaining: time.Minute, Files: []progress.File{{Name: "d.vmdk"}}}})
	switch s.Definition.Name {
	case "fail":
		return models.Result{}, problem.New(problem.Conflict, "export VM", errors.New("powered on"), "shut it down")
	case "block":
		select {
		case <-f.release:
		case <-ctx.Done():
			return models.Result{}, ctx.Err()
		}
	}
	return models.Result{VMName: "vm", OutputDir: s.Definition.OutputPath, Verified: true}, nil
}

func (f *fake) ListVMs(_ context.Context, vcenter string) ([]models.VM, error) {
	switch vcenter {
	case "down":
		return nil, problem.New(problem.Unreachable, "connect to vCenter", errors.New("refused"), "check GOVC_URL")
	case "login":
		return nil, problem.New(problem.Unauthorized, "log in", errors.New("wrong password"), "check GOVC_PASSWORD")
	case "panic":
		panic("boom")
	case "odd":
		return nil, errors.New("internal detail")
	}
	return []models.VM{{Name: "web01", Path: "/DC0/vm/Prod/web01"}, {Name: "db [1]", Path: "/DC0/vm/db [1]"}, {Name: "Büro", Path: "/DC0/vm/Büro"}}, nil
}

// hosts lets everybody in, by these names.
type hosts []string

func (hosts) Identify(*http.Request) (auth.Identity, error) {
	return auth.Identity{Who: "anonymous", Role: auth.Operator}, nil
}

func (hosts) Allow(string) (time.Duration, bool) { return 0, true }

func (h hosts) KnownHost(host string) bool { return slices.Contains(h, host) }

type setup struct {
	*fake
	manager *jobs.Manager
	server  *httptest.Server
	client  *client.Client
	log     *lockedBuffer
}

// lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func start(t *testing.T) *setup {
	t.Helper()
	s := &setup{fake: &fake{release: make(chan struct{})}, log: &lockedBuffer{}}
	log := slog.New(logging.New(s.log, slog.LevelDebug, ""))
	s.manager = jobs.NewManager(jobs.Options{Runner: s.fake, Store: memory.New(0), Logger: log, VCenters: []string{"prod"}})
	s.server = httptest.NewUnstartedServer(nil)
	s.server.Config = api.NewServer(api.NewHandler(api.Options{Manager: s.manager, VMs: s.fake, Logger: log, Access: hosts{"daemon.example"}}), log)
	s.server.Start()
	s.client = &client.Client{BaseURL: s.server.URL}
	t.Cleanup(func() {
		if err := s.manager.Close(context.Background()); err != nil {
			t.Error(err)
		}
		s.client.Close()
		http.DefaultClient.CloseIdleConnections()
		s.server.Close()
	})
	return s
}

const yamlJob = "name: %s\nvm_path: /dc/vm/x\noutput_path: /out/%s\n"

func (s *setup) submit(t *testing.T, name, dir string) string {
	t.Helper()
	r, err := s.client.Submit(t.Context(), fmt.Appendf(nil, yamlJob, name, dir), "")
	if err != nil || r.Accepted != 1 || len(r.JobIDs) != 1 {
		t.Fatalf("submit: %+v, %v", r, err)
	}
	return r.JobIDs[0]
}

func TestThroughTheClient(t *testing.T) {
	s := start(t)
	ctx := t.Context()
	h, err := s.client.Health(ctx)
	if err != nil || h.Status != "healthy" || h.Timestamp.Location() != time.UTC {
		t.Errorf("health: %+v, %v", h, err)
	}
	id := s.submit(t, "block", "1")
	var events []models.Event
	err = s.client.Watch(ctx, id[:8], 0, func(e models.Event) error {
		events = append(events, e)
		if len(events) == 1 {
			if e.Type != models.StateEvent || e.Job == nil || e.Job.Definition.Name != "block" {
				t.Errorf("first event is %+v", e)
			}
			s.release <- struct{}{} // the stream stands: the job may end
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if last := events[len(events)-1]; last.Type != models.StateEvent || last.Job.Status != models.Completed || last.Job.Result == nil {
		t.Errorf("last event is %+v", last)
	}
	j, err := s.client.Job(ctx, id)
	if err != nil || j.Status != models.Completed || !j.Result.Verified || j.Progress.PercentComplete != 100 {
		t.Errorf("job: %+v, %v", j, err)
	}
	l, err := s.client.Logs(ctx, id)
	if err != nil || l.JobID != id || !slices.ContainsFunc(l.Lines, func(l models.LogLine) bool { return l.Message == "starting download" && l.Attrs == "files=1" }) {
		t.Errorf("logs: %+v, %v", l, err)
	}
	failed := s.submit(t, "fail", "2")
	if err := s.client.Watch(ctx, failed, 0, func(models.Event) error { return nil }); err != nil {
		t.Fatal(err)
	}
	blocked := s.submit(t, "block", "3")
	c, err := s.client.Cancel(ctx, []string{blocked, failed, "zzzz"})
	if err != nil || !slices.Equal(c.Cancelled, []string{blocked}) || !slices.Equal(c.Failed, []string{failed, "zzzz"}) || !strings.Contains(c.Errors[failed], "failed already") {
		t.Errorf("cancel: %+v, %v", c, err)
	}
	if err := s.client.Watch(ctx, blocked, 0, func(models.Event) error { return nil }); err != nil {
		t.Fatal(err)
	}
	q, err := s.client.Query(ctx, models.QueryRequest{All: true})
	if err != nil || q.Total != 3 || q.Jobs[1].Error != "export VM: powered on (shut it down)" || q.Jobs[2].Status != models.Cancelled {
		t.Errorf("query: %+v, %v", q, err)
	}
	st, err := s.client.Status(ctx)
	if err != nil || st.TotalJobs != 3 || st.CompletedJobs != 1 || st.FailedJobs != 1 || st.CancelledJobs != 1 || st.Version != models.Version {
		t.Errorf("status: %+v, %v", st, err)
	}
	for pattern, want := range map[string]string{"": "web01 db [1] Büro", "WEB": "web01", "*1": "web01", "/dc0/vm/b*": "Büro", "prod/": "web01", "bü": "Büro", "db [1]": "db [1]", "*PROD*": "web01"} {
		v, err := s.client.VMs(ctx, pattern, "")
		var names []string
		for _, vm := range v.VMs {
			names = append(names, vm.Name)
		}
		if err != nil || strings.Join(names, " ") != want || v.Total != len(names) {
			t.Errorf("pattern %q gives %v, %v", pattern, names, err)
		}
	}
}

func TestErrorsThroughTheClient(t *testing.T) {
	s := start(t)
	ctx := t.Context()
	s.submit(t, "block", "busy")
	calls := map[string]struct {
		call   func() error
		kind   problem.Kind
		status int
		code   string
		text   string
	}{
		"unknown job": {func() error { _, err := s.client.Job(ctx, "cafecafe"); return err }, problem.NotFound, 404, "not_found", "no such job"},
		"unknown log": {func() error { _, err := s.client.Logs(ctx, "cafecafe"); return err }, problem.NotFound, 404, "not_found", "no such job"},
		"unknown watch": {func() error { return s.client.Watch(ctx, "cafecafe", 0, func(models.Event) error { return nil }) },
			problem.NotFound, 404, "not_found", "no such job"},
		"empty query": {func() error { _, err := s.client.Query(ctx, models.QueryRequest{}); return err }, problem.Invalid, 400, "invalid", "give job_ids"},
		"no ids":      {func() error { _, err := s.client.Cancel(ctx, nil); return err }, problem.Invalid, 400, "invalid", "no job id"},
		"busy folder": {func() error { _, err := s.client.Submit(ctx, fmt.Appendf(nil, yamlJob, "x", "busy"), ""); return err },
			problem.Conflict, 400, "conflict", "writes to /out/busy"},
		"bad key": {func() error {
			_, err := s.client.Submit(ctx, []byte("vm_path: a\noutput_path: /b\nfoo: 1\n"), "")
			return err
		},
			problem.Invalid, 400, "invalid", `line 3: unknown key "foo"`},
		"unknown vcenter": {func() error {
			_, err := s.client.SubmitDefinition(ctx, models.Definition{VMPath: "a", OutputPath: "/b", VCenter: &models.VCenter{Name: "x"}})
			return err
		}, problem.Invalid, 400, "invalid", "known: prod"},
		"vcenter down": {func() error { _, err := s.client.VMs(ctx, "", "down"); return err }, problem.Unreachable, 502, "unreachable", "check GOVC_URL"},
		"vcenter auth": {func() error { _, err := s.client.VMs(ctx, "", "login"); return err }, problem.Unauthorized, 502, "vcenter_unauthorized", "wrong password"},
		"panic":        {func() error { _, err := s.client.VMs(ctx, "", "panic"); return err }, problem.Failed, 500, "internal", "internal error"},
		"internal":     {func() error { _, err := s.client.VMs(ctx, "", "odd"); return err }, problem.Failed, 500, "internal", "internal error"},
	}
	for name, c := range calls {
		err := c.call()
		e, ok := errors.AsType[*client.Error](err)
		if !ok || problem.KindOf(err) != c.kind || e.Status != c.status || e.Code != c.code || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "boom") {
			t.Errorf("%s: %v (%+v)", name, err, e)
		}
	}
	if log := s.log.String(); !strings.Contains(log, "a request panicked | method=GET, path=/vms, panic=boom") || !strings.Contains(log, "internal detail") {
		t.Error("the log lacks the panic or the internal error")
	}
	// A batch: the good are taken, each bad one is named.
	r, err := s.client.Submit(ctx, []byte("jobs:\n- {name: block, vm_path: a, output_path: /a}\n- {vm_path: b, output_path: b}\n- {vm_path: c, output_path: /out/busy}\n"), "application/yaml")
	if err != nil || r.Accepted != 1 || r.Rejected != 2 || !strings.Contains(r.Errors[0], `job 2 ("b"): line 3: output_path`) || !strings.Contains(r.Errors[1], `job 3 ("c"): submit job: job `) {
		t.Errorf("batch: %+v, %v", r, err)
	}
	r, err = s.client.Submit(ctx, []byte("jobs:\n- {}\n- {}\n"), "application/yaml")
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Message != "none of 2 jobs was accepted" || r.Rejected != 2 || len(r.Errors) != 2 || r.JobIDs == nil {
		t.Errorf("none accepted: %+v, %v", r, err)
	}
}

// TestPasswordThroughTheAPI: a password goes in, and does not come out.
func TestPasswordThroughTheAPI(t *testing.T) {
	s := start(t)
	r, err := s.client.SubmitDefinition(t.Context(), models.Definition{Name: "fail", VMPath: "a", OutputPath: "/b",
		VCenter: &models.VCenter{Server: "vc", Username: "u", Password: "hunter2!"}})
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	if err := s.client.Watch(t.Context(), r.JobIDs[0], 0, func(e models.Event) error { return json.NewEncoder(&all).Encode(e) }); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", "/logs", "/events"} {
		resp, err := http.Get(s.server.URL + "/jobs/" + r.JobIDs[0] + path)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
	if text := all.String() + s.log.String(); strings.Contains(text, "hunter2") || !strings.Contains(text, `"username":"u"`) {
		t.Errorf("the password shows, or the rest does not: %s", text)
	}
}

// TestRaw goes through what only hand-made requests do.
func TestRaw(t *testing.T) {
	s := start(t)
	const j, y = "application/json", "application/yaml"
	for name, c := range map[string]struct {
		method, path, contentType, body string
		header                          []string
		status                          int
		want                            string
	}{
		"root":             {method: "GET", path: "/", status: 404, want: `"code":"not_found"`},
		"unknown":          {method: "POST", path: "/jobs/a/b/c", status: 404, want: "there is no"},
		"wrong method":     {method: "GET", path: "/jobs/submit", status: 405, want: "use POST"},
		"wrong method 2":   {method: "DELETE", path: "/jobs/cafe", status: 405, want: "use GET, HEAD"},
		"wrong method 3":   {method: "PUT", path: "/jobs/query", status: 405, want: `"code":"method_not_allowed"`},
		"options":          {method: "OPTIONS", path: "/status", status: 405, want: "use GET, HEAD"},
		"head":             {method: "HEAD", path: "/health", status: 200},
		"form":             {method: "POST", path: "/jobs/submit", contentType: "multipart/form-data", body: "a=b", status: 415, want: "send Content-Type"},
		"form query":       {method: "POST", path: "/jobs/query", contentType: "text/plain", body: `{"all":true}`, status: 415, want: "send Content-Type"},
		"gzip":             {method: "POST", path: "/jobs/submit", contentType: j, header: []string{"Content-Encoding", "gzip"}, body: "{}", status: 415, want: "encoded as"},
		"no type":          {method: "POST", path: "/jobs/query", body: `{"all":true}`, status: 200, want: `{"jobs":[],"total":0,"timestamp":"`},
		"too large":        {method: "POST", path: "/jobs/submit", contentType: y, body: strings.Repeat("#", api.MaxBody+1), status: 413, want: `"code":"too_large"`},
		"too large query":  {method: "POST", path: "/jobs/query", contentType: j, body: `{"job_ids":["` + strings.Repeat("a", api.MaxBody) + `"]}`, status: 413, want: "1048576"},
		"unknown field":    {method: "POST", path: "/jobs/query", contentType: j, body: `{"alll":true}`, status: 400, want: `unknown field \"alll\"`},
		"unknown field 2":  {method: "POST", path: "/jobs/cancel", contentType: j, body: `{"all":true}`, status: 400, want: `unknown field \"all\"`},
		"trailing":         {method: "POST", path: "/jobs/query", contentType: j, body: `{"all":true}{}`, status: 400, want: "something follows"},
		"wrong type":       {method: "POST", path: "/jobs/query", contentType: j, body: `{"all":"yes"}`, status: 400, want: `"code":"invalid"`},
		"array":            {method: "POST", path: "/jobs/cancel", contentType: j, body: `[]`, status: 400, want: `"code":"invalid"`},
		"empty":            {method: "POST", path: "/jobs/query", contentType: j, status: 400, want: "the body is empty"},
		"empty submit":     {method: "POST", path: "/jobs/submit", contentType: j, status: 400, want: `"accepted":0,"rejected":1,"errors":["read job file: the document is empty (write one job, or a batch`},
		"not json":         {method: "POST", path: "/jobs/submit", contentType: j, body: "name: x\n", status: 400, want: `"error":{"code":"invalid","message":"read job file: line 1: not valid JSON"`},
		"alias bomb":       {method: "POST", path: "/jobs/submit", contentType: y, body: "a: &a [x]\nb: &b [*a,*a]\njobs: [*b]\n", status: 400, want: "aliases"},
		"deep":             {method: "POST", path: "/jobs/submit", body: strings.Repeat("[", 500_000), status: 400, want: "not valid"},
		"deep object":      {method: "POST", path: "/jobs/submit", contentType: j, body: strings.Repeat(`{"a":`, 150_000), status: 400, want: "not valid"},
		"binary":           {method: "POST", path: "/jobs/submit", body: "\x00\xff\xfe", status: 400, want: "UTF-8"},
		"rebinding":        {method: "GET", path: "/status", header: []string{"Host", "evil.example"}, status: 403, want: `"code":"forbidden"`},
		"rebinding port":   {method: "GET", path: "/status", header: []string{"Host", "localhost.evil.example:8080"}, status: 403, want: "forbidden"},
		"other address":    {method: "GET", path: "/status", header: []string{"Host", "10.0.0.1"}, status: 403, want: "forbidden"},
		"configured host":  {method: "GET", path: "/status", header: []string{"Host", "daemon.example:99"}, status: 200, want: `"total_jobs":0`},
		"loopback hosts":   {method: "GET", path: "/status", header: []string{"Host", "[::1]:8080"}, status: 200, want: `"total_jobs":0`},
		"loopback name":    {method: "GET", path: "/status", header: []string{"Host", "LOCALHOST"}, status: 200, want: `"total_jobs":0`},
		"foreign origin":   {method: "POST", path: "/jobs/cancel", header: []string{"Origin", "https://evil.example"}, status: 403, want: "origin"},
		"null origin":      {method: "POST", path: "/jobs/cancel", header: []string{"Origin", "null"}, status: 403, want: "origin"},
		"other port":       {method: "POST", path: "/jobs/cancel", header: []string{"Host", "localhost:8080", "Origin", "http://localhost:3000"}, status: 403, want: "origin"},
		"own origin":       {method: "GET", path: "/health", header: []string{"Host", "localhost:8080", "Origin", "http://localhost:8080"}, status: 200, want: "healthy"},
		"foreign events":   {method: "GET", path: "/events", header: []string{"Origin", "http://evil.example"}, status: 403, want: "origin"},
		"bad event id":     {method: "GET", path: "/events", header: []string{"Last-Event-ID", "-1"}, status: 400, want: "no event id"},
		"events of nobody": {method: "GET", path: "/jobs/cafe/events", status: 404, want: "no such job"},
		"strange id":       {method: "GET", path: "/jobs/%2e%2e%2fetc", status: 404, want: "no such job"},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), c.method, s.server.URL+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			if c.contentType != "" {
				req.Header.Set("Content-Type", c.contentType)
			}
			for i := 0; i < len(c.header); i += 2 {
				req.Header.Set(c.header[i], c.header[i+1])
				if c.header[i] == "Host" {
					req.Host = c.header[i+1]
				}
			}
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			data, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status || !strings.Contains(string(data), c.want) {
				t.Errorf("%d %s, want %d with %q", resp.StatusCode, data, c.status, c.want)
			}
			if resp.Header.Get("Content-Type") != "application/json" || (c.method != "HEAD" && !json.Valid(data)) {
				t.Errorf("not JSON: %s %s", resp.Header.Get("Content-Type"), data)
			}
			if c.status == 405 && resp.Header.Get("Allow") == "" {
				t.Error("no Allow header")
			}
			if c.status >= 400 {
				var e models.ErrorResponse
				if err := json.Unmarshal(data, &e); err != nil || e.Error.Code == "" || e.Error.Message == "" {
					t.Errorf("error body is %s", data)
				}
			}
		})
	}
}

// TestRawSocket: chunked, without a Content-Type, straight over a socket.
func TestRawSocket(t *testing.T) {
	s := start(t)
	conn, err := net.Dial("tcp", s.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := fmt.Sprintf(yamlJob, "x", "y")
	fmt.Fprintf(conn, "POST /jobs/submit HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	data, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(data), "HTTP/1.1 200") || !strings.Contains(string(data), `"accepted":1,"rejected":0,"errors":[],"timestamp":"`) {
		t.Errorf("%s, %v", data, err)
	}
}

// TestEventStream reads the wire: ids, names, resumption.
func TestEventStream(t *testing.T) {
	s := start(t)
	id := s.submit(t, "fail", "1")
	read := func(last string) (ids []string, states []string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.server.URL+"/jobs/"+id+"/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		if last != "" {
			req.Header.Set("Last-Event-ID", last)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
			t.Errorf("content type is %q", ct)
		}
		var e models.Event
		sc := bufio.NewScanner(resp.Body)
		for sc.Scan() {
			line := sc.Text()
			if v, ok := strings.CutPrefix(line, "id: "); ok {
				ids = append(ids, v)
			}
			if v, ok := strings.CutPrefix(line, "data: "); ok {
				e = models.Event{}
				if err := json.Unmarshal([]byte(v), &e); err != nil {
					t.Error(err)
				}
				if fmt.Sprint(e.ID) != ids[len(ids)-1] {
					t.Errorf("id is %s outside and %d inside", ids[len(ids)-1], e.ID)
				}
				if e.Type == models.StateEvent {
					states = append(states, string(e.Job.Status))
				}
			}
		}
		if err := sc.Err(); err != nil {
			t.Error(err)
		}
		return ids, states
	}
	first, states := read("")
	if states[len(states)-1] != "failed" {
		t.Errorf("states are %v", states)
	}
	// From before everything: the ring does not know that id, the store does.
	if _, states := read("1"); !slices.Equal(states, []string{"pending", "running", "failed"}) {
		t.Errorf("from 1: %v", states)
	}
	if ids, states := read(first[len(first)-1]); !slices.Equal(states, []string{"failed"}) || len(ids) != 1 {
		t.Errorf("after the last: %v %v", ids, states)
	}
	var n uint64
	if _, err := fmt.Sscan(first[len(first)-1], &n); err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprint(n - 2)
	if ids, states := read(before); len(ids) != 2 || !slices.Equal(states, []string{"failed"}) {
		t.Errorf("from two before the last: %v %v", ids, states)
	}
}

// TestHeartbeat: a silent stream says something every 15 seconds, and ends
// with its request.
func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{release: make(chan struct{})}
		m := jobs.NewManager(jobs.Options{Runner: f, Store: memory.New(0)})
		h := api.NewHandler(api.Options{Manager: m, VMs: f})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req := httptest.NewRequestWithContext(ctx, http.MethodGet, "/events", nil)
		req.Host = "localhost"
		rec := httptest.NewRecorder()
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.ServeHTTP(rec, req)
		}()
		<-time.After(46 * time.Second)
		synctest.Wait()
		cancel()
		<-done
		if n := strings.Count(rec.Body.String(), ": heartbeat\n\n"); n != 3 || !rec.Flushed {
			t.Errorf("%d heartbeats in 46 s: %q", n, rec.Body.String())
		}
		if err := m.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
