package h2kvmctl

import (
	"context"
	"errors"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/client"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
)

func (a *app) cancelCommand() *cli.Command {
	return &cli.Command{
		Name:      "cancel",
		Usage:     "stop jobs; partial files are kept for a later run",
		UsageText: "h2kvmctl cancel -id ID[,ID]\nh2kvmctl cancel -all",
		Flags: []cli.Flag{
			idFlag("`ID[,ID]` of the jobs"),
			&cli.BoolFlag{Name: "all", Usage: "every job that is pending or running"},
		},
		Action:        a.cancel,
		ShellComplete: a.complete,
	}
}

func (a *app) cancel(ctx context.Context, cmd *cli.Command) error {
	if err := exit.NoArguments(cmd, "give job ids as -id ID[,ID]"); err != nil {
		return err
	}
	all := cmd.Bool("all")
	if all == cmd.IsSet("id") {
		return exit.UsageError(errors.New("give either -id or -all"), "see "+name+" cancel -help")
	}
	var targets []string
	if !all {
		var err error
		if targets, err = ids(cmd); err != nil {
			return err
		}
	}
	c, err := a.client(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	resp := models.CancelResponse{Cancelled: []string{}, Failed: []string{}, Errors: map[string]string{}}
	if all {
		active, err := c.Query(ctx, models.QueryRequest{Status: []models.Status{models.Pending, models.Running}})
		if err != nil {
			return err
		}
		resp.Timestamp = active.Timestamp
		for _, j := range active.Jobs {
			targets = append(targets, j.ID)
		}
	}
	if len(targets) > 0 {
		if resp, err = c.Cancel(ctx, targets); err != nil {
			return err
		}
		if all {
			if err := forgiveEnded(ctx, c, &resp); err != nil {
				return err
			}
		}
	}
	if a.json {
		if err := a.io.JSON(resp); err != nil {
			return err
		}
	} else if len(resp.Cancelled) > 0 || len(resp.Failed) == 0 {
		a.io.Success("Cancelled Jobs: %d", len(resp.Cancelled))
		for _, id := range resp.Cancelled {
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

// forgiveEnded takes those jobs out of resp that could not be cancelled
// because they ended between the question which jobs there are and the
// cancellation.
func forgiveEnded(ctx context.Context, c *client.Client, resp *models.CancelResponse) error {
	if len(resp.Failed) == 0 {
		return nil
	}
	now, err := c.Query(ctx, models.QueryRequest{JobIDs: resp.Failed})
	if err != nil {
		return err
	}
	ended := map[string]bool{}
	for _, j := range now.Jobs {
		ended[j.ID] = j.Status.Final()
	}
	failed := []string{}
	for _, id := range resp.Failed {
		if ended[id] {
			delete(resp.Errors, id)
			continue
		}
		failed = append(failed, id)
	}
	resp.Failed = failed
	return nil
}
