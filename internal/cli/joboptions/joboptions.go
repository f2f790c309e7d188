// Package joboptions has the flags by which both command lines take the
// options of an export, so that a flag means the same in each.
package joboptions

import (
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
)

// Formats are the values of -format, Hardware those of -hardware, for
// completion and messages.
var (
	Formats  = []string{string(models.OVF), string(models.OVA), string(models.QCOW2), string(models.Raw)}
	Hardware = []string{string(models.SameHardware), string(models.VirtioHardware)}
)

// Flags are the flags of an export's options.
func Flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "format", OnlyOnce: true, Usage: "`FORMAT` of the export: " + strings.Join(Formats, ", ") + " (default: ovf)"},
		&cli.BoolFlag{Name: "compress", Usage: "keep the disks of a qcow2 compressed, as the host sends them"},
		&cli.BoolFlag{Name: "keep-vmdk", Usage: "store the host's streams, too, beside qcow2 or raw images"},
		&cli.BoolFlag{Name: "verify-grains", Usage: "inflate and check every grain, also where the host's hash proves the disk"},
		&cli.StringFlag{Name: "hardware", OnlyOnce: true, Usage: "`DEVICES` of the libvirt domain: same as VMware's, or virtio (default: same)"},
		&cli.BoolFlag{Name: "nvme", Usage: "keep NVMe disks on an NVMe controller, which libvirt has since 11.5, instead of SATA"},
		&cli.StringSliceFlag{Name: "network", Usage: "`NAME=TARGET` plugs adapters of a VMware network into a bridge, or into network:NET of libvirt; * is any other"},
		&cli.IntFlag{Name: "parallel", OnlyOnce: true, HideDefault: true, Usage: fmt.Sprintf("`N` disks at a time, %d to %d (default: 4)", models.MinParallel, models.MaxParallel)},
		&cli.StringFlag{Name: "bandwidth", OnlyOnce: true, Usage: "take at most `RATE`, such as 50MB/s (default: 0, no limit)"},
		&cli.BoolFlag{Name: "remove-cdrom", Usage: "take CD-ROM drives out of the VM first"},
		&cli.BoolFlag{Name: "snapshot", Usage: "export a running VM from a temporary snapshot"},
		&cli.BoolFlag{Name: "shutdown", Usage: "shut a running VM down first; it stays off"},
		&cli.BoolFlag{Name: "include-media", Usage: "export ISO and floppy images, too"},
		&cli.BoolFlag{Name: "overwrite", Usage: "replace an export in the folder"},
		&cli.BoolFlag{Name: "skip-space-check", Usage: "begin although the disk may be too small"},
	}
}

// fields are the keys of job files by the flags that set them, where they are
// not the same word.
var fields = map[string]string{
	"vm_path": "vm", "output_path": "output", "parallel_downloads": "parallel", "networks": "network",
}

// Read gives the options whose flags were given; the others stay nil.
func Read(cmd *cli.Command) (models.Options, error) {
	var o models.Options
	for flag, to := range map[string]**bool{
		"compress": &o.Compress, "keep-vmdk": &o.KeepVMDK, "verify-grains": &o.VerifyGrains, "nvme": &o.NVMe,
		"remove-cdrom": &o.RemoveCDROM, "snapshot": &o.Snapshot, "shutdown": &o.Shutdown,
		"include-media": &o.IncludeMedia, "overwrite": &o.Overwrite, "skip-space-check": &o.SkipSpaceCheck,
	} {
		if cmd.IsSet(flag) {
			*to = new(cmd.Bool(flag))
		}
	}
	if cmd.IsSet("parallel") {
		o.ParallelDownloads = new(cmd.Int("parallel"))
	}
	if cmd.IsSet("format") {
		o.Format = new(models.Format(strings.ToLower(cmd.String("format"))))
	}
	if cmd.IsSet("hardware") {
		o.Hardware = new(models.Hardware(strings.ToLower(cmd.String("hardware"))))
	}
	if cmd.IsSet("bandwidth") {
		b, err := models.ParseBandwidth(cmd.String("bandwidth"))
		if err != nil {
			return o, exit.UsageError(fmt.Errorf("-bandwidth %.40q %w", cmd.String("bandwidth"), err), "give it as -bandwidth 50MB/s")
		}
		o.Bandwidth = &b
	}
	for _, arg := range cmd.StringSlice("network") {
		// Names of VMware networks may hold equals signs, targets may not.
		i := strings.LastIndexByte(arg, '=')
		if i < 0 {
			return o, exit.UsageError(fmt.Errorf("-network %q has no equals sign", arg), "give it as -network 'VM Network=br0'")
		}
		if o.Networks == nil {
			o.Networks = map[string]string{}
		}
		if _, twice := o.Networks[arg[:i]]; twice {
			return o, exit.UsageError(fmt.Errorf("-network maps %q twice", arg[:i]), "give each network once")
		}
		o.Networks[arg[:i]] = arg[i+1:]
	}
	if o.Snapshot != nil && *o.Snapshot && o.Shutdown != nil && *o.Shutdown {
		return o, exit.UsageError(errors.New("-snapshot and -shutdown exclude each other"), "give one of them")
	}
	return o, nil
}

// Check checks a definition made of flags; the error names the flag.
func Check(cmd *cli.Command, def models.Definition, advice map[string]string) error {
	bad := def.Check()
	if bad == nil {
		return nil
	}
	flag := fields[bad[0].Field]
	if flag == "" {
		flag = strings.ReplaceAll(bad[0].Field, "_", "-")
	}
	help := advice[bad[0].Field]
	if help == "" {
		help = "see " + cmd.FullName() + " -help"
	}
	return exit.UsageError(fmt.Errorf("-%s %s", flag, bad[0].Problem), help)
}
