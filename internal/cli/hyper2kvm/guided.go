package hyper2kvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/output"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

// loginTries is how often a password may be typed: vCenter locks a user out
// after five wrong ones.
const loginTries = 3

// guided asks for everything at a terminal.
func (a *app) guided(ctx context.Context) error {
	if !a.io.Interactive() {
		return exit.UsageError(errors.New("no command was given, and there is no terminal to ask at"),
			"use list, inspect, export or verify; see "+name+" -help")
	}
	err := a.guide(ctx)
	if errors.Is(err, term.ErrInterrupted) {
		fmt.Fprintln(a.io.Err, "Interrupted. Nothing was left running.")
		return &exit.Error{Code: exit.Interrupted}
	}
	return err
}

func (a *app) guide(ctx context.Context) error {
	a.io.Banner("hyper2kvm", tagline+", version "+models.Version)
	bars := term.NewBars(a.io)
	defer bars.Close()
	log := a.logger(bars)
	client, err := a.login(ctx, log)
	if err != nil {
		return err
	}
	defer disconnect(ctx, client, log)
	vms, err := a.choose(ctx, client)
	if err != nil {
		return err
	}
	defs, err := a.plan(ctx, vms)
	if err != nil {
		return err
	}
	if len(defs) == 0 {
		a.io.Info("Nothing was exported")
		return nil
	}
	return a.exportAll(ctx, client, defs, bars)
}

// login asks for what the environment does not say, and connects.
func (a *app) login(ctx context.Context, log *slog.Logger) (*vsphere.Client, error) {
	given := map[string]string{}
	getenv := func(key string) string {
		if v, ok := given[key]; ok {
			return v
		}
		return a.io.Getenv(key)
	}
	for strings.TrimSpace(getenv("GOVC_URL")) == "" {
		server, err := a.io.Ask(ctx, "vCenter or ESXi host", "")
		if err != nil {
			return nil, err
		}
		if server == "" {
			continue
		}
		if _, _, _, err := vsphere.ParseURL(server); err != nil {
			exit.Report(ctx, a.io.Err, err)
			continue
		}
		given["GOVC_URL"] = server
	}
	for try := 1; ; try++ {
		cfg, err := vsphere.ConfigFromEnv(getenv)
		if err != nil {
			return nil, err
		}
		if cfg.Username == "" {
			if cfg.Username, err = a.io.Ask(ctx, "User", "administrator@vsphere.local"); err != nil {
				return nil, err
			}
			given["GOVC_USERNAME"] = cfg.Username
		}
		if try == 1 {
			a.io.Box("Connection Info", "vCenter: "+cfg.URL.Host, "User:    "+cfg.Username)
		}
		asked := cfg.Password == ""
		if asked {
			if cfg.Password, err = a.io.AskSecret(ctx, "Password (not shown)"); err != nil {
				return nil, err
			}
		}
		stop := a.io.Spin("Connecting to " + cfg.URL.Host)
		client, err := vsphere.Connect(ctx, cfg, log)
		stop()
		if err == nil {
			a.io.Success("Connected to vSphere successfully!")
			return client, nil
		}
		if !asked || try == loginTries || problem.KindOf(err) != problem.Unauthorized {
			return nil, err
		}
		exit.Report(ctx, a.io.Err, err)
	}
}

// choose lets VMs be chosen and gives their facts.
func (a *app) choose(ctx context.Context, client *vsphere.Client) ([]vsphere.VM, error) {
	stop := a.io.Spin("Reading the inventory")
	all, err := client.ListVMs(ctx)
	stop()
	if err != nil {
		return nil, err
	}
	a.io.Success("Found %d virtual machine(s)", len(all))
	if len(all) == 0 {
		return nil, problem.New(problem.NotFound, "choose VMs", errors.New("this user sees none"), "check the user's permissions in vCenter")
	}
	options := make([]term.Option, len(all))
	for i, vm := range all {
		options[i] = term.Option{Text: vm.Path, Note: fmt.Sprintf("%-8s %9s", power(vm.PowerState, vm.Template), term.Size(vm.Committed))}
	}
	picked, err := a.io.Select(ctx, "VMs to export", options)
	if err != nil {
		return nil, err
	}
	stop = a.io.Spin("Looking at the chosen ones")
	vms := make([]vsphere.VM, len(picked))
	for i, at := range picked {
		if vms[i], err = client.InspectVM(ctx, all[at].MoRef); err != nil {
			break
		}
	}
	stop()
	if err != nil {
		return nil, err
	}
	a.overview(vms)
	return vms, nil
}

