// Package h2kvmctl is the body of the control command line: one command a
// file, each a call of the daemon's client with its answer printed. It talks
// to the daemon only and knows neither vSphere nor the output folder.
package h2kvmctl

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/client"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const name = "h2kvmctl"

// maxSecret bounds a token file, maxCerts a file of CA certificates, in bytes.
const (
	maxSecret = 64 << 10
	maxCerts  = 4 << 20
)

// Run runs h2kvmctl with args, which do not hold the program's name, and gives
// its exit code (see package exit). Answers go to io.Out, errors to io.Err.
// When ctx ends, what is being waited for is left as it is and the code is
// exit.Interrupted.
func Run(ctx context.Context, args []string, io term.IO) int {
	io, written := io.Checked()
	a := &app{io: io}
	err := a.root().Run(ctx, append([]string{name}, args...))
	if err == nil {
		err = written()
	}
	return exit.Report(ctx, io.Err, err)
}

// app is one run of h2kvmctl.
type app struct {
	io   term.IO
	json bool
}

// Root gives the definition of the command line, for its manual page.
func Root(io term.IO) *cli.Command { return (&app{io: io}).root() }

func (a *app) root() *cli.Command {
	root := &cli.Command{
		Name:    name,
		Usage:   "submit, watch and cancel exports of a hyper2kvmd",
		Version: models.Version,
		Writer:  a.io.Out, ErrWriter: a.io.Err, Reader: a.io.In,
		EnableShellCompletion:           true,
		ConfigureShellCompletionCommand: configureCompletion,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "daemon", OnlyOnce: true, Usage: "`URL` of the daemon, unix:///PATH for its socket (env H2KVMD_URL; default " + client.DefaultURL + ")"},
			&cli.StringFlag{Name: "token-file", OnlyOnce: true, Usage: "`FILE` that holds the access token (env H2KVMD_TOKEN_FILE, or the token itself in H2KVMD_TOKEN)"},
			&cli.StringFlag{Name: "ca-cert", OnlyOnce: true, Usage: "`FILE` with the certificates (PEM) that an https daemon is verified by"},
			&cli.BoolFlag{Name: "json", Usage: "print the daemon's answer as JSON"},
			&cli.BoolFlag{Name: "no-color", Usage: "no colours, also on a terminal (env NO_COLOR)"},
		},
		Commands: []*cli.Command{
			a.submitCommand(), a.queryCommand(), a.statusCommand(), a.cancelCommand(), a.retryCommand(), a.limitsCommand(),
			a.watchCommand(), a.logsCommand(), a.listCommand(),
		},
		Before: func(ctx context.Context, cmd *cli.Command) (context.Context, error) {
			a.io.NoColor = a.io.NoColor || cmd.Bool("no-color")
			a.json = cmd.Bool("json")
			return ctx, nil
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			switch given := cmd.Args().First(); given {
			case "":
				return exit.UsageError(errors.New("no command was given"), "see "+name+" -help")
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

// client gives a client of the daemon that the flags and the environment
// name. The caller closes it.
func (a *app) client(cmd *cli.Command) (*client.Client, error) {
	c := &client.Client{BaseURL: cmd.String("daemon")}
	if c.BaseURL == "" {
		c.BaseURL = a.io.Getenv("H2KVMD_URL")
	}
	var err error
	if c.Token, err = a.token(cmd.String("token-file")); err != nil {
		return nil, err
	}
	if file := cmd.String("ca-cert"); file != "" {
		pem, err := readFile(file, maxCerts)
		if err == nil {
			if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
				err = errors.New("it holds no certificate in PEM form")
			}
		}
		if err != nil {
			return nil, exit.UsageError(fmt.Errorf("read CA certificates %s: %w", file, err), "give -ca-cert a file that can be read")
		}
	}
	return c, nil
}

// token finds the access token: the file of the flag, then the environment.
// Its value is in no error.
func (a *app) token(file string) (string, error) {
	token := a.io.Getenv("H2KVMD_TOKEN")
	from := "H2KVMD_TOKEN"
	if file == "" && token == "" {
		file = a.io.Getenv("H2KVMD_TOKEN_FILE")
	}
	if file != "" {
		data, err := readFile(file, maxSecret)
		if err != nil {
			return "", exit.UsageError(fmt.Errorf("read token file %s: %w", file, err), "give -token-file a file that can be read")
		}
		token, from = string(data), "token file "+file
	} else if token == "" {
		return "", nil
	}
	token = strings.TrimSpace(token)
	if token == "" {
		return "", exit.UsageError(fmt.Errorf("%s holds no token", from), "put the daemon's token there")
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", exit.UsageError(fmt.Errorf("%s holds more than a token", from), "put the daemon's token there, and nothing else")
	}
	return token, nil
}

// readFile reads a file of at most limit bytes. Its error does not repeat the
// file's name.
func readFile(file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, bare(err)
	}
	defer f.Close()
	return readAll(f, limit)
}

func readAll(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, bare(err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("it has more than %d bytes", limit)
	}
	return data, nil
}

// bare takes operation and file name off an error of package os.
func bare(err error) error {
	if p, ok := errors.AsType[*os.PathError](err); ok {
		return p.Err
	}
	return err
}

// ids splits the value of -id. None is a usage error.
func ids(cmd *cli.Command) ([]string, error) {
	var out []string
	for id := range strings.SplitSeq(cmd.String("id"), ",") {
		if id = strings.TrimSpace(id); id == "" {
			continue
		}
		if strings.HasPrefix(id, "-") {
			// The next flag was taken for the value.
			return nil, exit.UsageError(fmt.Errorf("-id %.80q is no job id", id), "give it as -id ID")
		}
		out = append(out, id)
	}
	if out == nil {
		return nil, exit.UsageError(errors.New("no job id was given"), "give it as -id ID; `"+name+" query -all` shows the jobs")
	}
	return out, nil
}

// oneID is ids for commands that take one.
func oneID(cmd *cli.Command) (string, error) {
	all, err := ids(cmd)
	if err != nil {
		return "", err
	}
	if len(all) > 1 {
		return "", exit.UsageError(fmt.Errorf("%d job ids were given", len(all)), "give one")
	}
	return all[0], nil
}

func idFlag(usage string) cli.Flag {
	return &cli.StringFlag{Name: "id", OnlyOnce: true, Usage: usage}
}

// short is the part of a job's id that is shown where space is scarce, and
// that every command takes as long as it is unambiguous.
func short(id string) string {
	if len(id) > 8 {
		return id[:8]
	}
	return id
}

// fail says an error that is not the last word on standard error.
func (a *app) fail(text string) {
	fmt.Fprintf(a.io.Err, "ERROR: %s\n", term.Clean(text))
}

// invalid is a problem.Invalid, which ends with exit.Usage.
func invalid(what string, err error, advice string) error {
	return problem.New(problem.Invalid, what, err, advice)
}
