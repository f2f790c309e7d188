package hyper2kvmd

import (
	"context"
	"log/slog"
	"reflect"
	"sync"

	"github.com/hyper2kvm/hyper2kvm/daemon/api"
	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/progress"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

// worker is what runs jobs and lists VMs: a *runner.Runner.
type worker interface {
	jobs.Runner
	api.VMLister
	Close() error
}

// exchange is a worker whose vCenters can be exchanged while it works: what
// has begun goes on with those it began with. Its methods are safe for
// concurrent use.
type exchange struct {
	log   *slog.Logger
	fresh func(named map[string]vsphere.Config) worker

	mu      sync.Mutex
	current *shift
}

// shift is one worker with those who use it. It is closed when a newer one has
// come and the last user has gone.
type shift struct {
	worker
	named   map[string]vsphere.Config
	users   int
	retired bool
}

// use puts a worker with these vCenters in place, unless they are what it has
// already.
func (e *exchange) use(named map[string]vsphere.Config) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.current != nil && reflect.DeepEqual(e.current.named, named) {
		return
	}
	e.retire()
	e.current = &shift{worker: e.fresh(named), named: named}
}

// close lets the worker go. What is under way must have ended.
func (e *exchange) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.retire()
}

// retire ends the current shift, if nobody uses it now. The caller holds mu.
func (e *exchange) retire() {
	if s := e.current; s != nil {
		s.retired = true
		if s.users == 0 {
			e.end(s)
		}
	}
}

func (e *exchange) end(s *shift) {
	if err := s.Close(); err != nil {
		e.log.Warn("could not log out", slog.String("error", err.Error()))
	}
}

// begin gives the current worker; done gives it back.
func (e *exchange) begin() (w worker, done func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.current
	s.users++
	return s.worker, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if s.users--; s.users == 0 && s.retired {
			e.end(s)
		}
	}
}

// Run is part of jobs.Runner.
func (e *exchange) Run(ctx context.Context, spec jobs.Spec, sink progress.Sink) (models.Result, error) {
	w, done := e.begin()
	defer done()
	return w.Run(ctx, spec, sink)
}

// ListVMs is part of api.VMLister.
func (e *exchange) ListVMs(ctx context.Context, vcenter string) ([]models.VM, error) {
	w, done := e.begin()
	defer done()
	return w.ListVMs(ctx, vcenter)
}
