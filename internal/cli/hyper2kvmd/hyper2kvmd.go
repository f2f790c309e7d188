// Package hyper2kvmd is the body of the daemon's command line: it resolves the
// settings, joins vSphere to the daemon by a runner, and serves until it is
// told to stop.
package hyper2kvmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon"
	"github.com/hyper2kvm/hyper2kvm/daemon/metrics"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/config"
	"github.com/hyper2kvm/hyper2kvm/internal/logging"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/internal/runner"
	"github.com/hyper2kvm/hyper2kvm/internal/systemd"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

const name = "hyper2kvmd"

// Run serves the daemon with args, which do not hold the program's name, until
// ctx ends, and gives the exit code: exit.OK after a clean stop. The log goes
// to io.Err; banner and table of endpoints to io.Out, if that is a terminal.
func Run(ctx context.Context, args []string, io term.IO) int {
	io, written := io.Checked()
	d := &command{io: io}
	err := d.root().Run(ctx, append([]string{name}, args...))
	if err == nil {
		err = written()
	}
	// The end of ctx is the normal way to stop: an error after it is one.
	return exit.Report(context.WithoutCancel(ctx), io.Err, err)
}

// command is one run of hyper2kvmd.
type command struct{ io term.IO }

// Root gives the definition of the command line, for its manual page.
func Root(io term.IO) *cli.Command { return (&command{io: io}).root() }

func (d *command) root() *cli.Command {
	root := &cli.Command{
		Name:    name,
		Usage:   "serve a queue of exports with a REST API",
		Version: models.Version,
		Description: "Jobs that name no vCenter use the one of the environment: GOVC_URL, GOVC_USERNAME,\n" +
			"GOVC_PASSWORD, GOVC_INSECURE, GOVC_DATACENTER, GOVC_TLS_CA_CERTS, GOVC_TLS_KNOWN_HOSTS.\n\n" +
			"Without tokens and TLS only this machine is served. To serve others, give -tls-cert and\n" +
			"-tls-key, and -tokens-file (made by `hyper2kvmd token add`) or -tls-client-ca.\n\n" +
			"SIGHUP reads the configuration again: log level, tokens, certificates, vCenters, hosts,\n" +
			"defaults, output roots, the bounds of jobs, streams and bandwidth, and the rate limit change;\n" +
			"what does not is said in the log.\n" +
			"SIGINT and SIGTERM stop it: running jobs give their leases back, and continue at the next start.",
		Writer: d.io.Out, ErrWriter: d.io.Err, Reader: d.io.In,
		EnableShellCompletion:           true,
		ConfigureShellCompletionCommand: configureCompletion,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "addr", OnlyOnce: true, Local: true, Usage: "listen on `HOST:PORT` (env H2KVMD_ADDR; default " + config.DefaultAddr + ")"},
			&cli.StringFlag{Name: "unix-socket", OnlyOnce: true, Local: true, Usage: "listen on the unix socket `FILE`, too; its permissions rule who may use it (env H2KVMD_UNIX_SOCKET)"},
			&cli.StringFlag{Name: "config", OnlyOnce: true, Usage: "read the configuration from `FILE` (env H2KVMD_CONFIG; default " + config.DefaultFile + " if it exists)"},
			&cli.StringFlag{Name: "state", OnlyOnce: true, Usage: "keep jobs in the folder `DIR` (env H2KVMD_STATE; default /var/lib/hyper2kvm for root, else ~/.local/state/hyper2kvm)"},
			&cli.StringSliceFlag{Name: "output-root", Local: true, Usage: "let jobs write below the folder `DIR` only; may be repeated (env H2KVMD_OUTPUT_ROOTS, joined by colons)"},
			&cli.IntFlag{Name: "max-running-jobs", OnlyOnce: true, Local: true, Usage: fmt.Sprintf("run `N` jobs at once, 1 to %d (env H2KVMD_MAX_RUNNING_JOBS; default %d)", config.MaxRunningLimit, config.DefaultMaxRunning), HideDefault: true},
			&cli.StringFlag{Name: "streams-per-host", OnlyOnce: true, Local: true, Usage: fmt.Sprintf("open `N` streams of one ESXi host at once, 0 is no limit (env H2KVMD_STREAMS_PER_HOST; default %d)", config.DefaultStreamsPerHost)},
			&cli.StringFlag{Name: "max-streams", OnlyOnce: true, Local: true, Usage: "open `N` streams at once in all, 0 is no limit (env H2KVMD_MAX_STREAMS; default 0)"},
			&cli.StringFlag{Name: "bandwidth", OnlyOnce: true, Local: true, Usage: "take at most `RATE` in all, such as 200MB/s; 0 is no limit (env H2KVMD_BANDWIDTH; default 0)"},
			&cli.StringFlag{Name: "tokens-file", OnlyOnce: true, Usage: "ask for tokens, whose hashes are in `FILE` (env H2KVMD_TOKENS_FILE)"},
			&cli.StringFlag{Name: "tls-cert", OnlyOnce: true, Local: true, Usage: "serve HTTPS with the certificate and its chain in `FILE` (PEM; env H2KVMD_TLS_CERT)"},
			&cli.StringFlag{Name: "tls-key", OnlyOnce: true, Local: true, Usage: "its key is in `FILE` (PEM; env H2KVMD_TLS_KEY)"},
			&cli.StringFlag{Name: "tls-client-ca", OnlyOnce: true, Local: true, Usage: "let clients in by certificates of the authority in `FILE` (PEM; env H2KVMD_TLS_CLIENT_CA)"},
			&cli.StringFlag{Name: "log-format", OnlyOnce: true, Local: true, Usage: "write the log as `FORMAT`: text or json (env H2KVMD_LOG_FORMAT)"},
			&cli.BoolFlag{Name: "debug", Local: true, Usage: "log more (env H2KVMD_LOG_LEVEL=debug)"},
			&cli.BoolFlag{Name: "check-config", Local: true, Usage: "check the configuration and the files it names, and end"},
			&cli.BoolFlag{Name: "no-color", Usage: "no banner and colours, also on a terminal (env NO_COLOR)"},
		},
		Commands: []*cli.Command{d.tokenCommand(), d.backupCommand()},
		Before: func(ctx context.Context, cmd *cli.Command) (context.Context, error) {
			d.io.NoColor = d.io.NoColor || cmd.Bool("no-color")
			return ctx, nil
		},
		Action: d.serve,
	}
	exit.Commands(root)
	return root
}