// overview shows what matters of the chosen VMs, and what stands in the way.
func (a *app) overview(vms []vsphere.VM) {
	if len(vms) == 1 {
		a.show(vms[0])
		return
	}
	a.io.Heading("Chosen VMs")
	rows := make([][]string, len(vms))
	for i, vm := range vms {
		var capacity int64
		for _, d := range vm.Disks {
			capacity += d.Capacity
		}
		rows[i] = []string{
			vm.Name, power(vm.PowerState, vm.Template), strconv.Itoa(vm.CPUs), term.Size(int64(vm.MemoryMB) << 20),
			fmt.Sprintf("%d, %s", len(vm.Disks), term.Size(capacity)), strconv.Itoa(len(vm.Snapshots)), firmware(vm),
		}
	}
	a.io.Table([]string{"VM", "Power", "CPUs", "Memory", "Disks", "Snapshots", "Firmware"}, rows, 24, 8, 0, 0, 0, 0, 14)
	for _, vm := range vms {
		for _, b := range vm.Blockers {
			a.io.Warn("%s: %s", vm.Name, blocker(b))
		}
	}
}

// plan asks how to export the VMs: what to do with those that run, where to.
// None means that it was decided against.
func (a *app) plan(ctx context.Context, vms []vsphere.VM) ([]models.Definition, error) {
	var fit []vsphere.VM
	running, media := 0, 0
	for _, vm := range vms {
		if b := hopeless(vm); b != nil {
			a.io.Warn("%s is left out: %s", vm.Name, b.What)
			continue
		}
		fit = append(fit, vm)
		if has(vm, func(b vsphere.Blocker) bool { return b.PowerState }) {
			running++
		}
		if has(vm, func(b vsphere.Blocker) bool { return b.Media }) {
			media++
		}
	}
	no, yes := false, true
	options := models.Options{Snapshot: &no, Shutdown: &no, RemoveCDROM: &no, Overwrite: &no}
	if running > 0 {
		how, err := a.io.Choose(ctx, fmt.Sprintf("%d VM(s) run. Export from a temporary (s)napshot, shut (d)own and leave off, or (l)eave out? [s]", running),
			[]string{"snapshot", "down", "leave"}, 0)
		switch {
		case err != nil:
			return nil, err
		case how == 0:
			options.Snapshot = &yes
		case how == 1:
			options.Shutdown = &yes
		default:
			fit = slices.DeleteFunc(fit, func(vm vsphere.VM) bool {
				return has(vm, func(b vsphere.Blocker) bool { return b.PowerState })
			})
		}
	}
	if len(fit) == 0 {
		return nil, problem.New(problem.Conflict, "export the chosen VMs", errors.New("none of them can be exported as it is"),
			"see what stands in the way above")
	}
	if media > 0 && !*options.Snapshot {
		remove, err := a.io.Confirm(ctx, fmt.Sprintf("%d VM(s) have an image in the CD-ROM drive. Remove the drive from the VM?", media), false)
		if err != nil {
			return nil, err
		}
		options.RemoveCDROM = &remove
	}
	dirs, err := a.folders(ctx, fit)
	if err != nil {
		return nil, err
	}
	if err := a.askFormat(ctx, &options); err != nil {
		return nil, err
	}
	defs := make([]models.Definition, len(fit))
	for i, vm := range fit {
		// The reference is unambiguous whatever the VM's name.
		defs[i] = models.Definition{Name: vm.Name, VMPath: "moref:" + vm.MoRef, OutputPath: dirs[i], Options: options}
		if _, err := os.Lstat(filepath.Join(dirs[i], output.ReceiptName)); err == nil {
			replace, err := a.io.Confirm(ctx, dirs[i]+" holds an export already. Replace it?", false)
			if err != nil {
				return nil, err
			}
			defs[i].Options.Overwrite = &replace
		}
	}
	ok, err := a.io.Confirm(ctx, fmt.Sprintf("Export %d VM(s) now?", len(defs)), true)
	if err == nil && !ok {
		return nil, nil
	}
	return defs, err
}

