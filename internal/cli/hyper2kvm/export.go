package hyper2kvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/exit"
	"github.com/hyper2kvm/hyper2kvm/internal/cli/term"
	"github.com/hyper2kvm/hyper2kvm/internal/runner"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

func (a *app) exportCommand() *cli.Command {
	return &cli.Command{
		Name:      "export",
		Usage:     "export one VM into a folder",
		UsageText: name + " export -vm PATH -output DIR [options]",
		Description: "Disks are fetched in parallel, checked against the host's manifest, and written with a\n" +
			"descriptor and a receipt. After Ctrl-C or a crash the same command continues where it stopped.",
		Flags: []cli.Flag{
			vmFlag(),
			&cli.StringFlag{Name: "output", OnlyOnce: true, Usage: "output folder `DIR`; made if need be"},
			&cli.StringFlag{Name: "name", OnlyOnce: true, Usage: "`NAME` of the export in messages (default: the VM's)"},
			&cli.StringFlag{Name: "format", OnlyOnce: true, Value: string(models.OVF), Usage: "`FORMAT` of the export: ovf"},
			&cli.BoolFlag{Name: "compress", Usage: "compress what is written (the disks of an ovf are compressed anyway)"},
			&cli.IntFlag{Name: "parallel", OnlyOnce: true, Value: 4, Usage: fmt.Sprintf("`N` disks at a time, %d to %d", models.MinParallel, models.MaxParallel)},
			&cli.BoolFlag{Name: "remove-cdrom", Usage: "take CD-ROM drives out of the VM first"},
			&cli.BoolFlag{Name: "snapshot", Usage: "export a running VM from a temporary snapshot"},
			&cli.BoolFlag{Name: "shutdown", Usage: "shut a running VM down first; it stays off"},
			&cli.BoolFlag{Name: "include-media", Usage: "export ISO and floppy images, too"},
			&cli.BoolFlag{Name: "overwrite", Usage: "replace an export in the folder"},
			&cli.BoolFlag{Name: "skip-space-check", Usage: "begin although the disk may be too small"},
		},
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
	log := a.logger(bars)
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
	format := models.Format(strings.ToLower(cmd.String("format")))
	if format != models.OVF {
		return def, exit.UsageError(fmt.Errorf("format %.40q is not available", cmd.String("format")), "use ovf")
	}
	parallel := cmd.Int("parallel")
	if parallel < models.MinParallel || parallel > models.MaxParallel {
		return def, exit.UsageError(fmt.Errorf("-parallel is %d", parallel), fmt.Sprintf("use %d to %d", models.MinParallel, models.MaxParallel))
	}
	def.Options = models.Options{ParallelDownloads: &parallel, Format: &format}
	for flag, field := range map[string]**bool{
		"compress": &def.Options.Compress, "remove-cdrom": &def.Options.RemoveCDROM, "snapshot": &def.Options.Snapshot,
		"shutdown": &def.Options.Shutdown, "include-media": &def.Options.IncludeMedia, "overwrite": &def.Options.Overwrite,
		"skip-space-check": &def.Options.SkipSpaceCheck,
	} {
		v := cmd.Bool(flag)
		*field = &v
	}
	if *def.Options.Snapshot && *def.Options.Shutdown {
		return def, exit.UsageError(errors.New("-snapshot and -shutdown exclude each other"), "give one of them")
	}
	if wrong := def.Check(); wrong != nil {
		return def, exit.UsageError(wrong[0], "see "+cmd.FullName()+" -help")
	}
	return def, nil
}

// exportOne exports one VM and shows its progress in bars, which are gone
// when it returns.
func (a *app) exportOne(ctx context.Context, client *vsphere.Client, def models.Definition, bars *term.Bars) (models.Result, error) {
	// Said at once: giving a lease back can take some seconds.
	stop := context.AfterFunc(ctx, func() {
		bars.Say(slog.LevelWarn, "stopping: the lease is given back, partial files are kept in "+def.OutputPath)
	})
	defer stop()
	title := def.Name
	if title == "" {
		title = def.VMPath[strings.LastIndex(def.VMPath, "/")+1:]
	}
	result, err := runner.Export(ctx, client, def, bars.Sink(title))
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
	a.io.Info("Check it again at any time: %s verify %s", name, quote(r.OutputDir))
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
