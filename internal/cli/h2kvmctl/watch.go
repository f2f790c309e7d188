package h2kvmctl

import (
	"context"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
)

func (a *app) watchCommand() *cli.Command {
	return &cli.Command{
		Name:      "watch",
		Usage:     "show the progress of a job until it ends",
		UsageText: "h2kvmctl watch -id ID",
		Description: "Exit codes: 0 the job completed, 4 it failed, 5 it was cancelled. Ctrl-C ends the watching,\n" +
			"not the job. With -json prints the job once it has ended.",
		Flags:         []cli.Flag{idFlag("`ID` of the job")},
		Action:        a.watch,
		ShellComplete: a.complete,
	}
}

func (a *app) watch(ctx context.Context, cmd *cli.Command) error {
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
	jobs, err := a.follow(ctx, c, []string{id})
	if err != nil {
		return err
	}
	if a.json {
		if err := a.io.JSON(jobs[0]); err != nil {
			return err
		}
	}
	return outcome(jobs)
}
