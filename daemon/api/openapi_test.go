package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/hyper2kvm/hyper2kvm/daemon/api"
	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/daemon/metrics"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store/memory"
	"github.com/hyper2kvm/hyper2kvm/internal/pace"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

// actor is a Runner that does what a test tells it, and a VMLister that knows
// a machine or fails as it is asked.
type actor struct {
	report chan progress.Event // what the job named "play" reports; closed when it is to end
	heard  chan struct{}       // after each report
}

func (a *actor) Run(ctx context.Context, s jobs.Spec, sink progress.Sink) (models.Result, error) {
	switch s.Definition.Name {
	case "fail":
		return models.Result{}, problem.New(problem.Conflict, "export VM", errors.New("powered on"), "shut it down")
	case "play":
		for {
			select {
			case e, more := <-a.report:
				if !more {
					return models.Result{VMName: "web01", OutputDir: s.Definition.OutputPath, OVFPath: "/o/web01.ovf", DomainPath: "/o/web01.xml",
						Files: []string{"/o/web01.ovf"}, TotalSize: 12, Duration: "1s", Verified: true, Warnings: []string{"w"}, Notes: []string{"n"}}, nil
				}
				sink.Report(e)
				a.heard <- struct{}{}
			case <-ctx.Done():
				return models.Result{}, ctx.Err()
			}
		}
	}
	<-ctx.Done()
	return models.Result{}, ctx.Err()
}

func (*actor) ListVMs(_ context.Context, vcenter string) ([]models.VM, error) {
	kind := map[string]problem.Kind{"odd": problem.Invalid, "login": problem.Unauthorized, "nowhere": problem.NotFound, "down": problem.Unreachable, "bad": problem.Failed}
	if k, ok := kind[vcenter]; ok {
		return nil, problem.New(k, "list virtual machines", errors.New("it is so"), "look there")
	}
	return []models.VM{{Path: "/DC0/vm/web01", Name: "web01", MoRef: "vm-1", UUID: "422a", PowerState: "poweredOff", GuestOS: "Debian", CPUs: 2,
		MemoryMB: 4096, Storage: 1 << 30, Template: true, Snapshots: true, Firmware: "efi"}}, nil
}

// bench is an API with everything real but the runner, whose answers are held
// against the description.
type bench struct {
	*contract
	*actor
	gate    *gate
	manager *jobs.Manager
	limits  *pace.Limits
	server  *httptest.Server
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{contract: newContract(t, api.Description()), actor: &actor{report: make(chan progress.Event), heard: make(chan struct{})},
		gate: &gate{}, limits: pace.New(pace.Default())}
	b.manager = jobs.NewManager(jobs.Options{Runner: b.actor, Store: memory.New(0), MaxRunning: 8, MaxPending: 100_000, Limits: b.limits})
	b.server = httptest.NewUnstartedServer(nil)
	b.server.Config = api.NewServer(api.NewHandler(api.Options{Manager: b.manager, VMs: b.actor, Access: b.gate,
		Metrics: metrics.New().Handler(b.manager, slog.New(slog.DiscardHandler))}), slog.New(slog.DiscardHandler))
	b.server.Start()
	t.Cleanup(func() {
		if err := b.manager.Close(context.Background()); err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
		b.server.Close()
	})
	return b
}

// aside is a bench at the same server that another goroutine may use.
func (b *bench) aside() *bench {
	return &bench{contract: &contract{doc: b.doc, seen: map[string]bool{}}, server: b.server}
}

// request is one of a test. Pattern is its path in the description; path, what
// stands for it, is the same unless given.
type request struct {
	method, pattern, path string
	token                 string // the operator's unless given; "-" is none
	body                  string
	header                []string // name, value, …
}

