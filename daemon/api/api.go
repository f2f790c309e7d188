// Package api is the daemon's REST API over HTTP: routes, the guard against
// foreign web pages, server-sent events. Handlers return a value or an error
// and one adapter writes either. It takes what it needs of the job manager as
// an interface and knows neither stores nor vSphere.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"path"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/auth"
	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/jobfile"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const (
	// MaxBody is the largest request body, in bytes.
	MaxBody = jobfile.MaxSize

	heartbeat    = 15 * time.Second
	vmsTimeout   = 80 * time.Second
	writeTimeout = 90 * time.Second // longer than vmsTimeout
	eventTimeout = 30 * time.Second // for one event to reach the reader's socket
	bodyTimeout  = 30 * time.Second
)

// Manager is what the API needs of *jobs.Manager.
type Manager interface {
	Submit(ctx context.Context, def models.Definition) (models.Job, error)
	Get(ctx context.Context, id string) (models.Job, error)
	Query(ctx context.Context, q models.QueryRequest) (models.QueryResponse, error)
	Cancel(ctx context.Context, ids []string) (models.CancelResponse, error)
	Retry(ctx context.Context, ids []string) (models.RetryResponse, error)
	Status(ctx context.Context) (models.DaemonStatus, error)
	Logs(ctx context.Context, id string) (models.LogsResponse, error)
	Limits(ctx context.Context) (models.Limits, error)
	ChangeLimits(ctx context.Context, r models.LimitsRequest) (models.Limits, error)
	Subscribe(ctx context.Context, jobID string, lastEventID uint64) (*jobs.Subscription, error)
}

// VMLister lists the virtual machines of a vCenter, by its name in the
// configuration; "" is the default one.
type VMLister interface {
	ListVMs(ctx context.Context, vcenter string) ([]models.VM, error)
}

// Options are what a handler needs.
type Options struct {
	Manager Manager
	VMs     VMLister
	Logger  *slog.Logger // nil discards
	// Audit gets a line for every change that was made or refused; nil
	// discards.
	Audit *slog.Logger
	// Metrics answers GET /metrics; nil answers that there is none.
	Metrics http.Handler
	// Access says who may do what. Nil lets everybody do everything, as often
	// as they like, and is for tests.
	Access Access
}

// Access is what the API asks about the clients. Its methods are safe for
// concurrent use.
type Access interface {
	// Identify tells who sends a request; see auth.Authenticator.
	Identify(r *http.Request) (auth.Identity, error)
	// Allow counts a request of a client; see auth.Limiter.
	Allow(client string) (wait time.Duration, ok bool)
	// KnownHost reports whether clients may address the daemon by a host's
	// name or address, in lower case, beside those of the loopback.
	KnownHost(host string) bool
}

// NewServer gives a server for h with the time limits that the API counts on:
// event streams lift them for themselves.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		WriteTimeout: writeTimeout, MaxHeaderBytes: 64 << 10, ConnContext: auth.ConnContext,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// NewHandler gives the API as an http.Handler.
func NewHandler(opts Options) http.Handler {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Audit == nil {
		opts.Audit = slog.New(slog.DiscardHandler)
	}
	if opts.Access == nil {
		opts.Access = everybody{}
	}
	a := &api{opts: opts, log: opts.Logger, actions: map[string]string{}}
	mux := http.NewServeMux()
	// Paths are registered without a method, so that the adapter answers a
	// wrong one, too, in the API's own way.
	for _, r := range a.routes() {
		mux.Handle(r.path, a.adapt(r))
		a.actions[r.path] = r.action
	}
	unknown := a.adapt(a.elsewhere())
	return a.outer(guard(opts.Access.KnownHost, a, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The mux would redirect to the clean path, and ask nobody for a token.
		if p := r.URL.EscapedPath(); path.Clean(p) != p && path.Clean(p)+"/" != p {
			unknown.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})))
}

