package hyper2kvm

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/runner"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

func (a *app) inspectCommand() *cli.Command {
	return &cli.Command{
		Name:          "inspect",
		Usage:         "show what matters of one VM, and what stands in the way of its export",
		UsageText:     name + " inspect -vm PATH",
		Flags:         []cli.Flag{vmFlag()},
		Action:        a.inspect,
		ShellComplete: a.complete,
	}
}

func vmFlag() cli.Flag {
	return &cli.StringFlag{Name: "vm", OnlyOnce: true, Usage: "inventory `PATH`, unique name, moref:vm-123 or instance UUID of the VM"}
}

const vmAdvice = "name the VM with -vm; `" + name + " list` shows them"

func (a *app) inspect(ctx context.Context, cmd *cli.Command) error {
	if err := exit.NoArguments(cmd, vmAdvice); err != nil {
		return err
	}
	vmPath, err := required(cmd, "vm", vmAdvice)
	if err != nil {
		return err
	}
	log := a.logger(a.io.Err)
	client, err := a.connect(ctx, log)
	if err != nil {
		return err
	}
	defer disconnect(ctx, client, log)
	found, err := client.FindVM(ctx, vmPath)
	if err != nil {
		return err
	}
	vm, err := client.InspectVM(ctx, found.MoRef)
	if err != nil {
		return err
	}
	if a.json {
		return a.io.JSON(factsOf(vm))
	}
	a.show(vm)
	return nil
}

// vmFacts is what inspect -json prints. Sizes are bytes.
type vmFacts struct {
	models.VM
	BIOSUUID        string        `json:"bios_uuid,omitempty"`
	HardwareVersion string        `json:"hardware_version,omitempty"`
	Host            string        `json:"host,omitempty"`
	GuestID         string        `json:"guest_id,omitempty"`
	CoresPerSocket  int           `json:"cores_per_socket,omitempty"`
	SecureBoot      bool          `json:"secure_boot"`
	Encrypted       bool          `json:"encrypted"`
	TPM             bool          `json:"tpm"`
	Disks           []diskFacts   `json:"disks"`
	NICs            []nicFacts    `json:"nics"`
	CDROMs          []cdromFacts  `json:"cdroms"`
	SnapshotNames   []string      `json:"snapshot_names"`
	Exportable      bool          `json:"exportable"` // nothing certain stands in the way
	Blockers        []blockerFact `json:"blockers"`
}

type diskFacts struct {
	Label      string `json:"label"`
	Capacity   int64  `json:"capacity"`
	Controller string `json:"controller"`
	Thin       bool   `json:"thin"`
	Mode       string `json:"mode,omitempty"`
	RDM        bool   `json:"rdm"`
	File       string `json:"file,omitempty"`
}

type nicFacts struct {
	Label     string `json:"label"`
	Type      string `json:"type"`
	MAC       string `json:"mac,omitempty"`
	Network   string `json:"network,omitempty"`
	Connected bool   `json:"connected"`
}

type cdromFacts struct {
	Label     string `json:"label"`
	ISO       string `json:"iso,omitempty"`
	Connected bool   `json:"connected"`
}

type blockerFact struct {
	What    string `json:"what"`
	Advice  string `json:"advice"`
	Certain bool   `json:"certain"`
}

func factsOf(vm vsphere.VM) vmFacts {
	f := vmFacts{
		VM: runner.VMs([]vsphere.VMSummary{vm.VMSummary})[0], BIOSUUID: vm.BIOSUUID, HardwareVersion: vm.HardwareVersion,
		Host: vm.Host, GuestID: vm.GuestID, CoresPerSocket: vm.CoresPerSocket, SecureBoot: vm.SecureBoot,
		Encrypted: vm.Encrypted, TPM: vm.HasTPM, Exportable: true,
		// Empty, not null.
		Disks: []diskFacts{}, NICs: []nicFacts{}, CDROMs: []cdromFacts{}, Blockers: []blockerFact{},
		SnapshotNames: append([]string{}, vm.Snapshots...),
	}
	for _, d := range vm.Disks {
		f.Disks = append(f.Disks, diskFacts{
			Label: d.Label, Capacity: d.Capacity, Controller: d.Controller, Thin: d.Thin, Mode: d.Mode, RDM: d.RDM, File: d.File,
		})
	}
	for _, n := range vm.NICs {
		f.NICs = append(f.NICs, nicFacts{Label: n.Label, Type: n.Type, MAC: n.MAC, Network: n.Network, Connected: n.Connected})
	}
	for _, c := range vm.CDROMs {
		f.CDROMs = append(f.CDROMs, cdromFacts{Label: c.Label, ISO: c.ISO, Connected: c.Connected})
	}
	for _, b := range vm.Blockers {
		f.Blockers = append(f.Blockers, blockerFact{What: b.What, Advice: b.Advice, Certain: b.Certain})
		f.Exportable = f.Exportable && !b.Certain
	}
	return f
}

// show prints what matters of a VM for a person.
func (a *app) show(vm vsphere.VM) {
	a.io.Heading(vm.Path)
	limit := max(20, a.io.Width()-27)
	a.io.Table([]string{"Fact", "Value"}, facts(vm), 20, limit)
	if len(vm.Blockers) == 0 {
		a.io.Success("Nothing stands in the way of an export")
		return
	}
	for _, b := range vm.Blockers {
		a.io.Warn("%s", blocker(b))
	}
}

func blocker(b vsphere.Blocker) string {
	if b.Advice == "" {
		return b.What
	}
	return b.What + ": " + b.Advice
}

// facts gives the rows of a VM's table.
func facts(vm vsphere.VM) [][]string {
	rows := [][]string{
		{"Power", power(vm.PowerState, vm.Template)},
		{"Guest", orNone(vm.GuestOS)},
		{"CPUs", strconv.Itoa(vm.CPUs)},
		{"Memory", term.Size(int64(vm.MemoryMB) << 20)},
		{"Firmware", firmware(vm)},
		{"Storage", term.Size(vm.Committed) + " on the datastores"},
	}
	for _, d := range vm.Disks {
		kind := "thick"
		switch {
		case d.RDM:
			kind = "raw device mapping"
		case d.Thin:
			kind = "thin"
		}
		rows = append(rows, []string{d.Label, fmt.Sprintf("%s, %s, %s", term.Size(d.Capacity), kind, d.Controller)})
	}
	for _, n := range vm.NICs {
		rows = append(rows, []string{n.Label, strings.Join([]string{n.Type, n.MAC, n.Network}, ", ")})
	}
	for _, c := range vm.CDROMs {
		iso := "empty"
		if c.ISO != "" {
			iso = c.ISO
		}
		rows = append(rows, []string{c.Label, iso})
	}
	return append(rows, []string{"Snapshots", orNone(strings.Join(vm.Snapshots, ", "))})
}

func firmware(vm vsphere.VM) string {
	text := map[string]string{"efi": "UEFI", "bios": "BIOS"}[vm.Firmware]
	if text == "" {
		text = orNone(vm.Firmware)
	}
	if vm.SecureBoot {
		text += ", secure boot"
	}
	if vm.HasTPM {
		text += ", TPM"
	}
	return text
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
