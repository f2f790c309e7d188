package h2kvmctl

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
)

func (a *app) logsCommand() *cli.Command {
	return &cli.Command{
		Name:          "logs",
		Usage:         "show the log lines of a job",
		UsageText:     "h2kvmctl logs -id ID",
		Flags:         []cli.Flag{idFlag("`ID` of the job")},
		Action:        a.logs,
		ShellComplete: a.complete,
	}
}

func (a *app) logs(ctx context.Context, cmd *cli.Command) error {
	if err := exit.NoArguments(cmd, "give the job id as -id ID"); err != nil {
		return err
	}
	id, err := oneID(cmd)
	if err != nil {
		return err
	}
	c, err := a.client(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := c.Logs(ctx, id)
	if err != nil {
		return err
	}
	if a.json {
		return a.io.JSON(resp)
	}
	for _, l := range resp.Lines {
		text := l.Message
		if l.Attrs != "" {
			text += " | " + l.Attrs
		}
		// As the daemon's own log shows it, in local time.
		fmt.Fprintf(a.io.Out, "[%s] %s: %s\n", l.Time.Local().Format("2006-01-02 15:04:05"), term.Clean(l.Level), term.Clean(text))
	}
	if len(resp.Lines) == 0 {
		fmt.Fprintf(a.io.Err, "The daemon holds no log lines of job %s\n", term.Clean(resp.JobID))
	}
	return nil
}