// defaultState is where state is kept when nobody says where: systemd's
// StateDirectory, the system's folder for root, else the user's.
func (d *command) defaultState() string {
	if given, _, _ := strings.Cut(d.io.Getenv("STATE_DIRECTORY"), ":"); filepath.IsAbs(given) {
		return given
	}
	if os.Geteuid() == 0 {
		return "/var/lib/hyper2kvm"
	}
	if state := d.io.Getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, "hyper2kvm")
	}
	if home := d.io.Getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "hyper2kvm")
	}
	return ""
}

// flags gives what the command line says.
func (d *command) flags(cmd *cli.Command) config.Flags {
	return config.Flags{
		DefaultState: d.defaultState(),
		Addr:         cmd.String("addr"), UnixSocket: cmd.String("unix-socket"),
		ConfigFile: cmd.String("config"), DefaultFile: config.DefaultFile, StateDir: cmd.String("state"),
		OutputRoots: cmd.StringSlice("output-root"), MaxRunning: cmd.Int("max-running-jobs"), TokensFile: cmd.String("tokens-file"),
		StreamsPerHost: cmd.String("streams-per-host"), MaxStreams: cmd.String("max-streams"), Bandwidth: cmd.String("bandwidth"),
		TLS:       config.TLS{Cert: cmd.String("tls-cert"), Key: cmd.String("tls-key"), ClientCA: cmd.String("tls-client-ca")},
		LogFormat: cmd.String("log-format"), Debug: cmd.Bool("debug"),
	}
}

func (d *command) serve(ctx context.Context, cmd *cli.Command) (err error) {
	if cmd.Args().Present() {
		return exit.UnknownCommand(cmd.Root(), cmd.Args().First())
	}
	if n := cmd.Int("max-running-jobs"); cmd.IsSet("max-running-jobs") && n == 0 {
		return exit.UsageError(errors.New("-max-running-jobs is 0"), fmt.Sprintf("give 1 to %d", config.MaxRunningLimit))
	}
	given := d.flags(cmd)
	if cmd.Bool("check-config") {
		return d.check(ctx, given)
	}
	cfg, named, err := d.load(given)
	if err != nil {
		return err
	}
	level := &slog.LevelVar{}
	level.Set(cfg.LogLevel)
	log := slog.New(logging.New(d.io.Err, level, cfg.LogFormat))
	// The audit log is complete whatever the level of the rest.
	audit := slog.New(logging.New(d.io.Err, slog.LevelInfo, cfg.LogFormat))
	counts := metrics.New()
	jobs := &exchange{log: log, fresh: func(named map[string]vsphere.Config) worker {
		return runner.New(runner.Options{
			Default: func() (vsphere.Config, error) { return vsphere.ConfigFromEnv(d.io.Getenv) },
			Named:   named, Logger: log,
			Observe: func(vcenter, host string) runner.Observer { return counts.Host(vcenter, host) },
		})
	}}
	jobs.use(named)
	defer jobs.close()

	// From here on SIGHUP, which would end the process, asks for a reload.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	err = daemon.Run(ctx, daemon.Options{
		Config: cfg, Runner: jobs, VMLister: jobs, Logger: log, Audit: audit,
		Ready:  func(addr string) { d.welcome(addr, cfg) },
		Reload: hangups, Notify: systemd.New(d.io.Getenv, log), Metrics: counts,
		Load: func() (config.Config, func(), error) {
			cfg, named, err := d.load(given)
			return cfg, func() {
				level.Set(cfg.LogLevel)
				jobs.use(named)
			}, err
		},
	})
	if err != nil && cfg.LogFormat == logging.JSON {
		// Whoever reads the log reads JSON to its end.
		log.Error("the daemon ended", slog.String("error", err.Error()))
		return &exit.Error{Code: exit.Code(err)}
	}
	return err
}

