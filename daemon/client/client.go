// Package client is the Go client of the daemon's REST API. It imports the
// wire types and internal/problem and nothing else of the project, so that
// h2kvmctl links neither a store nor anything that speaks to vCenter.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const (
	// DefaultURL is where the daemon listens unless told otherwise.
	DefaultURL = "http://localhost:8080"

	// MaxBody is the largest job file the daemon takes, in bytes.
	MaxBody = 1 << 20

	// maxAnswer bounds what is read of one answer: 10,000 jobs with their
	// progress fit many times.
	maxAnswer = 64 << 20

	callTimeout = 30 * time.Second
	// vmsTimeout is longer because the daemon asks vCenter first.
	vmsTimeout = 90 * time.Second
)

// Client talks to one daemon. Its zero value talks to DefaultURL. The fields
// must not change after the first call; the methods are safe for concurrent
// use.
type Client struct {
	// BaseURL is the daemon's address, "http://host:port"; the scheme may be
	// left out. A daemon on a unix socket is "unix:///path" or, with the path's
	// slashes escaped as %2F, "http+unix://path". Empty means DefaultURL.
	BaseURL string
	// Token is sent as a bearer token when it is not empty. It is not sent
	// without TLS to a host other than the loopback.
	Token string
	// RootCAs are the certificates an https daemon is verified by; nil means
	// the system's.
	RootCAs *x509.CertPool
	// Transport replaces the HTTP transport, for tests. A unix socket does
	// without.
	Transport http.RoundTripper
	// OnAway, which may be nil, hears when Watch has lost its stream and tries
	// again, with the reason, and with nil when it has one again. Several
	// watches call it at once.
	OnAway func(err error)

	once   sync.Once
	base   *url.URL
	socket string // path of a unix socket, empty for TCP
	err    error
	http   *http.Client
}

// Error is an error answer of the daemon: its HTTP status and the body's
// three parts. The methods wrap it in a *problem.Error whose kind follows
// from Code and Status.
type Error struct {
	Status  int
	Code    string
	Message string
	Details string
}

// Error gives the message; the details are the advice of the *problem.Error
// around it.
func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("the daemon answered %d %s", e.Status, http.StatusText(e.Status))
	}
	return e.Message
}

// Close lets go of idle connections. The Client stays usable.
func (c *Client) Close() {
	if c.once.Do(c.setup); c.http != nil {
		c.http.CloseIdleConnections()
	}
}

// Health answers GET /health.
func (c *Client) Health(ctx context.Context) (models.Health, error) {
	return call[models.Health](ctx, c, "ask for the daemon's health", http.MethodGet, "/health", nil)
}

// Status answers GET /status.
func (c *Client) Status(ctx context.Context) (models.DaemonStatus, error) {
	return call[models.DaemonStatus](ctx, c, "ask for the daemon's status", http.MethodGet, "/status", nil)
}

// Submit posts a job file as it is. ContentType is application/yaml or
// application/json; empty lets the daemon find out. When no job was accepted
// the error is not nil, and the response still holds each job's error.
func (c *Client) Submit(ctx context.Context, body []byte, contentType string) (models.SubmitResponse, error) {
	const what = "submit job"
	var out models.SubmitResponse
	if len(body) > MaxBody {
		return out, problem.New(problem.Invalid, what,
			fmt.Errorf("the job file has %d bytes, the daemon takes %d", len(body), MaxBody), "split the batch")
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.do(ctx, what, http.MethodPost, "/jobs/submit", body, contentType)
	if err != nil {
		return out, err
	}
	defer closeBody(resp)
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return out, c.failed(ctx, what, err)
	}
	if resp.StatusCode == http.StatusBadRequest {
		// The answer holds the list of errors and an error object side by side.
		// One that is no JSON at all is reported below.
		_ = json.Unmarshal(data, &out)
	}
	if resp.StatusCode != http.StatusOK {
		return out, answerError(what, resp, data)
	}
	return out, decode(what, resp, data, &out)
}

// SubmitDefinition submits one job. The password of its vcenter block, which
// models.VCenter never marshals, is sent along.
func (c *Client) SubmitDefinition(ctx context.Context, def models.Definition) (models.SubmitResponse, error) {
	type vcenter struct {
		models.VCenter
		Password string `json:"password,omitempty"`
	}
	wire := struct {
		models.Definition
		VCenter *vcenter `json:"vcenter,omitempty"`
	}{Definition: def}
	if def.VCenter != nil {
		wire.VCenter = &vcenter{VCenter: *def.VCenter, Password: def.VCenter.Password}
	}
	body, err := json.Marshal(wire)
	if err != nil {
		return models.SubmitResponse{}, fmt.Errorf("marshal job: %w", err)
	}
	return c.Submit(ctx, body, "application/json")
}

// Query asks for jobs. The ids may be prefixes of at least four characters.
func (c *Client) Query(ctx context.Context, q models.QueryRequest) (models.QueryResponse, error) {
	return call[models.QueryResponse](ctx, c, "query jobs", http.MethodPost, "/jobs/query", q)
}