// routes are all paths of the API. Each is in openapi.yaml, which a test holds.
func (a *api) routes() []route {
	return []route{
		{http.MethodGet, "/health", "", "", a.health},
		{http.MethodGet, "/status", auth.Viewer, "", a.status},
		{http.MethodPost, "/jobs/submit", auth.Operator, "submit", a.submit},
		{http.MethodPost, "/jobs/query", auth.Viewer, "", a.query},
		{http.MethodPost, "/jobs/cancel", auth.Operator, "cancel", a.cancel},
		{http.MethodPost, "/jobs/retry", auth.Operator, "retry", a.retry},
		{http.MethodGet, "/jobs/{id}", auth.Viewer, "", a.job},
		{http.MethodGet, "/jobs/{id}/logs", auth.Viewer, "", a.logs},
		{http.MethodGet, "/jobs/{id}/events", auth.Viewer, "", a.events},
		{http.MethodGet, "/events", auth.Viewer, "", a.events},
		{http.MethodGet, "/limits", auth.Viewer, "", a.limits},
		{http.MethodPost, "/limits/change", auth.Operator, "change limits", a.changeLimits},
		{http.MethodGet, "/vms", auth.Viewer, "", a.vms},
		{http.MethodGet, "/metrics", auth.Viewer, "", a.metrics},
		{http.MethodGet, "/openapi.yaml", auth.Viewer, "", a.description},
		{http.MethodGet, "/debug/pprof/{$}", auth.Operator, "take profile", a.profiles},
		{http.MethodGet, "/debug/pprof/{profile}", auth.Operator, "take profile", a.profile},
		a.elsewhere(),
	}
}

// elsewhere is the route of every path that is no other's.
func (a *api) elsewhere() route { return route{"", "/", auth.Viewer, "", a.unknown} }

// route is one path of the API. An empty method takes any. Role is what its
// client must have; the empty one is for what is open to everybody. Action is
// what the audit log calls it, done or refused; empty for what changes nothing.
type route struct {
	method, path string
	role         auth.Role
	action       string
	handle       handler
}

func (a *api) unknown(_ http.ResponseWriter, r *http.Request) (any, error) {
	return nil, &failure{status: http.StatusNotFound, code: "not_found", message: fmt.Sprintf("there is no %.200q", r.URL.Path),
		details: "see /openapi.yaml for what there is"}
}

type api struct {
	opts      Options
	log       *slog.Logger
	actions   map[string]string // of paths, as route has them
	throttled tally
	profiling sync.Mutex // held while a profile is being taken
}

// handler answers a request. The value is written as JSON with status 200, or
// with its own when it is a reply. A handler that has written the answer
// itself returns nil for both.
type handler func(w http.ResponseWriter, r *http.Request) (any, error)

// reply is a value with a status other than 200.
type reply struct {
	status int
	body   any
}

// failure is an error of HTTP itself, with its status.
type failure struct {
	status                 int
	code, message, details string
}

func (f *failure) Error() string { return f.message }

// adapt makes a route an http.Handler: it checks who asks and the method, and
// writes what the handler returns.
func (a *api) adapt(route route) http.Handler {
	if strings.HasPrefix(route.path, profilePath) {
		return a.onlyHere(route)
	}
	return a.serve(route)
}

// serve is adapt for clients from anywhere.
func (a *api) serve(route route) http.Handler {
	method := route.method
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r, err := a.admit(w, r, route)
		fail := func(err error) {
			a.refused(r, route.action, err)
			a.fail(w, r, err)
		}
		if err != nil {
			fail(err)
			return
		}
		if r.ContentLength > MaxBody {
			fail(errTooLarge())
			return
		}
		if method != "" && r.Method != method && (method != http.MethodGet || r.Method != http.MethodHead) {
			allow := method
			if method == http.MethodGet {
				allow = "GET, HEAD"
			}
			w.Header().Set("Allow", allow)
			fail(&failure{status: http.StatusMethodNotAllowed, code: "method_not_allowed",
				message: fmt.Sprintf("%s does not take %.20q", r.URL.Path, r.Method), details: "use " + allow})
			return
		}
		value, err := route.handle(w, r)
		switch v := value.(type) {
		case nil:
			if err != nil {
				fail(err)
			}
		case reply:
			a.write(w, r, v.status, v.body)
		default:
			if err != nil {
				fail(err)
				return
			}
			a.write(w, r, http.StatusOK, v)
		}
	})
}

