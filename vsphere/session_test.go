package vsphere

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// expire makes the server forget c's session.
func expire(t testing.TB, cfg Config, c *Client) {
	t.Helper()
	keys := func(c *Client) []string {
		props, err := c.properties(t.Context(), *c.content.SessionManager, "currentSession")
		if err != nil {
			t.Fatal(err)
		}
		return []string{get[types.UserSession](props, "currentSession").Key}
	}
	killer, err := Connect(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = methods.TerminateSession(t.Context(), killer.rt, &types.TerminateSession{This: *c.content.SessionManager, SessionId: keys(c)})
	if err != nil {
		t.Fatal(err)
	}
	if err := killer.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestLoginAgain(t *testing.T) {
	m := simulator.VPX()
	cfg := serve(t, m)
	c := dial(t, cfg)
	ctx := within(t, time.Minute)
	vm := everyVM(m)[0].Self.Value
	for name, call := range map[string]func() error{
		"list":    func() error { _, err := c.ListVMs(ctx); return err },
		"inspect": func() error { _, err := c.InspectVM(ctx, vm); return err },
		"snapshot": func() error {
			s, err := c.CreateSnapshot(ctx, vm, "s", "")
			if err != nil {
				return err
			}
			return c.RemoveSnapshot(ctx, s)
		},
	} {
		expire(t, cfg, c)
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := c.session.generation; got != 3 {
		t.Errorf("%d logins, want 3", got)
	}

	// Many calls at once share one login.
	expire(t, cfg, c)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := c.InspectVM(ctx, vm); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := c.session.generation; got != 4 {
		t.Errorf("%d logins, want 4", got)
	}
}

func TestConnectErrors(t *testing.T) {
	cfg := serve(t, simulator.VPX())
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "<html><p>hello</html>")
	}))
	defer web.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	address := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	for _, tt := range []struct {
		name   string
		change func(*Config)
		kind   problem.Kind
		says   string
	}{
		{"no URL", func(c *Config) { c.URL = nil }, problem.Invalid, "GOVC_URL"},
		{"no user", func(c *Config) { c.Username = "" }, problem.Invalid, "GOVC_USERNAME"},
		{"wrong password", func(c *Config) { c.Password = secret }, problem.Unauthorized, "GOVC_PASSWORD"},
		{"nobody there", func(c *Config) { c.URL = address("https://" + closed + "/sdk") }, problem.Unreachable, "refused"},
		{"no vCenter", func(c *Config) { c.URL = address(web.URL + "/sdk") }, problem.Unreachable, "GOVC_URL"},
		{"wrong path", func(c *Config) { c.URL = c.URL.JoinPath("nothing") }, problem.Unreachable, "404"},
		{"untrusted", func(c *Config) { c.Insecure = false }, problem.Unreachable, "GOVC_TLS_KNOWN_HOSTS"},
		{"bad CA file", func(c *Config) { c.CAFiles = []string{"/none"} }, problem.Invalid, "/none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := cfg
			tt.change(&cfg)
			c, err := Connect(within(t, time.Minute), cfg, nil)
			if err == nil {
				c.Close(t.Context())
				t.Fatal("connected")
			}
			if problem.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("kind %d, want %d: %v", problem.KindOf(err), tt.kind, err)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the password is shown: %v", err)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Connect(ctx, cfg, nil); problem.KindOf(err) != problem.Cancelled {
			t.Errorf("got %v", err)
		}
	})
}

// loginServer answers NotAuthenticated until it has seen a login.
type loginServer struct {
	mu     sync.Mutex
	in     bool
	logins int
	calls  int
	deny   error         // answer of Login
	hold   chan struct{} // Login waits for it
	fail   func(n int) error
}

func (s *loginServer) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	s.mu.Lock()
	hold := s.hold
	s.mu.Unlock()
	if _, ok := req.(*methods.LoginBody); ok && hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r := res.(type) {
	case *methods.LoginBody:
		s.logins++
		s.in = s.deny == nil
		r.Res = &types.LoginResponse{}
		return s.deny
	case *methods.CurrentTimeBody:
		s.calls++
		if s.fail != nil {
			if err := s.fail(s.calls); err != nil {
				return err
			}
		}
		if !s.in {
			return soapFault("", types.NotAuthenticated{})
		}
		r.Res = &types.CurrentTimeResponse{Returnval: time.Now()}
	default:
		if !s.in {
			return soapFault("", types.NotAuthenticated{})
		}
	}
	return nil
}

func newSession(s *loginServer) *session {
	own := &session{rt: s, log: slog.New(slog.DiscardHandler)}
	own.login = func(ctx context.Context) error {
		_, err := methods.Login(ctx, own, &types.Login{})
		return err
	}
	return own
}