// Job asks for one job by its id or an unambiguous prefix of it.
func (c *Client) Job(ctx context.Context, id string) (models.Job, error) {
	path, err := jobPath("query job", id, "")
	if err != nil {
		return models.Job{}, err
	}
	return call[models.Job](ctx, c, "query job", http.MethodGet, path, nil)
}

// Cancel asks the daemon to stop jobs. A job that could not be cancelled is
// named in the response, and is no error here.
func (c *Client) Cancel(ctx context.Context, ids []string) (models.CancelResponse, error) {
	return call[models.CancelResponse](ctx, c, "cancel jobs", http.MethodPost, "/jobs/cancel", models.CancelRequest{JobIDs: ids})
}

// Retry puts failed and cancelled jobs back into the queue. The response says
// which could not be, and why.
func (c *Client) Retry(ctx context.Context, ids []string) (models.RetryResponse, error) {
	return call[models.RetryResponse](ctx, c, "retry jobs", http.MethodPost, "/jobs/retry", models.RetryRequest{JobIDs: ids})
}

// Limits asks what bounds the daemon's work.
func (c *Client) Limits(ctx context.Context) (models.Limits, error) {
	return call[models.Limits](ctx, c, "query limits", http.MethodGet, "/limits", nil)
}

// ChangeLimits changes what bounds the daemon's work, and gives what is in
// force then.
func (c *Client) ChangeLimits(ctx context.Context, r models.LimitsRequest) (models.Limits, error) {
	return call[models.Limits](ctx, c, "change limits", http.MethodPost, "/limits/change", r)
}

// Logs asks for the log lines of one job.
func (c *Client) Logs(ctx context.Context, id string) (models.LogsResponse, error) {
	path, err := jobPath("read log of job", id, "/logs")
	if err != nil {
		return models.LogsResponse{}, err
	}
	return call[models.LogsResponse](ctx, c, "read log of job", http.MethodGet, path, nil)
}

// VMs lists virtual machines through the daemon. Pattern filters by path and
// name (see GET /vms); vcenter names one of the daemon's configuration. Both
// may be empty.
func (c *Client) VMs(ctx context.Context, pattern, vcenter string) (models.VMList, error) {
	q := url.Values{}
	if pattern != "" {
		q.Set("pattern", pattern)
	}
	if vcenter != "" {
		q.Set("vcenter", vcenter)
	}
	path := "/vms"
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	return call[models.VMList](ctx, c, "list virtual machines", http.MethodGet, path, nil)
}

// jobPath builds the path of a job. Ids are checked here because "." and ".."
// survive path escaping and would name another resource.
func jobPath(what, id, suffix string) (string, error) {
	for _, r := range id {
		if r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return "", problem.New(problem.Invalid, what, fmt.Errorf("%.80q is not a job id", id), "query all jobs to see their ids")
		}
	}
	if id == "" {
		return "", problem.New(problem.Invalid, what, errors.New("the job id is empty"), "query all jobs to see their ids")
	}
	return "/jobs/" + id + suffix, nil
}

func call[T any](ctx context.Context, c *Client, what, method, path string, in any) (T, error) {
	var out T
	var body []byte
	contentType := ""
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return out, fmt.Errorf("marshal request: %w", err)
		}
		contentType = "application/json"
	}
	timeout := callTimeout
	if strings.HasPrefix(path, "/vms") {
		timeout = vmsTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := c.do(ctx, what, method, path, body, contentType)
	if err != nil {
		return out, err
	}
	defer closeBody(resp)
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return out, c.failed(ctx, what, err)
	}
	if resp.StatusCode != http.StatusOK {
		return out, answerError(what, resp, data)
	}
	return out, decode(what, resp, data, &out)
}

