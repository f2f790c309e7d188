package h2kvmctl

import (
	"context"
	"strconv"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
)

func (a *app) statusCommand() *cli.Command {
	return &cli.Command{
		Name:          "status",
		Usage:         "show the daemon's version, uptime and counts of jobs",
		Action:        a.status,
		ShellComplete: a.complete,
	}
}

func (a *app) status(ctx context.Context, cmd *cli.Command) error {
	if err := exit.NoArguments(cmd, "for the state of a job use `"+name+" query -id ID`"); err != nil {
		return err
	}
	c, err := a.client(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return a.io.JSON(s)
	}
	a.io.Heading("Daemon Status")
	a.io.Table([]string{"Metric", "Value"}, [][]string{
		{"Version", s.Version},
		{"Uptime", s.Uptime},
		{"Total Jobs", strconv.Itoa(s.TotalJobs)},
		{"Running", strconv.Itoa(s.RunningJobs)},
		{"Completed", strconv.Itoa(s.CompletedJobs)},
		{"Failed", strconv.Itoa(s.FailedJobs)},
		{"Pending", strconv.Itoa(s.PendingJobs)},
		{"Cancelled", strconv.Itoa(s.CancelledJobs)},
	})
	a.io.Success("Retrieved daemon status")
	return nil
}
