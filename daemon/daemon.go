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
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/api"
	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/daemon/store/memory"
	"github.com/hyper2kvm/hyper2kvm/internal/config"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const (
	// jobsTimeout is how long running jobs may take to stop: a lease is
	// released and a snapshot removed on deadlines of their own.
	jobsTimeout = 25 * time.Second
	// httpTimeout is how long answers under way may take after that.
	httpTimeout = 10 * time.Second
)

// Config is the daemon's configuration.
type Config = config.Config

// Options are what Run needs. Config, Runner and VMLister are required.
type Options struct {
	Config   Config
	Runner   jobs.Runner
	VMLister api.VMLister
	Logger   *slog.Logger // nil discards
	// Ready is called once, with the address that is listened on (HOST:PORT),
	// before the first request is served. It may be nil.
	Ready func(addr string)
}

// Run serves until ctx ends. Then it stops in this order: no new connections
// and no new jobs; running jobs are cancelled and waited for; event streams
// and answers under way end. The error is nil after a clean stop. An address
// that cannot be listened on is a *problem.Error.
func Run(ctx context.Context, opts Options) error {
	log := opts.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	listener, host, err := listen(ctx, opts.Config.Addr)
	if err != nil {
		return err
	}
	for _, w := range opts.Config.Warnings {
		log.Warn("configuration", slog.String("warning", w))
	}
	manager := jobs.NewManager(jobs.Options{ //nolint:contextcheck // jobs outlive ctx: stop ends them in order
		Runner: opts.Runner, Store: memory.New(0), Logger: log, MaxRunning: opts.Config.MaxRunning,
		Defaults: opts.Config.Defaults, VCenters: vcenterNames(opts.Config),
	})
	handler := api.NewHandler(api.Options{Manager: manager, VMs: opts.VMLister, Logger: log, Hosts: []string{host}})
	// Requests outlive ctx: they end when the jobs have been told to.
	server := api.NewServer(handler, log)
	served := make(chan error, 1)
	addr := listener.Addr().String()
	if opts.Ready != nil {
		opts.Ready(addr)
	}
	go func() { served <- server.Serve(listener) }()
	log.Info("daemon started", slog.String("addr", addr), slog.Int("maxRunningJobs", opts.Config.MaxRunning))

	select {
	case <-ctx.Done():
	case err = <-served:
		err = fmt.Errorf("serve %s: %w", addr, err)
		served = nil
	}
	log.Info("daemon stopping")
	return errors.Join(err, stop(context.WithoutCancel(ctx), server, manager, served, log))
}

// stop ends server and manager within jobsTimeout and httpTimeout.
func stop(ctx context.Context, server *http.Server, manager *jobs.Manager, served <-chan error, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	shut := make(chan error, 1)
	// Shutdown closes the listener at once and then waits for the connections,
	// of which event streams end only with the manager.
	go func() { shut <- server.Shutdown(ctx) }()

	jobsCtx, jobsCancel := context.WithTimeout(ctx, jobsTimeout)
	defer jobsCancel()
	err := manager.Close(jobsCtx)
	if err != nil {
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

func vcenterNames(c Config) []string {
	names := slices.Sorted(maps.Keys(c.VCenters))
	if names == nil {
		names = []string{} // none, not any
	}
	return names
}

// listen opens the daemon's address, which must be one of the loopback, and
// gives the host's name as it was asked for. Names are resolved here, once,
// so that what was judged is what is listened on.
func listen(ctx context.Context, addr string) (net.Listener, string, error) {
	what := "listen on " + addr
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, "", problem.New(problem.Invalid, what, err, "give -addr as HOST:PORT")
	}
	const why = "only loopback addresses are served, because the API has neither tokens nor TLS yet"
	refuse := func() error {
		return problem.New(problem.Invalid, what, errors.New(why), "use localhost:PORT, and reach it from elsewhere through an ssh tunnel")
	}
	if host == "" {
		return nil, "", refuse() // all interfaces
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, "", problem.New(problem.Invalid, what, err, "give -addr as HOST:PORT")
	}
	// IPv4 first: what clients try when they are told "localhost".
	slices.SortStableFunc(ips, func(a, b netip.Addr) int { return a.Unmap().BitLen() - b.Unmap().BitLen() })
	for _, ip := range ips {
		if !ip.Unmap().IsLoopback() {
			return nil, "", refuse()
		}
	}
	var lc net.ListenConfig
	var first error
	for _, ip := range ips {
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(ip.Unmap().String(), port))
		if err == nil {
			return l, host, nil
		}
		if first == nil {
			first = err
		}
		if errors.Is(err, syscall.EADDRINUSE) {
			// Not the next address: clients would reach the other program.
			return nil, "", problem.New(problem.Conflict, what, err, "another program uses the port: stop it, or choose another with -addr")
		}
	}
	return nil, "", problem.New(problem.Failed, what, first, "")
}
