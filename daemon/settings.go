package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/auth"
	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/roots"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

// settings is what the configuration says about who may do what. It is
// constant: a reload puts another one in its place.
type settings struct {
	cfg     Config
	exposed bool // others than this machine's own users reach the daemon
	who     *auth.Authenticator
	certs   *auth.Certificates // nil without TLS
	roots   *roots.Roots
	hosts   []string
}

// newSettings reads the files that cfg names. What before, which may be nil,
// has read from the same files is kept and read again.
func newSettings(cfg Config, exposed bool, before *settings, log, audit *slog.Logger) (*settings, error) {
	s := &settings{cfg: cfg, exposed: exposed, hosts: slices.Clone(cfg.Hosts)}
	if host := hostOf(cfg.Addr); host != "" {
		s.hosts = append(s.hosts, strings.ToLower(host))
	}
	var err error
	if s.roots, err = roots.New(cfg.OutputRoots, cfg.StateDir); err != nil {
		return nil, err
	}
	if before != nil && before.cfg.TokensFile == cfg.TokensFile && reflect.DeepEqual(before.cfg.TLS, cfg.TLS) {
		s.who = before.who
		if err := s.who.Reload(); err != nil {
			return nil, err
		}
	} else if s.who, err = auth.NewAuthenticator(auth.Options{
		TokenFile: cfg.TokensFile, ClientCerts: cfg.TLS.ClientCA != "", Viewers: cfg.TLS.Viewers, Logger: log, Audit: audit,
	}); err != nil {
		return nil, err
	}
	switch t := cfg.TLS; {
	case t.Cert == "":
	case before != nil && before.cfg.TLS.Cert == t.Cert && before.cfg.TLS.Key == t.Key && before.cfg.TLS.ClientCA == t.ClientCA:
		s.certs = before.certs
		if err := s.certs.Reload(); err != nil {
			return nil, err
		}
	default:
		if s.certs, err = auth.LoadCertificates(t.Cert, t.Key, t.ClientCA, log); err != nil {
			return nil, err
		}
	}
	return s, s.checkExposure()
}

// checkExposure holds the rule that nobody from elsewhere gets in without
// being asked who they are, or in clear text.
func (s *settings) checkExposure() error {
	if !s.exposed || s.certs != nil && s.who.Required() {
		return nil
	}
	missing := "neither tokens nor TLS"
	switch {
	case s.certs != nil:
		missing = "neither tokens nor client certificates"
	case s.who.Required():
		missing = "no TLS"
	}
	return problem.New(problem.Invalid, "listen on "+s.cfg.Addr,
		fmt.Errorf("it is not a loopback address, and the configuration has %s", missing),
		"configure tls (cert, key) and tokens_file or tls.client_ca; or use localhost:PORT and reach it from elsewhere through an ssh tunnel")
}

// live is the settings in force, as the API, the queue and the listener see
// them.
type live struct {
	current atomic.Pointer[settings]
	limiter *auth.Limiter
}

// Identify is part of api.Access.
func (l *live) Identify(r *http.Request) (auth.Identity, error) {
	return l.current.Load().who.Identify(r)
}

// Allow is part of api.Access.
func (l *live) Allow(client string) (time.Duration, bool) { return l.limiter.Allow(client) }

// KnownHost is part of api.Access. A page from elsewhere can have its name
// point to the daemon, but not the name of a certificate or an address.
func (l *live) KnownHost(host string) bool {
	s := l.current.Load()
	if slices.Contains(s.hosts, host) {
		return true
	}
	if _, err := netip.ParseAddr(host); err == nil && s.exposed {
		return true
	}
	return s.certs != nil && s.certs.Serves(host)
}

// tlsConfig is for the server; nil without TLS.
func (l *live) tlsConfig() *tls.Config {
	if l.current.Load().certs == nil {
		return nil
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return l.current.Load().certs.Current(), nil // TLS stays on or off
		},
	}
}

