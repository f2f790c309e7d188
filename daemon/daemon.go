// Package daemon is the composition root of hyper2kvmd: it puts store,
// manager and API together, and starts and stops them in the right order.
// Runner and VMLister come from the command: this package does not know
// vSphere.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/api"
	"github.com/hyper2kvm/hyper2kvm/daemon/auth"
	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/daemon/metrics"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/daemon/store/memory"
	"github.com/hyper2kvm/hyper2kvm/daemon/store/sqlite"
	"github.com/hyper2kvm/hyper2kvm/internal/config"
	"github.com/hyper2kvm/hyper2kvm/internal/pace"
	"github.com/hyper2kvm/hyper2kvm/internal/systemd"
)

const (
	// jobsTimeout is how long running jobs may take to stop: a lease is
	// released and a snapshot removed on deadlines of their own.
	// The daemon ends within 10 s of being told to.
	jobsTimeout = 7 * time.Second
	// httpTimeout is how long answers under way may take after that. What is
	// left of the 10 s is for logging out and for closing the store.
	httpTimeout = time.Second
	// pruneEvery is how often jobs that are too old are looked for.
	pruneEvery = time.Hour
)

// Config is the daemon's configuration.
type Config = config.Config

// Options are what Run needs. Config, Runner and VMLister are required.
type Options struct {
	Config   Config
	Runner   jobs.Runner
	VMLister api.VMLister
	Logger   *slog.Logger // nil discards
	// Audit gets a line for every change, whatever the level of Logger; nil
	// discards.
	Audit *slog.Logger
	// Ready is called once, with the address that is listened on (HOST:PORT),
	// before the first request is served. It may be nil.
	Ready func(addr string)
	// Reload asks, each time it sends, to read the configuration again by
	// Load. Load gives it with what its other users are to do once it is in
	// force. A nil channel never asks.
	Reload <-chan os.Signal
	// Notify tells the service manager how the daemon is; nil tells nobody.
	Notify *systemd.Notifier
	// Metrics are told to Prometheus; nil gives an empty set.
	Metrics *metrics.Metrics
	Load    func() (cfg Config, inForce func(), err error)
}

// Run serves until ctx ends. Then it stops in this order: no new connections
// and no new jobs; running jobs are cancelled and waited for; event streams
// and answers under way end. The error is nil after a clean stop. An address
// that cannot be listened on, or may not be, is a *problem.Error.
func Run(ctx context.Context, opts Options) error {
	log, audit := opts.Logger, opts.Audit
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if audit == nil {
		audit = slog.New(slog.DiscardHandler)
	}
	notify := opts.Notify
	if notify == nil {
		notify = &systemd.Notifier{}
	}
	counts := opts.Metrics
	if counts == nil {
		counts = metrics.New()
	}
	cfg := opts.Config
	where, err := resolve(ctx, cfg.Addr)
	if err != nil {
		return err
	}
	s, err := newSettings(cfg, where.exposed, nil, log, audit)
	if err != nil {
		return err
	}
	live := &live{limiter: auth.NewLimiter(float64(cfg.RateLimit.PerSecond), cfg.RateLimit.Burst)}
	live.current.Store(s)
	listener, err := where.listen(ctx)
	if err != nil {
		return err
	}
	var socket net.Listener
	if cfg.UnixSocket != "" {
		if socket, err = auth.ListenUnix(ctx, cfg.UnixSocket); err != nil {
			return errors.Join(err, listener.Close())
		}
	}
	warn(s, log)
	kept, closeStore, err := openStore(ctx, cfg, log)
	if err != nil {
		err = errors.Join(err, listener.Close())
		if socket != nil {
			err = errors.Join(err, socket.Close())
		}
		return err
	}
	know := func(cfg Config) {
		for name := range cfg.VCenters {
			counts.Know(name)
		}
	}
	know(cfg)
	manager := jobs.NewManager(jobs.Options{ //nolint:contextcheck // jobs outlive ctx: stop ends them in order
		Runner: worker{opts.Runner, live}, Store: kept, Durable: cfg.StateDir != "", Logger: log,
		MaxRunning: cfg.MaxRunning, Limits: pace.New(paceOf(cfg)), OnEnd: counts.Ended,
	})
	handler := api.NewHandler(api.Options{Manager: queue{manager, live}, VMs: lister{opts.VMLister, ctx}, Logger: log, Audit: audit, Access: live,
		Metrics: counts.Handler(manager, log)})
	// Requests outlive ctx: they end when the jobs have been told to.
	server := api.NewServer(handler, log)
	server.TLSConfig = live.tlsConfig()
	overTLS := server.TLSConfig != nil // serving gives it one in any case
	addr := listener.Addr().String()
	if opts.Ready != nil {
		opts.Ready(addr)
	}
	served := serve(server, listener, overTLS, socket)
	// Also while it stops: the service manager has a limit of its own for that.
	watching, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	var watchdog sync.WaitGroup
	watchdog.Go(func() {
		notify.Watch(watching, func(ctx context.Context) error {
			_, err := manager.Status(ctx) // asks the store
			return err
		})
	})
	defer watchdog.Wait()
	defer unwatch()
	notify.Ready("Serving " + addr)
	log.Info("daemon started", slog.String("addr", addr), slog.String("unixSocket", cfg.UnixSocket), slog.Bool("tls", overTLS),
		slog.Bool("authentication", s.who.Required()), slog.Int("maxRunningJobs", cfg.MaxRunning))

	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case err = <-served:
			err = fmt.Errorf("serve: %w", err)
			served = nil
			running = false
		case <-opts.Reload:
			notify.Reloading()
			if reload(opts, live, log, audit) {
				now := live.current.Load().cfg
				manager.SetLimits(now.MaxRunning, paceOf(now))
				know(now)
			}
			notify.Ready("Serving " + addr)
		}
	}
	log.Info("daemon stopping")
	notify.Stopping()
	// The store is closed when nobody uses it any more: a manager that did not
	// end in time still does, and its records are safe without that.
	err = errors.Join(err, stop(context.WithoutCancel(ctx), server, manager, cfg.StateDir != "", served, log))
	return errors.Join(err, closeStore())
}

