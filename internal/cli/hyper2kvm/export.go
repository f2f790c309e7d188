package hyper2kvm

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/joboptions"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/pace"
	"github.com/hyper2kvm/hyper2kvm/internal/runner"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

func (a *app) exportCommand() *cli.Command {
	return &cli.Command{
		Name:      "export",
		Usage:     "export one VM into a folder",
		UsageText: name + " export -vm PATH -output DIR [options]",
		Description: "Disks are fetched in parallel, checked against the host's manifest, and written with a\n" +
			"descriptor and a receipt. With -format qcow2 or raw they become images while they come, beside\n" +
			"a domain that virsh define takes. After Ctrl-C or a crash the same command continues: finished\n" +
			"disks are kept, and begun ones of an ovf or ova go on where the host allows it.",
		Flags: append([]cli.Flag{
			vmFlag(),
			&cli.StringFlag{Name: "output", OnlyOnce: true, Usage: "output folder `DIR`; made if need be"},
			&cli.StringFlag{Name: "name", OnlyOnce: true, Usage: "`NAME` of the export in messages (default: the VM's)"},
		}, joboptions.Flags()...),
		Action:        a.export,
		ShellComplete: a.complete,
	}
}

func (a *app) export(ctx context.Context, cmd *cli.Command) error {
	def, err := definition(cmd)
	if err != nil {
		return err
	}
	bars := term.NewBars(a.errIO())
	defer bars.Close()
	log := a.barLogger(bars)
	client, err := a.connect(ctx, log)
	if err != nil {
		return err
	}
	defer disconnect(ctx, client, log)
	result, err := a.exportOne(ctx, client, def, bars)
	if err != nil {
		return err
	}
	if a.json {
		return a.io.JSON(result)
	}
	a.result(result)
	return nil
}

// definition reads the flags of export.
func definition(cmd *cli.Command) (models.Definition, error) {
	def := models.Definition{Name: cmd.String("name")}
	err := exit.NoArguments(cmd, vmAdvice)
	if err != nil {
		return def, err
	}
	if def.VMPath, err = required(cmd, "vm", vmAdvice); err != nil {
		return def, err
	}
	dir, err := required(cmd, "output", "name the output folder with -output")
	if err != nil {
		return def, err
	}
	if def.OutputPath, err = filepath.Abs(dir); err != nil {
		return def, exit.UsageError(fmt.Errorf("output folder %q: %w", dir, err), "give an absolute path")
	}
	if def.Options, err = joboptions.Read(cmd); err != nil {
		return def, err
	}
	return def, joboptions.Check(cmd, def, nil)
}

// exportOne exports one VM and shows its progress in bars, which are gone
// when it returns.
func (a *app) exportOne(ctx context.Context, client *vsphere.Client, def models.Definition, bars *term.Bars) (models.Result, error) {
	title := def.Name
	if title == "" {
		title = def.VMPath[strings.LastIndex(def.VMPath, "/")+1:]
	}
	// Said at once: giving a lease back can take some seconds.
	stop := context.AfterFunc(ctx, func() {
		bars.Say(slog.LevelWarn, "stopping: the lease of "+title+" is given back, which can take 10 s; Ctrl-C again ends at once")
	})
	defer stop()
	var bandwidth int64
	if b := def.Options.Bandwidth; b != nil {
		bandwidth = int64(*b)
	}
	// Its streams are bounded by -parallel alone: there is nobody beside it.
	bounds := runner.Bounds{Pace: pace.New(pace.Settings{}).Job(bandwidth)}
	result, err := runner.Export(ctx, client, def, bounds, bars.Sink(title))
	bars.Clear()
	return result, err
}

// result says what lies where.
func (a *app) result(r models.Result) {
	took := ""
	if d, err := time.ParseDuration(r.Duration); err == nil {
		took = " in " + term.Duration(d)
		if d < 10*time.Second {
			took = " in " + d.Round(10*time.Millisecond).String()
		}
	}
	a.io.Success("Exported %s: %d file(s), %s%s", r.VMName, len(r.Files), term.Size(r.TotalSize), took)
	a.io.Info("OVF: %s", r.OVFPath)
	if r.DomainPath != "" {
		a.io.Info("libvirt domain: %s", r.DomainPath)
	}
	for _, f := range r.Files {
		size := ""
		if info, err := os.Stat(f); err == nil {
			size = "  " + term.Size(info.Size())
		}
		a.io.Info("- %s%s", filepath.Base(f), size)
	}
	if r.Verified {
		a.io.Success("Verified: every disk agrees with the host's manifest")
	} else {
		a.io.Info("Not verified by the host, which gave no hash: the disks were checked by their grains")
	}
	for _, w := range r.Warnings {
		a.io.Warn("%s", w)
	}
	for _, n := range r.Notes {
		a.io.Info("Note: %s", n)
	}
	if r.DomainPath != "" {
		a.io.Next("Define it on the KVM host", "virsh define "+quote(r.DomainPath))
	} else {
		a.io.Next("To make images for KVM of it", fmt.Sprintf("%s convert %s OUT", name, quote(r.OVFPath)))
	}
	a.io.Next("Check it again at any time", fmt.Sprintf("%s verify %s", name, quote(r.OutputDir)))
}

// quote gives a path as a shell takes it.
func quote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("/._-+=:@%,", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// fail says an error that is not the last word on standard error.
func (a *app) fail(format string, args ...any) {
	fmt.Fprintf(a.io.Err, "ERROR: %s\n", term.Clean(fmt.Sprintf(format, args...)))
}