// apply puts a configuration that was read anew in force. What cannot change
// while the daemon runs stays as it is, and the log says so. On an error
// nothing has changed.
func (l *live) apply(cfg Config, log, audit *slog.Logger) error {
	before := l.current.Load()
	keep := func(name string, changed bool, restore func()) {
		if changed {
			log.Warn("this setting does not change while the daemon runs: restart it", slog.String("setting", name))
			restore()
		}
	}
	old := before.cfg
	keep("addr", cfg.Addr != old.Addr, func() { cfg.Addr = old.Addr })
	keep("unix_socket", cfg.UnixSocket != old.UnixSocket, func() { cfg.UnixSocket = old.UnixSocket })
	keep("state_dir", cfg.StateDir != old.StateDir, func() { cfg.StateDir = old.StateDir })
	keep("retention", cfg.Retention != old.Retention, func() { cfg.Retention = old.Retention })
	keep("log_format", cfg.LogFormat != old.LogFormat, func() { cfg.LogFormat = old.LogFormat })
	if (cfg.TLS.Cert == "") != (old.TLS.Cert == "") {
		// Not merely kept: with the rest of the new file it could mean
		// something that nobody asked for.
		return problem.New(problem.Invalid, "reload configuration", errors.New("TLS cannot be turned on or off while the daemon runs"), "restart it")
	}
	s, err := newSettings(cfg, before.exposed, before, log, audit)
	if err != nil {
		return err
	}
	l.limiter.SetLimits(float64(cfg.RateLimit.PerSecond), cfg.RateLimit.Burst)
	l.current.Store(s)
	warn(s, log)
	return nil
}

// warn says what is worth a look in settings that are put in force.
func warn(s *settings, log *slog.Logger) {
	for _, w := range s.cfg.Warnings {
		log.Warn("configuration", slog.String("warning", w))
	}
	if s.cfg.TokensFile != "" && s.who.Tokens() == 0 {
		log.Warn("there is no token yet: make one with `hyper2kvmd token add`", slog.String("file", s.cfg.TokensFile))
	}
	if len(s.cfg.OutputRoots) == 0 && s.who.Required() {
		log.Warn("no output_roots are configured: jobs may write to any folder that this user may write to, but those of the system")
	}
}

// queue is the job manager behind the checks that the configuration asks for.
type queue struct {
	*jobs.Manager
	live *live
}

// Submit is part of api.Manager.
func (q queue) Submit(ctx context.Context, def models.Definition) (models.Job, error) {
	s := q.live.current.Load()
	if def.Check() == nil { // else the manager names the faults
		if v := def.VCenter; v != nil && v.Name != "" {
			if _, ok := s.cfg.VCenters[v.Name]; !ok {
				known := strings.Join(slices.Sorted(maps.Keys(s.cfg.VCenters)), ", ")
				if known == "" {
					known = "none"
				}
				return models.Job{}, problem.New(problem.Invalid, "submit job",
					fmt.Errorf("vcenter.name: the daemon's configuration knows no vCenter %q", v.Name), "known: "+known)
			}
		}
		if err := s.roots.Check(def.OutputPath); err != nil {
			return models.Job{}, err
		}
	}
	fillIn(&def.Options, s.cfg.Defaults)
	return q.Manager.Submit(ctx, def)
}

// fillIn sets the options that are nil, which every one of them can be. What
// they point to is shared: a configuration and a definition are constant.
func fillIn(o *models.Options, defaults models.Options) {
	to, from := reflect.ValueOf(o).Elem(), reflect.ValueOf(defaults)
	for i := range to.NumField() {
		if f := to.Field(i); f.IsNil() {
			f.Set(from.Field(i))
		}
	}
}

// worker is the runner behind the check of the output folder: between a job's
// submission and its beginning, links may have come; and while it runs the root
// holds it.
type worker struct {
	jobs.Runner
	live *live
}

// Run is part of jobs.Runner.
func (w worker) Run(ctx context.Context, spec jobs.Spec, sink progress.Sink) (models.Result, error) {
	allowed := w.live.current.Load().roots
	if err := allowed.Check(spec.Definition.OutputPath); err != nil {
		return models.Result{}, err
	}
	spec.OutputRoot = allowed.Of(spec.Definition.OutputPath)
	return w.Runner.Run(ctx, spec, sink)
}
