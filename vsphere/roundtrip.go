package vsphere

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"reflect"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	// callTimeout bounds one SOAP call. The slowest that are met, ExportVm and
	// CreateDescriptor of a VM with many disks, take tens of seconds.
	callTimeout  = 3 * time.Minute
	loginTimeout = 30 * time.Second
	// maxLogins is how often one call may be repeated for want of a session.
	maxLogins = 2
	// maxReads is how often a call that only reads is made when it gets no
	// answer.
	maxReads  = 4
	readPause = 250 * time.Millisecond
)

// session is the soap.RoundTripper under everything: it bounds each call,
// repeats reads that got no answer, and logs in again when the server has
// forgotten the session (after 30 minutes without a call, or a restart).
type session struct {
	rt    soap.RoundTripper
	login func(ctx context.Context) error
	log   *slog.Logger

	mu         sync.Mutex
	generation int      // counts logins
	renewal    *renewal // the login at work, nil when none
	refused    error    // the server refused the credentials: not tried again
	closed     bool
	wg         sync.WaitGroup
}

// renewal is one login that any number of calls wait for.
type renewal struct {
	done   chan struct{}
	cancel context.CancelFunc
	err    error // valid once done is closed
}

// RoundTrip is part of soap.RoundTripper.
func (s *session) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	switch req.(type) {
	case *methods.LoginBody, *methods.LogoutBody:
		return s.call(ctx, req, res)
	}
	for logins := 0; ; logins++ {
		generation, err := s.current()
		if err != nil {
			return err
		}
		err = s.call(ctx, req, res)
		if err == nil {
			err = withheld(res)
		}
		if !isFault[*types.NotAuthenticated](err) || logins == maxLogins {
			return err
		}
		if rerr := s.renew(ctx, generation); rerr != nil {
			return rerr
		}
		if sessionBound(req) {
			// What the call refers to went with the old session: the caller
			// starts over.
			return err
		}
		reset(res)
	}
}

// sessionBound reports whether a request names an object that exists in one
// session only.
func sessionBound(req soap.HasFault) bool {
	switch req.(type) {
	case *methods.ContinueRetrievePropertiesExBody, *methods.CancelRetrievePropertiesExBody,
		*methods.CreateFilterBody, *methods.WaitForUpdatesExBody, *methods.DestroyPropertyCollectorBody:
		return true
	}
	return false
}

// withheld finds NotAuthenticated where RetrievePropertiesEx puts it when it
// may show an object but none of its properties.
func withheld(res soap.HasFault) error {
	body, ok := res.(*methods.RetrievePropertiesExBody)
	if !ok || body.Res == nil || body.Res.Returnval == nil {
		return nil
	}
	for _, o := range body.Res.Returnval.Objects {
		for _, m := range o.MissingSet {
			if _, ok := m.Fault.Fault.(*types.NotAuthenticated); ok {
				return &taskError{&m.Fault}
			}
		}
	}
	return nil
}

// reset empties a response: a fault decoded into it would outlive a second
// answer.
func reset(res soap.HasFault) {
	if v := reflect.ValueOf(res); v.Kind() == reflect.Pointer && !v.IsNil() {
		v.Elem().SetZero()
	}
}

// repeatable reports whether making a call twice is the same as once.
func repeatable(req soap.HasFault) bool {
	switch req.(type) {
	case *methods.RetrievePropertiesExBody, *methods.HttpNfcLeaseGetManifestBody, *methods.CurrentTimeBody,
		*methods.CreateDescriptorBody:
		return true
	}
	return false
}

func (s *session) call(ctx context.Context, req, res soap.HasFault) error {
	for n := 1; ; n++ {
		err := s.once(ctx, req, res)
		if err == nil || answered(err) || ctx.Err() != nil || n == maxReads || !repeatable(req) {
			return err
		}
		if _, ok := errors.AsType[*CertificateError](err); ok {
			return err
		}
		s.log.Debug("vSphere call got no answer, repeating it", slog.String("call", callName(req)),
			slog.Int("attempt", n), slog.String("error", reason(err).Error()))
		wait := readPause << (n - 1)
		if werr := pause(ctx, wait+rand.N(wait)); werr != nil { //nolint:gosec // jitter
			return err
		}
		reset(res)
	}
}

func (s *session) once(ctx context.Context, req, res soap.HasFault) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return s.rt.RoundTrip(ctx, req, res)
}

func callName(req soap.HasFault) string {
	t := reflect.TypeOf(req)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Name()
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (s *session) current() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return 0, ErrClosed
	case s.refused != nil:
		return 0, s.refused
	}
	return s.generation, nil
}

// renew logs in again unless somebody has since the given generation. All who
// need it wait for one login, each no longer than its own context.
func (s *session) renew(ctx context.Context, generation int) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	if s.generation != generation {
		s.mu.Unlock()
		return nil
	}
	r := s.renewal
	if r == nil {
		// The login serves others too, so the first caller's end must not
		// end it.
		lctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loginTimeout)
		r = &renewal{done: make(chan struct{}), cancel: cancel}
		s.renewal = r
		s.wg.Go(func() {
			defer cancel()
			s.relogin(lctx, r)
		})
	}
	s.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-r.done:
		return r.err
	}
}

func (s *session) relogin(ctx context.Context, r *renewal) {
	err := s.login(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		r.err = failure("log in to vSphere again", err)
		if isFault[*types.InvalidLogin](err) {
			// Each further try counts towards locking the account.
			s.refused = r.err
		}
		s.log.Warn("could not log in to vSphere again", slog.String("error", r.err.Error()))
	} else {
		s.generation++
		s.log.Info("logged in to vSphere again")
	}
	s.renewal = nil
	close(r.done)
}

// close makes every later call fail and waits for a login at work. Logout may
// still be called.
func (s *session) close() {
	s.mu.Lock()
	s.closed = true
	if s.renewal != nil {
		s.renewal.cancel()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// jar is a cookie jar that can forget: a login with an old session's cookie
// is refused where the server still half knows it.
type jar struct {
	mu    sync.Mutex
	inner http.CookieJar
}

func newJar() (*jar, error) {
	j := &jar{}
	return j, j.forget()
}

func (j *jar) forget() error {
	inner, err := cookiejar.New(nil)
	if err != nil {
		return fmt.Errorf("make cookie jar: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.inner = inner
	return nil
}

// SetCookies is part of http.CookieJar.
func (j *jar) SetCookies(u *url.URL, cookies []*http.Cookie) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.inner.SetCookies(u, cookies)
}

// Cookies is part of http.CookieJar.
func (j *jar) Cookies(u *url.URL) []*http.Cookie {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.inner.Cookies(u)
}
