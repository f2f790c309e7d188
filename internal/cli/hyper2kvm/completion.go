package hyper2kvm

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/joboptions"
)

// completeTimeout bounds what a press of the tab key waits for vCenter.
const completeTimeout = 3 * time.Second

// configureCompletion makes the library's completion command one of ours.
func configureCompletion(c *cli.Command) {
	exit.Completion(c, name)
	c.ArgsUsage = "bash|zsh|fish"
}

// complete proposes values for the flag that stands last, else flags. Without
// a vCenter there are no VMs to propose, and no error: a prompt is no place
// for one.
func (a *app) complete(ctx context.Context, cmd *cli.Command) {
	last := ""
	if args := cmd.Args().Slice(); len(args) > 0 {
		last = strings.TrimLeft(args[len(args)-1], "-")
	}
	var values []string
	switch last {
	case "vm":
		values = a.vms(ctx)
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

func (a *app) vms(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, completeTimeout)
	defer cancel()
	log := slog.New(slog.DiscardHandler)
	client, err := a.connect(ctx, log)
	if err != nil {
		return nil
	}
	defer disconnect(ctx, client, log)
	vms, err := client.ListVMs(ctx)
	if err != nil {
		return nil
	}
	paths := make([]string, len(vms))
	for i, vm := range vms {
		paths[i] = vm.Path
	}
	return exit.VMs(paths)
}
