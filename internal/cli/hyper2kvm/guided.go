package hyper2kvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

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

// errNoneFits: all chosen VMs have something in their way.
var errNoneFits = errors.New("none of them can be exported as it is")

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
	log := a.barLogger(bars)
	client, err := a.login(ctx, log)
	if err != nil {
		return err
	}
	defer disconnect(ctx, client, log)
	var defs []models.Definition
	for {
		vms, err := a.choose(ctx, client)
		if err != nil {
			return err
		}
		if defs, err = a.plan(ctx, vms); err == nil {
			break
		}
		if !errors.Is(err, errNoneFits) {
			return err
		}
		exit.Report(ctx, a.io.Err, err) // others may be chosen
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
	server := ""
	askServer := func() error {
		for {
			text, err := a.io.Ask(ctx, "vCenter or ESXi host", server)
			if err != nil {
				return err
			}
			if text == "" {
				continue
			}
			if _, _, _, err := vsphere.ParseURL(text); err != nil {
				exit.Report(ctx, a.io.Err, err)
				continue
			}
			server, given["GOVC_URL"] = text, text
			return nil
		}
	}
	if strings.TrimSpace(getenv("GOVC_URL")) == "" {
		if err := askServer(); err != nil {
			return nil, err
		}
	}
	thumbprint := "" // of a certificate that was agreed to
	user := "administrator@vsphere.local"
	for try := 1; ; try++ {
		cfg, err := vsphere.ConfigFromEnv(getenv)
		if err != nil {
			return nil, err
		}
		cfg.Thumbprint = thumbprint
		if cfg.Username == "" {
			if cfg.Username, err = a.io.Ask(ctx, "User", user); err != nil {
				return nil, err
			}
			user, given["GOVC_USERNAME"] = cfg.Username, cfg.Username
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
		client, err := a.connectTo(ctx, cfg, log)
		if untrusted, ok := errors.AsType[*vsphere.CertificateError](err); ok && thumbprint == "" {
			trusted, aerr := a.askTrust(ctx, untrusted)
			if aerr != nil {
				return nil, aerr
			}
			if !trusted {
				return nil, err
			}
			thumbprint = untrusted.SHA256
			cfg.Thumbprint = thumbprint
			client, err = a.connectTo(ctx, cfg, log)
		}
		if err == nil {
			a.io.Success("Connected to vSphere successfully!")
			return client, nil
		}
		switch kind := problem.KindOf(err); {
		case kind == problem.Unauthorized && asked && try < loginTries:
			exit.Report(ctx, a.io.Err, err)
			if given["GOVC_USERNAME"] != "" {
				delete(given, "GOVC_USERNAME") // it may be that which is wrong
			}
		case kind == problem.Unreachable && server != "" && ctx.Err() == nil:
			exit.Report(ctx, a.io.Err, err)
			if err := askServer(); err != nil {
				return nil, err
			}
			try, thumbprint = 0, ""
		default:
			return nil, err
		}
	}
}

func (a *app) connectTo(ctx context.Context, cfg vsphere.Config, log *slog.Logger) (*vsphere.Client, error) {
	stop := a.io.Spin("Connecting to " + cfg.URL.Host)
	defer stop()
	return vsphere.Connect(ctx, cfg, log)
}

// askTrust shows a certificate that no authority vouches for, and asks whether
// it is the right one. The answer holds for this run.
func (a *app) askTrust(ctx context.Context, e *vsphere.CertificateError) (bool, error) {
	a.io.Warn("Nobody vouches for the certificate of %s: %v", e.Host, e.Err)
	a.io.Table([]string{"Certificate", ""}, [][]string{
		{"Subject", e.Subject}, {"Issuer", e.Issuer}, {"Valid until", e.NotAfter.Local().Format(time.DateTime)},
	})
	// Not in the table: all of them is to be compared.
	fmt.Fprintf(a.io.Out, "SHA-256 %s\n        %s\nSHA-1   %s\n", e.SHA256[:len(e.SHA256)/2+1], e.SHA256[len(e.SHA256)/2+1:], e.SHA1)
	a.io.Info("Compare the thumbprint with what the server itself, or who runs it, says.")
	ok, err := a.io.Confirm(ctx, "Trust this certificate for now?", false)
	if err == nil && ok {
		a.io.Info("To trust it from now on, add this line to the file named by GOVC_TLS_KNOWN_HOSTS:")
		fmt.Fprintf(a.io.Out, "%s %s\n", e.Host, e.SHA1)
	}
	return ok, err
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
	picked, err := a.io.Select(ctx, a.inventory(client, all))
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

// inventory is the list of VMs to choose from.
func (a *app) inventory(client *vsphere.Client, all []vsphere.VMSummary) term.List {
	l := term.List{
		Question: "VMs to export", Head: []string{"Name", "Folder", "Power", "Guest OS", "Size"},
		Hint: "type words, :on :off, >10G <1T",
		Rows: make([][]string, len(all)),
		Match: func(word string) (func(int) bool, bool) {
			if state, ok := strings.CutPrefix(word, ":"); ok && state != "" {
				return func(i int) bool { return strings.HasPrefix(power(all[i].PowerState, all[i].Template), state) }, true
			}
			if holds, ok := sizeCondition(word); ok {
				return func(i int) bool { return holds(all[i].Committed) }, true
			}
			return nil, false
		},
		Sum: func(rows []int) string {
			var size int64
			for _, i := range rows {
				size += all[i].Committed
			}
			return term.Size(size)
		},
		Detail: func(ctx context.Context, i int) ([]string, error) {
			vm, err := client.InspectVM(ctx, all[i].MoRef)
			if err != nil {
				return nil, err
			}
			return details(vm), nil
		},
	}
	for i, vm := range all {
		folder, _ := path.Split(vm.Path)
		l.Rows[i] = []string{vm.Name, strings.TrimSuffix(folder, "/"), power(vm.PowerState, vm.Template), vm.GuestOS, term.Size(vm.Committed)}
	}
	return l
}

// sizeCondition reads ">10G", "<=1.5T": sizes in powers of 1024, as they are
// shown. While it is typed, a bare sign holds of everything.
func sizeCondition(word string) (holds func(size int64) bool, ok bool) {
	rest, less := strings.CutPrefix(word, "<")
	if !less {
		if rest, ok = strings.CutPrefix(word, ">"); !ok {
			return nil, false
		}
	}
	rest = strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(rest, "="), "b"), "i")
	if rest == "" {
		return func(int64) bool { return true }, true
	}
	factor := 1.0
	if i := strings.IndexByte("kmgtp", rest[len(rest)-1]); i >= 0 {
		factor, rest = float64(int64(1)<<(10*(i+1))), rest[:len(rest)-1]
	}
	n, err := strconv.ParseFloat(rest, 64)
	if err != nil {
		return nil, false
	}
	return func(size int64) bool {
		if less {
			return float64(size) <= n*factor
		}
		return float64(size) >= n*factor
	}, true
}