// do sends one request; header holds further names and values in turn. The
// error is a *problem.Error unless the caller's context was cancelled.
func (c *Client) do(ctx context.Context, what, method, path string, body []byte, contentType string, header ...string) (*http.Response, error) {
	c.once.Do(c.setup)
	if c.err != nil {
		return nil, c.err
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base.String()+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("build request: %w", err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.failed(ctx, what, err)
	}
	return resp, nil
}

func (c *Client) setup() {
	if c.socket, c.err = parseSocket(c.BaseURL); c.err != nil {
		return
	}
	address := c.BaseURL
	if c.socket != "" {
		address = "http://localhost" // for the Host header
	}
	c.base, c.err = parseBase(address)
	if c.err != nil {
		return
	}
	if c.Token != "" && c.base.Scheme != "https" && !loopback(c.base.Hostname()) {
		c.err = problem.New(problem.Invalid, "use daemon "+c.base.Redacted(),
			errors.New("a token would travel unencrypted"), "use an https address")
		return
	}
	transport := c.Transport
	if transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.TLSClientConfig = &tls.Config{RootCAs: c.RootCAs, MinVersion: tls.VersionTLS12}
		if c.socket != "" {
			t.Proxy = nil
			t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", c.socket)
			}
		}
		transport = t
	}
	c.http = &http.Client{
		Transport: transport,
		// A redirect could carry the token elsewhere; the daemon never sends one.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// parseSocket gives the path of an address that names a unix socket, "" for
// one that does not.
func parseSocket(s string) (string, error) {
	bad := func(why string) (string, error) {
		return "", problem.New(problem.Invalid, "read the daemon's address", errors.New(why), "give it as unix:///run/hyper2kvm/hyper2kvmd.sock")
	}
	escaped, ok := strings.CutPrefix(s, "http+unix://")
	if !ok {
		if escaped, ok = strings.CutPrefix(s, "unix://"); !ok {
			return "", nil
		}
	}
	path, err := url.PathUnescape(escaped)
	switch {
	case err != nil:
		return bad("it is no URL")
	case !strings.HasPrefix(path, "/"):
		return bad("the socket's path is not absolute")
	case strings.ContainsAny(escaped, "?#") || strings.ContainsRune(path, 0):
		return bad("it holds a query")
	}
	return path, nil
}

// address is where the daemon is, as it may be shown.
func (c *Client) address() string {
	if c.socket != "" {
		return "unix://" + c.socket
	}
	return c.base.Redacted()
}

func parseBase(s string) (*url.URL, error) {
	if s == "" {
		s = DefaultURL
	}
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	bad := func(why string) error {
		return problem.New(problem.Invalid, "read the daemon's address", errors.New(why), "give it as http://HOST:PORT")
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		// The cause would echo the whole address, a password in it included.
		return nil, bad("it is no URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, bad(fmt.Sprintf("its scheme is %q", u.Scheme))
	case u.User != nil:
		return nil, bad("it holds credentials")
	case u.Hostname() == "":
		return nil, bad("it names no host")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, bad("it holds a query")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = ""
	return u, nil
}

func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// failed says why no answer came. An end of the caller's context stays
// recognisable as such.
func (c *Client) failed(ctx context.Context, what string, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) && !errors.Is(context.Cause(ctx), errSilent) {
		return fmt.Errorf("%s: %w", what, context.Canceled)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // the address is named below
	}
	address := c.address()
	advice := "start hyper2kvmd, or set -daemon or H2KVMD_URL to where it runs"
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		advice = "give the daemon's CA certificate with -ca-cert"
	}
	if errors.Is(err, http.ErrSchemeMismatch) {
		advice = "the daemon there serves plain HTTP: give its address as http://"
	}
	if errors.Is(err, fs.ErrPermission) && c.socket != "" {
		return problem.New(problem.Unauthorized, what, fmt.Errorf("reach daemon at %s: %w", address, err),
			"use a user that the socket's permissions let in, the daemon's group for instance")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.New("no answer in time")
	}
	return problem.New(problem.Unreachable, what, fmt.Errorf("reach daemon at %s: %w", address, err), advice)
}

// answerError turns an error answer into a *problem.Error around *Error.
func answerError(what string, resp *http.Response, data []byte) error {
	e := &Error{Status: resp.StatusCode}
	var body models.ErrorResponse
	if err := json.Unmarshal(data, &body); err == nil {
		e.Code, e.Message, e.Details = body.Error.Code, body.Error.Message, body.Error.Details
	}
	advice := e.Details
	if e.Message == "" {
		advice = "check that -daemon or H2KVMD_URL names a hyper2kvmd"
		// What net/http answers to plain HTTP where it expects TLS.
		if resp.StatusCode == http.StatusBadRequest && bytes.Contains(data, []byte("HTTPS server")) {
			advice = "the daemon there serves TLS: give its address as https://"
		}
	}
	if strings.HasPrefix(e.Message, what+": ") {
		what = "" // the daemon calls it the same
	}
	return problem.New(kindOf(e), what, e, advice)
}

// kindOf prefers the code: POST /jobs/submit answers 400 whatever kept the
// jobs from being accepted.
func kindOf(e *Error) problem.Kind {
	switch e.Code {
	case "conflict":
		return problem.Conflict
	case "not_found":
		return problem.NotFound
	case "unauthorized", "forbidden", "vcenter_unauthorized":
		return problem.Unauthorized
	case "unreachable", "stopping":
		return problem.Unreachable
	}
	switch e.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusMethodNotAllowed:
		return problem.Invalid
	case http.StatusUnauthorized, http.StatusForbidden:
		return problem.Unauthorized
	case http.StatusNotFound:
		return problem.NotFound
	case http.StatusConflict:
		return problem.Conflict
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return problem.Unreachable
	}
	return problem.Failed
}

func decode(what string, resp *http.Response, data []byte, out any) error {
	if err := json.Unmarshal(data, out); err != nil {
		return problem.New(problem.Failed, what,
			fmt.Errorf("read answer of %d bytes (%s): %w", len(data), resp.Header.Get("Content-Type"), err),
			"check that -daemon or H2KVMD_URL names a hyper2kvmd")
	}
	return nil
}

// closeBody ends an answer that has been read; what Close could report no
// longer matters then.
func closeBody(resp *http.Response) { _ = resp.Body.Close() }
