package h2kvmctl

import (
	"context"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
)

func (a *app) retryCommand() *cli.Command {
	return &cli.Command{
		Name:          "retry",
		Usage:         "put failed or cancelled jobs back into the queue; finished disks are kept",
		UsageText:     "h2kvmctl retry -id ID[,ID]",
		Flags:         []cli.Flag{idFlag("`ID[,ID]` of the jobs")},
		Action:        a.retry,
		ShellComplete: a.complete,
	}
}

func (a *app) retry(ctx context.Context, cmd *cli.Command) error {
	if err := exit.NoArguments(cmd, "give job ids as -id ID[,ID]"); err != nil {
		return err
	}
	targets, err := ids(cmd)
	if err != nil {
		return err
	}
	c, err := a.client(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := c.Retry(ctx, targets)
	if err != nil {
		return err
	}
	if a.json {
		if err := a.io.JSON(resp); err != nil {
			return err
		}
	} else if len(resp.Retried) > 0 || len(resp.Failed) == 0 {
		a.io.Success("Retried Jobs: %d", len(resp.Retried))
		for _, id := range resp.Retried {
			a.io.Info("- Job ID: %s", id)
		}
	}
	for _, id := range resp.Failed {
		a.fail(resp.Errors[id])
	}
	if len(resp.Failed) > 0 {
		return &exit.Error{Code: exit.Failed}
	}
	return nil
}
