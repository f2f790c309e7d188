package hyper2kvm

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/runner"
)

func (a *app) listCommand() *cli.Command {
	return &cli.Command{
		Name:      "list",
		Usage:     "list virtual machines and templates",
		UsageText: name + " list [PATTERN]",
		Description: "PATTERN with * (any text) or ? (one character) stands for the whole name or path, any other\n" +
			"for a part of either. Case does not matter.",
		Action:        a.list,
		ShellComplete: a.complete,
	}
}

func (a *app) list(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() > 1 {
		return exit.UsageError(errors.New("more than one pattern was given"), "quote a pattern that holds spaces or *")
	}
	pattern := cmd.Args().First()
	log := a.logger(a.io.Err)
	client, err := a.connect(ctx, log)
	if err != nil {
		return err
	}
	defer disconnect(ctx, client, log)
	all, err := client.ListVMs(ctx)
	if err != nil {
		return err
	}
	vms := slices.DeleteFunc(runner.VMs(all), func(vm models.VM) bool { return !vm.Matches(pattern) })
	if a.json {
		return a.io.JSON(models.VMList{VMs: vms, Total: len(vms), Timestamp: time.Now().UTC()})
	}
	a.io.Heading("Virtual Machines")
	if len(vms) > 0 {
		rows := make([][]string, len(vms))
		for i, vm := range vms {
			rows[i] = []string{
				vm.Path, power(vm.PowerState, vm.Template), strconv.Itoa(vm.CPUs), term.Size(int64(vm.MemoryMB) << 20), term.Size(vm.Storage), vm.GuestOS,
			}
		}
		a.io.Table([]string{"Path", "Power", "CPUs", "Memory", "Storage", "Guest"}, rows)
	}
	a.io.Success("Found %d virtual machine(s)", len(vms))
	return nil
}

// power is a power state for people.
func power(state string, template bool) string {
	switch {
	case template:
		return "template"
	case state == "poweredOn":
		return "on"
	case state == "poweredOff":
		return "off"
	}
	return state
}