func (a *api) write(w http.ResponseWriter, r *http.Request, status int, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		a.log.Error("could not marshal an answer", slog.String("path", r.URL.Path), slog.String("error", err.Error()))
		status = http.StatusInternalServerError
		data = []byte(`{"error":{"code":"internal","message":"internal error","details":"the daemon's log holds the details"}}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if _, err := w.Write(append(data, '\n')); err != nil {
		a.log.Debug("could not write an answer", slog.String("path", r.URL.Path), slog.String("error", err.Error()))
	}
}

func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, detail := describe(err)
	if status == http.StatusInternalServerError {
		a.log.Error("request failed", slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.String("error", err.Error()))
	}
	a.write(w, r, status, models.ErrorResponse{Error: detail})
}

// describe turns an error into a status and a body. The text of an error that
// is neither a failure nor a *problem.Error is for the log, not the client.
func describe(err error) (int, models.ErrorDetail) {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.status, models.ErrorDetail{Code: f.code, Message: f.message, Details: f.details}
	}
	if errors.Is(err, jobs.ErrStopping) {
		return http.StatusServiceUnavailable, models.ErrorDetail{Code: "stopping", Message: jobs.ErrStopping.Error(), Details: "try again once it is back"}
	}
	p, ok := errors.AsType[*problem.Error](err)
	if !ok {
		return http.StatusInternalServerError, models.ErrorDetail{Code: "internal", Message: "internal error", Details: "the daemon's log holds the details"}
	}
	bare := *p
	bare.Advice = ""
	d := models.ErrorDetail{Message: bare.Error(), Details: p.Advice}
	switch p.Kind {
	case problem.Invalid:
		d.Code = "invalid"
		return http.StatusBadRequest, d
	case problem.NotFound:
		d.Code = "not_found"
		return http.StatusNotFound, d
	case problem.Conflict:
		d.Code = "conflict"
		return http.StatusConflict, d
	case problem.Unauthorized:
		d.Code = "unauthorized"
		return http.StatusUnauthorized, d
	case problem.Unreachable:
		d.Code = "unreachable"
		return http.StatusBadGateway, d
	}
	d.Code = "failed"
	return http.StatusInternalServerError, d
}

// outer logs requests and turns a handler's panic into an answer.
func (a *api) outer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		rec := &recorder{ResponseWriter: w}
		secure(w.Header())
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler {
					panic(p)
				}
				a.log.Error("a request panicked", slog.String("method", r.Method), slog.String("path", r.URL.Path),
					slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
				if rec.status != 0 {
					panic(http.ErrAbortHandler) // the answer has begun: break it off
				}
				a.write(rec, r, http.StatusInternalServerError, models.ErrorResponse{Error: models.ErrorDetail{
					Code: "internal", Message: "internal error", Details: "the daemon's log holds the details"}})
			}
			a.log.Debug("request", slog.String("method", r.Method), slog.String("path", r.URL.Path),
				slog.Int("status", rec.status), slog.Duration("took", time.Since(began)))
		}()
		next.ServeHTTP(rec, r)
	})
}

// recorder remembers the status. Unwrap lets http.ResponseController reach
// the connection, without which no event would arrive.
type recorder struct {
	http.ResponseWriter
	status int
}

// Unwrap is what http.ResponseController asks for.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// WriteHeader is part of http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write is part of http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

func (a *api) health(http.ResponseWriter, *http.Request) (any, error) {
	return models.Health{Status: "healthy", Timestamp: time.Now().UTC()}, nil
}

func (a *api) status(_ http.ResponseWriter, r *http.Request) (any, error) {
	return a.opts.Manager.Status(r.Context())
}

func (a *api) job(_ http.ResponseWriter, r *http.Request) (any, error) {
	return a.opts.Manager.Get(r.Context(), r.PathValue("id"))
}

func (a *api) logs(_ http.ResponseWriter, r *http.Request) (any, error) {
	return a.opts.Manager.Logs(r.Context(), r.PathValue("id"))
}

// submitted is the answer to a submission. When no job was accepted it has an
// error object, too, so that clients that look for either understand.
type submitted struct {
	models.SubmitResponse
	Error *models.ErrorDetail `json:"error,omitempty"`
}

func (a *api) submit(w http.ResponseWriter, r *http.Request) (any, error) {
	data, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	out := submitted{SubmitResponse: models.SubmitResponse{JobIDs: []string{}, Errors: []string{}}}
	// Deferred, so that a batch that ends in a panic is on record as far as it
	// came.
	audited := true
	defer func() {
		if !audited {
			return // it is refused as a whole
		}
		a.audit(r, "submit", out.JobIDs, fmt.Sprintf("accepted %d, rejected %d", out.Accepted, out.Rejected))
	}()
	var first error
	reject := func(name string, err error) {
		if first == nil {
			first = err
		}
		_, d := describe(err)
		text := name + d.Message
		if d.Details != "" {
			text += " (" + d.Details + ")"
		}
		out.Rejected++
		out.Errors = append(out.Errors, text)
	}
	// From here on a batch is taken as a whole, also when its sender has gone.
	ctx := context.WithoutCancel(r.Context())
	entries, err := jobfile.Parse(data, r.Header.Get("Content-Type"), "")
	if errors.Is(err, jobfile.ErrContentType) {
		audited = false
		return nil, &failure{status: http.StatusUnsupportedMediaType, code: "unsupported_media_type",
			message: fmt.Sprintf("cannot read a job file of type %.80q", r.Header.Get("Content-Type")),
			details: "send Content-Type: application/json or application/yaml"}
	}
	if err != nil {
		reject("", err)
	}
	for _, e := range entries {
		if e.Err != nil {
			reject("", e.Err)
			continue
		}
		job, err := a.opts.Manager.Submit(ctx, e.Definition)
		if err != nil {
			if _, ok := errors.AsType[*problem.Error](err); !ok {
				a.log.Error("could not take a job", slog.String("error", err.Error()))
			}
			name := ""
			if len(entries) > 1 {
				name = fmt.Sprintf("job %d (%q): ", e.Index+1, e.Name)
			}
			reject(name, err)
			continue
		}
		out.Accepted++
		out.JobIDs = append(out.JobIDs, job.ID)
	}
	out.Timestamp = time.Now().UTC()
	if out.Accepted > 0 {
		return out, nil
	}
	_, d := describe(first)
	if out.Rejected > 1 {
		d = models.ErrorDetail{Code: d.Code, Message: fmt.Sprintf("none of %d jobs was accepted", out.Rejected), Details: strings.Join(out.Errors[:min(3, len(out.Errors))], "; ")}
	}
	out.Error = &d
	return reply{http.StatusBadRequest, out}, nil
}

func (a *api) query(w http.ResponseWriter, r *http.Request) (any, error) {
	var q models.QueryRequest
	if err := readJSON(w, r, &q); err != nil {
		return nil, err
	}
	return a.opts.Manager.Query(r.Context(), q)
}

func (a *api) cancel(w http.ResponseWriter, r *http.Request) (any, error) {
	var q models.CancelRequest
	if err := readJSON(w, r, &q); err != nil {
		return nil, err
	}
	out, err := a.opts.Manager.Cancel(r.Context(), q.JobIDs)
	if err != nil {
		return nil, err
	}
	a.audit(r, "cancel", out.Cancelled, fmt.Sprintf("cancelled %d, failed %d", len(out.Cancelled), len(out.Failed)))
	return out, nil
}

func (a *api) retry(w http.ResponseWriter, r *http.Request) (any, error) {
	var q models.RetryRequest
	if err := readJSON(w, r, &q); err != nil {
		return nil, err
	}
	out, err := a.opts.Manager.Retry(r.Context(), q.JobIDs)
	if err != nil {
		return nil, err
	}
	a.audit(r, "retry", out.Retried, fmt.Sprintf("retried %d, failed %d", len(out.Retried), len(out.Failed)))
	return out, nil
}

func (a *api) limits(_ http.ResponseWriter, r *http.Request) (any, error) {
	return a.opts.Manager.Limits(r.Context())
}

func (a *api) changeLimits(w http.ResponseWriter, r *http.Request) (any, error) {
	var q models.LimitsRequest
	if err := readJSON(w, r, &q); err != nil {
		return nil, err
	}
	before, err := a.opts.Manager.Limits(r.Context())
	if err != nil {
		return nil, err
	}
	out, err := a.opts.Manager.ChangeLimits(r.Context(), q)
	if err != nil {
		return nil, err
	}
	a.audit(r, "change limits", q.JobIDs, "done: "+changes(q, before, out))
	return out, nil
}

// changes says what a request has changed.
func changes(q models.LimitsRequest, before, after models.Limits) string {
	var out []string
	add := func(on bool, name string, from, to int64) {
		if on {
			out = append(out, fmt.Sprintf("%s %d to %d", name, from, to))
		}
	}
	add(q.MaxRunningJobs != nil, "max_running_jobs", int64(before.MaxRunningJobs), int64(after.MaxRunningJobs))
	add(q.StreamsPerHost != nil, "streams_per_host", int64(before.StreamsPerHost), int64(after.StreamsPerHost))
	add(q.MaxStreams != nil, "max_streams", int64(before.MaxStreams), int64(after.MaxStreams))
	add(q.Bandwidth != nil, "bandwidth", int64(before.Bandwidth), int64(after.Bandwidth))
	if q.JobBandwidth != nil {
		out = append(out, fmt.Sprintf("job_bandwidth to %d", int64(*q.JobBandwidth)))
	}
	return strings.Join(out, ", ")
}

func (a *api) metrics(w http.ResponseWriter, r *http.Request) (any, error) {
	if a.opts.Metrics == nil {
		return a.unknown(w, r)
	}
	a.opts.Metrics.ServeHTTP(w, r)
	return nil, nil // the answer is written
}

// vms lists the virtual machines that match a pattern; see models.VM.Matches.
func (a *api) vms(_ http.ResponseWriter, r *http.Request) (any, error) {
	pattern := r.URL.Query().Get("pattern")
	ctx, cancel := context.WithTimeout(r.Context(), vmsTimeout)
	defer cancel()
	all, err := a.opts.VMs.ListVMs(ctx, r.URL.Query().Get("vcenter"))
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = problem.New(problem.Unreachable, "list virtual machines", fmt.Errorf("vCenter took longer than %s", vmsTimeout), "try again")
		}
		if p, ok := errors.AsType[*problem.Error](err); ok && p.Kind == problem.Unauthorized {
			// Not 401 or 403: those speak of what the client sent to the daemon.
			_, d := describe(err)
			return nil, &failure{status: http.StatusBadGateway, code: "vcenter_unauthorized", message: d.Message, details: d.Details}
		}
		return nil, err
	}
	out := models.VMList{VMs: []models.VM{}, Timestamp: time.Now().UTC()}
	for _, vm := range all {
		if vm.Matches(pattern) {
			out.VMs = append(out.VMs, vm)
		}
	}
	out.Total = len(out.VMs)
	return out, nil
}

// readBody reads a whole body within MaxBody and bodyTimeout.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if e := r.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, &failure{status: http.StatusUnsupportedMediaType, code: "unsupported_media_type",
			message: fmt.Sprintf("the body is encoded as %.40q", e), details: "send it as it is"}
	}
	rc := http.NewResponseController(w)
	// Recorders of tests have no connection; those that have one can do this.
	if err := rc.SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return nil, fmt.Errorf("set read deadline: %w", err)
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, errTooLarge()
	}
	if err != nil {
		return nil, &failure{status: http.StatusBadRequest, code: "invalid", message: "the body could not be read to its end"}
	}
	if err := rc.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return nil, fmt.Errorf("clear read deadline: %w", err)
	}
	return data, nil
}

func errTooLarge() error {
	return &failure{status: http.StatusRequestEntityTooLarge, code: "too_large",
		message: fmt.Sprintf("the body is larger than %d bytes", MaxBody), details: "split the batch"}
}

// readJSON reads one JSON object and refuses what it does not know.
func readJSON(w http.ResponseWriter, r *http.Request, out any) error {
	if c := r.Header.Get("Content-Type"); c != "" {
		if t, _, err := mime.ParseMediaType(c); err != nil || t != "application/json" && t != "application/x-www-form-urlencoded" { // the latter is what curl -d says
			return &failure{status: http.StatusUnsupportedMediaType, code: "unsupported_media_type",
				message: fmt.Sprintf("cannot read a request of type %.80q", c), details: "send Content-Type: application/json"}
		}
	}
	data, err := readBody(w, r)
	if err != nil {
		return err
	}
	bad := func(err error) error {
		return problem.New(problem.Invalid, "read request", err, "see the API's description for the fields")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(out); errors.Is(err, io.EOF) {
		return bad(errors.New("the body is empty"))
	} else if err != nil {
		return bad(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return bad(errors.New("something follows the JSON object"))
	}
	return nil
}