// details are the lines of a VM's detail view.
func details(vm vsphere.VM) []string {
	lines := []string{vm.Path}
	for _, row := range facts(vm) {
		lines = append(lines, fmt.Sprintf("  %s %s", term.Pad(term.Clean(row[0]), 18), term.Clean(row[1])))
	}
	if len(vm.Blockers) == 0 {
		return append(lines, "Nothing stands in the way of an export")
	}
	for _, b := range vm.Blockers {
		lines = append(lines, "! "+term.Clean(b.What))
		if b.Advice != "" {
			lines = append(lines, "    "+term.Clean(b.Advice))
		}
	}
	return lines
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
		return nil, problem.New(problem.Conflict, "export the chosen VMs", errNoneFits, "see what stands in the way above, and choose others")
	}
	if media > 0 && !*options.Snapshot {
		remove, err := a.io.Confirm(ctx, fmt.Sprintf("%d VM(s) have an image in the CD-ROM drive. Remove the drive from the VM?", media), false)
		if err != nil {
			return nil, err
		}
		options.RemoveCDROM = &remove
	}
	dirs, err := a.folders(ctx, fit, &options)
	if err != nil {
		return nil, err
	}
	if err := a.askFormat(ctx, fit, &options); err != nil {
		return nil, err
	}
	if err := a.askOptions(ctx, &options); err != nil {
		return nil, err
	}
	var defs []models.Definition
	var taken []vsphere.VM
	for i, vm := range fit {
		// The reference is unambiguous whatever the VM's name.
		def := models.Definition{Name: vm.Name, VMPath: "moref:" + vm.MoRef, OutputPath: dirs[i], Options: options}
		if _, err := os.Lstat(filepath.Join(dirs[i], output.ReceiptName)); err == nil {
			replace, err := a.io.Confirm(ctx, dirs[i]+" holds an export already. Replace it?", false)
			if err != nil {
				return nil, err
			}
			if !replace {
				a.io.Warn("%s is left out: that export stays", vm.Name)
				continue
			}
			def.Options.Overwrite = &replace
		}
		defs, taken = append(defs, def), append(taken, vm)
	}
	if len(defs) == 0 {
		return nil, nil
	}
	a.lastLook(defs, options, taken)
	ok, err := a.io.Confirm(ctx, fmt.Sprintf("Export %d VM(s) now?", len(defs)), true)
	if err == nil && !ok {
		return nil, nil
	}
	return defs, err
}