// send gives the answer to a request, read by read if that is given, and
// complains of what is not as described.
func (b *bench) send(t *testing.T, r request, read func(io.Reader) ([]byte, error)) (*http.Response, []byte) {
	t.Helper()
	if r.path == "" {
		r.path = r.pattern
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, r.method, b.server.URL+r.path, strings.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	switch r.token {
	case "":
		req.Header.Set("Authorization", "Bearer "+operatorToken)
	case "-":
	default:
		req.Header.Set("Authorization", "Bearer "+r.token)
	}
	for i := 0; i < len(r.header); i += 2 {
		req.Header.Set(r.header[i], r.header[i+1])
		if r.header[i] == "Host" {
			req.Host = r.header[i+1]
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if read == nil {
		read = io.ReadAll
	}
	data, err := read(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	op := b.operation(r.method, r.pattern)
	if op == nil {
		t.Fatalf("%s %s is not described", r.method, r.pattern)
	}
	for _, bad := range b.answer(op, resp, data) {
		t.Errorf("%s %s: %s", r.method, r.path, bad)
	}
	return resp, data
}

// want sends a request and complains of another status.
func (b *bench) want(t *testing.T, status int, r request) []byte {
	t.Helper()
	resp, data := b.send(t, r, nil)
	if resp.StatusCode != status {
		t.Errorf("%s %s %s: %d %s, want %d", r.method, r.pattern, r.body, resp.StatusCode, data, status)
	}
	return data
}

func (b *bench) submit(t *testing.T, body string) string {
	t.Helper()
	var out models.SubmitResponse
	if err := json.Unmarshal(b.want(t, 200, request{method: "POST", pattern: "/jobs/submit", body: body}), &out); err != nil {
		t.Fatal(err)
	}
	return out.JobIDs[0]
}

// TestRoutes: every route is described, with its role, and nothing else is.
func TestRoutes(t *testing.T) {
	c := newContract(t, api.Description())
	if c.doc.Info.Version != models.Version || !strings.HasPrefix(c.doc.OpenAPI, "3.1") {
		t.Errorf("it is version %s, in OpenAPI %s", c.doc.Info.Version, c.doc.OpenAPI)
	}
	routes := map[string]bool{}
	for _, r := range api.Routes() {
		routes[r.Method+" "+r.Path] = true
		op := c.operation(r.Method, r.Path)
		if op == nil {
			t.Errorf("%s %s is not described", r.Method, r.Path)
			continue
		}
		if open := op.Security != nil && len(*op.Security) == 1 && len((*op.Security)[0]) == 0; open != (r.Role == "") {
			t.Errorf("%s: the role is %q, and the description says open: %v", r.Path, r.Role, open)
		}
		if says := strings.Contains(op.Description, "`operator`"); says != (r.Role == "operator") {
			t.Errorf("%s: the role is %q, and the description names an operator: %v", r.Path, r.Role, says)
		}
		if op.Summary == "" || op.OperationID == "" || len(op.Tags) != 1 || c.doc.Tags.Get(op.Tags[0]) == nil {
			t.Errorf("%s has no summary, id or tag", r.Path)
		}
	}
	for path, item := range c.doc.Paths.Map() {
		for method := range item.Operations() {
			if !routes[method+" "+path] {
				t.Errorf("%s %s is described and is no route", method, path)
			}
		}
	}
}

// TestSchemasHaveTheModelsFields: also those that an answer may leave out.
func TestSchemasHaveTheModelsFields(t *testing.T) {
	c := newContract(t, api.Description())
	for name, v := range map[string]any{
		"Health": models.Health{}, "DaemonStatus": models.DaemonStatus{}, "SubmitResponse": models.SubmitResponse{}, "QueryRequest": models.QueryRequest{},
		"QueryResponse": models.QueryResponse{}, "JobIDsRequest": models.CancelRequest{}, "CancelResponse": models.CancelResponse{}, "RetryResponse": models.RetryResponse{},
		"Job": models.Job{}, "Definition": models.Definition{}, "Options": models.Options{}, "OptionsRequest": models.Options{}, "VCenter": models.VCenter{},
		"Progress": models.Progress{}, "FileProgress": models.FileProgress{}, "Result": models.Result{}, "LogLine": models.LogLine{}, "LogsResponse": models.LogsResponse{},
		"Event": models.Event{}, "Limits": models.Limits{}, "LimitsRequest": models.LimitsRequest{}, "HostStreams": models.HostStreams{}, "VM": models.VM{},
		"VMList": models.VMList{}, "Error": models.ErrorDetail{}, "ErrorResponse": models.ErrorResponse{},
	} {
		schema := c.doc.Components.Schemas[name].Value
		var want, always, got []string
		for f := range reflect.TypeOf(v).Fields() {
			tag, omit, _ := strings.Cut(f.Tag.Get("json"), ",")
			if tag == "-" {
				continue
			}
			want = append(want, tag)
			if omit == "" {
				always = append(always, tag)
			}
		}
		for p := range schema.Properties {
			got = append(got, p)
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s has %v, want %v", name, got, want)
		}
		if strings.HasSuffix(name, "Request") {
			continue
		}
		for _, field := range always {
			if !slices.Contains(schema.Required, field) {
				t.Errorf("%s: %s is always there, and not required", name, field)
			}
		}
	}
}

// TestAnswers asks for everything and holds it against the description; in the
// end everything that is described has been seen.
func TestAnswers(t *testing.T) {
	b := newBench(t)
	b.jobAnswers(t)
	b.limitsAnswers(t)
	b.otherAnswers(t)
	b.refusals(t)
	b.stoppedAnswers(t)
	for _, u := range b.unseen() {
		t.Errorf("described, and never answered: %s", u)
	}
}

func (b *bench) jobAnswers(t *testing.T) {
	for _, format := range []string{"ova", "raw", "ovf"} {
		b.submit(t, fmt.Sprintf("name: block\nvm_path: a\noutput_path: /%s\noptions: {format: %s, hardware: same}\n", format, format))
	}
	b.submit(t, `{"name":"fail","vm_path":"a","output_path":"/v","vcenter":{"server":"vc","username":"u","password":"p","insecure":true}}`)
	b.submit(t, `{"name":"block","vm_path":"a","output_path":"/v2","vcenter":{"name":"berlin"}}`)
	id := b.submit(t, `{"name":"play","vm_path":"a","output_path":"/p","options":{"format":"qcow2","hardware":"virtio","networks":{"*":"br0"}}}`)

	// Two streams that see all of it: the one ends with the job, the other is
	// left when the end of the job was in it.
	following, done := make(chan struct{}, 4), make(chan struct{}, 2)
	follow := func(b *bench, pattern string, enough func(string) bool) {
		defer func() { done <- struct{}{} }()
		b.streams(t, request{method: "GET", pattern: pattern, path: strings.Replace(pattern, "{id}", id, 1)}, following, enough)
	}
	one, all := b.aside(), b.aside()
	go follow(one, "/jobs/{id}/events", func(string) bool { return false })
	go follow(all, "/events", func(s string) bool { return strings.Contains(s, `"status":"completed"`) })
	<-following
	<-following
	say := func(e progress.Event) {
		b.report <- e
		<-b.heard
	}
	var files []progress.File
	for _, s := range []progress.FileState{progress.Waiting, progress.Downloading, progress.Retrying, progress.Checking, progress.Done, progress.Kept, progress.Broken} {
		files = append(files, progress.File{Name: "d-" + string(s), State: s, Position: 1, Capacity: 2, Received: 1, Attempt: 2, Problem: "cut off"})
	}
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		say(progress.Event{Kind: progress.Remark, Level: level, Message: "a remark", Attrs: []slog.Attr{slog.Int("n", 1)}, Snapshot: progress.Snapshot{Phase: progress.Connecting}})
	}
	for _, phase := range []progress.Phase{progress.Connecting, progress.Discovering, progress.Preparing, progress.Exporting, progress.Verifying, progress.Finalizing} {
		say(progress.Event{Kind: progress.Tick, Snapshot: progress.Snapshot{Phase: phase, Current: "d", FilesDone: 1, Files: files, Received: 1, Total: 2, Percent: 12.5, BytesPerSecond: 3}})
		if text := b.want(t, 200, request{method: "GET", pattern: "/jobs/{id}", path: "/jobs/" + id[:8]}); !bytes.Contains(text, []byte(phase)) {
			t.Errorf("%s is not in %s", phase, text)
		}
	}
	close(b.report)
	<-done
	<-done
	maps.Copy(b.seen, one.seen)
	maps.Copy(b.seen, all.seen)
	for _, last := range []string{"1", "9007199254740991"} {
		b.send(t, request{method: "GET", pattern: "/jobs/{id}/events", path: "/jobs/" + id + "/events", header: []string{"Last-Event-ID", last}}, nil)
	}
	b.want(t, 200, request{method: "GET", pattern: "/jobs/{id}/logs", path: "/jobs/" + id + "/logs"})
	b.want(t, 200, request{method: "POST", pattern: "/jobs/query", body: `{"all":true}`})
	blocked := b.submit(t, `{"name":"block","vm_path":"a","output_path":"/c"}`)
	b.want(t, 200, request{method: "POST", pattern: "/jobs/cancel", body: `{"job_ids":["` + blocked + `","cafecafe"]}`})
	b.want(t, 200, request{method: "GET", pattern: "/jobs/{id}/events", path: "/jobs/" + blocked + "/events"}) // until it is cancelled
	b.want(t, 200, request{method: "POST", pattern: "/jobs/retry", body: `{"job_ids":["` + blocked + `","cafecafe"]}`})
	b.want(t, 200, request{method: "POST", pattern: "/jobs/submit", body: "jobs:\n- {vm_path: a, output_path: /w}\n- {vm_path: a, output_path: /v2}\n"})
	// More than can run: some wait.
	b.want(t, 200, request{method: "POST", pattern: "/limits/change", body: `{"max_running_jobs":1}`})
	waiting := b.submit(t, `{"name":"block","vm_path":"a","output_path":"/wait"}`)
	b.want(t, 200, request{method: "POST", pattern: "/jobs/query", body: `{"status":["pending"]}`})
	b.want(t, 200, request{method: "POST", pattern: "/jobs/cancel", body: `{"job_ids":["` + waiting + `"]}`})
	b.want(t, 200, request{method: "POST", pattern: "/jobs/query", body: `{"status":["cancelled"]}`})
	b.want(t, 200, request{method: "POST", pattern: "/limits/change", body: `{"max_running_jobs":8}`})
}

// streams reads a stream of events until it ends or has enough.
func (b *bench) streams(t *testing.T, r request, following chan<- struct{}, enough func(string) bool) {
	defer func() { following <- struct{}{} }() // also when it could not begin
	b.send(t, r, func(body io.Reader) ([]byte, error) {
		var all []byte
		part := make([]byte, 64<<10)
		for first := true; ; first = false {
			n, err := body.Read(part)
			all = append(all, part[:n]...)
			if first {
				following <- struct{}{}
			}
			if errors.Is(err, io.EOF) || enough(string(all)) {
				return all, nil
			}
			if err != nil {
				return all, err
			}
		}
	})
}

func (b *bench) limitsAnswers(t *testing.T) {
	release, err := b.limits.Acquire(t.Context(), "esx1")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	id := b.submit(t, `{"name":"block","vm_path":"a","output_path":"/l","options":{"bandwidth":"50MB/s"}}`)
	b.send(t, request{method: "GET", pattern: "/jobs/{id}/events", path: "/jobs/" + id + "/events"}, func(r io.Reader) ([]byte, error) {
		var all []byte
		for part := make([]byte, 1024); !bytes.Contains(all, []byte(`"status":"running"`)); {
			n, err := r.Read(part)
			all = append(all, part[:n]...)
			if err != nil {
				return all, err
			}
		}
		return all, nil
	})
	b.want(t, 200, request{method: "GET", pattern: "/limits"})
	b.want(t, 200, request{method: "POST", pattern: "/limits/change", body: `{"bandwidth":0,"job_ids":["` + id + `"],"job_bandwidth":"1MiB/s"}`})
	b.want(t, 200, request{method: "POST", pattern: "/jobs/cancel", body: `{"job_ids":["` + id + `"]}`})
	b.want(t, 200, request{method: "GET", pattern: "/jobs/{id}/events", path: "/jobs/" + id + "/events"})
	b.want(t, 409, request{method: "POST", pattern: "/limits/change", body: `{"job_ids":["` + id + `"],"job_bandwidth":0}`})
	b.want(t, 404, request{method: "POST", pattern: "/limits/change", body: `{"job_ids":["cafecafe"],"job_bandwidth":0}`})
}

func (b *bench) otherAnswers(t *testing.T) {
	b.want(t, 200, request{method: "GET", pattern: "/health", token: "-"})
	b.want(t, 200, request{method: "GET", pattern: "/status"})
	if got := b.want(t, 200, request{method: "GET", pattern: "/openapi.yaml"}); !bytes.Equal(got, api.Description()) {
		t.Error("the description is another one")
	}
	if got := b.want(t, 200, request{method: "GET", pattern: "/metrics"}); !bytes.Contains(got, []byte("hyper2kvm_jobs{")) {
		t.Errorf("the metrics are %s", got)
	}
	b.want(t, 200, request{method: "GET", pattern: "/vms", path: "/vms?pattern=WEB*"})
	for vcenter, status := range map[string]int{"odd": 400, "login": 502, "nowhere": 404, "down": 502, "bad": 500} {
		b.want(t, status, request{method: "GET", pattern: "/vms", path: "/vms?vcenter=" + vcenter})
	}
	b.want(t, 404, request{method: "POST", pattern: "/jobs/query", body: `{"job_ids":["cafecafe"]}`})
	for _, p := range []string{"/jobs/{id}", "/jobs/{id}/logs", "/jobs/{id}/events"} {
		b.want(t, 404, request{method: "GET", pattern: p, path: strings.Replace(p, "{id}", "cafecafe", 1)})
		b.want(t, 400, request{method: "GET", pattern: p, path: strings.Replace(p, "{id}", "caf", 1)})
	}
	for _, p := range []string{"/events", "/jobs/{id}/events"} {
		b.want(t, 400, request{method: "GET", pattern: p, path: strings.Replace(p, "{id}", "cafecafe", 1), header: []string{"Last-Event-ID", "-1"}})
	}
	b.want(t, 404, request{method: "GET", pattern: "/debug/pprof/", header: []string{"X-Forwarded-For", "192.0.2.1"}})
	b.want(t, 200, request{method: "GET", pattern: "/debug/pprof/"})
	const profile = "/debug/pprof/{profile}"
	b.want(t, 404, request{method: "GET", pattern: profile, path: "/debug/pprof/nothing"})
	for _, bad := range []string{"profile?seconds=61", "profile?seconds=0", "heap?debug=3", "heap?gc=2", "heap?seconds=1&debug=1", "trace?seconds=x"} {
		b.want(t, 400, request{method: "GET", pattern: profile, path: "/debug/pprof/" + bad})
	}
	names := b.operation("GET", profile).Parameters.GetByInAndName("path", "profile").Schema.Value.Examples
	for _, name := range names {
		if name != "profile" {
			b.want(t, 200, request{method: "GET", pattern: profile, path: fmt.Sprintf("/debug/pprof/%s?debug=0", name)})
		}
	}
	b.want(t, 200, request{method: "GET", pattern: profile, path: "/debug/pprof/goroutine?debug=2"})
	// Whichever of two is first, the other one is refused.
	var both sync.WaitGroup
	pair := []*bench{b.aside(), b.aside()}
	for _, other := range pair {
		both.Go(func() {
			other.send(t, request{method: "GET", pattern: profile, path: "/debug/pprof/heap?seconds=1"}, nil)
		})
	}
	both.Wait()
	if pair[0].seen["getProfile 409"] == pair[1].seen["getProfile 409"] {
		t.Errorf("two profiles at once: %v, %v", pair[0].seen, pair[1].seen)
	}
	maps.Copy(b.seen, pair[0].seen)
	maps.Copy(b.seen, pair[1].seen)
}

// refusals asks every operation for what all of their kind refuse.
func (b *bench) refusals(t *testing.T) {
	for _, r := range api.Routes() {
		path := strings.NewReplacer("{id}", "cafecafe", "{profile}", "heap").Replace(r.Path)
		as := func(token string, header ...string) request {
			return request{method: r.Method, pattern: r.Path, path: path, token: token, header: header}
		}
		b.want(t, 403, as("", "Host", "evil.example"))
		b.want(t, 403, as("", "Origin", "https://evil.example"))
		if r.Role == "" {
			b.gate.tired = []string{"address:127.0.0.1"}
			b.want(t, 429, as("-"))
		} else {
			b.want(t, 401, as("-"))
			b.want(t, 401, as("h2k_wrong"))
			b.want(t, 500, as("broken"))
			b.gate.tired = []string{"token:1"}
			b.want(t, 429, as(""))
		}
		b.gate.tired = nil
		if r.Role == "operator" {
			b.want(t, 403, as(viewerToken))
		}
		if r.Method == http.MethodPost {
			large := as("")
			large.body = strings.Repeat(" ", api.MaxBody+1)
			b.want(t, 413, large)
			b.want(t, 415, as("", "Content-Type", "text/plain"))
			b.want(t, 415, as("", "Content-Encoding", "gzip"))
			b.want(t, 400, as(""))
		}
		// What no operation describes is in the components.
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, b.server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+operatorToken)
		b.component(t, req, 405, "MethodNotAllowed")
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.server.URL+"/nothing/here", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+operatorToken)
	b.component(t, req, 404, "NotFound")

	// A body that breaks off.
	req = httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/jobs/submit", iotest.ErrReader(errors.New("gone")))
	req.Host = "localhost"
	req.Header.Set("Authorization", "Bearer "+operatorToken)
	rec := httptest.NewRecorder()
	b.server.Config.Handler.ServeHTTP(rec, req)
	for _, bad := range b.answer(b.operation("POST", "/jobs/submit"), rec.Result(), rec.Body.Bytes()) {
		t.Error(bad)
	}
}

// component sends a request and holds the answer against a response of the
// components.
func (b *bench) component(t *testing.T, req *http.Request, status int, name string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status {
		t.Errorf("%s %s: %d", req.Method, req.URL.Path, resp.StatusCode)
	}
	for _, bad := range b.response(b.doc.Components.Responses[name].Value, resp, data) {
		t.Errorf("%s %s: %s", req.Method, req.URL.Path, bad)
	}
}

// stoppedAnswers are those of a daemon that is about to end, or whose runner
// fails in ways of its own.
func (b *bench) stoppedAnswers(t *testing.T) {
	if err := b.manager.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := b.want(t, 400, request{method: "POST", pattern: "/jobs/submit", body: `{"vm_path":"a","output_path":"/late"}`}); !bytes.Contains(got, []byte(`"stopping"`)) {
		t.Errorf("%s", got)
	}
	b.want(t, 200, request{method: "GET", pattern: "/events"}) // ends at once
}

// TestRequests: what the description says of a request's body and parameters is
// what the handlers take, no more and no less.
func TestRequests(t *testing.T) {
	b := newBench(t)
	valid := 0
	try := func(op *openapi3.Operation, r request, what string, err error) {
		t.Helper()
		resp, data := b.send(t, r, nil)
		if (err == nil) != (resp.StatusCode != http.StatusBadRequest) {
			t.Errorf("%s, %.300s: the answer is %d %.300s, and the description says: %v", op.OperationID, what, resp.StatusCode, data, err)
		}
		if err == nil {
			valid++
		}
	}
	folder := 0
	job := map[string]any{"vm_path": "/DC0/vm/web01", "output_path": "/o"}
	bases := map[string][]map[string]any{
		"submitJobs": {job}, "queryJobs": {{"all": true}, {}}, "cancelJobs": {{"job_ids": []any{"cafecafe"}}, {}}, "retryJobs": {{"job_ids": []any{"cafecafe"}}, {}},
		"changeLimits": {{"streams_per_host": 8}, {"job_ids": []any{"cafecafe"}}, {"job_bandwidth": 0}, {}},
	}
	for _, route := range api.Routes() {
		op := b.operation(route.Method, route.Path)
		if op.RequestBody == nil {
			continue
		}
		schema := op.RequestBody.Value.Content["application/json"].Schema
		body := func(v any) {
			t.Helper()
			if m, ok := v.(map[string]any); ok && m["output_path"] == "/o" {
				folder++
				v = with(m, "output_path", "/o"+strconv.Itoa(folder)) // a folder takes one job
			}
			data := encode(t, v)
			var plain any // as the validator knows it
			if err := json.Unmarshal(data, &plain); err != nil {
				t.Fatal(err)
			}
			try(op, request{method: route.Method, pattern: route.Path, body: string(data), header: []string{"Content-Type", "application/json"}}, string(data), b.valid(schema, plain))
		}
		if bases[op.OperationID] == nil {
			t.Errorf("%s: no body to begin with", op.OperationID)
		}
		objects := []*openapi3.Schema{schema.Value}
		if op.OperationID == "submitJobs" {
			objects = []*openapi3.Schema{schema.Value.OneOf[0].Value}
			body(map[string]any{"jobs": []any{}})
			body(map[string]any{"jobs": []any{map[string]any{"vm_path": "a", "output_path": "/batch"}}, "vm_path": "x"})
			body(map[string]any{"jobs": []any{map[string]any{"vm_path": "a", "output_path": "/batch"}}})
			body(map[string]any{"jobs": map[string]any{}})
			for _, options := range []any{nil, map[string]any{}, map[string]any{"bandwidth": "50Mb/s"}, map[string]any{"bandwidth": "50MiB"}, map[string]any{"bandwidth": 65536}, map[string]any{"bandwidth": 65535}} {
				body(with(job, "options", options))
			}
			own := map[string]any{"server": "vc.example.com", "username": "u", "password": "p"}
			for key := range own {
				missing := with(own, key, "")
				body(with(job, "vcenter", missing))
				delete(missing, key)
				body(with(job, "vcenter", missing))
			}
			for key, value := range map[string]any{"insecure": true, "server": "u:p@vc", "name": "berlin", "x": 1} {
				body(with(job, "vcenter", with(own, key, value)))
			}
		}
		for _, base := range bases[op.OperationID] {
			body(base)
			body(with(base, "unknown", 1))
			for _, object := range objects {
				for name, p := range object.Properties {
					for _, v := range variants(p.Value) {
						body(with(base, name, v))
					}
				}
				for _, name := range object.Required {
					missing := with(base, name, nil)
					delete(missing, name)
					body(missing)
				}
			}
		}
		for _, whole := range []any{[]any{}, "text", 1, true} {
			body(whole)
		}
	}

	// Parameters with bounds.
	for _, route := range api.Routes() {
		op := b.operation(route.Method, route.Path)
		for _, p := range op.Parameters {
			s := p.Value.Schema
			if p.Value.In != "query" || !s.Value.Type.Is("integer") {
				continue
			}
			for _, n := range []float64{*s.Value.Min - 1, *s.Value.Max + 1, -7, 1.5} {
				path := strings.Replace(route.Path, "{profile}", "goroutine", 1) + "?" + p.Value.Name + "=" + strconv.FormatFloat(n, 'f', -1, 64)
				try(op, request{method: route.Method, pattern: route.Path, path: path}, path, b.valid(s, n))
			}
			for n := *s.Value.Min; n <= *s.Value.Max && p.Value.Name != "seconds"; n++ {
				path := strings.Replace(route.Path, "{profile}", "goroutine", 1) + "?" + p.Value.Name + "=" + strconv.FormatFloat(n, 'f', -1, 64)
				try(op, request{method: route.Method, pattern: route.Path, path: path}, path, b.valid(s, n))
			}
		}
	}
	if valid < 100 {
		t.Errorf("only %d of the requests were valid", valid)
	}
}

// TestPlantedDifferences: the checks above can fail. Each case is an answer
// that differs from the description in one thing.
func TestPlantedDifferences(t *testing.T) {
	good := map[string]any{"status": "healthy", "timestamp": "2026-11-23T00:25:22Z"}
	for name, c := range map[string]struct {
		status      int
		contentType string
		body        any
		want        string
	}{
		"none":            {200, "application/json", good, ""},
		"a property more": {200, "application/json", with(good, "load", 1), "load is not described"},
		"one less":        {200, "application/json", map[string]any{"status": "healthy"}, "timestamp"},
		"a wrong type":    {200, "application/json", with(good, "status", 1), "status"},
		"a wrong value":   {200, "application/json", with(good, "status", "ill"), "status"},
		"no time":         {200, "application/json", with(good, "timestamp", "nowZ"), "timestamp"},
		"another zone":    {200, "application/json", with(good, "timestamp", "2026-11-23T00:25:22+01:00"), "timestamp"},
		"another status":  {418, "application/json", good, "418 is not described"},
		"another type":    {200, "text/plain", good, "text/plain is not described"},
		"no header":       {429, "application/json", map[string]any{"error": map[string]any{"code": "too_many_requests", "message": "m"}}, "Retry-After"},
		"another code":    {403, "application/json", map[string]any{"error": map[string]any{"code": "go_away", "message": "m"}}, "code"},
	} {
		contract := newContract(t, api.Description())
		resp := &http.Response{StatusCode: c.status, Header: http.Header{"Content-Type": {c.contentType}}}
		bad := strings.Join(contract.answer(contract.operation("GET", "/health"), resp, encode(t, c.body)), "; ")
		if (bad == "") != (c.want == "") || !strings.Contains(bad, c.want) {
			t.Errorf("%s: %q, want %q", name, bad, c.want)
		}
		if name == "none" && slices.Contains(contract.unseen(), "Health.status") {
			t.Error("Health.status was seen")
		}
	}

	// In the description: what is never answered is found.
	text := strings.Replace(string(api.Description()), "        status: {type: string, const: healthy}\n", "        status: {type: string, const: healthy}\n        load: {type: number}\n", 1)
	if text == string(api.Description()) {
		t.Fatal("nothing was planted")
	}
	contract := newContract(t, []byte(text))
	if bad := contract.answer(contract.operation("GET", "/health"), &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}}, encode(t, good)); bad != nil {
		t.Error(bad)
	}
	if unseen := contract.unseen(); !slices.Contains(unseen, "Health.load") || slices.Contains(unseen, "Health.status") || !slices.Contains(unseen, "health 429") || !slices.Contains(unseen, "event log") {
		t.Errorf("unseen are %v", unseen)
	}

	// In a stream.
	op := contract.operation("GET", "/events")
	for text, want := range map[string]string{
		"id: 1\nevent: boom\ndata: {}\n\n":                                        "not described",
		"event: log\ndata: {}\n\n":                                                "not described",
		"id: 1\nevent: log\ndata: {\"id\":1,\"type\":\"log\",\"surprise\":1}\n\n": "Event.surprise is not described",
	} {
		resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"text/event-stream"}}}
		if bad := strings.Join(contract.answer(op, resp, []byte(text)), "; "); !strings.Contains(bad, want) {
			t.Errorf("%q: %q", text, bad)
		}
	}
}
