// Package hyper2kvmd is the body of the daemon's command line: it resolves the
// settings, joins vSphere to the daemon by a runner, and serves until it is
// told to stop.
package hyper2kvmd

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/config"
	"github.com/hyper2kvm/hyper2kvm/internal/logging"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/internal/runner"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

const name = "hyper2kvmd"

// Run serves the daemon with args, which do not hold the program's name, until
// ctx ends, and gives the exit code: exit.OK after a clean stop. The log goes
// to io.Err; banner and table of endpoints to io.Out, if that is a terminal.
func Run(ctx context.Context, args []string, io term.IO) int {
	d := &command{io: io}
	err := d.root().Run(ctx, append([]string{name}, args...))
	// The end of ctx is the normal way to stop: an error after it is one.
	return exit.Report(context.WithoutCancel(ctx), io.Err, err)
}

// command is one run of hyper2kvmd.
type command struct{ io term.IO }

func (d *command) root() *cli.Command {
	root := &cli.Command{
		Name:    name,
		Usage:   "serve a queue of exports with a REST API",
		Version: models.Version,
		Description: "Jobs that name no vCenter use the one of the environment: GOVC_URL, GOVC_USERNAME,\n" +
			"GOVC_PASSWORD, GOVC_INSECURE, GOVC_DATACENTER, GOVC_TLS_CA_CERTS, GOVC_TLS_KNOWN_HOSTS.\n" +
			"SIGINT and SIGTERM stop it: running jobs are cancelled and give their leases back.",
		Writer: d.io.Out, ErrWriter: d.io.Err, Reader: d.io.In,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "addr", OnlyOnce: true, Usage: "listen on `HOST:PORT` (env H2KVMD_ADDR; default " + config.DefaultAddr + ")"},
			&cli.StringFlag{Name: "config", OnlyOnce: true, Usage: "read the configuration from `FILE` (env H2KVMD_CONFIG)"},
			&cli.StringFlag{Name: "state", OnlyOnce: true, Usage: "keep state in the folder `DIR`"},
			&cli.StringFlag{Name: "log-format", OnlyOnce: true, Usage: "write the log as `FORMAT`: text or json"},
			&cli.BoolFlag{Name: "debug", Usage: "log more"},
			&cli.BoolFlag{Name: "no-color", Usage: "no banner and colours, also on a terminal (env NO_COLOR)"},
		},
		Action: d.serve,
	}
	exit.Commands(root)
	return root
}

func (d *command) serve(ctx context.Context, cmd *cli.Command) (err error) {
	if err := exit.NoArguments(cmd, "see "+name+" -help"); err != nil {
		return err
	}
	d.io.NoColor = d.io.NoColor || cmd.Bool("no-color")
	cfg, err := config.Load(config.Flags{
		Addr: cmd.String("addr"), ConfigFile: cmd.String("config"), StateDir: cmd.String("state"),
		LogFormat: cmd.String("log-format"), Debug: cmd.Bool("debug"),
	}, d.io.Getenv)
	if err != nil {
		return err
	}
	named, err := vcenters(cfg)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if cfg.Debug {
		level = slog.LevelDebug
	}
	log := slog.New(logging.New(d.io.Err, level, cfg.LogFormat))
	jobs := runner.New(runner.Options{
		Default: func() (vsphere.Config, error) { return vsphere.ConfigFromEnv(d.io.Getenv) },
		Named:   named, Logger: log,
	})
	defer func() { //nolint:contextcheck // logging out begins when ctx has ended
		if cerr := jobs.Close(); cerr != nil {
			log.Warn("could not log out", slog.String("error", cerr.Error()))
		}
	}()
	return daemon.Run(ctx, daemon.Options{Config: cfg, Runner: jobs, VMLister: jobs, Logger: log, Ready: d.welcome})
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
func (d *command) welcome(addr string) {
	if !d.io.Styled() {
		return
	}
	d.io.Banner(name, "Hypervisor to KVM Migration Daemon, version "+models.Version)
	base := "http://" + addr
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
		{"/events", "GET", "what happens to all jobs"},
		{"/vms", "GET", "virtual machines"},
	})
	d.io.Info("To use it: export H2KVMD_URL=%s", base)
	d.io.Info("Ctrl-C stops the daemon")
}
