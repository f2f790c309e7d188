package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/progress"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

// The server ends an abandoned session by itself.
const (
	// closeTimeout bounds a logout.
	closeTimeout = 5 * time.Second
	// closeAllTimeout bounds those of Close, which the end of a daemon waits for.
	closeAllTimeout = time.Second
)

// Options say which vCenters a Runner knows.
type Options struct {
	// Default gives the vCenter of jobs that name none. It is asked each time
	// a session is opened, so that an error ("GOVC_URL is not set") reaches
	// the job that needs it.
	Default func() (vsphere.Config, error)
	// Named are the vCenters of the configuration.
	Named  map[string]vsphere.Config
	Logger *slog.Logger
	// Observe gives what counts the dealings with a host of a vCenter, named as
	// models.Definition.VCenterName does; nil is nobody.
	Observe func(vcenter, host string) Observer
}

// Runner exports jobs and lists VMs. Jobs of one vCenter share its session;
// a job that brings its own credentials has its own. Its methods are safe for
// concurrent use.
type Runner struct {
	opts Options

	mu       sync.Mutex
	sessions map[string]*session // "" is the default vCenter
}

// session is one shared client; its lock is held while it connects, so that
// jobs that start together log in once.
type session struct {
	mu     sync.Mutex
	client *vsphere.Client
}

// New returns a Runner. It connects when the first job needs it.
func New(opts Options) *Runner {
	return &Runner{opts: opts, sessions: map[string]*session{}}
}

// Run is part of jobs.Runner.
func (r *Runner) Run(ctx context.Context, spec jobs.Spec, sink progress.Sink) (models.Result, error) {
	def := spec.Definition
	if err := checkDefinition(def); err != nil {
		return models.Result{}, err
	}
	result, err := r.run(ctx, spec, sink)
	return result, place(err, def.VCenter)
}

// settings are the keys of a configured vCenter, and of one that came with a
// job, for the variables that vsphere's advice names.
var settings = strings.NewReplacer("GOVC_URL", "server", "GOVC_USERNAME", "username", "GOVC_PASSWORD", "password",
	"GOVC_TLS_KNOWN_HOSTS", "known_hosts", "GOVC_TLS_CA_CERTS", "ca_certs", "GOVC_INSECURE=1", "insecure: true", "GOVC_INSECURE", "insecure")

// place has an error's advice speak of where the vCenter's settings come from.
func place(err error, vc *models.VCenter) error {
	p, ok := errors.AsType[*problem.Error](err)
	if !ok || vc == nil || !strings.Contains(p.Advice, "GOVC_") {
		return err
	}
	of := " (of the job's vcenter)"
	if vc.Name != "" {
		of = fmt.Sprintf(" (of vCenter %q in the daemon's configuration)", vc.Name)
	}
	said := *p
	said.Advice = settings.Replace(p.Advice) + of
	return &said
}

func (r *Runner) run(ctx context.Context, spec jobs.Spec, sink progress.Sink) (models.Result, error) {
	def := spec.Definition
	if vc := def.VCenter; vc != nil && vc.Name == "" {
		cfg, err := inline(vc)
		if err != nil {
			return models.Result{}, err
		}
		client, err := vsphere.Connect(ctx, cfg, r.opts.Logger)
		if err != nil {
			return models.Result{}, err
		}
		defer r.logout(ctx, client)
		return Export(ctx, client, def, r.bounds(spec), sink)
	}
	client, err := r.client(ctx, nameOf(def.VCenter))
	if err != nil {
		return models.Result{}, err
	}
	return Export(ctx, client, def, r.bounds(spec), sink)
}

func (r *Runner) bounds(spec jobs.Spec) Bounds {
	b := Bounds{Pace: spec.Pace, OutputRoot: spec.OutputRoot}
	if r.opts.Observe != nil {
		vcenter := spec.Definition.VCenterName()
		b.Observe = func(host string) Observer { return r.opts.Observe(vcenter, host) }
	}
	return b
}

// ListVMs gives the VMs of the vCenter of that name, "" for the default one.
func (r *Runner) ListVMs(ctx context.Context, vcenter string) ([]models.VM, error) {
	var vc *models.VCenter
	if vcenter != "" {
		vc = &models.VCenter{Name: vcenter}
	}
	var list []vsphere.VMSummary
	client, err := r.client(ctx, vcenter)
	if err == nil {
		list, err = client.ListVMs(ctx)
	}
	if err != nil {
		return nil, place(err, vc)
	}
	return VMs(list), nil
}

// VMs turns inventory rows into the API's.
func VMs(list []vsphere.VMSummary) []models.VM {
	out := make([]models.VM, len(list))
	for i, v := range list {
		out[i] = models.VM{
			Path: v.Path, Name: v.Name, MoRef: v.MoRef, UUID: v.InstanceUUID, PowerState: v.PowerState,
			GuestOS: v.GuestOS, CPUs: v.CPUs, MemoryMB: v.MemoryMB, Storage: v.Committed,
			Template: v.Template, Snapshots: v.HasSnapshots, Firmware: v.Firmware,
		}
	}
	return out
}

// Close logs all shared sessions out, for at most a second. Nobody may use the
// Runner any more.
func (r *Runner) Close() error {
	r.mu.Lock()
	sessions := slices.Collect(maps.Values(r.sessions))
	r.sessions = map[string]*session{}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), closeAllTimeout)
	defer cancel()
	var errs []error
	for _, s := range sessions {
		s.mu.Lock()
		if s.client != nil {
			errs = append(errs, s.client.Close(ctx))
			s.client = nil
		}
		s.mu.Unlock()
	}
	return errors.Join(errs...)
}

func nameOf(vc *models.VCenter) string {
	if vc == nil {
		return ""
	}
	return vc.Name
}

func (r *Runner) client(ctx context.Context, name string) (*vsphere.Client, error) {
	r.mu.Lock()
	s := r.sessions[name]
	if s == nil {
		s = &session{}
		r.sessions[name] = s
	}
	r.mu.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		return s.client, nil
	}
	cfg, err := r.config(name)
	if err != nil {
		return nil, err
	}
	s.client, err = vsphere.Connect(ctx, cfg, r.opts.Logger)
	return s.client, err
}

func (r *Runner) config(name string) (vsphere.Config, error) {
	if name == "" {
		return r.opts.Default()
	}
	cfg, ok := r.opts.Named[name]
	if !ok {
		known := slices.Sorted(maps.Keys(r.opts.Named))
		return cfg, problem.New(problem.Invalid, fmt.Sprintf("use vCenter %q", name),
			errors.New("the configuration does not know it"), "known are: "+strings.Join(known, ", "))
	}
	return cfg, nil
}

func (r *Runner) logout(ctx context.Context, c *vsphere.Client) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := c.Close(ctx); err != nil {
		r.opts.Logger.Warn("could not log out", slog.String("error", err.Error()))
	}
}

// inline makes the configuration of a job's own vCenter.
func inline(vc *models.VCenter) (vsphere.Config, error) {
	u, user, pass, err := vsphere.ParseURL(vc.Server)
	if err != nil {
		return vsphere.Config{}, err
	}
	cfg := vsphere.Config{URL: u, Username: user, Password: pass}
	if vc.Username != "" {
		cfg.Username = vc.Username
	}
	if vc.Password != "" {
		cfg.Password = vc.Password
	}
	cfg.Insecure = is(vc.Insecure)
	return cfg, nil
}