// askFormat asks what the export shall leave.
func (a *app) askFormat(ctx context.Context, vms []vsphere.VM, o *models.Options) error {
	no, yes := false, true
	format := models.QCOW2
	o.Format, o.Compress = &format, &no
	used, capacity := sizes(vms)
	about := "up to " + term.Size(used)
	a.io.Table([]string{"Format", "What it is", "Space"}, [][]string{
		{"qcow2", "images for KVM, holes left out", about},
		{"compressed", "qcow2 as compressed as the host sends it", "less"},
		{"raw", "sparse images of " + term.Size(capacity) + " in all", about},
		{"ovf", "a descriptor and compressed VMDK files", "less"},
		{"ova", "the same in one file", "less"},
	})
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

// sizes gives what VMs take on their datastores, and what their guests see.
func sizes(vms []vsphere.VM) (used, capacity int64) {
	for _, vm := range vms {
		used += vm.Committed
		for _, d := range vm.Disks {
			capacity += d.Capacity
		}
	}
	return used, capacity
}

// askOptions asks for what few want to change.
func (a *app) askOptions(ctx context.Context, o *models.Options) error {
	change, err := a.io.Confirm(ctx, "Change options (streams, bandwidth, checks, media)?", false)
	if err != nil || !change {
		return err
	}
	for {
		text, err := a.io.Ask(ctx, fmt.Sprintf("Disks at a time, %d to %d", models.MinParallel, models.MaxParallel), "4")
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(text)
		if err == nil && n >= models.MinParallel && n <= models.MaxParallel {
			o.ParallelDownloads = &n
			break
		}
		a.io.Warn("%q is no number from %d to %d", text, models.MinParallel, models.MaxParallel)
	}
	for {
		text, err := a.io.Ask(ctx, "Bandwidth, such as 50MB/s; 0 is no limit", "0")
		if err != nil {
			return err
		}
		rate, err := models.ParseBandwidth(text)
		if err == nil && rate.Check() == "" {
			o.Bandwidth = &rate
			break
		}
		why := rate.Check()
		if err != nil {
			why = err.Error()
		}
		a.io.Warn("%q %s", text, why)
	}
	for _, q := range []struct {
		question string
		to       **bool
		images   bool // only of use where disks become images
	}{
		{"Check every grain, also where the host's hash proves the disk?", &o.VerifyGrains, false},
		{"Keep the host's VMDK streams beside the images?", &o.KeepVMDK, true},
		{"Take attached ISO and floppy images, too?", &o.IncludeMedia, false},
	} {
		if q.images && *o.Format != models.QCOW2 && *o.Format != models.Raw {
			continue
		}
		yes, err := a.io.Confirm(ctx, q.question, false)
		if err != nil {
			return err
		}
		*q.to = &yes
	}
	return nil
}

// lastLook shows all that was decided.
func (a *app) lastLook(defs []models.Definition, o models.Options, vms []vsphere.VM) {
	used, _ := sizes(vms)
	format := string(*o.Format)
	if *o.Compress {
		format += ", compressed"
	}
	if o.Hardware != nil && *o.Hardware == models.VirtioHardware {
		format += ", virtio devices"
	}
	lines := []string{
		fmt.Sprintf("VMs:     %d, %s on the datastores", len(defs), term.Size(used)),
		"Format:  " + format,
	}
	for i, d := range defs {
		if i == 8 {
			lines = append(lines, fmt.Sprintf("         and %d more", len(defs)-i))
			break
		}
		note := ""
		if d.Options.Overwrite != nil && *d.Options.Overwrite {
			note = " (replaces the export there)"
		}
		lines = append(lines, "Into:    "+d.OutputPath+note)
	}
	var also []string
	for text, on := range map[string]*bool{
		"snapshot of running VMs": o.Snapshot, "running VMs are shut down and stay off": o.Shutdown, "CD-ROM drives are removed": o.RemoveCDROM,
		"every grain is checked": o.VerifyGrains, "VMDK streams are kept": o.KeepVMDK, "media come, too": o.IncludeMedia, "space is not checked": o.SkipSpaceCheck,
	} {
		if on != nil && *on {
			also = append(also, text)
		}
	}
	if o.ParallelDownloads != nil && *o.ParallelDownloads != 4 {
		also = append(also, fmt.Sprintf("%d disks at a time", *o.ParallelDownloads))
	}
	if o.Bandwidth != nil && *o.Bandwidth > 0 {
		also = append(also, "at most "+term.Rate(int64(*o.Bandwidth)))
	}
	slices.Sort(also)
	for _, text := range also {
		lines = append(lines, "Also:    "+text)
	}
	a.io.Box("A last look", lines...)
}

// folders asks for the output folder, and gives one for each VM: several go
// into folders below it. Where there may be too little space it asks again, or
// notes in o that this was seen.
func (a *app) folders(ctx context.Context, vms []vsphere.VM, o *models.Options) ([]string, error) {
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
		free, err := output.FreeAt(dir)
		if err != nil {
			exit.Report(ctx, a.io.Err, err)
			continue
		}
		used, _ := sizes(vms)
		a.io.Info("%s free there, the disks hold up to %s", term.Size(free), term.Size(used))
		if free < used {
			enough, err := a.io.Confirm(ctx, "That may not do; compressed formats take less. Use it all the same?", false)
			if err != nil {
				return nil, err
			}
			if !enough {
				continue
			}
			o.SkipSpaceCheck = &enough
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
