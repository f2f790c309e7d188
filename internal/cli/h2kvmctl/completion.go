package h2kvmctl

import (
	"context"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/joboptions"
)

// completeTimeout bounds what a press of the tab key waits for the daemon.
const completeTimeout = 2 * time.Second

// configureCompletion makes the library's completion command one of ours.
func configureCompletion(c *cli.Command) {
	exit.Completion(c, name)
	c.UsageText = name + " completion bash|zsh|fish"
}

// complete proposes values for the flag that stands last, else flags. Without
// a daemon there are no values to propose, and no error: a prompt is no place
// for one.
func (a *app) complete(ctx context.Context, cmd *cli.Command) {
	args := cmd.Args().Slice()
	last := ""
	if len(args) > 0 {
		last = strings.TrimLeft(args[len(args)-1], "-")
	}
	var values []string
	switch last {
	case "id", "vm":
		values = a.remoteValues(ctx, cmd, last)
	case "status":
		values = statusNames()
	case "format":
		values = joboptions.Formats
	case "hardware":
		values = joboptions.Hardware
	default:
		cli.DefaultCompleteWithFlags(ctx, cmd)
		return
	}
	exit.Propose(a.io.Out, values)
}

func (a *app) remoteValues(ctx context.Context, cmd *cli.Command, flag string) []string {
	c, err := a.client(cmd)
	if err != nil {
		return nil
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, completeTimeout)
	defer cancel()
	var values []string
	if flag == "vm" {
		list, err := c.VMs(ctx, "", cmd.String("vcenter"))
		if err != nil {
			return nil
		}
		for _, vm := range list.VMs {
			values = append(values, vm.Path)
		}
		return exit.VMs(values)
	}
	jobs, err := c.Query(ctx, models.QueryRequest{All: true})
	if err != nil {
		return nil
	}
	for _, j := range jobs.Jobs {
		fits := true
		switch cmd.Name {
		case "cancel":
			fits = !j.Status.Final()
		case "retry":
			fits = j.Status == models.Failed || j.Status == models.Cancelled
		case "limits":
			fits = j.Status == models.Running
		}
		if fits {
			values = append(values, j.ID)
		}
	}
	return values
}

func statusNames() []string {
	var names []string
	for _, s := range []models.Status{models.Pending, models.Running, models.Completed, models.Failed, models.Cancelled} {
		names = append(names, string(s))
	}
	return names
}
