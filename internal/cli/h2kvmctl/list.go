package h2kvmctl

import (
	"context"
	"errors"
	"strconv"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
)

func (a *app) listCommand() *cli.Command {
	return &cli.Command{
		Name:      "list",
		Usage:     "list virtual machines, through the daemon",
		UsageText: "h2kvmctl list [PATTERN] [-vcenter NAME]",
		Description: "PATTERN with *, ? or [ is a shell pattern for the name or the whole path, any other is a\n" +
			"part of the path. Case does not matter.",
		Flags:         []cli.Flag{vcenterFlag()},
		Action:        a.list,
		ShellComplete: a.complete,
	}
}

// vcenterFlag names one of the daemon's vCenters.
func vcenterFlag() cli.Flag {
	return &cli.StringFlag{Name: "vcenter", OnlyOnce: true, Usage: "`NAME` of a vCenter in the daemon's configuration (default: that of its environment)"}
}

func (a *app) list(ctx context.Context, cmd *cli.Command) error {
	if cmd.Args().Len() > 1 {
		return exit.UsageError(errors.New("more than one pattern was given"), "quote a pattern that holds spaces or *")
	}
	c, err := a.client(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	resp, err := c.VMs(ctx, cmd.Args().First(), cmd.String("vcenter"))
	if err != nil {
		return err
	}
	if a.json {
		return a.io.JSON(resp)
	}
	a.io.Heading("Virtual Machines")
	if len(resp.VMs) > 0 {
		rows := make([][]string, len(resp.VMs))
		for i, vm := range resp.VMs {
			rows[i] = []string{
				vm.Path, power(vm), strconv.Itoa(vm.CPUs), term.Size(int64(vm.MemoryMB) << 20), term.Size(vm.Storage), vm.GuestOS,
			}
		}
		a.io.Table([]string{"Path", "Power", "CPUs", "Memory", "Storage", "Guest"}, rows)
	}
	a.io.Success("Found %d virtual machine(s)", resp.Total)
	return nil
}

func power(vm models.VM) string {
	switch {
	case vm.Template:
		return "template"
	case vm.PowerState == "poweredOn":
		return "on"
	case vm.PowerState == "poweredOff":
		return "off"
	}
	return vm.PowerState
}
