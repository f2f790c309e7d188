// Package hyper2kvm is the body of the command line that exports virtual
// machines itself, without a daemon: a guided way for people at a terminal,
// and one command a file for scripts.
package hyper2kvm

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/logging"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

const (
	name    = "hyper2kvm"
	tagline = "Hypervisor to KVM Migration Tool"
	// closeTimeout bounds a logout: the server ends an abandoned session by
	// itself.
	closeTimeout = 10 * time.Second
)

// Run runs hyper2kvm with args, which do not hold the program's name, and
// gives its exit code (see package exit). Answers go to streams.Out;
// progress, remarks and errors to streams.Err. When ctx ends, an export gives its lease back,
// keeps its partial files, and the code is exit.Interrupted.
func Run(ctx context.Context, args []string, streams term.IO) int {
	streams, written := streams.Checked()
	a := &app{io: streams}
	err := a.root().Run(ctx, append([]string{name}, args...))
	if err == nil {
		err = written()
	}
	return exit.Report(ctx, streams.Err, err)
}

// app is one run of hyper2kvm.
type app struct {
	io    term.IO
	json  bool
	debug bool
}

// errIO is where progress goes: standard error takes the place of standard
// output, which belongs to the answer.
func (a *app) errIO() term.IO {
	e := a.io
	e.Out = a.io.Err
	return e
}

// Root gives the definition of the command line, for its manual page.
func Root(io term.IO) *cli.Command { return (&app{io: io}).root() }

func (a *app) root() *cli.Command {
	root := &cli.Command{
		Name:    name,
		Usage:   "export virtual machines from VMware vSphere, make KVM images of them",
		Version: models.Version,
		Description: "Without a command, on a terminal, it asks for everything it needs.\n" +
			"The vCenter comes from the environment, as govc reads it: GOVC_URL, GOVC_USERNAME,\n" +
			"GOVC_PASSWORD, GOVC_INSECURE, GOVC_DATACENTER, GOVC_TLS_CA_CERTS, GOVC_TLS_KNOWN_HOSTS.",
		Writer: a.io.Out, ErrWriter: a.io.Err, Reader: a.io.In,
		EnableShellCompletion:           true,
		ConfigureShellCompletionCommand: configureCompletion,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print the answer as JSON"},
			&cli.BoolFlag{Name: "no-color", Usage: "no colours and bars, also on a terminal (env NO_COLOR)"},
			&cli.BoolFlag{Name: "debug", Usage: "log more, to standard error"},
		},
		Commands: []*cli.Command{a.listCommand(), a.inspectCommand(), a.exportCommand(), a.convertCommand(), a.verifyCommand()},
		Before: func(ctx context.Context, cmd *cli.Command) (context.Context, error) {
			a.io.NoColor = a.io.NoColor || cmd.Bool("no-color")
			a.json, a.debug = cmd.Bool("json"), cmd.Bool("debug")
			return ctx, nil
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			switch given := cmd.Args().First(); given {
			case "":
				return a.guided(ctx)
			case "help":
				if topic := cmd.Args().Get(1); topic != "" {
					return cli.ShowCommandHelp(ctx, cmd, topic)
				}
				return cli.ShowRootCommandHelp(cmd)
			default:
				return exit.UnknownCommand(cmd, given)
			}
		},
	}
	exit.Commands(root)
	return root
}

// logger writes warnings, or everything with -debug, to w.
func (a *app) logger(w io.Writer) *slog.Logger {
	level := slog.LevelWarn
	if a.debug {
		level = slog.LevelDebug
	}
	return slog.New(logging.New(w, level, logging.Text))
}

// barLogger writes warnings as everything else is said beside bars; with -debug
// it is logger.
func (a *app) barLogger(bars *term.Bars) *slog.Logger {
	if a.debug {
		return a.logger(bars)
	}
	return slog.New(badges{say: bars.Say})
}

// badges is a slog.Handler that says warnings. Groups, which nobody here uses,
// are not told apart.
type badges struct {
	say   func(slog.Level, string)
	attrs []slog.Attr
}

func (badges) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

func (b badges) Handle(_ context.Context, r slog.Record) error {
	attrs := slices.Clone(b.attrs)
	r.Attrs(func(a slog.Attr) bool {
		attrs = append(attrs, a)
		return true
	})
	text := r.Message
	if len(attrs) > 0 {
		text += " | " + logging.Attrs(attrs)
	}
	b.say(r.Level, text)
	return nil
}

func (b badges) WithAttrs(attrs []slog.Attr) slog.Handler {
	b.attrs = slices.Concat(b.attrs, attrs)
	return b
}

func (b badges) WithGroup(string) slog.Handler { return b }

// connect opens a session with the environment's vCenter. The caller ends it
// with disconnect.
func (a *app) connect(ctx context.Context, log *slog.Logger) (*vsphere.Client, error) {
	cfg, err := vsphere.ConfigFromEnv(a.io.Getenv)
	if err != nil {
		return nil, err
	}
	return vsphere.Connect(ctx, cfg, log)
}

// disconnect logs out, also after ctx has ended.
func disconnect(ctx context.Context, c *vsphere.Client, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := c.Close(ctx); err != nil {
		log.Warn("could not log out", slog.String("error", err.Error()))
	}
}

// required gives a text flag's value, which must not be empty.
func required(cmd *cli.Command, flag, advice string) (string, error) {
	v := cmd.String(flag)
	if v == "" {
		return "", exit.UsageError(errors.New("-"+flag+" is missing"), advice)
	}
	return v, nil
}