// askFormat asks what the export shall leave.
func (a *app) askFormat(ctx context.Context, o *models.Options) error {
	no, yes := false, true
	format := models.QCOW2
	o.Format, o.Compress = &format, &no
	how, err := a.io.Choose(ctx, "Format: (q)cow2, (c)ompressed qcow2, (r)aw, (o)vf or ova? [q]",
		[]string{"qcow2", "compressed", "raw", "ovf", "ova"}, 0)
	if err != nil {
		return err
	}
	switch how {
	case 1:
		o.Compress = &yes
	case 2:
		format = models.Raw
	case 3:
		format = models.OVF
	case 4:
		format = models.OVA
	}
	if format == models.OVF || format == models.OVA {
		return nil
	}
	same, virtio := models.SameHardware, models.VirtioHardware
	o.Hardware = &same
	how, err = a.io.Choose(ctx, "Devices: (s)ame as VMware's, or (v)irtio, if the guest has its drivers? [s]",
		[]string{"same", "virtio"}, 0)
	if err == nil && how == 1 {
		o.Hardware = &virtio
	}
	return err
}

// folders asks for the output folder, and gives one for each VM: several go
// into folders below it.
func (a *app) folders(ctx context.Context, vms []vsphere.VM) ([]string, error) {
	preset := "exports"
	if len(vms) == 1 {
		preset = filepath.Join(preset, output.Stem(vms[0].Name, vms[0].MoRef))
	}
	if abs, err := filepath.Abs(preset); err == nil {
		preset = abs
	}
	for {
		dir, err := a.io.Ask(ctx, "Output folder", preset)
		if err != nil {
			return nil, err
		}
		if rest, ok := strings.CutPrefix(dir, "~/"); ok && a.io.Getenv("HOME") != "" {
			dir = filepath.Join(a.io.Getenv("HOME"), rest)
		}
		if dir, err = filepath.Abs(dir); err != nil {
			exit.Report(ctx, a.io.Err, err)
			continue
		}
		if len(vms) == 1 {
			return []string{dir}, nil
		}
		return below(dir, vms), nil
	}
}

// below gives each VM a folder of its own in dir; those of one name are told
// apart by their references.
func below(dir string, vms []vsphere.VM) []string {
	count := map[string]int{}
	stems := make([]string, len(vms))
	for i, vm := range vms {
		stems[i] = output.Stem(vm.Name, vm.MoRef)
		// Some file systems do not tell cases apart.
		count[strings.ToLower(stems[i])]++
	}
	out := make([]string, len(vms))
	for i, vm := range vms {
		if count[strings.ToLower(stems[i])] > 1 {
			stems[i] += "-" + vm.MoRef
		}
		out[i] = filepath.Join(dir, stems[i])
	}
	return out
}

// hopeless gives what makes an export impossible whatever is chosen here.
func hopeless(vm vsphere.VM) *vsphere.Blocker {
	for _, b := range vm.Blockers {
		if b.Certain && !b.PowerState && !b.Media {
			return &b
		}
	}
	return nil
}

func has(vm vsphere.VM, what func(vsphere.Blocker) bool) bool {
	return slices.ContainsFunc(vm.Blockers, what)
}

// exportAll exports one VM after the other. One that fails does not stop the
// others; the error is the first one's.
func (a *app) exportAll(ctx context.Context, client *vsphere.Client, defs []models.Definition, bars *term.Bars) error {
	var first error
	var done []models.Result
	for i, def := range defs {
		if len(defs) > 1 {
			def.Name = fmt.Sprintf("%s (%d of %d)", def.Name, i+1, len(defs))
		}
		result, err := a.exportOne(ctx, client, def, bars)
		if ctx.Err() != nil && err != nil {
			return err
		}
		if err != nil {
			if len(defs) == 1 {
				return err
			}
			exit.Report(ctx, a.io.Err, err)
			if first == nil {
				first = err
			}
			continue
		}
		a.result(result)
		done = append(done, result)
	}
	if len(defs) > 1 {
		var size int64
		for _, r := range done {
			size += r.TotalSize
		}
		a.io.Success("Exported %d of %d VM(s), %s", len(done), len(defs), term.Size(size))
	}
	if first != nil {
		return &exit.Error{Code: exit.Code(first)} // it has been said
	}
	return nil
}