// openStore opens the job store in the state folder, or one that ends with the
// process when there is none, and removes old jobs from time to time until it
// is closed.
func openStore(ctx context.Context, cfg Config, log *slog.Logger) (s jobs.Store, closeStore func() error, err error) {
	if cfg.StateDir == "" {
		log.Warn("no state folder: jobs are forgotten when the daemon ends")
		return memory.New(cfg.Retention.Jobs), func() error { return nil }, nil
	}
	db, err := sqlite.Open(ctx, cfg.StateDir)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var pruning sync.WaitGroup
	pruning.Go(func() {
		for ctx.Err() == nil {
			prune(ctx, db, cfg.Retention, log)
			select {
			case <-ctx.Done():
			case <-time.After(pruneEvery):
			}
		}
	})
	return db, func() error {
		cancel()
		pruning.Wait()
		return db.Close()
	}, nil
}

func prune(ctx context.Context, s jobs.Store, r config.Retention, log *slog.Logger) {
	var before time.Time
	if r.Days > 0 {
		before = time.Now().AddDate(0, 0, -r.Days)
	}
	n, err := s.Prune(ctx, before, r.Jobs)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		log.Error("could not remove old jobs", slog.String("error", err.Error()))
	case n > 0:
		log.Info("removed old jobs", slog.Int("jobs", n))
	}
}

// serve serves each listener in a goroutine of its own. The first error is
// sent once all have ended or, when it is not the server's end, at once: the
// others then end with the server.
func serve(server *http.Server, tcp net.Listener, overTLS bool, socket net.Listener) <-chan error {
	ended := make(chan error, 1)
	var wg sync.WaitGroup
	begin := func(f func() error) {
		wg.Go(func() {
			if err := f(); !errors.Is(err, http.ErrServerClosed) {
				select {
				case ended <- err:
				default:
				}
			}
		})
	}
	begin(func() error {
		if overTLS {
			return server.ServeTLS(tcp, "", "") // the certificate is in the config
		}
		return server.Serve(tcp)
	})
	if socket != nil {
		begin(func() error { return server.Serve(socket) })
	}
	go func() {
		wg.Wait()
		select {
		case ended <- http.ErrServerClosed:
		default:
		}
	}()
	return ended
}

// paceOf gives the bounds of streams and bandwidth.
func paceOf(cfg Config) pace.Settings {
	return pace.Settings{StreamsPerHost: cfg.StreamsPerHost, Streams: cfg.MaxStreams, Bandwidth: int64(cfg.Bandwidth)}
}

// reload puts the configuration, read anew, in force, or says why not.
func reload(opts Options, live *live, log, audit *slog.Logger) (done bool) {
	outcome := "done"
	cfg, inForce, err := opts.Load()
	if err == nil {
		err = live.apply(cfg, log, audit)
	}
	if err != nil {
		outcome = "failed"
		log.Error("the configuration was not reloaded, what was read before stays in force", slog.String("error", err.Error()))
	} else {
		if inForce != nil {
			inForce()
		}
		log.Info("the configuration was reloaded", slog.String("file", cfg.File))
	}
	audit.Info("audit", slog.String("who", "signal:SIGHUP"), slog.String("action", "reload configuration"), slog.String("outcome", outcome))
	return err == nil
}

// lister is a VMLister whose lists end with the daemon: a vCenter that does not
// answer must not hold it up.
type lister struct {
	api.VMLister
	daemon context.Context //nolint:containedctx // the other of two that end a call
}

// ListVMs is part of api.VMLister.
func (l lister) ListVMs(ctx context.Context, vcenter string) ([]models.VM, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.daemon, cancel)() //nolint:contextcheck // the other of the two
	vms, err := l.VMLister.ListVMs(ctx, vcenter)
	if err != nil && l.daemon.Err() != nil {
		err = fmt.Errorf("%w: %w", jobs.ErrStopping, err)
	}
	return vms, err
}

// stop ends server and manager within jobsTimeout and httpTimeout. Jobs that do
// not end in time are left to the next start, if the store outlives this one.
func stop(ctx context.Context, server *http.Server, manager *jobs.Manager, durable bool, served <-chan error, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	shut := make(chan error, 1)
	// Shutdown closes the listener at once and then waits for the connections,
	// of which event streams end only with the manager.
	go func() { shut <- server.Shutdown(ctx) }()

	jobsCtx, jobsCancel := context.WithTimeout(ctx, jobsTimeout)
	defer jobsCancel()
	err := manager.Close(jobsCtx)
	switch {
	case err == nil:
	case durable:
		log.Warn("not all jobs stopped in time: they continue when the daemon starts again, and leases that could not be given back end at the host by themselves",
			slog.String("error", err.Error()))
		err = nil
	default:
		err = fmt.Errorf("stop jobs: %w", err)
	}
	timer := time.AfterFunc(httpTimeout, cancel)
	defer timer.Stop()
	if shutErr := <-shut; shutErr != nil {
		err = errors.Join(err, fmt.Errorf("end answers under way within %s: %w", httpTimeout, shutErr), server.Close())
	}
	if served != nil {
		if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
			err = errors.Join(err, fmt.Errorf("serve: %w", serveErr))
		}
	}
	if err == nil {
		log.Info("daemon stopped")
	}
	return err
}