// load reads the configuration with its vCenters.
func (d *command) load(given config.Flags) (config.Config, map[string]vsphere.Config, error) {
	cfg, err := config.Load(given, d.io.Getenv)
	if err != nil {
		return cfg, nil, err
	}
	named, err := vcenters(cfg)
	return cfg, named, err
}

// check says whether the daemon could start, without starting it.
func (d *command) check(ctx context.Context, given config.Flags) error {
	given.NoCredentials = d.io.Getenv("CREDENTIALS_DIRECTORY") == ""
	cfg, _, err := d.load(given)
	if err != nil {
		return err
	}
	warnings, err := daemon.Check(ctx, cfg)
	if err != nil {
		return err
	}
	for _, w := range append(cfg.Warnings, warnings...) {
		d.io.Warn("%s", w)
	}
	file := cfg.File
	if file == "" {
		file = "no configuration file is used"
	}
	d.io.Success("The configuration is good: %s", file)
	return nil
}

// vcenters gives the configuration's vCenters as vsphere takes them.
func vcenters(cfg config.Config) (map[string]vsphere.Config, error) {
	named := map[string]vsphere.Config{}
	for key, v := range cfg.VCenters {
		u, user, pass, err := vsphere.ParseURL(v.Server)
		if err != nil {
			return nil, problem.New(problem.Invalid, fmt.Sprintf("read configuration: vCenter %q", key), err, "")
		}
		if v.Username != "" {
			user = v.Username
		}
		if v.Password != "" {
			pass = v.Password.Reveal()
		}
		named[key] = vsphere.Config{
			URL: u, Username: user, Password: pass, Insecure: v.Insecure, Datacenter: v.Datacenter,
			CAFiles: v.CACerts, KnownHostsFile: v.KnownHosts,
		}
	}
	return named, nil
}

// welcome shows on a terminal what the daemon at addr answers.
func (d *command) welcome(addr string, cfg config.Config) {
	if !d.io.Styled() {
		return
	}
	d.io.Banner(name, "Hypervisor to KVM Migration Daemon, version "+models.Version)
	base := "http://" + addr
	if cfg.TLS.Cert != "" {
		base = "https://" + addr
	}
	d.io.Heading("Serving " + base)
	d.io.Table([]string{"Endpoint", "Method", "Answers"}, [][]string{
		{"/health", "GET", "whether it is alive"},
		{"/status", "GET", "version and counts of jobs"},
		{"/jobs/submit", "POST", "takes a job or a batch, JSON or YAML"},
		{"/jobs/query", "POST", "jobs by id or status, or all"},
		{"/jobs/{id}", "GET", "one job"},
		{"/jobs/{id}/events", "GET", "its progress, as it comes"},
		{"/jobs/{id}/logs", "GET", "its log"},
		{"/jobs/cancel", "POST", "stops jobs"},
		{"/jobs/retry", "POST", "puts failed or cancelled jobs back"},
		{"/limits", "GET", "bounds of jobs, streams and bandwidth"},
		{"/limits/change", "POST", "changes them"},
		{"/events", "GET", "what happens to all jobs"},
		{"/vms", "GET", "virtual machines"},
		{"/metrics", "GET", "counters for Prometheus"},
		{"/openapi.yaml", "GET", "all of this, described for programs"},
	})
	d.io.Info("To use it: export H2KVMD_URL=%s", base)
	if cfg.UnixSocket != "" {
		d.io.Info("or:        export H2KVMD_URL=unix://%s", cfg.UnixSocket)
	}
	if cfg.TokensFile != "" {
		d.io.Info("with a token of `%s token add` in H2KVMD_TOKEN", name)
	}
	d.io.Info("Ctrl-C stops the daemon")
}
