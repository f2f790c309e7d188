package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/auth"
)

// maxTargets is how many ids an audit line lists.
const maxTargets = 100

// everybody is the Access of a handler that was given none.
type everybody struct{}

func (everybody) Identify(*http.Request) (auth.Identity, error) {
	return auth.Identity{Who: "anonymous", Role: auth.Operator}, nil
}

func (everybody) Allow(string) (time.Duration, bool) { return 0, true }

func (everybody) KnownHost(string) bool { return false }

type identityKey struct{}

// admit counts a request and tells who sends it and whether they may. The
// request it gives knows the identity.
func (a *api) admit(w http.ResponseWriter, r *http.Request, route route) (*http.Request, error) {
	// Who is not known is counted by address, be it for asking what is open or
	// for trying tokens.
	client := "address:" + auth.Address(r.RemoteAddr)
	var id auth.Identity
	var unknown error
	if route.role != "" {
		if id, unknown = a.opts.Access.Identify(r); unknown == nil && id.ID != "" {
			client = id.ID
		}
	}
	if unknown == nil {
		r = r.WithContext(context.WithValue(r.Context(), identityKey{}, id))
	}
	if wait, ok := a.opts.Access.Allow(client); !ok {
		seconds := max(1, int(math.Ceil(wait.Seconds())))
		w.Header().Set("Retry-After", strconv.Itoa(seconds))
		return r, &failure{status: http.StatusTooManyRequests, code: "too_many_requests",
			message: "this client sends too many requests", details: fmt.Sprintf("wait %d s", seconds)}
	}
	if unknown != nil {
		w.Header().Set("WWW-Authenticate", `Bearer realm="hyper2kvmd"`)
		if !errors.Is(unknown, auth.ErrMissing) && !errors.Is(unknown, auth.ErrUnknown) {
			return r, unknown
		}
		return r, &failure{status: http.StatusUnauthorized, code: "unauthorized", message: unknown.Error(),
			details: "send `Authorization: Bearer TOKEN`; h2kvmctl takes it from -token-file or H2KVMD_TOKEN, and `hyper2kvmd token add` makes one"}
	}
	if route.role != "" && !id.Role.May(route.role) {
		return r, &failure{status: http.StatusForbidden, code: "forbidden",
			message: fmt.Sprintf("the role %s may not do this", id.Role), details: fmt.Sprintf("use a token with the role %s", route.role)}
	}
	return r, nil
}

// refused writes a change that was not made, and why, into the audit log. An
// empty action is no change.
func (a *api) refused(r *http.Request, action string, err error) {
	if action == "" {
		return
	}
	status, d := describe(err)
	outcome := "failed: "
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		outcome = "denied: "
	case http.StatusTooManyRequests:
		n := a.throttled.add(time.Now())
		if n == 0 {
			return
		}
		outcome = "denied: "
		if n > 1 {
			outcome = fmt.Sprintf("denied, and %d more since the last such line: ", n-1)
		}
	}
	a.audit(r, action, nil, outcome+d.Message)
}

// tally sums up what would flood the audit log.
type tally struct {
	mu   sync.Mutex
	n    int
	said time.Time
}

// tallyEvery is how often a sum is told.
const tallyEvery = 10 * time.Second

// add counts one more and gives the sum when it is to be told, else 0.
func (t *tally) add(now time.Time) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
	if now.Sub(t.said) < tallyEvery {
		return 0
	}
	n := t.n
	t.n, t.said = 0, now
	return n
}

// audit writes one line on a change: who, from where, what to which jobs, and
// how it ended. When is the line's time.
func (a *api) audit(r *http.Request, action string, targets []string, outcome string) {
	id, ok := r.Context().Value(identityKey{}).(auth.Identity)
	if !ok {
		id = auth.Identity{Who: "unknown"}
	}
	list := strings.Join(targets[:min(len(targets), maxTargets)], " ")
	if n := len(targets) - maxTargets; n > 0 {
		list += fmt.Sprintf(" and %d more", n)
	}
	a.opts.Audit.Info("audit", slog.String("who", id.Who), slog.String("id", id.ID), slog.String("role", string(id.Role)),
		slog.String("remote", auth.Remote(r.Context(), r.RemoteAddr)),
		slog.String("action", action), slog.String("jobs", list), slog.String("outcome", outcome))
}

// secure sets the headers that keep browsers from doing anything with an
// answer but what it is meant for. A handler may replace them.
//
// Strict-Transport-Security is left out on purpose: it binds a host with all
// its ports, and other services of that host may have no TLS.
func secure(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}
