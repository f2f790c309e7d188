package api

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof" // it registers with the default mux, too, which is not served
	"net/url"
	runtimepprof "runtime/pprof"
	"strconv"

	"github.com/hyper2kvm/hyper2kvm/daemon/auth"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const (
	// profilePath begins the paths that only clients of this machine see.
	profilePath = "/debug/pprof/"
	// maxProfile is how long a profile may be taken, in seconds.
	maxProfile = 60
)

// onlyHere makes a route that there is for clients of this machine: to others
// it is a path like any that does not exist.
func (a *api) onlyHere(r route) http.Handler {
	here, elsewhere := a.serve(r), a.serve(a.elsewhere())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if auth.Local(r) {
			here.ServeHTTP(w, r)
		} else {
			elsewhere.ServeHTTP(w, r)
		}
	})
}

// profiles lists the profiles, as a page with links.
func (a *api) profiles(w http.ResponseWriter, r *http.Request) (any, error) {
	pprof.Index(w, r)
	return nil, nil
}

// profile takes one. Those that take their time are taken one by one.
func (a *api) profile(w http.ResponseWriter, r *http.Request) (any, error) {
	name := r.PathValue("profile")
	q := r.URL.Query()
	seconds, err := number(q, "seconds", 1, maxProfile)
	if err != nil {
		return nil, err
	}
	debug, err := number(q, "debug", 0, 2)
	if err != nil {
		return nil, err
	}
	if _, err := number(q, "gc", 0, 1); err != nil {
		return nil, err
	}
	handle := pprof.Handler(name).ServeHTTP
	switch name {
	case "cmdline":
		handle = pprof.Cmdline
	case "symbol":
		handle = pprof.Symbol
	case "profile", "trace":
		handle = pprof.Profile
		if name == "trace" {
			handle = pprof.Trace
		}
		seconds = max(1, seconds) // both have a default
	default:
		if runtimepprof.Lookup(name) == nil {
			return nil, problem.New(problem.NotFound, "take a profile", fmt.Errorf("there is no profile %.40q", name), "see "+profilePath)
		}
		if seconds > 0 && debug > 0 {
			return nil, problem.New(problem.Invalid, "take a profile", errors.New("seconds and debug exclude each other"), "")
		}
	}
	if seconds > 0 {
		if !a.profiling.TryLock() {
			return nil, problem.New(problem.Conflict, "take a profile", errors.New("another one is being taken"), fmt.Sprintf("wait, at most %d s", maxProfile))
		}
		defer a.profiling.Unlock()
	}
	a.audit(r, "take profile", nil, "done: "+name)
	handle(w, r)
	return nil, nil
}

// number reads a parameter of a query; 0 when it is not given.
func number(q url.Values, name string, low, high int) (int, error) {
	if !q.Has(name) {
		return 0, nil
	}
	n, err := strconv.Atoi(q.Get(name))
	if err != nil || n < low || n > high {
		return 0, problem.New(problem.Invalid, "take a profile", fmt.Errorf("%s is %.40q, want %d to %d", name, q.Get(name), low, high), "")
	}
	return n, nil
}