func now(ctx context.Context, rt soap.RoundTripper) error {
	_, err := methods.CurrentTime(ctx, rt, &types.CurrentTime{})
	return err
}

func TestSessionRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &loginServer{hold: make(chan struct{})}
		s := newSession(server)
		impatient, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := now(impatient, s); !errors.Is(err, context.Canceled) {
				t.Errorf("the impatient got %v", err)
			}
		})
		synctest.Wait()
		for range 10 {
			wg.Go(func() {
				if err := now(t.Context(), s); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		cancel() // must not end the login of the others
		synctest.Wait()
		close(server.hold)
		wg.Wait()
		if server.logins != 1 {
			t.Errorf("%d logins", server.logins)
		}
		s.close()
		if err := now(t.Context(), s); !errors.Is(err, ErrClosed) {
			t.Errorf("after close: %v", err)
		}
	})
}

func TestSessionRefused(t *testing.T) {
	server := &loginServer{deny: soapFault("wrong password", types.InvalidLogin{})}
	s := newSession(server)
	defer s.close()
	for range 5 {
		if err := now(t.Context(), s); problem.KindOf(err) != problem.Unauthorized {
			t.Fatalf("got %v", err)
		}
	}
	if server.logins != 1 {
		t.Errorf("%d logins: the account would be locked", server.logins)
	}
}

func TestSessionNeverSettles(t *testing.T) {
	server := &loginServer{fail: func(int) error { return soapFault("", types.NotAuthenticated{}) }}
	s := newSession(server)
	defer s.close()
	if err := now(t.Context(), s); !isFault[*types.NotAuthenticated](err) {
		t.Errorf("got %v", err)
	}
	if server.logins != maxLogins || server.calls != maxLogins+1 {
		t.Errorf("%d logins, %d calls", server.logins, server.calls)
	}
}

func TestSessionCloseEndsLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSession(&loginServer{hold: make(chan struct{})})
		done := make(chan error, 1)
		go func() { done <- now(t.Context(), s) }()
		synctest.Wait()
		s.close()
		if err := <-done; err == nil {
			t.Error("no error")
		}
	})
}

func TestReadsAreRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &loginServer{in: true, fail: func(n int) error {
			if n < maxReads {
				return io.ErrUnexpectedEOF
			}
			return nil
		}}
		s := newSession(server)
		defer s.close()
		if err := now(t.Context(), s); err != nil {
			t.Error(err)
		}
		server.calls, server.fail = 0, func(int) error { return io.ErrUnexpectedEOF }
		if err := now(t.Context(), s); !errors.Is(err, io.ErrUnexpectedEOF) || server.calls != maxReads {
			t.Errorf("%v after %d calls", err, server.calls)
		}
		server.calls, server.fail = 0, func(int) error { return &CertificateError{Err: errors.New("x")} }
		if err := now(t.Context(), s); err == nil || server.calls != 1 {
			t.Errorf("%v after %d calls", err, server.calls)
		}
	})
}

// refuse counts calls and fails those that are not to be repeated.
type refuse struct{ calls atomic.Int32 }

func (r *refuse) RoundTrip(context.Context, soap.HasFault, soap.HasFault) error {
	r.calls.Add(1)
	return io.ErrUnexpectedEOF
}

func TestWritesAreNotRepeated(t *testing.T) {
	r := &refuse{}
	s := &session{rt: r, log: slog.New(slog.DiscardHandler)}
	if _, err := methods.ExportVm(t.Context(), s, &types.ExportVm{}); err == nil || r.calls.Load() != 1 {
		t.Errorf("%v after %d calls", err, r.calls.Load())
	}
}

func TestSessionKeepalive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &loginServer{in: true}
		s := newSession(server)
		defer s.close()
		c := &Client{api: api{rt: s, log: slog.New(slog.DiscardHandler)}}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { c.keepalive(ctx, keepaliveInterval) })
		time.Sleep(keepaliveInterval*3 + time.Second)
		synctest.Wait()
		if server.calls != 3 {
			t.Errorf("%d calls", server.calls)
		}
		server.mu.Lock()
		server.in = false // the server forgets us: the next beat logs in
		server.mu.Unlock()
		time.Sleep(keepaliveInterval)
		synctest.Wait()
		if server.logins != 1 || !server.in {
			t.Errorf("%d logins", server.logins)
		}
		cancel()
		wg.Wait()
	})
}

func TestCloseIsIdempotent(t *testing.T) {
	cfg := serve(t, simulator.VPX())
	c, err := Connect(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // Close works all the same
	for range 2 {
		if err := c.Close(ctx); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.ListVMs(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
	if _, err := c.ExportVM(t.Context(), "vm-1"); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}
